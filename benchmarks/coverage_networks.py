"""Small networks of the kinds that people ship, for `coverage.py`: in torch alone, timm's, Hugging Face's."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, Any]  # a network, and an example for it


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), act())


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


class C2f(nn.Module):
    """As in YOLOv8: halves, one of which goes through a chain, all concatenated."""

    def __init__(self, i: int, o: int, n: int) -> None:
        super().__init__()
        self.inlet, self.outlet = conv(i, o, 1), conv(o // 2 * (n + 2), o, 1)
        self.chain = nn.ModuleList(Bottleneck(o // 2) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.inlet(x).chunk(2, 1))
        for block in self.chain:
            parts.append(block(parts[-1]))
        return self.outlet(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Backbone, fast pyramid pooling, top-down and bottom-up paths, a head for each of three scales."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1))
        self.p3 = nn.Sequential(conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2))
        self.p4 = nn.Sequential(conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 2))
        self.p5 = nn.Sequential(conv(8 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 1))
        self.narrow, self.wide, self.pool = conv(8 * w, 4 * w, 1), conv(16 * w, 8 * w, 1), nn.MaxPool2d(5, 1, 2)
        self.up4, self.up3 = C2f(16 * w, 8 * w, 1), C2f(12 * w, 4 * w, 1)
        self.down4, self.out4 = conv(4 * w, 4 * w, 3, 2), C2f(12 * w, 8 * w, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(conv(c, 2 * w), nn.Conv2d(2 * w, 4 + classes, 1)) for c in (4 * w, 8 * w, 8 * w)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.p3(self.stem(x))
        b = self.p4(a)
        c = self.narrow(self.p5(b))
        pooled = [c]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        c = self.wide(torch.cat(pooled, 1))
        b = self.up4(torch.cat([F.interpolate(c, scale_factor=2.0), b], 1))
        a = self.up3(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1))
        b = self.out4(torch.cat([self.down4(a), b], 1))
        return [head(y) for head, y in zip(self.heads, (a, b, c), strict=True)]


class UNet(nn.Module):
    """Two levels with skips; attention gates of one channel where asked for."""

    def __init__(self, *, attended: bool) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 16), conv(16, 32), conv(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge2, self.merge1, self.head = conv(64, 32), conv(32, 16), nn.Conv2d(16, 2, 1)
        self.gate = nn.Sequential(conv(32, 16, 1), nn.Conv2d(16, 1, 1), nn.Sigmoid()) if attended else None

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.two(F.max_pool2d(a, 2))
        c = self.three(F.max_pool2d(b, 2))
        b = b if self.gate is None else b * self.gate(b)
        b = self.merge2(torch.cat([self.up2(c), b], 1))
        return self.head(self.merge1(torch.cat([self.up1(b), a], 1)))


class DeepLab(nn.Module):
    """Dilated branches, image pooling, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = (
            nn.Sequential(conv(3, 16, 3, 2), conv(16, 24)),
            nn.Sequential(conv(24, 48, 3, 2), conv(48, 64)),
        )
        self.branches = nn.ModuleList(nn.Conv2d(64, 32, 3, padding=r, dilation=r) for r in (1, 2, 4))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 32, 1), nn.ReLU())
        self.project, self.skip = conv(128, 32, 1), conv(24, 12, 1)
        self.head = nn.Sequential(conv(44, 32), nn.Conv2d(32, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        high = self.high(low)
        size = high.shape[-2:]
        parts = [branch(high) for branch in self.branches] + [F.interpolate(self.pooled(high), size=size)]
        y = F.interpolate(self.project(torch.cat(parts, 1)), size=low.shape[-2:], mode="bilinear")
        return F.interpolate(self.head(torch.cat([y, self.skip(low)], 1)), size=x.shape[-2:], mode="bilinear")


class ConvolvedAttention(nn.Module):
    """Heads of 1x1 convolutions, by views."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale, self.norm = heads, (width // heads) ** -0.5, nn.GroupNorm(8, width)
        self.to_qkv, self.to_out = nn.Conv2d(width, 3 * width, 1, bias=False), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        q, k, v = (p.reshape(len(x), self.heads, -1, p.shape[2] * p.shape[3]) for p in parts)
        scores = torch.einsum("bhdi,bhdj->bhij", q * self.scale, k).softmax(-1)
        return x + self.to_out(torch.einsum("bhij,bhdj->bhdi", scores, v).reshape(len(x), -1, *x.shape[2:]))


class DiffusionBlock(nn.Module):
    """GroupNorm, convolution, an embedding of time added, and attention over places: of one head, or of several."""

    def __init__(self, i: int, o: int, *, attends: bool, groups: int = 4) -> None:
        super().__init__()
        self.several = ConvolvedAttention(o) if attends and groups > 4 else None
        attends = attends and groups <= 4
        self.norm1, self.conv1 = nn.GroupNorm(groups, i), nn.Conv2d(i, o, 3, padding=1)
        self.time, self.norm2, self.conv2 = nn.Linear(32, o), nn.GroupNorm(groups, o), nn.Conv2d(o, o, 3, padding=1)
        self.short = nn.Conv2d(i, o, 1) if i != o else nn.Identity()
        self.attends = attends
        if attends:
            self.norm3 = nn.GroupNorm(4, o)
            self.q, self.k, self.v, self.out = (nn.Conv2d(o, o, 1) for _ in range(4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        x = self.short(x) + self.conv2(F.silu(self.norm2(y)))
        x = x if self.several is None else self.several(x)
        if self.attends:
            y = self.norm3(x)
            q, k, v = (f(y).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + self.out(y.reshape(len(y), -1, *x.shape[2:]))
        return x


class DiffusionUNet(nn.Module):
    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.inlet = nn.Conv2d(3, 32, 3, padding=1)
        self.a, self.b = (
            DiffusionBlock(32, 32, attends=False, groups=groups),
            DiffusionBlock(32, 64, attends=True, groups=groups),
        )
        self.c = DiffusionBlock(96, 32, attends=False, groups=groups)
        self.norm, self.out = nn.GroupNorm(groups, 32), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * 0.5 ** torch.arange(8)
        t = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        a = self.a(self.inlet(x), t)
        b = F.interpolate(self.b(F.avg_pool2d(a, 2), t), scale_factor=2.0)
        return self.out(F.silu(self.norm(self.c(torch.cat([a, b], 1), t))))


class Recurrent(nn.Module):
    """Spectrogram -> convolution -> LSTM or GRU, both ways -> classes of each step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.front, self.inlet = nn.Conv1d(40, 48, 3, padding=1), nn.BatchNorm1d(48)
        self.recurrent = kind(48, 64, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.inlet(self.front(x)).relu().transpose(1, 2))[0])


class Conformer(nn.Module):
    """Feed-forward, torch's attention, a gated depthwise convolution, feed-forward."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.inlet = nn.Linear(40, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.first, self.second = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)) for _ in range(2)
        )
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide, self.depth = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.batch, self.narrow, self.head = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1), nn.Linear(width, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        x = x + 0.5 * self.first(self.norms[0](x))
        y = self.norms[1](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.wide(self.norms[2](x).transpose(1, 2)), 1)
        x = x + self.narrow(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        x = x + 0.5 * self.second(self.norms[3](x))
        return self.head(self.norms[4](x))


class TemporalBlock(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.gated, self.back = (
            nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gated(x).chunk(2, 1)
        return x + self.back(a.tanh() * b.sigmoid())


class GraphNet(nn.Module):
    """Dense graph convolutions: features times a given adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(64) for _ in range(3)), nn.Linear(64, 7)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(adjacency @ layer(x)).relu()
        return self.head(x.mean(1))


class EdgeAttention(nn.Module):
    """Attention along the edges of a graph, written with indices."""

    def __init__(self, inputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.values = heads, nn.Linear(inputs, width, bias=False)
        self.score = nn.Parameter(torch.randn(1, heads, 2 * width // heads) / 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y, (source, target) = self.values(x).view(len(x), self.num_heads, -1), edges
        score = F.leaky_relu((torch.cat([y[source], y[target]], -1) * self.score).sum(-1), 0.2).exp()
        total = torch.zeros_like(score[: len(x)]).index_add(0, target, score)
        part = (score / (total[target] + 1e-9))[..., None] * y[source]
        return torch.zeros_like(y).index_add(0, target, part).flatten(1)


class EdgeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = EdgeAttention(16, 64, 4), EdgeAttention(64, 64, 4), nn.Linear(64, 7)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(F.elu(self.second(F.elu(self.first(x, edges)), edges)))


class Experts(nn.Module):
    """Each word goes to two of its experts."""

    def __init__(self, width: int, count: int = 4) -> None:
        super().__init__()
        self.router, self.norm = nn.Linear(width, count), nn.LayerNorm(width)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        words = self.norm(x).flatten(0, 1)
        weights, chosen = self.router(words).softmax(-1).topk(2)
        y = torch.zeros_like(words)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == number)
            y = y.index_add(0, rows, expert(words[rows]) * weights[rows, rank, None])
        return x + y.view(x.shape)


class Impala(nn.Module):
    """An agent's encoder, with a policy and a value."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 32)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise(widths))
        self.inner = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU(),
                                                 nn.Conv2d(o, o, 3, padding=1)) for o in widths[1:])  # fmt: skip
        self.fc, self.policy, self.value = nn.Linear(32 * 64, 256), nn.Linear(256, 15), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer, inner in zip(self.convs, self.inner, strict=True):
            x = F.max_pool2d(layer(x), 3, 2, 1)
            x = x + inner(x)
        y = self.fc(x.relu().flatten(1)).relu()
        return self.policy(y), self.value(y)


class Gpt(nn.Module):
    """torch's layers, learned positions, the output layer tied to the embedding."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(500, width), nn.Parameter(torch.randn(16, width) / 50)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        self.blocks, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(width)
        self.head = nn.Linear(width, 500, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x, mask=mask, is_causal=True)))


class Clusters(nn.Module):
    """Features by unit length to centers, added up by soft assignments, and given unit length twice."""

    def __init__(self, width: int = 48, centers: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 24, s=2), conv(24, 32, s=2), nn.Conv2d(32, width, 3, padding=1))
        self.chosen, self.last = nn.Conv2d(width, centers, 1), nn.Linear(centers * width, 64)
        self.centers = nn.Parameter(torch.rand(centers, width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.features(x), dim=1)
        part, x = self.chosen(x).flatten(2).softmax(1), x.flatten(2)
        y = ((x.unsqueeze(1) - self.centers[..., None]) * part.unsqueeze(2)).sum(-1)
        return self.last(F.normalize(F.normalize(y, dim=2).flatten(1), dim=1))


class Ranking(nn.Module):
    """Numbers and words of several kinds; the products of all pairs of their embeddings."""

    def __init__(self, width: int = 16, tables: int = 4) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(200, width, mode="sum") for _ in range(tables))
        pairs = tables * (tables + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("pairs", torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        x = self.bottom(numbers)
        parts = [x, *(table(words[:, i : i + 1]) for i, table in enumerate(self.tables))]
        y = torch.cat(parts, 1).view(len(x), -1, x.shape[1])
        i, j = self.pairs
        return self.top(torch.cat([x, torch.bmm(y, y.transpose(1, 2))[:, i, j]], 1))


def own() -> Iterator[tuple[str, Callable[[], Made]]]:
    """Written here."""
    image, sound, tokens = torch.randn(2, 3, 64, 64), torch.randn(2, 30, 40), torch.randint(0, 500, (2, 16))
    yield "detection: YOLO-like", lambda: (Yolo(), image)
    yield "segmentation: U-Net", lambda: (UNet(attended=False), image)
    yield "segmentation: attention U-Net", lambda: (UNet(attended=True), image)
    yield "segmentation: DeepLab", lambda: (DeepLab(), image)
    yield "diffusion: U-Net", lambda: (DiffusionUNet(), (image[..., :32, :32], torch.rand(2)))
    yield "diffusion: U-Net, several heads", lambda: (DiffusionUNet(16), (image[..., :32, :32], torch.rand(2)))
    yield "speech: LSTM", lambda: (Recurrent(nn.LSTM), sound.transpose(1, 2))
    yield "speech: GRU", lambda: (Recurrent(nn.GRU), sound.transpose(1, 2))
    yield "speech: Conformer block", lambda: (Conformer(), sound)
    yield (
        "series: temporal convolutions",
        lambda: (
            nn.Sequential(nn.Conv1d(40, 32, 1), *(TemporalBlock(32, 2**i) for i in range(4)), nn.Conv1d(32, 2, 1)),
            sound.transpose(1, 2),
        ),
    )
    normed = nn.utils.parametrizations.weight_norm
    yield "series: temporal convolutions with weight_norm", lambda: (
        nn.Sequential(*(m for i, o, d in ((40, 32, 1), (32, 32, 2), (32, 48, 4)) for m in (
            normed(nn.Conv1d(i, o, 3, padding=d, dilation=d)), nn.ReLU(), nn.Dropout(0.1),
        )), nn.Conv1d(48, 2, 1)), sound.transpose(1, 2))  # fmt: skip
    yield "series: transformer", lambda: (
        nn.Sequential(nn.Linear(40, 64), nn.TransformerEncoder(
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2, enable_nested_tensor=False),
            nn.Linear(64, 3)), sound)  # fmt: skip
    yield "graph: dense convolutions", lambda: (GraphNet(), (torch.randn(2, 12, 16), torch.rand(2, 12, 12) / 6))
    edges = torch.randint(0, 24, (2, 90))
    yield "graph: attention along edges", lambda: (EdgeNet(), (torch.randn(24, 16), edges))
    yield "text: sparse experts", lambda: (
        nn.Sequential(nn.Embedding(500, 48), Experts(48), Experts(48), nn.Linear(48, 5)), tokens)  # fmt: skip
    yield "retrieval: NetVLAD", lambda: (Clusters(), image)
    yield "ranking: DLRM", lambda: (Ranking(), (torch.randn(4, 13), torch.randint(0, 200, (4, 4))))
    yield "agent: IMPALA", lambda: (Impala(), image)
    yield "agent: DQN", lambda: (
        nn.Sequential(nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Flatten(),
                      nn.Linear(64 * 36, 256), nn.ReLU(), nn.Linear(256, 6)), image)  # fmt: skip
    yield "text: GPT of torch's layers, tied", lambda: (Gpt(), tokens)


TIMM = {
    "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "res2net50_26w_4s": 64, "resnest14d": 64,
    "mobilenetv2_100": 64, "mobilenetv3_small_100": 64, "mobilenetv4_conv_small": 64, "efficientnet_b0": 64,
    "tf_efficientnet_cc_b0_4e": 64, "efficientnetv2_rw_t": 64, "densenet121": 64, "vgg11_bn": 64, "inception_v3": 96,
    "xception41": 64, "regnety_002": 64, "repvgg_a0": 64, "ghostnet_100": 64, "hrnet_w18_small": 64, "dla34": 64,
    "cspresnet50": 64, "darknet53": 64, "convnext_atto": 64, "convnextv2_atto": 64, "fastvit_t8": 64,
    "mobilevit_xxs": 64, "mobilevitv2_050": 64, "edgenext_xx_small": 64, "efficientformer_l1": 224, "levit_128s": 224,
    "poolformer_s12": 64,
    "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224, "xcit_nano_12_p16_224": 224, "pvt_v2_b0": 64, "cait_xxs24_224": 224,
    "twins_pcpvt_small": 224, "twins_svt_small": 224, "volo_d1_224": 224, "swinv2_tiny_window8_256": 256,
    "coat_tiny": 224, "convit_tiny": 224, "nest_tiny_jx": 224, "gcvit_xxtiny": 224,
    "eca_nfnet_l0": 96, "dm_nfnet_f0": 96, "nf_resnet50": 64, "resnetv2_50x1_bit": 64, "shvit_s1": 224,
}  # fmt: skip


def of_timm() -> Iterator[tuple[str, Callable[[], Made]]]:
    """timm's, at random weights, with ten classes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from families.timm_shim import load_timm

    timm = load_timm()
    for name, pixels in TIMM.items():
        yield (
            f"timm: {name}",
            lambda name=name, pixels=pixels: (  # type: ignore[misc]
                timm.create_model(name, pretrained=False, num_classes=10),
                torch.randn(1, 3, pixels, pixels),
            ),
        )


def of_transformers() -> Iterator[tuple[str, Callable[[], Made]]]:
    """Hugging Face's, in tiny configurations."""
    import transformers as hf

    ids, image, sound = torch.randint(3, 90, (2, 12)), torch.randn(2, 3, 32, 32), torch.randn(2, 8, 40)
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    usual = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    seen = {k: v for k, v in usual.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
    llama = {**usual, "num_key_value_heads": 2, "use_cache": False}
    speech = {"vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
              "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
              "decoder_ffn_dim": 64, "num_mel_bins": 8, "max_source_positions": 20, "pad_token_id": 0,
              "bos_token_id": 1, "eos_token_id": 2,
              "decoder_start_token_id": 1, "use_cache": False}  # fmt: skip
    t5 = {
        "vocab_size": 100,
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 4,
        "d_kv": 8,
        "d_ff": 64,
        "use_cache": False,
    }
    kinds: dict[str, tuple[str, str, dict[str, Any], Any]] = {
        "BERT, classes": ("BertForSequenceClassification", "BertConfig", usual, words),
        "BERT, masked words": ("BertForMaskedLM", "BertConfig", usual, words),
        "DistilBERT": ("DistilBertForSequenceClassification", "DistilBertConfig",
                       {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, words),
        "ELECTRA": ("ElectraForSequenceClassification", "ElectraConfig", {**usual, "embedding_size": 16}, words),
        "GPT-2": ("GPT2LMHeadModel", "GPT2Config",
                  {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}, words),
        "Llama": ("LlamaForCausalLM", "LlamaConfig", llama, {"input_ids": ids}),
        "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", llama, {"input_ids": ids}),
        "T5": ("T5ForConditionalGeneration", "T5Config", t5, {"input_ids": ids, "decoder_input_ids": ids}),
        "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", speech,
                    {"input_features": sound, "decoder_input_ids": ids}),
        "BART": ("BartForConditionalGeneration", "BartConfig",
                 {k: v for k, v in speech.items() if k not in ("num_mel_bins", "max_source_positions")},
                 {"input_ids": ids, "decoder_input_ids": ids}),
        "Mistral": ("MistralForCausalLM", "MistralConfig", {**llama, "head_dim": 8}, {"input_ids": ids}),
        "CLIP": ("CLIPModel", "CLIPConfig",
                 {"text_config": {**usual, "max_position_embeddings": 20, "eos_token_id": 2}, "vision_config": seen,
                  "projection_dim": 16}, {**words, "pixel_values": image}),
        "wav2vec 2.0": ("Wav2Vec2ForCTC", "Wav2Vec2Config",
                        {**usual, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
                         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
                         "num_conv_pos_embedding_groups": 4}, torch.randn(2, 400)),
        "ViT": ("ViTForImageClassification", "ViTConfig", seen, image),
        "Swin": ("SwinForImageClassification", "SwinConfig",
                 {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4),
                  "window_size": 4}, image),
        "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig",
                     {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, image),
    }  # fmt: skip
    sparse = {**llama, "hidden_size": 64, "num_experts_per_tok": 2}
    kinds |= {
        "Mixtral": ("MixtralForCausalLM", "MixtralConfig",
                    {**sparse, "intermediate_size": 128, "num_local_experts": 4}, {"input_ids": ids}),
        "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig",
                      {**sparse, "head_dim": 16, "moe_intermediate_size": 64, "num_experts": 8}, {"input_ids": ids}),
        "Mamba": ("MambaForCausalLM", "MambaConfig",
                  {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False},
                  {"input_ids": ids}),
    }  # fmt: skip
    for name, (network, config, options, example) in kinds.items():
        yield (
            f"Hugging Face: {name}",
            lambda n=network, c=config, o=options, e=example: (getattr(hf, n)(getattr(hf, c)(**o)), e),  # type: ignore[misc]
        )

"""Random networks out of a grammar of steps on sequences [B, C, L]: what people write, and what is hard to follow."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = nn.Module


class Do(nn.Module):
    """A function with layers of its own; `forward` calls it with them and the input."""

    def __init__(self, name: str, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.name, self.function = name, function
        for key, layer in layers.items():
            self.add_module(key, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def extra_repr(self) -> str:
        return self.name


class Scaled(nn.Module):
    """A parameter and a buffer for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(width, 1))
        self.register_buffer("shift", torch.randn(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


class Contracted(nn.Module):
    """A bare matrix in an einsum."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width, out) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bcl,cd->bdl", x, self.matrix)


class RootMeanSquareNorm(nn.Module):
    """An RMSNorm as language models have it: in single precision, some with 1 + w."""

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.shifted = nn.Parameter(torch.rand(width)), 1e-6, shifted

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return y.to(x.dtype) * (self.weight + self.shifted)


class NormAcross(nn.Module):
    """A LayerNorm over the second axis, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = (
            nn.Parameter(torch.rand(1, width, 1)),
            nn.Parameter(torch.rand(width)),
            1e-3,
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)
        return y * self.weight + self.bias[:, None]


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.nf, self.nx = out, width
        self.weight, self.bias = nn.Parameter(torch.randn(width, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], self.nf)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x.transpose(1, 2)).relu()).transpose(1, 2)


class Heads(nn.Module):
    """Attention over L; how the heads are laid out varies."""

    def __init__(self, width: int, heads: int, style: str) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.style = heads, width // heads, style
        if style == "fused":
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        batch, length, _ = x.shape
        if self.style == "fused":
            q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (
                layer(x).view(batch, length, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
        if self.style == "rotary":
            half = self.head_dim // 2
            q, k = (t + torch.cat([-t[..., half:], t[..., :half]], -1) for t in (q, k))
        if self.style == "written":
            y = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1)).transpose(1, 2)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, *, keyword: bool) -> None:
        super().__init__()
        self.inner, self.keyword = inner, keyword

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.inner(x)


class Called(nn.Module):
    """Calls a block with a keyword."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, scale=0.5) if self.block.keyword else self.block(x)


class Terms(nn.Module):
    """The sum of the outputs of a list."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0) + x


class Net(nn.Module):
    """Steps, some of which look back at earlier results, then an average and a last layer."""

    def __init__(self, steps: list[nn.Module], width: int, end: str) -> None:
        super().__init__()
        self.steps, self.head, self.end = nn.ModuleList(steps), nn.Linear(width, 3), end

    def forward(self, x: Tensor) -> Tensor | dict[str, object]:
        for step in self.steps:
            x = step(x)
        y = self.head(x.amax(2) if self.end == "max" else x.mean(2, keepdim=True).squeeze() if self.end == "squeeze"
                      else x.mean(2))  # fmt: skip
        return {"y": [y, None, 3], "name": "net"} if self.end == "nested" else y


PARTIAL = ("split", "listed", "slice", "ellipsis", "narrow", "rest")


class Partial(nn.Module):
    """Works on the first of its channels alone; how many these are is kept as an attribute."""

    def __init__(self, width: int, first: int, way: str) -> None:
        super().__init__()
        self.first, self.rest, self.way, self.both = first, width - first, way, [first, width - first]
        self.whole = width
        self.layer = nn.Conv1d(first, first, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = {
            "split": lambda: torch.split(x, [self.first, self.rest], 1),
            "listed": lambda: x.split(self.both, dim=1),
            "rest": lambda: torch.split(x, [self.first, self.whole - self.first], 1),
            "slice": lambda: (x[:, : self.first], x[:, self.first :]),
            "ellipsis": lambda: (x[..., : self.first, :], x[:, self.first :, ...]),
            "narrow": lambda: (x.narrow(1, 0, self.first), torch.narrow(x, 1, self.first, self.rest)),
        }[self.way]()
        return torch.cat([self.layer(a), b], 1)


def _last(layer: nn.Module) -> nn.Module:
    return Do("last", lambda self, x: self.layer(x.transpose(1, 2)).transpose(1, 2), layer=layer)


def _simple(name: str, function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Do(name, lambda _self, x: function(x))


def _noise(_self: nn.Module, x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x[:1, :1]) if _self.training else x


def _train_only(self: nn.Module, x: Tensor) -> Tensor:
    return x + F.normalize(x, dim=1) if self.training else x


def _shuffle(x: Tensor, groups: int) -> Tensor:
    batch, width, length = x.shape
    return x.view(batch, groups, width // groups, length).transpose(1, 2).reshape(batch, width, length)


def step_of(
    draw: random.Random, width: int, length: int, earlier: list[nn.Module], depth: int = 0
) -> tuple[Step, int]:
    """One random step from `width` channels, and the number that it makes."""
    out = draw.choice((2, 4, 6, 8))
    kinds: dict[str, Callable[[], tuple[Step, int]]] = {
        "conv": lambda: (nn.Conv1d(width, out, 3, padding=1, bias=draw.random() < 0.7), out),
        "pointwise": lambda: (nn.Conv1d(width, out, 1), out),
        "grouped": lambda: (nn.Conv1d(width, 2 * width, 3, padding=1, groups=2), 2 * width)
        if width % 2 == 0 and width < 12 else (nn.Conv1d(width, width, 1), width),
        "partial": lambda: (Partial(width, width // 2, draw.choice(PARTIAL)) if width > 3 else nn.Tanh(), width),
        "depthwise": lambda: (nn.Conv1d(width, width, 3, padding=1, groups=width), width),
        "transposed": lambda: (nn.ConvTranspose1d(width, out, 3, padding=1), out),
        "linear": lambda: (_last(nn.Linear(width, out)), out),
        "along": lambda: (nn.Linear(length, length), width),
        "batch_norm": lambda: (nn.BatchNorm1d(width), width),
        "group_norm": lambda: (nn.GroupNorm(draw.choice([g for g in (1, 2, width) if width % g == 0]), width), width),
        "instance_norm": lambda: (nn.InstanceNorm1d(width, affine=draw.random() < 0.5), width),
        "layer_norm": lambda: (_last(nn.LayerNorm(width)), width),
        "rms_norm": lambda: (_last(nn.RMSNorm(width, elementwise_affine=draw.random() < 0.7)), width),
        "llama_norm": lambda: (_last(RootMeanSquareNorm(width, shifted=draw.random() < 0.5)), width),
        "norm_across": lambda: (NormAcross(width), width),
        "conv1d": lambda: (_last(Conv1D(out, width)), out),
        "tied": lambda: (Tied(width), width),
        "pre_norm": lambda: (Residual(nn.Sequential(
            draw.choice((lambda: nn.GroupNorm(1, width), lambda: NormAcross(width)))(),
            _block(draw, width, length)), keyword=False), width),
        "act": lambda: (draw.choice((nn.ReLU, nn.GELU, nn.Sigmoid, nn.Softplus, nn.Hardswish))(), width),
        "prelu": lambda: (nn.PReLU(width), width),
        "scaled": lambda: (Scaled(width), width),
        "einsum": lambda: (Contracted(width, out), out),
        "dropout": lambda: (nn.Dropout(0.3), width),
        "functional_dropout": lambda: (Do("dropout", lambda s, x: F.dropout(x, 0.3, s.training)), width),
        "noise": lambda: (Do("noise", _noise), width),
        "train_only": lambda: (Do("train_only", _train_only), width),
        "softmax": lambda: (_simple("softmax", lambda x: x * x.softmax(1)), width),
        "normalize": lambda: (_simple("normalize", lambda x: F.normalize(x, dim=1)), width),
        "mean_out": lambda: (_simple("mean_out", lambda x: x - x.mean(1, keepdim=True)), width),
        "cumsum": lambda: (_simple("cumsum", lambda x: x.cumsum(1)), width),
        "along_length": lambda: (_simple("along_length", lambda x: x - x.mean(2, keepdim=True)), width),
        "squeeze": lambda: (
            Do("squeeze", lambda s, x: x * s.b(s.a(x.mean(2)).relu()).sigmoid().unsqueeze(2),
               a=nn.Linear(width, 3), b=nn.Linear(3, width)), width),
        "residual": lambda: (
            Called(Residual(_block(draw, width, length), keyword=draw.random() < 0.3)), width),
        "concat": lambda: (
            Do("concat", lambda s, x: torch.cat([x, s.a(x)], 1), a=nn.Conv1d(width, 3, 1)), width + 3),
        "flatten": lambda: (
            Do("flatten", lambda s, x: s.a(x.flatten(1)).view(len(x), -1, length),
               a=nn.Linear(width * length, 4 * length)), 4),
        "unflatten": lambda: (_simple("unflatten", lambda x: x.reshape(len(x), -1).view(len(x), -1, length)), width),
        "terms": lambda: (Terms([nn.Conv1d(width, width, 1), _block(draw, width, length)]), width),
        "gru": lambda: (Do("gru", lambda s, x: s.a(x.transpose(1, 2))[0].transpose(1, 2),
                           a=nn.GRU(width, 4, batch_first=True)), 4),
        "weight_norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Conv1d(width, out, 1)), out),
        "reuse": lambda: (draw.choice(
            [e for e in earlier if getattr(e, "in_channels", 0) == getattr(e, "out_channels", 1) == width]
            or [nn.Conv1d(width, width, 1)]), width),
        "roll": lambda: (_simple("roll", lambda x: x.roll(1, 1)), width),
        "flip": lambda: (_simple("flip", lambda x: x.flip(1)), width),
        "detach": lambda: (_simple("detach", lambda x: x + x.detach().tanh()), width),
        "inplace": lambda: (_simple("inplace", lambda x: x.clone().mul_(2).add_(1)), width),
        "matmul": lambda: (_simple("matmul", lambda x: x @ x.transpose(1, 2) @ x / 10), width),
        "pad": lambda: (_simple("pad", lambda x: F.pad(x, (0, 0, 0, 1))), width + 1),
        "repeat": lambda: (_simple("repeat", lambda x: x.repeat(1, 2, 1)), 2 * width)
        if width < 8 else (nn.ReLU(), width),
        "sorted": lambda: (_simple("sorted", lambda x: x.sort(1)[0]), width),
        "rms": lambda: (_simple("rms", lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3)), width),
    }  # fmt: skip
    if width % 2 == 0:
        half = width // 2
        kinds |= {
            "glu": lambda: (_simple("glu", lambda x: F.glu(x, 1)), half),
            "chunk": lambda: (_simple("chunk", lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].tanh()), half),
            "hard_slice": lambda: (_simple("hard_slice", lambda x: x[:, :half] * x[:, half:].sigmoid()), half),
            "soft_slice": lambda: (
                _simple("soft_slice", lambda x: x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]), half),
            "every_second": lambda: (_simple("every_second", lambda x: x[:, ::2] + x[:, 1::2]), half),
            "part": lambda: (
                Do("part", lambda s, x: torch.cat([x[:, :half], s.a(x[:, half:])], 1),
                   a=nn.Conv1d(half, half, 1)), width),
            "split": lambda: (_simple("split", lambda x: torch.cat(x.split((half, half), 1)[::-1], 1)), width),
            "shuffle": lambda: (_simple("shuffle", lambda x: _shuffle(x, 2)), width),
            "pairs": lambda: (_simple("pairs", lambda x: x.view(len(x), -1, 2, x.shape[2]).amax(2)), half),
            "heads": lambda: (
                Heads(width, draw.choice((2, half)), draw.choice(("fused", "separate", "written"))), width),
        }  # fmt: skip
    if width % 4 == 0:
        kinds["rotary"] = lambda: (Heads(width, 2, "rotary"), width)
        kinds["encoder"] = lambda: (_last(nn.TransformerEncoderLayer(
            width, 2, 6, dropout=0.1, batch_first=True, norm_first=draw.random() < 0.5)), width)  # fmt: skip
        kinds["mha"] = lambda: (
            Do("mha", lambda s, x: s.a(x.transpose(1, 2), x.transpose(1, 2), x.transpose(1, 2))[0].transpose(1, 2),
               a=nn.MultiheadAttention(width, 2, batch_first=True)), width)  # fmt: skip
    names = list(kinds)
    weights = [3 if n in ("conv", "pointwise", "linear", "act", "batch_norm", "residual") else 1 for n in names]
    return kinds[draw.choices(names, weights)[0]]()


def _block(draw: random.Random, width: int, length: int) -> nn.Module:
    middle = draw.choice((3, 4, 6))
    norm = draw.choice((nn.BatchNorm1d, nn.Identity))
    return nn.Sequential(
        nn.Conv1d(width, middle, 3, padding=1), norm(middle), nn.ReLU(), nn.Conv1d(middle, width, 1), norm(width)
    )


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """A random network in double precision, and an example for it."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    length = draw.choice((5, 6))
    width = 8
    steps: list[nn.Module] = [nn.Conv1d(3, width, 3, padding=1)]
    for _ in range(draw.randint(1, 7)):
        step, width = step_of(draw, width, length, steps)
        steps.append(step)
    net = Net(steps, width, draw.choice(("mean", "mean", "max", "squeeze", "nested")))
    return net.double(), torch.randn(draw.choice((1, 3, 4)), 3, length, dtype=torch.float64)

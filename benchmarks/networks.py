"""The networks of the benchmarks: VGGs, ResNets, inverted residuals, a small ViT, a U-Net, a DenseNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.act = nn.ReLU()
        self.shortcut = nn.Sequential()
        if ins != outs or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2): three stages of n blocks; n=3 is ResNet-20, n=9 is ResNet-56."""

    def __init__(self, n: int = 3, *, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        blocks, ins = [], width
        for stage, outs in enumerate((width, 2 * width, 4 * width)):
            for i in range(n):
                blocks.append(Block(ins, outs, 2 if stage and i == 0 else 1))
                ins = outs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.act(self.bn1(self.conv1(x))))
        return self.fc(y.mean((2, 3)))


def vgg(widths: tuple[int | str, ...], *, ins: int = 3, classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(ins, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            ins = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, classes))


def small_vgg() -> nn.Module:
    return vgg((16, "M", 32, "M", 64, 64, "M", 128, 128, "M"))


def vgg16() -> nn.Module:
    return vgg((64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"))


def resnet20() -> nn.Module:
    return CifarResNet(3)


def resnet56() -> nn.Module:
    return CifarResNet(9)


class Inverted(nn.Module):
    """An inverted residual block (Sandler et al., 2018)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * ins
        self.branch = nn.Sequential(
            nn.Conv2d(ins, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outs, 1, bias=False), nn.BatchNorm2d(outs),
        )  # fmt: skip
        self.residual = ins == outs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


def mobile(*, ins: int = 3, classes: int = 10) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(ins, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    blocks = [Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1)]
    head = [nn.Conv2d(40, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(stem, *blocks, *head, nn.Linear(128, classes))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Encoder(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """A vision transformer of 64 patches of 4 x 4."""

    def __init__(self, *, ins: int, classes: int, dim: int = 48, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(ins, dim, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 64, dim))
        self.blocks = nn.Sequential(*(Encoder(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def tiny_vit(*, ins: int = 3, classes: int = 10) -> nn.Module:
    return TinyViT(ins=ins, classes=classes)


def _convs(ins: int, outs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (ins, outs):
        layers += [nn.Conv2d(before, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two levels (Ronneberger et al., 2015), with a decoder that is wider than its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _convs(3, 12), _convs(12, 24), _convs(24, 32)
        self.up2, self.up1, self.head = _convs(32 + 24, 48), _convs(48 + 12, 32), nn.Conv2d(32, 1, 1)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        up = self.up2(torch.cat([self.grow(self.bottom(self.pool(two))), two], 1))
        return self.head(self.up1(torch.cat([self.grow(up), one], 1)))


def unet() -> nn.Module:
    return UNet()


class Dense(nn.Module):
    """A layer of a DenseNet (Huang et al., 2017): its output is put beside its input."""

    def __init__(self, ins: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(ins), nn.ReLU(), nn.Conv2d(ins, 2 * growth, 1, bias=False), nn.BatchNorm2d(2 * growth),
            nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


def densenet(*, ins: int = 3, classes: int = 10, growth: int = 12) -> nn.Module:
    """Three blocks of three dense layers; between them half of the channels at half of the resolution."""
    layers, width = [nn.Conv2d(ins, 24, 3, 1, 1, bias=False)], 24
    for block in range(3):
        layers += [Dense(width + i * growth, growth) for i in range(3)]
        width += 3 * growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if block < 2:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, the middle half as wide (He et al., 2016)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        middle = outs // 2
        self.branch = nn.Sequential(
            nn.Conv2d(ins, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, outs, 1, bias=False), nn.BatchNorm2d(outs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if ins != outs or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


def bottleneck() -> nn.Module:
    """Six bottlenecks in three stages."""
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 3, 1, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU()]
    ins = 48
    for outs, stride in ((96, 1), (96, 1), (144, 2), (144, 1), (192, 2), (192, 1)):
        layers.append(Bottleneck(ins, outs, stride))
        ins = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 10))


def wide_vgg() -> nn.Module:
    return vgg((48, 48, "M", 96, 96, "M", 192, 192, 192, "M", 384, 384, "M"))


def wide_resnet14() -> nn.Module:
    return CifarResNet(2, width=40)


def wide_mobile() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
    blocks = [Inverted(24, 32, 1), Inverted(32, 32, 1), Inverted(32, 64, 2), Inverted(64, 64, 1)]
    blocks += [Inverted(64, 96, 2), Inverted(96, 96, 1)]
    head = [nn.Conv2d(96, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(stem, *blocks, *head, nn.Linear(256, 10))


def wide_vit() -> nn.Module:
    return TinyViT(ins=3, classes=10, dim=192)


NETWORKS = {
    "small-vgg": small_vgg, "resnet20": resnet20, "vgg16": vgg16, "resnet56": resnet56, "wide-vgg": wide_vgg,
    "wide-resnet14": wide_resnet14, "bottleneck": bottleneck, "wide-mobile": wide_mobile, "wide-vit": wide_vit,
}  # fmt: skip

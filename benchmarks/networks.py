"""The networks of the benchmarks: a small VGG with BatchNorm, and CIFAR ResNets (He et al., 2015)."""

from __future__ import annotations

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


def vgg(widths: tuple[int | str, ...], *, classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = []
    ins = 3
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


NETWORKS = {"small-vgg": small_vgg, "resnet20": resnet20, "vgg16": vgg16, "resnet56": resnet56}

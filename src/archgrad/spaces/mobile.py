"""The mobile space: inverted residual blocks (MBConv) of three kernel sizes and two expansions, or the identity.

Source: ProxylessNAS (arXiv 1812.00332) and its authors' code, for the space and `PROXYLESS`; UNAS
(arXiv 1912.07651) searches the wider form `UNAS`; DNAL (arXiv 2103.02126) sums the candidates, `mixed="sum"`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import matched
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import OpChoice
from archgrad.choices.tracing import traced
from archgrad.errors import ArchitectureError, ConfigError

LABELS = ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "identity")  # kernel size, expansion
BLOCKS = LABELS[:-1]


@dataclass(frozen=True)
class Widths:
    """Channels of a mobile network.

    Attributes:
        stem: of the first convolution.
        first: of the first block, which has kernel size 3 and no expansion.
        stages: of the searched layers.
        head: of the last convolution.
    """

    stem: int
    first: int
    stages: tuple[int, ...]
    head: int


PROXYLESS = Widths(32, 16, (24, 40, 80, 96, 192, 320), 1280)
UNAS = Widths(40, 24, (32, 56, 112, 128, 256, 432), 1728)


@checked
def mobile_backbone(
    *,
    widths: Widths = PROXYLESS,
    cells: Sequence[int] = (4, 4, 4, 4, 4, 1),
    strides: Sequence[int] = (2, 2, 2, 1, 2, 1),
    stem_stride: int = 2,
    classes: int = 1000,
    in_channels: int = 3,
    norm_eps: float = 1e-3,
    identity_dropout: float = 0.0,
    mixed: Literal["choice", "sum"] = "choice",
) -> MobileNet:
    """The supernet: images [B, in_channels, H, W] of any size to logits [B, classes].

    A 3x3 convolution, an MBConv without expansion, the searched layers, a 1x1 convolution, global average pooling, a
    linear layer. Layer i, counted from 1, is the choice "layer<ii>" between the labels in `LABELS`; "identity" is
    one of them where the layer has stride 1 and keeps its width. For images of 32 x 32 pixels take `stem_stride=1`
    and `strides=(1, 2, 2, 1, 2, 1)`.

    Args:
        widths: `PROXYLESS`, the wider `UNAS`, or your own.
        cells: layers of each stage.
        strides: of the first layer of each stage.
        stem_stride: of the first convolution.
        classes: logits.
        in_channels: of the images.
        norm_eps: eps of BatchNorm; 1e-3 as published.
        identity_dropout: dropout on the output of "identity" during the search; UNAS has 0.1.
        mixed: "choice", or "sum": no choices; each layer adds up all its blocks, to be slimmed by `archgrad.slim` and
            `archgrad.dnal`, which remove whole blocks or some of their channels.

    Raises:
        ConfigError: a number out of range, or lists of different lengths.

    Source: ProxylessNAS (arXiv 1812.00332).

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.spaces.mobile import Widths
        >>> tiny = ag.mobile_backbone(widths=Widths(8, 8, (8, 16), 32), cells=(2, 1), strides=(1, 2), classes=5)
        >>> ag.relax(tiny, ag.softmax)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 5])
    """
    form = _Form(
        *(widths, tuple(cells), tuple(strides), stem_stride, classes, in_channels, norm_eps, identity_dropout, mixed)
    )
    return MobileNet(form, [form.mixture(layer) for layer in form.layers()])


@checked
def mobile_network(
    string: str,
    *,
    widths: Widths = PROXYLESS,
    cells: Sequence[int] = (4, 4, 4, 4, 4, 1),
    strides: Sequence[int] = (2, 2, 2, 1, 2, 1),
    stem_stride: int = 2,
    classes: int = 1000,
    in_channels: int = 3,
    norm_eps: float = 1e-3,
) -> nn.Module:
    """The plain network of one architecture, with fresh weights: [B, in_channels, H, W] to [B, classes].

    The other arguments are those of `mobile_backbone`.

    Args:
        string: one label for each layer, as in "k5e3 identity k3e6 ...".

    Raises:
        ArchitectureError: the string is no architecture of this space.
        ConfigError: a number out of range, or lists of different lengths.

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.spaces.mobile import Widths
        >>> sizes = dict(widths=Widths(8, 8, (8, 16), 32), cells=(2, 1), strides=(1, 2), classes=5)
        >>> ag.mobile_network("k5e3 identity k3e6", **sizes)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 5])
    """
    form = _Form(widths, tuple(cells), tuple(strides), stem_stride, classes, in_channels, norm_eps, 0.0, "choice")
    chosen = form.checked(_labels(string))
    return traced(MobileNet(form, [form.block(layer, label) for layer, label in chosen]))


class MobileNet(nn.Module):
    """The network around the searched layers; made by `mobile_backbone` and `mobile_network`."""

    def __init__(self, form: _Form, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.form = form
        widths, eps = form.widths, form.norm_eps
        self.stem = _conv_norm(form.in_channels, widths.stem, 3, stride=form.stem_stride, eps=eps)
        self.first = _mbconv(widths.stem, widths.first, 3, expansion=1, stride=1, eps=eps)
        self.layers = nn.Sequential(*layers)
        self.head = _conv_norm((widths.first, *widths.stages)[-1], widths.head, 1, eps=eps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths.head, form.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, in_channels, H, W]."""
        x = self.head(self.layers(self.first(self.stem(x))))
        return self.classifier(self.pool(x).flatten(1))  # type: ignore[no-any-return]

    def resized(self) -> MobileNet:
        """The same space, fresh and for training one architecture: without dropout on the identity.

        It has no other sizes: every layer was chosen for its place and width.
        """
        form = dataclasses.replace(self.form, identity_dropout=0.0)
        return MobileNet(form, [form.mixture(layer) for layer in form.layers()])

    def to_string(self, architecture: Architecture) -> str:
        """`to_string` of this module; ArchitectureError where the architecture is for another space."""
        matched(self, architecture)
        return to_string(architecture)

    def from_string(self, text: str) -> Architecture:
        """`from_string` of this module; ArchitectureError where the text is for another space."""
        architecture = from_string(text)
        self.form.checked(text.split())
        return architecture

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """The architecture for a report: `architecture_text`, and the chain of its blocks as one of `graphs`.

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        text = self.to_string(architecture)
        nodes: list[dict[str, Any]] = []
        for layer, label in self.form.checked(text.split()):
            details: dict[str, Any] = {"channels": layer.outputs, "stride": layer.stride}
            if label in BLOCKS:
                kernel, expansion = label[1:].split("e")
                details |= {"kernel": int(kernel), "expansion": int(expansion)}
            nodes.append({"id": layer.name, "label": label, "details": details})
        edges = [{"source": a["id"], "target": b["id"]} for a, b in itertools.pairwise(nodes)]
        return {"architecture_text": text, "graphs": [{"name": "backbone", "nodes": nodes, "edges": edges}]}


@dataclass(frozen=True)
class _Layer:
    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def residual(self) -> bool:
        """Whether the output has the input's shape: blocks add their input, and the layer may be the identity."""
        return self.stride == 1 and self.inputs == self.outputs

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS if self.residual else BLOCKS


@dataclass(frozen=True)
class _Form:
    """The settings of a mobile space."""

    widths: Widths
    cells: tuple[int, ...]
    strides: tuple[int, ...]
    stem_stride: int
    classes: int
    in_channels: int
    norm_eps: float
    identity_dropout: float
    mixed: str

    def __post_init__(self) -> None:
        stages = len(self.widths.stages)
        if not stages or len(self.cells) != stages or len(self.strides) != stages:
            raise ConfigError(
                f"widths has {stages} stages, cells={self.cells} has {len(self.cells)} and "
                f"strides={self.strides} has {len(self.strides)}; give one or more, and as many of each"
            )
        sizes = {
            "widths": (self.widths.stem, self.widths.first, *self.widths.stages, self.widths.head),
            "cells": self.cells, "strides": (*self.strides, self.stem_stride),
            "classes": (self.classes,), "in_channels": (self.in_channels,),
        }  # fmt: skip
        for name, values in sizes.items():
            if wrong := [value for value in values if not (type(value) is int and value >= 1)]:
                raise ConfigError(
                    f"a mobile network with {wrong[0]!r} among its {name}: give whole numbers from 1 up"
                )
        if not self.norm_eps > 0.0 or not 0.0 <= self.identity_dropout < 1.0:
            raise ConfigError(
                f"norm_eps={self.norm_eps}, identity_dropout={self.identity_dropout}: give an eps above 0 and a "
                f"dropout from 0 to below 1"
            )
        if self.mixed not in ("choice", "sum"):
            raise ConfigError(f"mixed={self.mixed!r}: give 'choice' or 'sum'")

    def layers(self) -> list[_Layer]:
        """The searched layers in order."""
        layers: list[_Layer] = []
        width = self.widths.first
        for outputs, cells, stride in zip(self.widths.stages, self.cells, self.strides, strict=True):
            for cell in range(cells):
                layers.append(_Layer(_name(len(layers)), width, outputs, 1 if cell else stride))
                width = outputs
        return layers

    def checked(self, labels: Sequence[str]) -> list[tuple[_Layer, str]]:
        """Each layer with its label; ArchitectureError where the labels do not fit this space."""
        layers = self.layers()
        if len(labels) != len(layers):
            raise ArchitectureError(
                f"the string names {len(labels)} layers, this network has {len(layers)} (cells={self.cells}); "
                f"give one label for each"
            )
        for layer, label in zip(layers, labels, strict=True):
            if label not in layer.labels:
                raise ArchitectureError(
                    f"{layer.name} cannot be {label!r}: it has stride {layer.stride} and goes from {layer.inputs} to "
                    f"{layer.outputs} channels; allowed are {', '.join(layer.labels)}"
                )
        return list(zip(layers, labels, strict=True))

    def mixture(self, layer: _Layer) -> nn.Module:
        """All candidates of a layer."""
        if self.mixed == "sum":
            return _Sum({label: self._body(layer, label) for label in BLOCKS}, residual=layer.residual)
        return OpChoice({label: self.block(layer, label) for label in layer.labels}, name=layer.name)

    def block(self, layer: _Layer, label: str) -> nn.Module:
        """One candidate of a layer."""
        if label == "identity":
            return nn.Dropout(self.identity_dropout) if self.identity_dropout else nn.Identity()
        body = self._body(layer, label)
        return _Residual(body) if layer.residual else body

    def _body(self, layer: _Layer, label: str) -> nn.Sequential:
        kernel, expansion = int(label[1]), int(label[3])
        return _mbconv(
            layer.inputs, layer.outputs, kernel, expansion=expansion, stride=layer.stride, eps=self.norm_eps
        )


class _Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class _Sum(nn.Module):
    """The sum of all blocks, and of the input where residual; a deleted block is no longer added."""

    def __init__(self, blocks: Mapping[str, nn.Module], *, residual: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        terms = [block(x) for block in self.blocks.values()]
        total: Tensor = functools.reduce(operator.add, [x, *terms] if self.residual else terms)
        return total


def _conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, eps: float
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=eps), nn.ReLU6())


def _mbconv(inputs: int, outputs: int, kernel: int, *, expansion: int, stride: int, eps: float) -> nn.Sequential:
    """1x1 to `expansion` times the channels (none for 1), depthwise, 1x1 without an activation."""
    inner = expansion * inputs
    parts = [_conv_norm(inputs, inner, 1, eps=eps)] if expansion > 1 else []
    parts.append(_conv_norm(inner, inner, kernel, stride=stride, groups=inner, eps=eps))
    return nn.Sequential(*parts, nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=eps))


def to_string(architecture: Architecture) -> str:
    """One label for each layer, in order, separated by spaces.

    Raises:
        ArchitectureError: the architecture is for another space.
    """
    names = [_name(i) for i in range(len(architecture))]
    if not names or set(architecture) != set(names):
        raise ArchitectureError(
            f"the architecture has the choices {sorted(architecture)[:8]}; those of a mobile network are "
            f"{_name(0)!r}, {_name(1)!r} and so on"
        )
    labels = []
    for name in names:
        pick = architecture[name]
        if not isinstance(pick, int) or pick >= len(LABELS):
            raise ArchitectureError(
                f"choice {name!r}: the pick is {pick!r}; allowed is an index from 0 to {len(LABELS) - 1}"
            )
        labels.append(LABELS[pick])
    return " ".join(labels)


def from_string(text: str) -> Architecture:
    """Read what `to_string` wrote; `hold` and `build` verify that it fits a network.

    Raises:
        ArchitectureError: no labels, or unknown ones.
    """
    return Architecture({_name(i): LABELS.index(label) for i, label in enumerate(_labels(text))})


def _labels(text: str) -> list[str]:
    if not isinstance(text, str):
        raise ArchitectureError(
            f"a mobile architecture is given as a string of labels, not as a {type(text).__name__}; "
            f"to_string(architecture) returns one"
        )
    labels = text.split()
    if not labels or (unknown := [label for label in labels if label not in LABELS]):
        problem = f"does not know {unknown[0][:40]!r}" if labels else "finds no label in it"
        raise ArchitectureError(
            f"{text[:120]!r} is no mobile architecture: archgrad {problem}; give one label for each layer, "
            f"separated by spaces, of {', '.join(LABELS)}"
        )
    return labels


def _name(index: int) -> str:
    return f"layer{index + 1:02d}"

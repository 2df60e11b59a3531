"""NAS-Bench-201: cells of four nodes whose six edges each take one of five operations, 15,625 cells in all.

Source: Dong, Yang, "NAS-Bench-201: extending the scope of reproducible neural architecture search"
(arXiv 2001.00326) and the authors' code; the topology space of NATS-Bench (arXiv 2009.00437).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import OpChoice
from archgrad.choices.tracing import traced
from archgrad.errors import ArchitectureError, ConfigError
from archgrad.files import shown
from archgrad.spaces.operations import operation, relu_conv_norm

NODES = 4
LABELS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# The choice "2.1" is the edge into node 2 from node 1; the order is that of the published string.
EDGES = tuple(f"{node}.{source}" for node in range(1, NODES) for source in range(node))
FORM = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"


@checked
def nasbench201_cells(
    *, channels: int = 16, cells: int = 5, classes: int = 10, in_channels: int = 3, affine: bool = False
) -> NASBench201:
    """The supernet: images [B, in_channels, H, W] of any size to logits [B, classes].

    Three stages of `cells` cells, with 1, 2 and 4 times `channels`, and a residual block of stride 2 between them.
    All cells share six choices "<node>.<source>", whose candidates are labelled as in `LABELS`, "none" included. A
    cell without a path to its output computes zeros.

    Args:
        channels: of the first stage.
        cells: in each stage.
        classes: logits.
        in_channels: of the images.
        affine: whether BatchNorm has a scale and a shift, as in the published networks; supernets have none.

    Raises:
        ConfigError: a number below 1.

    Source: NAS-Bench-201 (arXiv 2001.00326).

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.nasbench201_cells(channels=4, cells=1)
        >>> ag.relax(space, ag.softmax)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
        >>> space.to_string(ag.Architecture({name: 3 for name in ("1.0", "2.0", "2.1", "3.0", "3.1", "3.2")}))
        '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|'
    """

    def edge(name: str, width: int) -> nn.Module:
        return OpChoice({label: nasbench201_operation(label, width, affine=affine) for label in LABELS}, name=name)

    return NASBench201(edge, channels=channels, cells=cells, classes=classes, in_channels=in_channels, affine=affine)


@checked
def nasbench201_network(
    string: str, *, classes: int = 10, channels: int = 16, cells: int = 5, in_channels: int = 3
) -> nn.Module:
    """The plain published network of one cell, with fresh weights: [B, in_channels, H, W] to [B, classes].

    The other arguments are those of `nasbench201_cells`.

    Args:
        string: the cell, as in "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|".

    Raises:
        ArchitectureError: the string is no cell of this space.
        ConfigError: a number below 1.

    Example:
        >>> import torch, archgrad as ag
        >>> cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
        >>> ag.nasbench201_network(cell, channels=4, cells=1)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    picks = from_string(string)

    def edge(name: str, width: int) -> nn.Module:
        pick = picks[name]
        assert isinstance(pick, int)
        return nasbench201_operation(LABELS[pick], width, affine=True)

    return traced(
        NASBench201(edge, channels=channels, cells=cells, classes=classes, in_channels=in_channels, affine=True)
    )


class NASBench201(nn.Module):
    """The macro-structure around cells; made by `nasbench201_cells` and `nasbench201_network`.

    Args:
        edge: makes the module of an edge, from its name and its channels.
        channels, cells, classes, in_channels, affine: as for `nasbench201_cells`.
    """

    def __init__(
        self,
        edge: Callable[[str, int], nn.Module],
        *,
        channels: int,
        cells: int,
        classes: int,
        in_channels: int,
        affine: bool,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "cells": cells, "classes": classes, "in_channels": in_channels}
        if wrong := [f"{name}={value!r}" for name, value in sizes.items() if not (type(value) is int and value >= 1)]:
            raise ConfigError(f"a NAS-Bench-201 network with {', '.join(wrong)}: give whole numbers from 1 up")
        self.channels, self.cells, self.classes, self.in_channels = channels, cells, classes, in_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels, affine=affine)
        )
        stages: list[nn.Module] = []
        for stage in range(3):
            width = channels << stage
            if stage:
                stages.append(_Reduction(width // 2, width, affine=affine))
            stages += [_Cell(edge(name, width) for name in EDGES) for _ in range(cells)]
        self.body = nn.Sequential(*stages)
        self.last = nn.Sequential(nn.BatchNorm2d(4 * channels, affine=affine), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, in_channels, H, W]."""
        return self.classifier(self.last(self.body(self.stem(x))).flatten(1))  # type: ignore[no-any-return]

    def resized(self, *, cells: int | None = None, channels: int | None = None) -> NASBench201:
        """A supernet with the same choices, fresh and for training one architecture: BatchNorm scales and shifts.

        Args:
            cells: in each stage; None for as many as here.
            channels: of the first stage; None for as many as here.

        Raises:
            ConfigError: a number below 1.
        """
        return nasbench201_cells(
            channels=self.channels if channels is None else channels,
            cells=self.cells if cells is None else cells,
            classes=self.classes,
            in_channels=self.in_channels,
            affine=True,
        )

    def to_string(self, architecture: Architecture) -> str:
        """`to_string` of this module."""
        return to_string(architecture)

    def from_string(self, text: str) -> Architecture:
        """`from_string` of this module."""
        return from_string(text)

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """The architecture for a report: `architecture_text`, and the cell as one of `graphs`, without "none".

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        text = self.to_string(architecture)
        nodes = [{"id": i, "label": ("input", "1", "2", "output")[i]} for i in range(4)]
        edges = []
        for name in EDGES:
            target, source = (int(part) for part in name.split("."))
            pick = architecture[name]
            assert isinstance(pick, int)
            if LABELS[pick] != "none":
                edges.append({"source": source, "target": target, "label": LABELS[pick]})
        return {"architecture_text": text, "graphs": [{"name": "cell", "nodes": nodes, "edges": edges}]}


class _Cell(nn.Module):
    """Each node is the sum of its edges' outputs: [B, C, H, W] to [B, C, H, W]."""

    def __init__(self, edges: Iterable[nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(edges)

    def forward(self, x: Tensor) -> Tensor:
        nodes, edges = [x], iter(self.edges)
        while len(nodes) < NODES:
            nodes.append(functools.reduce(operator.add, [next(edges)(node) for node in nodes]))
        return nodes[-1]


class _Reduction(nn.Module):
    """Residual block of stride 2: [B, inputs, H, W] to [B, outputs, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, inputs: int, outputs: int, *, affine: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            relu_conv_norm(inputs, outputs, 3, stride=2, affine=affine),
            relu_conv_norm(outputs, outputs, 3, affine=affine),
        )
        # Rounding up changes nothing at even sizes; the published block is defined for no others.
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)  # type: ignore[no-any-return]


def nasbench201_operation(label: str, channels: int, *, affine: bool) -> nn.Module:
    """The operation of a label, [B, C, H, W] to [B, C, H, W]; `affine`: whether BatchNorm has a scale and a shift."""
    if label.startswith("nor_conv"):
        return relu_conv_norm(channels, channels, 1 if label == "nor_conv_1x1" else 3, affine=affine)
    return operation(label, channels, affine=affine)


def to_string(architecture: Architecture) -> str:
    """The published string of a cell.

    Raises:
        ArchitectureError: the architecture is for another space.
    """
    if set(architecture) != set(EDGES):
        raise ArchitectureError(
            f"the architecture has the choices {sorted(architecture)[:8]}; a NAS-Bench-201 cell has {list(EDGES)}"
        )
    words = {}
    for name in EDGES:
        pick = architecture[name]
        if not isinstance(pick, int) or pick >= len(LABELS):
            raise ArchitectureError(
                f"choice {name!r}: the pick is {pick!r}; allowed is an index from 0 to {len(LABELS) - 1}"
            )
        words[name] = f"{LABELS[pick]}~{name.partition('.')[2]}"
    nodes = ("|".join(words[f"{node}.{source}"] for source in range(node)) for node in range(1, NODES))
    return "+".join(f"|{node}|" for node in nodes)


def from_string(text: str) -> Architecture:
    """Read a cell's published string.

    Raises:
        ArchitectureError: another operation, other sources, an edge too many or too few, or text around it.
    """

    def wrong(problem: str) -> ArchitectureError:
        return ArchitectureError(
            f"{shown(text)} is no NAS-Bench-201 cell: {problem}; a cell is written {FORM}, each op one of "
            f"{', '.join(LABELS)}"
        )

    if not isinstance(text, str):
        raise ArchitectureError(f"a NAS-Bench-201 cell is given as a string {FORM}, not as a {type(text).__name__}")
    nodes = text.strip().split("+")
    if len(nodes) != NODES - 1:
        raise wrong(f"it has {len(nodes)} parts between '+', not {NODES - 1}")
    picks: dict[str, int] = {}
    for node, part in enumerate(nodes, start=1):
        if len(part) < 2 or part[0] != "|" or part[-1] != "|":
            raise wrong(f"node {node}, {part!r}, does not stand between two '|'")
        words = part[1:-1].split("|")
        if len(words) != node:
            raise wrong(f"node {node} has {len(words)} edges, not {node}")
        for source, word in enumerate(words):
            label, _, number = word.partition("~")
            if label not in LABELS:
                raise wrong(f"node {node} has the operation {label!r}")
            if number != str(source):
                raise wrong(f"edge {word!r} of node {node} should end in ~{source}")
            picks[f"{node}.{source}"] = LABELS.index(label)
    return Architecture(picks)

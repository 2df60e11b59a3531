"""The cell space of RL-DARTS, encoders of an agent's images, and the hand-made IMPALA-CNN to compare them with.

A cell has one input and a number of nodes. Each node sums operations on earlier states (state 0 is the input, node i
is state i, from 1); the output is a 1x1 convolution of all nodes, concatenated:

    s_i = norm( sum over j < i, operations o of  p_ij,o * o_ij(s_j) ),    cell = conv1x1(concat(s_1 .. s_N))

Sources: RL-DARTS (arXiv 2106.02229) and the authors' code; IMPALA (arXiv 1802.01561).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import matched
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.tracing import traced
from archgrad.errors import ConfigError
from archgrad.spaces.cells import NONE, FromState
from archgrad.spaces.operations import Operation, Shared, Weightless, Zero

Operations = Literal["micro", "classic", "residual"]
Skeleton = Literal["impala", "standard"]
Norm = Literal["none", "group", "batch"]
SKIP = "skip_connect"


def _convolution(kernel: int, dilation: int = 1, *, relu: bool) -> Callable[[int, int], nn.Module]:
    def build(channels: int, stride: int) -> nn.Module:
        layer = nn.Conv2d(channels, channels, kernel, stride, dilation * (kernel // 2), dilation)
        return Operation(nn.Identity(), layer, *([nn.ReLU()] if relu else []))

    return build


def _weightless(module_class: type[nn.Module]) -> Callable[[int, int], nn.Module]:
    """An operation without weights; where the stride is 2, behind a pool."""

    def build(_: int, stride: int) -> nn.Module:
        if stride == 1:
            return Weightless(module_class())
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return Weightless(pool) if module_class is nn.Identity else Operation(pool, module_class())

    return build


_SHARED: dict[str, Callable[[int, int], nn.Module]] = {
    SKIP: _weightless(nn.Identity),
    NONE: lambda _, stride: Zero(stride),
}
# From (channels, stride) to the operation: [B, C, H, W] to [B, C, ceil(H / stride), ceil(W / stride)].
OPERATIONS: dict[Operations, dict[str, Callable[[int, int], nn.Module]]] = {
    "micro": {
        "conv_3x3": _convolution(3, relu=False), "relu": _weightless(nn.ReLU), "tanh": _weightless(nn.Tanh),
        **_SHARED,
    },
    "classic": {
        "conv_3x3_relu": _convolution(3, relu=True), "conv_5x5_relu": _convolution(5, relu=True),
        "dil_conv_3x3_relu": _convolution(3, 2, relu=True), "dil_conv_5x5_relu": _convolution(5, 2, relu=True),
        **_SHARED,
    },
}  # fmt: skip


OPERATIONS["residual"] = {
    "residual_3x3": lambda channels, stride: _residual(channels, stride=stride),
    **OPERATIONS["micro"],
}


@dataclass(frozen=True)
class ImpalaConfig:
    """The configuration of an encoder of cells; the attributes are the arguments of `impala_cells`."""

    in_channels: int
    features: int
    size: tuple[int, int]
    depths: tuple[int, ...]
    cells: int
    nodes: int
    operations: Operations
    skeleton: Skeleton
    kinds: int
    norm: Norm

    def __post_init__(self) -> None:
        numbers = {n: getattr(self, n) for n in ("in_channels", "features", "cells", "nodes", "kinds")}
        numbers |= {f"depths[{i}]": depth for i, depth in enumerate(self.depths)}
        numbers |= {"height": self.size[0], "width": self.size[1]}
        if wrong := [f"{n}={v!r}" for n, v in numbers.items() if type(v) is not int or v < 1]:
            raise ConfigError(f"{', '.join(wrong)} was given. Allowed are whole numbers from 1 up.")
        if not self.depths:
            raise ConfigError(
                "depths=() was given. Allowed are the channels of each stage, for instance (16, 32, 32)."
            )
        if self.kinds > 2:
            raise ConfigError(f"kinds={self.kinds} was given. Allowed are 1 and 2.")
        if self.kinds == 2 and self.cells < 2:
            raise ConfigError(f"kinds=2 with cells={self.cells} was given. Two kinds need at least 2 cells a stage.")
        allowed = {"operations": OPERATIONS, "skeleton": ("impala", "standard"), "norm": ("none", "group", "batch")}
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise ConfigError(f"{name}={value!r} was given. Allowed are {', '.join(map(repr, values))}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of cells."""
        two = ("first", "second") if self.skeleton == "impala" else ("reduce", "normal")
        return ("normal",) if self.kinds == 1 else two


@checked
def impala_cells(
    *,
    in_channels: int = 3,
    features: int = 256,
    size: int | tuple[int, int] = 64,
    depths: Sequence[int] = (16, 16, 16),
    cells: int | None = None,
    nodes: int = 4,
    operations: Operations = "micro",
    skeleton: Skeleton = "impala",
    kinds: int = 1,
    norm: Norm = "none",
) -> ImpalaCells:
    """The cell space of RL-DARTS: images [B, in_channels, H, W] to features [B, F].

    All cells of a kind share their choices: "normal.2.inputs" and "normal.2.0" (kind, node, source); node 1 reads the
    input alone. "none" takes part in mixtures and is never picked, as published. An architecture keeps two sources
    for each node.

    Args:
        in_channels: of the images.
        features: F, the width of the output.
        size: height and width of the images, or one number for both.
        depths: channels of each stage; each halves the map.
        cells: number in each stage; default 2 ("impala") or 3 ("standard").
        nodes: number in each cell; 4 as published.
        operations: "micro": convolution 3x3, ReLU, tanh, skip, none; "classic": four convolutions with ReLU, skip,
            none; "residual", ours: those of "micro" and IMPALA's residual block.
        skeleton: "impala": convolution, max-pool, cells, in each stage; "standard": one convolution, then in each
            stage a cell whose input edges have stride 2, and others.
        kinds: 2 for a cell of its own at the beginning of each stage: "first" and "second", or, in the standard
            skeleton, "reduce" and "normal".
        norm: of a node's sum. "group": over each image; "batch": by running statistics, which are frozen while an
            agent acts and learns, and estimated anew after each rollout.

    Raises:
        ConfigError: a number is out of range, or an option is unknown.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.impala_cells(size=8, depths=(4,), nodes=2, features=16)
        >>> encoder = ag.build(space, ag.sample(space), weights="fresh")
        >>> list(encoder(torch.rand(2, 3, 8, 8)).shape)
        [2, 16]
    """
    config = ImpalaConfig(
        in_channels=in_channels, features=features, size=_pair(size), depths=tuple(depths),
        cells=(2 if skeleton == "impala" else 3) if cells is None else cells, nodes=nodes, operations=operations,
        skeleton=skeleton, kinds=kinds, norm=norm,
    )  # fmt: skip
    return ImpalaCells(config)


@checked
def impala_network(
    *,
    in_channels: int = 3,
    features: int = 256,
    size: int | tuple[int, int] = 64,
    depths: Sequence[int] = (16, 32, 32),
) -> nn.Module:
    """The hand-made IMPALA-CNN: images [B, in_channels, H, W] to features [B, F], of torch's modules alone.

    Each stage: convolution 3x3, max-pool of stride 2, two residual blocks of two convolutions; then a linear layer.

    Args:
        in_channels: of the images.
        features: F, the width of the output.
        size: height and width of the images, or one number for both.
        depths: channels of each stage; the default is the published one.

    Raises:
        ConfigError: a number is out of range.

    Source: Espeholt et al., IMPALA (arXiv 1802.01561); for Procgen, Cobbe et al. (arXiv 1912.01588).

    Example:
        >>> import torch, archgrad as ag
        >>> list(ag.impala_network(size=16, depths=(4, 8), features=32)(torch.rand(2, 3, 16, 16)).shape)
        [2, 32]
    """
    config = ImpalaConfig(
        in_channels=in_channels, features=features, size=_pair(size), depths=tuple(depths), cells=2, nodes=1,
        operations="micro", skeleton="impala", kinds=1, norm="none",
    )  # fmt: skip
    layers: list[nn.Module] = []
    for inputs, depth in zip((in_channels, *config.depths), config.depths, strict=False):
        layers += [*_stage(inputs, depth), _Residual(depth), _Residual(depth)]
    return traced(nn.Sequential(_ChannelsLast(), *layers, *_head(config)))


class ImpalaCells(nn.Module):
    """A space of encoders, as `impala_cells` makes it.

    Args:
        config: of the encoder.
    """

    def __init__(self, config: ImpalaConfig) -> None:
        super().__init__()
        self.config = config
        self.labels = tuple(OPERATIONS[config.operations])
        layers: list[nn.Module] = []
        last = config.in_channels
        if config.skeleton == "standard":
            last = config.depths[0]
            layers.append(nn.Conv2d(config.in_channels, last, 3, padding=1))
        for depth in config.depths:
            if config.skeleton == "impala":
                layers += _stage(last, depth)
                last = depth
            for place in range(config.cells):
                kind = config.names[min(place, len(config.names) - 1)]
                stride = 2 if config.skeleton == "standard" and place == 0 else 1
                layers.append(
                    _Cell([self._node(kind, n, channels=depth, stride=stride) for n in self._numbers], last, depth)
                )
                last = depth
        self.channels_last = _ChannelsLast()
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(*_head(config))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, F] of images [B, in_channels, H, W]."""
        return self.head(self.body(self.channels_last(x)))  # type: ignore[no-any-return]

    def resized(self, *, cells: int | None = None, channels: int | None = None) -> ImpalaCells:
        """A fresh space of the same choices.

        Args:
            cells: a stage; None for as many as here.
            channels: of the first stage, the others in proportion; None for as many as here.

        Raises:
            ConfigError: a number out of range.
        """
        first, *_ = depths = self.config.depths
        if channels is not None:
            depths = tuple(max(1, depth * channels // first) for depth in depths)
        return ImpalaCells(replace(self.config, cells=self.config.cells if cells is None else cells, depths=depths))

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """An architecture for the report: `architecture_text`, and one of `graphs` for each kind of cell.

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        matched(self, architecture)
        nodes = [{"id": 0, "label": "input"}, *({"id": n, "label": str(n)} for n in self._numbers)]
        nodes.append({"id": "out", "label": "convolution 1x1"})
        lines, graphs = [], []
        for kind in self.config.names:
            read = {n: self._read(f"{kind}.{n}", n, architecture) for n in self._numbers}
            edges = [{"source": s, "target": n, "label": label} for n, kept in read.items() for s, label in kept]
            edges += [{"source": n, "target": "out"} for n in self._numbers]
            graphs.append({"name": kind, "nodes": nodes, "edges": edges})
            lines.append(f"{kind} " + " | ".join(",".join(f"{s}:{o}" for s, o in kept) for kept in read.values()))
        return {"architecture_text": " ".join(lines), "graphs": graphs}

    @property
    def _numbers(self) -> range:
        return range(1, self.config.nodes + 1)

    def _node(self, kind: str, number: int, *, channels: int, stride: int) -> nn.Module:
        edges = [self._edge(f"{kind}.{number}.{j}", channels, stride if j == 0 else 1) for j in range(number)]
        if number == 1:
            summed: nn.Module = FromState(0, edges[0])
        else:
            summed = InputChoice(number, name=f"{kind}.{number}.inputs", keep=2, edges=edges)
        return _Node(summed, _norm(self.config.norm, channels))

    def _edge(self, name: str, channels: int, stride: int) -> OpChoice:
        candidates = {label: build(channels, stride) for label, build in OPERATIONS[self.config.operations].items()}
        return OpChoice(candidates, name=name, barred=[NONE])

    def _read(self, name: str, number: int, architecture: Architecture) -> list[tuple[int, str]]:
        sources = architecture[f"{name}.inputs"] if number > 1 else (0,)
        assert isinstance(sources, tuple)
        picks = [architecture[f"{name}.{source}"] for source in sources]
        return [(s, self.labels[pick]) for s, pick in zip(sources, picks, strict=True) if isinstance(pick, int)]


class _ChannelsLast(nn.Module):
    """Channels-last memory: on a CPU the hand-made network then takes half the time, a supernet four fifths."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class _Cell(nn.Module):
    """One input [B, inputs, H, W] to [B, channels, H, W], halved where the nodes halve."""

    def __init__(self, nodes: Sequence[nn.Module], inputs: int, channels: int) -> None:
        super().__init__()
        self.before = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1)
        self.nodes = nn.ModuleList(nodes)
        self.join = nn.Conv2d(len(nodes) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        shared = [Shared(self.before(x))]
        for node in self.nodes:
            shared.append(Shared(node(shared)))
        return self.join(torch.cat([state.x for state in shared[1:]], dim=1))  # type: ignore[no-any-return]


class _Node(nn.Module):
    """The sum of operations on earlier states, normalized."""

    def __init__(self, summed: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.summed, self.norm = summed, norm

    def forward(self, states: Sequence[Shared]) -> Tensor:
        return self.norm(self.summed(states))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """The input plus a branch: ReLU and convolution, twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


def _residual(channels: int, *, stride: int) -> nn.Module:
    """The residual block as a candidate; where the stride is 2, behind a pool."""
    before = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    return Operation(before, _Residual(channels))


def _stage(inputs: int, depth: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, depth, 3, padding=1), nn.MaxPool2d(3, 2, 1)]


def _head(config: ImpalaConfig) -> list[nn.Module]:
    left = [functools.reduce(lambda n, _: math.ceil(n / 2), config.depths, side) for side in config.size]
    flat = config.depths[-1] * math.prod(left)
    return [nn.Flatten(), nn.ReLU(), nn.Linear(flat, config.features), nn.ReLU()]


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    # As published for the batch: no scale and shift, eps 1e-3.
    affine, eps = False, 1e-3
    return nn.GroupNorm(1, channels, eps, affine) if norm == "group" else nn.BatchNorm2d(channels, eps, affine=affine)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ConfigError(f"size={size!r} was given. Allowed is one number, or height and width.")
    return pair

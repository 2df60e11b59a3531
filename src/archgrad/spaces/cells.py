"""Networks of cells in the macro-architecture of DARTS, and the nodes that cells are made of.

A cell has two inputs, the outputs of the two cells before it, and a number of nodes. Each node sums operations on
earlier states (states 0 and 1 are the inputs, node i is state i, from 2); the output is all nodes, concatenated.
Cells at L // 3 and 2 L // 3 of L halve the map and double the channels.

Source: DARTS (arXiv 1806.09055), the authors' code; the factorized nodes: UNAS (arXiv 1912.07651).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from archgrad.choices.modules import Choice, InputChoice, OpChoice, mixture, scaled
from archgrad.errors import ConfigError
from archgrad.spaces.cell_strings import KINDS
from archgrad.spaces.operations import FactorizedReduce, Shared, Weightless, operation, relu_conv_norm

STEMS = ("cifar", "imagenet")
NONE = "none"

# From a source state and a label to the operation on that edge of a cell.
Edge = Callable[[int, str], nn.Module]
# From the kind of the cell, the number of the node and its edges to the node: from states to a state.
NodeMaker = Callable[[str, int, Edge], nn.Module]


@dataclass(frozen=True)
class CellPlan:
    """The settings of a network of cells; its nodes are given by a `NodeMaker`.

    Attributes:
        channels: of the first cell's nodes; doubled by each reduction.
        cells: number of cells, L.
        classes: number of logits.
        in_channels: channels of the input.
        nodes: nodes a cell.
        stem: "cifar": one convolution; "imagenet": three of stride 2.
        affine: whether BatchNorm in the cells has a scale and a shift.
        pool_norm: BatchNorm without scale and shift behind every pool.
        auxiliary: a second head for logits behind cell 2 L // 3.
        drop_path: probability of dropping an operation's output for an image in training.
    """

    channels: int
    cells: int
    classes: int
    in_channels: int
    nodes: int
    stem: Literal["cifar", "imagenet"]
    affine: bool = True
    pool_norm: bool = False
    auxiliary: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channels", "cells", "classes", "in_channels", "nodes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number from 1")
        if self.stem not in STEMS:
            raise ConfigError(f"stem is {self.stem!r}; allowed are {' and '.join(map(repr, STEMS))}")
        if self.stem == "imagenet" and self.channels < 2:
            raise ConfigError("the stem 'imagenet' starts at half the channels; give channels=2 or more")
        if not isinstance(self.drop_path, int | float) or not 0.0 <= self.drop_path < 1.0:
            raise ConfigError(f"drop_path is {self.drop_path!r}; give a probability from 0 to below 1")

    @property
    def reductions(self) -> tuple[int, ...]:
        """The cells that reduce, by index."""
        return tuple(sorted({self.cells // 3, 2 * self.cells // 3}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cells in the network; fewer than three cells are all reductions."""
        present = {"reduce" if i in self.reductions else "normal" for i in range(self.cells)}
        return tuple(kind for kind in KINDS if kind in present)


class CellNetwork(nn.Module):
    """Stem, cells and head: [B, in_channels, H, W] to logits [B, classes].

    Args:
        plan: its settings.
        make_node: makes the nodes of its cells.
    """

    def __init__(self, plan: CellPlan, make_node: NodeMaker) -> None:
        super().__init__()
        width = plan.channels if plan.stem == "imagenet" else 3 * plan.channels
        self.stem, self.second_stem = _stems(plan.in_channels, width, plan.stem)
        before = last = width
        halved = self.second_stem is not None
        channels, cells = plan.channels, []
        self.auxiliary, self.auxiliary_after = None, 2 * plan.cells // 3
        for i in range(plan.cells):
            reduces = i in plan.reductions
            channels *= 2 if reduces else 1
            nodes = _nodes("reduce" if reduces else "normal", channels, plan, make_node)
            cells.append(Cell(nodes, before, last, channels=channels, halved=halved, affine=plan.affine))
            before, last, halved = last, plan.nodes * channels, reduces
            if plan.auxiliary and i == self.auxiliary_after:
                self.auxiliary = _auxiliary_head(last, plan.classes, plan.stem)
        self.cells = nn.ModuleList(cells)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, plan.classes))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, classes]; with an auxiliary head (logits, auxiliary logits)."""
        before = self.stem(x)
        if next(self.parameters()).device.type == "cpu":
            # Depthwise convolutions and pools on CPU are several times faster in this format.
            before = before.contiguous(memory_format=torch.channels_last)
        last = before if self.second_stem is None else self.second_stem(before)
        auxiliary = None
        for i, cell in enumerate(self.cells):
            before, last = last, cell(before, last)
            if self.auxiliary is not None and i == self.auxiliary_after:
                auxiliary = self.auxiliary(last)
        logits: Tensor = self.head(last)
        return logits if auxiliary is None else (logits, auxiliary)


class Cell(nn.Module):
    """One cell: the outputs of the two cells before to [B, nodes * channels, H, W].

    Args:
        nodes: each from the list of states so far, [B, channels, ...], to the next state.
        before: channels of the cell before the last.
        last: channels of the last cell.
        channels: of every state.
        halved: whether the last cell's map is half the size of the one before.
        affine: whether BatchNorm has a scale and a shift.
    """

    def __init__(
        self, nodes: Sequence[nn.Module], before: int, last: int, *, channels: int, halved: bool, affine: bool
    ) -> None:
        super().__init__()
        if halved:
            self.before: nn.Module = FactorizedReduce(before, channels, affine=affine)
        else:
            self.before = relu_conv_norm(before, channels, affine=affine)
        self.last = relu_conv_norm(last, channels, affine=affine)
        self.nodes = nn.ModuleList(nodes)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """The nodes' states, concatenated."""
        states = [self.before(before), self.last(last)]
        shared = [Shared(state) for state in states]
        for node in self.nodes:
            states.append(node(shared))
            shared.append(Shared(states[-1]))
            if isinstance(states[-1], Tensor) and states[-1].requires_grad and not torch.compiler.is_compiling():
                states[-1].register_hook(_dense)  # type: ignore[no-untyped-call]
        return torch.cat(states[2:], dim=1)


def _dense(gradient: Tensor) -> Tensor:
    """A dense gradient: a slice of the concatenation's gradient makes BatchNorm eight times slower on CPU."""
    channels_last = gradient.stride(1) == 1
    return gradient.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class SharedNode(nn.Module):
    """A factorized node during search: both branches share the operations.

        y = sum over sources j, operations o of  (in0_j * op0_o + in1_j * op1_o) * edge_jo(x_j)

    An operation that both branches pick runs once and counts twice.

    Args:
        name: of the node; its choices are `name`.input0, `name`.op0, `name`.input1 and `name`.op1.
        size: number of sources.
        labels: of the candidate operations.
        edge: makes the operations.
    """

    def __init__(self, name: str, size: int, *, labels: Sequence[str], edge: Edge) -> None:
        super().__init__()
        self.input0, self.input1 = (InputChoice(size, name=f"{name}.input{b}") for b in (0, 1))
        self.op0, self.op1 = (OpChoice(labels, name=f"{name}.op{b}") for b in (0, 1))
        self.edges = nn.ModuleList(nn.ModuleList(edge(j, label) for label in labels) for j in range(size))
        self.name = name
        self.places = [(j, o) for j in range(size) for o in range(len(labels))]
        self.labels = [f"{j}:{label}" for j in range(size) for label in labels]

    def forward(self, states: Sequence[Tensor | Shared]) -> Tensor:
        """From the states so far, each [B, C, H, W] behind its operation, to the next state."""
        branches = ((self.input0, self.op0), (self.input1, self.op1))
        first, second = (i.ready()[..., :, None] * o.ready()[..., None, :] for i, o in branches)
        alive = {(j, o) for input_, op in branches for j in input_.alive() for o in op.alive()}
        entries = [entry for entry, place in enumerate(self.places) if place in alive]

        def run(entry: int, weight: Tensor | float) -> Tensor:
            source, op = self.places[entry]
            return scaled(self.edges[source][op], (states[source],), weight)  # type: ignore[index]

        weights = (first + second).flatten(-2)
        return mixture(weights, run, alive=entries, labels=self.labels, name=lambda: f"node {self.name!r}")

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What the work of the module at `path` is multiplied by: a sum of products of weights (choice, entry)."""
        container, *indices = path.split(".")
        if container != "edges":
            return [[]]
        source, op = int(indices[0]), int(indices[1])
        return [[(self.input0, source), (self.op0, op)], [(self.input1, source), (self.op1, op)]]


class SumNode(nn.Module):
    """The sum of modules that each read the list of states, such as `InputChoice`s."""

    def __init__(self, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, states: Sequence[Tensor | Shared]) -> Tensor:
        """From the states so far to the next state."""
        return functools.reduce(operator.add, [term(states) for term in self.terms])  # type: ignore[no-any-return]


class FromState(nn.Module):
    """An operation on one of the states."""

    def __init__(self, source: int, op: nn.Module) -> None:
        super().__init__()
        self.source, self.op = source, op

    def forward(self, states: Sequence[Tensor | Shared]) -> Tensor:
        """The operation's output."""
        return self.op(states[self.source])  # type: ignore[no-any-return]


class Dropped(nn.Module):
    """An operation whose output is, in training, dropped with probability p for an image or else divided by 1 - p.

    `drop_path.p` may be changed between epochs.
    """

    def __init__(self, op: nn.Module, p: float) -> None:
        super().__init__()
        self.op = op
        self.drop_path = nn.Dropout3d(p)

    def forward(self, x: Tensor | Shared) -> Tensor:
        """The output of the operation, [B, C, H, W], or zeros."""
        # Dropout3d drops whole entries of dimension 1; here an image is one entry.
        return self.drop_path(self.op(x).unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]


def _nodes(kind: str, channels: int, plan: CellPlan, make_node: NodeMaker) -> list[nn.Module]:
    def edge(source: int, label: str) -> nn.Module:
        stride = 2 if kind == "reduce" and source < 2 else 1
        op = operation(label, channels, stride=stride, affine=plan.affine, pool_norm=plan.pool_norm)
        dropped = plan.drop_path > 0.0 and not isinstance(op, nn.Identity)
        op = Weightless(op) if type(op) in (nn.Identity, nn.MaxPool2d, nn.AvgPool2d) else op
        return Dropped(op, plan.drop_path) if dropped else op

    return [make_node(kind, number, edge) for number in range(2, 2 + plan.nodes)]


def _stems(inputs: int, width: int, stem: str) -> tuple[nn.Sequential, nn.Sequential | None]:
    """The modules that compute the first state and, where it differs, the second."""
    if stem == "cifar":
        return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)), None
    half = width // 2
    first = nn.Sequential(
        nn.Conv2d(inputs, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        *relu_conv_norm(half, width, 3, stride=2),
    )
    return first, relu_conv_norm(width, width, 3, stride=2)


def _auxiliary_head(inputs: int, classes: int, stem: str) -> nn.Sequential:
    """[B, inputs, H, W] to [B, classes]; a map of another size than the published one is pooled to it."""
    size, stride = (8, 3) if stem == "cifar" else (7, 2)
    # The published head for ImageNet leaves the second BatchNorm out.
    norm = [nn.BatchNorm2d(768)] if stem == "cifar" else []
    return nn.Sequential(
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(size), nn.AvgPool2d(5, stride)),
        *(nn.Conv2d(inputs, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.Conv2d(128, 768, 2, bias=False), *norm, nn.ReLU()),
        *(nn.Flatten(), nn.Linear(768, classes)),
    )

"""The cell space of DARTS, as published and in the factorized form of UNAS.

Both forms have the same macro-architecture (`archgrad.spaces.cells`), and an architecture is two pairs of a source
and an operation for each node of a normal and of a reduction cell. They differ in this:

- DARTS: the two sources of a node differ, and the operations are `DARTS_LABELS`. Supernet: one operation choice an
  edge, and one choice of two inputs a node.
- UNAS: each of the two branches of a node chooses its source and its operation independently, so both branches may be
  the same, and the operations are `UNAS_LABELS`. Supernet: four choices a node.

Sources: DARTS (arXiv 1806.09055), UNAS (arXiv 1912.07651), and the authors' code.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import decisions, matched
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.tracing import traced
from archgrad.errors import ArchitectureError, ChoiceError, ConfigError
from archgrad.spaces.cell_strings import Cells, Node, Rules, parse, show
from archgrad.spaces.cells import NONE, CellNetwork, CellPlan, Edge, FromState, SharedNode, SumNode
from archgrad.spaces.operations import LABELS

DARTS_LABELS = (
    *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
    *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
)
UNAS_LABELS = (
    *("skip_connect", "sep_conv_3x3", "max_pool_3x3", "dil_conv_3x3"),
    *("sep_conv_5x5", "avg_pool_3x3", "sep_conv_7x7"),
)


@checked
def darts_cells(
    *,
    channels: int = 16,
    cells: int = 8,
    classes: int = 10,
    in_channels: int = 3,
    factorized: bool = False,
    operations: int | Sequence[str] | None = None,
    nodes: int = 4,
    stem: Literal["cifar", "imagenet"] = "cifar",
    affine: bool = False,
    auxiliary: bool = False,
    drop_path: float = 0.0,
) -> DartsCells:
    """The cell space of DARTS: [B, in_channels, H, W] to logits [B, classes], for any H and W.

    The defaults are the published supernet for CIFAR-10. All normal cells share their choices, and so do all
    reduction cells: "normal.2.inputs" and "normal.2.0" (kind, node, source), or, factorized, "normal.2.input0",
    "normal.2.op0", "normal.2.input1" and "normal.2.op1".

    Args:
        channels: of a state of the first cell; each reduction doubles them.
        cells: number of cells; those at a third and two thirds are reductions (fewer than three: all).
        classes: number of logits.
        in_channels: channels of the input.
        factorized: the form of UNAS, in place of the form of DARTS.
        operations: labels of the candidates, or how many of the form's published ones, from the first.
        nodes: nodes a cell.
        stem: "cifar": keeps the size; "imagenet": divides it by 8.
        affine: whether BatchNorm in the cells has a scale and a shift.
        auxiliary: return (logits, auxiliary logits), in training and in evaluation.
        drop_path: probability of dropping an operation's output for an image in training; see `Dropped`.

    Raises:
        ConfigError: a number out of range, or an unknown operation.

    Source: DARTS (arXiv 1806.09055); factorized: UNAS (arXiv 1912.07651).

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.darts_cells(channels=2, cells=3, nodes=2)
        >>> sorted(space.from_string("normal 0:none,1:none | 0:none,2:none reduce 0:none,1:none | 0:none,1:none"))[:3]
        ['normal.2.0', 'normal.2.1', 'normal.2.inputs']
        >>> ag.relax(space, ag.softmax)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    if not isinstance(factorized, bool):
        raise ConfigError(f"factorized is {factorized!r}; give True for the form of UNAS, False for that of DARTS")
    labels = _labels(operations, UNAS_LABELS if factorized else DARTS_LABELS)
    if factorized and NONE in labels:
        raise ConfigError("the factorized form has no operation 'none'; leave it out of operations")
    plan = CellPlan(
        channels=channels, cells=cells, classes=classes, in_channels=in_channels, nodes=nodes, stem=stem,
        affine=affine, pool_norm=not factorized, auxiliary=auxiliary, drop_path=drop_path,
    )  # fmt: skip
    return DartsCells(plan, labels, factorized=factorized)


@checked
def darts_network(
    cell: str,
    *,
    cells: int = 20,
    channels: int = 36,
    classes: int = 10,
    in_channels: int = 3,
    stem: Literal["cifar", "imagenet"] = "cifar",
    auxiliary: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """The plain network of a cell in text, in the form that is trained from scratch.

    Args:
        cell: cells as `archgrad.spaces.cell_strings` reads them, of either form of the space.
        cells: number of cells.
        channels: of a state of the first cell.
        classes: number of logits.
        in_channels: channels of the input [B, in_channels, H, W].
        stem: "cifar" or "imagenet".
        auxiliary: return (logits, auxiliary logits), in training and in evaluation.
        drop_path: probability of dropping an operation's output for an image in training.

    Raises:
        ArchitectureError: the text describes no cells.
        ConfigError: a number out of range.

    Example:
        >>> import torch, archgrad as ag
        >>> cell = "normal 0:sep_conv_3x3,1:skip_connect reduce 0:max_pool_3x3,1:sep_conv_3x3"
        >>> ag.darts_network(cell, cells=3, channels=4)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    picked = parse(cell, Rules(LABELS, repeats=True))
    plan = CellPlan(
        channels=channels, cells=cells, classes=classes, in_channels=in_channels, stem=stem,
        nodes=len(next(iter(picked.values()))), auxiliary=auxiliary, drop_path=drop_path,
    )  # fmt: skip
    _require(plan.kinds, picked)

    def node(kind: str, number: int, edge: Edge) -> nn.Module:
        return SumNode([FromState(source, edge(source, label)) for source, label in picked[kind][number - 2]])

    return traced(CellNetwork(plan, node))


class DartsCells(nn.Module):
    """A space of cells; made by `darts_cells`.

    Args:
        plan: of its network.
        labels: of the candidate operations.
        factorized: the form of UNAS, in place of the form of DARTS.
        evaluation: the form that is trained from scratch, in which every branch has operations of its own.
    """

    def __init__(self, plan: CellPlan, labels: Sequence[str], *, factorized: bool, evaluation: bool = False) -> None:
        super().__init__()
        self.plan, self.labels = plan, tuple(labels)
        self.factorized, self.evaluation = factorized, evaluation
        self.network = CellNetwork(plan, self._node)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, classes] of images [B, in_channels, H, W]; with an auxiliary head a pair of logits."""
        logits: Tensor | tuple[Tensor, Tensor] = self.network(x)
        return logits

    def resized(
        self,
        *,
        cells: int | None = None,
        channels: int | None = None,
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> DartsCells:
        """A fresh space of the same choices in the form that is trained from scratch.

        BatchNorm has a scale and a shift, pools have none, and in the factorized form each branch has its own
        operations. Published sizes: 20 cells of 36 channels for CIFAR, 14 of 48 for ImageNet.

        Raises:
            ConfigError: a number out of range, or so few cells that a kind of cell is gone.
        """
        plan = replace(
            self.plan,
            cells=self.plan.cells if cells is None else cells,
            channels=self.plan.channels if channels is None else channels,
            affine=True,
            pool_norm=False,
            auxiliary=auxiliary,
            drop_path=drop_path,
        )
        if plan.kinds != self.plan.kinds:
            raise ConfigError(
                f"{plan.cells} cells are of kind {' and '.join(plan.kinds)}, but the space of {self.plan.cells} has "
                f"choices for {' and '.join(self.plan.kinds)}; give 3 cells or more to both, or fewer to both"
            )
        return DartsCells(plan, self.labels, factorized=self.factorized, evaluation=True)

    def to_string(self, architecture: Architecture) -> str:
        """The architecture's cells in one line, without the choices that the cells do not use.

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        matched(self, architecture)
        numbers = range(2, 2 + self.plan.nodes)
        return show({k: [self._read(f"{k}.{n}", architecture) for n in numbers] for k in self.plan.kinds})

    def from_string(self, text: str) -> Architecture:
        """The architecture of cells in text, as `archgrad.spaces.cell_strings` reads them.

        In the published form the edges that no cell uses get the first operation that may be picked.

        Raises:
            ArchitectureError: the text describes no cells of this space.
        """
        cells = parse(text, Rules(self.labels, self.plan.nodes, self.factorized))
        _require(self.plan.kinds, cells)
        picks: dict[str, Pick] = {}
        for name, choice in decisions(self).items():
            if isinstance(choice, OpChoice):
                picks[name] = int(choice.pickable.nonzero()[0])
        for kind in self.plan.kinds:
            for number, node in enumerate(cells[kind], start=2):
                picks |= self._picks(f"{kind}.{number}", node)
        architecture = Architecture(picks)
        matched(self, architecture)
        return architecture

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """The architecture for a report: `architecture_text`, and one of `graphs` for each kind of cell.

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        text = self.to_string(architecture)
        numbers = range(2, 2 + self.plan.nodes)
        ends = [{"id": 0, "label": "cell before last"}, {"id": 1, "label": "last cell"}]
        nodes = [*ends, *({"id": n, "label": str(n)} for n in numbers), {"id": "out", "label": "concatenation"}]
        graphs = []
        for kind in self.plan.kinds:
            edges = [
                {"source": source, "target": n, "label": label}
                for n in numbers
                for source, label in self._read(f"{kind}.{n}", architecture)
            ]
            edges += [{"source": n, "target": "out"} for n in numbers]
            graphs.append({"name": kind, "nodes": nodes, "edges": edges})
        return {"architecture_text": text, "graphs": graphs}

    def duplicates(self, weights: Mapping[str, Tensor]) -> Tensor:
        """How much the two branches of the nodes coincide: UNAS's penalty S.

            S = sum over nodes of <A0, A1> = sum over nodes of <in0, in1> * <op0, op1>,   A_b = outer(in_b, op_b)

        A node adds 1 where both branches pick the same input and operation, and 0 where they differ in either.

        Args:
            weights: mixing weights of the choices by name, [size] or [B, size].

        Returns:
            [] or [B], differentiable.

        Raises:
            ChoiceError: the space is not factorized, or a choice has no weights.
        """
        if not self.factorized:
            raise ChoiceError("the nodes of this space have no two branches; give darts_cells(factorized=True)")
        overlaps = []
        for kind, number in itertools.product(self.plan.kinds, range(2, 2 + self.plan.nodes)):
            names = [f"{kind}.{number}.{part}" for part in ("input0", "input1", "op0", "op1")]
            if absent := [name for name in names if name not in weights]:
                raise ChoiceError(f"no weights for choice {absent[0]!r}; give those of every choice of the space")
            in0, in1, op0, op1 = (weights[name] for name in names)
            overlaps.append((in0 * in1).sum(dim=-1) * (op0 * op1).sum(dim=-1))
        return functools.reduce(operator.add, overlaps)

    def _node(self, kind: str, number: int, edge: Edge) -> nn.Module:
        name = f"{kind}.{number}"
        if not self.factorized:
            edges = [self._operations(f"{name}.{j}", j, edge) for j in range(number)]
            return InputChoice(number, name=f"{name}.inputs", keep=2, edges=edges)
        if not self.evaluation:
            return SharedNode(name, number, labels=self.labels, edge=edge)
        return SumNode(
            [
                InputChoice(
                    number,
                    name=f"{name}.input{branch}",
                    edges=[self._operations(f"{name}.op{branch}", j, edge) for j in range(number)],
                )
                for branch in (0, 1)
            ]
        )

    def _operations(self, name: str, source: int, edge: Edge) -> OpChoice:
        barred = [label for label in self.labels if label == NONE]
        return OpChoice({label: edge(source, label) for label in self.labels}, name=name, barred=barred)

    def _picks(self, name: str, node: Node) -> dict[str, Pick]:
        (first, op0), (second, op1) = ((source, self.labels.index(label)) for source, label in node)
        if self.factorized:
            picks: dict[str, Pick] = {f"{name}.op0": op0, f"{name}.op1": op1}
            return picks | {f"{name}.input0": (first,), f"{name}.input1": (second,)}
        return {f"{name}.inputs": (first, second), f"{name}.{first}": op0, f"{name}.{second}": op1}

    def _read(self, name: str, architecture: Architecture) -> Node:
        if self.factorized:
            sources = [_inputs(architecture[f"{name}.input{b}"])[0] for b in (0, 1)]
            ops = [architecture[f"{name}.op{b}"] for b in (0, 1)]
        else:
            sources = list(_inputs(architecture[f"{name}.inputs"]))
            ops = [architecture[f"{name}.{source}"] for source in sources]
        return tuple((s, self.labels[_index(o)]) for s, o in zip(sources, ops, strict=True))


def _labels(operations: int | Sequence[str] | None, published: tuple[str, ...]) -> tuple[str, ...]:
    if operations is None:
        return published
    if isinstance(operations, int) and not isinstance(operations, bool):
        if not 1 <= operations <= len(published):
            raise ConfigError(f"operations={operations}; this form has 1 to {len(published)}: {', '.join(published)}")
        labels = published[:operations]
    else:
        labels = tuple(operations) if isinstance(operations, list | tuple) else ()
    unknown = [label for label in labels if label not in LABELS]
    if not labels or unknown or len(set(labels)) != len(labels) or labels == (NONE,):
        raise ConfigError(
            f"operations is {operations!r}; give how many of the published ones, or a tuple of different labels "
            f"with at least one besides 'none'; there are {', '.join(LABELS)}"
        )
    return labels


def _require(kinds: Sequence[str], cells: Cells) -> None:
    if missing := [kind for kind in kinds if kind not in cells]:
        raise ArchitectureError(f"the text has no {missing[0]!r} cell; give one of each kind: normal and reduce")


def _inputs(pick: Pick) -> tuple[int, ...]:
    assert isinstance(pick, tuple)
    return pick


def _index(pick: Pick) -> int:
    assert isinstance(pick, int)
    return pick

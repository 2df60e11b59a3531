"""Follow channels through a network while it runs on its example.

Every axis of every parameter is numbered: one label for each place, see `channel_graph`. A tensor carries, for each
of its axes, the labels of the channels that lie along it. Each operator of the run says how the labels of its
outputs come from those of its inputs, which labels have to live and die together, and which may not be removed at
all (`operators`). An operator without a rule freezes what it reads. The whole is linear in the size of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from archgrad.multiply_adds import multiply_adds
from archgrad.spaces.slim.seeded_run import OperatorMode, tensors_in

Labels = NDArray[np.int64]
Axes = dict[int, list[Labels]]  # axis -> arrays of labels along it, -1 for a place without one
LONGEST = 1 << 22  # places along one axis; a longer one is not followed
PENDING = 1 << 21  # pairs that are kept before they are merged


@dataclass(frozen=True)
class Apart:
    """Labels along an axis that are others for each place along a second one, that of queries, keys and values.

    They are tied, since a tensor has as many places for each; which ones make queries is known all the same.

    Attributes:
        kinds: the second axis.
        axis: the axis of the channels.
        labels: [kinds, channels].
    """

    kinds: int
    axis: int
    labels: Labels

    def is_kept_by(self, call: Call) -> bool:
        """Whether an operator moves both axes, or takes each kind by itself."""
        if call.name in ("permute", "transpose"):
            return True
        x, dim = call.inputs[0], call.argument("dim", 0)
        takes = call.name in ("select", "unbind") or (
            call.name in ("split", "split_with_sizes", "chunk")
            and all(r.shape[self.kinds] == 1 for r in call.results)
        )
        return takes and isinstance(dim, int) and dim % x.dim() == self.kinds


@dataclass
class Shadow:
    """What is known of a tensor.

    Attributes:
        axes: the labels along its axes.
        constant: whether it was made out of nothing (`zeros`, `arange`), so that its size may follow the channels'.
        weight: whether it is a parameter, or a view of one.
        sized: axis -> path of the module in which a number says how long it is, in what holds no channels.
        picked: labels of which it holds some by their place, or a mean, to be frozen for a reason once it is read.
        apart: labels of channels of several kinds.
    """

    axes: Axes = field(default_factory=dict)
    constant: bool = False
    weight: bool = False
    sized: dict[int, str] = field(default_factory=dict)
    picked: list[tuple[Labels, str]] = field(default_factory=list)
    apart: Apart | None = None


class Components:
    """Sets of labels that live and die together, with a reason where a set is not to be touched."""

    def __init__(self, size: int) -> None:
        self._roots: Labels = np.arange(size)
        self._pairs: list[tuple[Labels, Labels]] = []
        self._pending = 0
        self._frozen: list[tuple[Labels, str]] = []

    def more(self, count: int) -> Labels:
        """New labels, behind all others."""
        labels = np.arange(len(self._roots), len(self._roots) + count)
        self._roots = np.append(self._roots, labels)
        return labels

    def join(self, a: Labels, b: Labels, reason: str) -> None:
        """Tie two arrays of labels place by place; a label beside a place without one is frozen."""
        alone = (a < 0) != (b < 0)
        if alone.any():
            self.freeze(np.maximum(a, b)[alone], reason)
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            size = len(self._roots)
            pairs = np.unique(self._roots[a[both]] * size + self._roots[b[both]])
            self._pairs.append((pairs // size, pairs % size))
            self._pending += len(pairs)
            if self._pending > PENDING:
                self.roots()

    def freeze(self, labels: Labels, reason: str) -> None:
        """Say why labels, and all that are tied to them, may not be removed."""
        labels = np.unique(labels)
        labels = labels[labels >= 0]
        if labels.size:
            self._frozen.append((labels, reason))

    def roots(self) -> Labels:
        """The component of each label."""
        if self._pairs:
            size = len(self._roots)
            rows = np.concatenate([a for a, _ in self._pairs])
            columns = np.concatenate([b for _, b in self._pairs])
            graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(size, size))
            _, component = connected_components(graph, directed=False)
            self._roots = component.astype(np.int64)[self._roots]
            # Components are numbered anew: what comes later has to be given in the same numbers.
            self._pairs, self._pending = [], 0
        return self._roots

    def reasons(self) -> dict[int, str]:
        """Component -> the first reason why it may not be removed."""
        roots, found = self.roots(), dict[int, str]()
        for labels, reason in self._frozen:
            for root in np.unique(roots[labels]).tolist():
                found.setdefault(root, reason)
        return found


class Walk(OperatorMode):
    """Notes what every operator does with the labels of its inputs, while the network runs under it.

    Args:
        components: takes what is tied and what is frozen.
        tensors: the labels of the network's parameters and buffers.
        is_read: [labels] bool, whether a label is a column of a weight that a gate may stand on.
        rule: how an operator treats labels, from its name; None for an operator that is not known.
        path: of the module that runs.
        here: where the run is, for reasons.
        computed: why the weights of the module that runs are no parameters; "" where they are.
        within: whether a channel of a head goes from all heads, where else a head goes with all of its channels.
    """

    def __init__(
        self,
        components: Components,
        tensors: Mapping[Tensor, Shadow],
        *,
        is_read: NDArray[np.bool_],
        rule: Callable[[torch._ops.OpOverload], Rule | None],
        path: Callable[[], str],
        here: Callable[[], str],
        computed: Callable[[], str],
        within: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.components, self.is_read, self._rule = components, is_read, rule
        self.path, self.here, self.computed = path, here, computed
        self.unflattened = -1  # which of the sizes that `unflatten` was given is -1, while it runs
        self.heads = -1  # the axis whose size a reshape that runs was given as a number of heads
        self.within = within  # whether channels that are divided go by their places within heads, and not by heads
        self.divides = False  # whether it has divided channels that could go the other way too
        self.inner: list[Labels] = []  # channels within heads
        self.is_table = np.zeros(len(is_read), dtype=bool)  # whether a label is a channel of an embedding
        self.is_bare = np.zeros(len(is_read), dtype=bool)  # of a parameter that is the weight of no layer
        self.bare: list[Labels] = []  # of those the ones that a product sums over, with other channels
        self.read: list[tuple[Labels, int]] = []  # the ones that any product sums over, with its multiply-adds
        self._lines = np.arange(len(is_read))  # by label the one that stands for it
        self.zeros: list[Labels] = []  # of tensors of zeros, which add nothing to any product
        self.sums: list[tuple[Labels, Labels]] = []  # by place: the first stands for both, as in a sum
        self.multiplied: list[tuple[Labels, Labels, str, bool]] = []  # see `operators.pair_of_activations`
        # By path the products that a module computes itself: multiply-adds, and what lies along their results.
        self.products: dict[str, list[tuple[int, list[tuple[int, Labels]], object]]] = {}
        self.numbers: list[tuple[str, Labels]] = []  # module -> channels whose number it gave as a number
        self.used: set[int] = set()  # parameters that an operator read, by identity
        self.divided: set[str] = set()  # modules that reshape what has channels
        self.paused = 0  # modules that are followed as a whole, inside which operators are not looked at
        self.kernels: list[tuple[Labels, tuple[int, ...]]] = []  # see `flat_kernels.note_kernel`
        self.graphs = set[str]()  # `torch.fx.GraphModule`s
        self.sliding = set[tuple[str, int]]()  # layers with the axis of channels along which each slides
        self._shadows: MutableMapping[Tensor, Shadow] = WeakIdKeyDictionary()  # by identity, none kept alive
        for tensor, shadow in tensors.items():
            self._shadows[tensor] = shadow

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then note what it did."""
        kwargs = kwargs or {}
        outputs, inputs = func(*args, **kwargs), tensors_in((args, kwargs))
        self.used.update(id(x) for x in inputs if isinstance(x, nn.Parameter))
        for labels, reason in (pair for x in inputs for pair in self.shadow(x).picked):
            self.components.freeze(labels, reason)
        if self.paused:
            return outputs
        is_new, results = func._schema.name.startswith("aten::new_"), tensors_in(outputs)
        known = [] if is_new else [self._shadows.get(x) for x in inputs]
        constant = is_new or all(shadow is not None and shadow.constant for shadow in known)
        own = self.products.setdefault(self.path(), [])
        noted, labelled = len(own), any(shadow is not None and (shadow.axes or shadow.apart) for shadow in known)
        if labelled:
            self._follow(Call(self, func, args, kwargs, inputs, results), known)
        if len(own) == noted and (amount := multiply_adds(func, args, kwargs, outputs)):
            own.append((amount, [], "of no channels"))  # a part of the module's work all the same
        for result in results if constant or (torch.Tag.pointwise in func.tags and not labelled) else ():
            shadow = self._shadows.setdefault(result, Shadow())
            shadow.constant = shadow.constant or constant
            shadow.sized |= self._sized(inputs, result, constant)
        return outputs

    def _follow(self, call: Call, known: Sequence[Shadow | None]) -> None:
        for shadow in known:
            _take_first_kind(call, shadow)
        rule = self._rule(call.func)
        try:
            if rule is None or not rule(call):
                call.freeze_all(f"{call.name} in {self.here()} cannot be followed")
        except (IndexError, KeyError, TypeError, ValueError, AttributeError):
            call.freeze_all(f"{call.name} in {self.here()} cannot be followed as it is called there")

    def more(self, count: int, *, zero: bool) -> Labels:
        """Labels of channels that a tensor has which was made of nothing, with zeros or with something else."""
        labels, none = self.components.more(count), np.zeros(count, dtype=bool)
        self.is_read, self.is_table, self.is_bare = (
            np.append(known, none) for known in (self.is_read, self.is_table, self.is_bare)
        )
        self._lines = np.append(self._lines, labels)
        self.zeros += [labels] if zero else []
        return labels

    def stands_for(self, line: Labels, grid: Labels) -> Labels:
        """A flat line of labels, which from now on stands for all of those that are tied to it in a block."""
        self._lines[grid] = np.broadcast_to(line, grid.shape)
        return line.reshape(-1)

    def is_inner(self, labels: Labels) -> bool:
        """Whether these are channels within heads already."""
        return any(bool(np.isin(labels, inner).all()) for inner in self.inner)

    @cached_property
    def lines(self) -> Labels:
        """After the walk, for each label a number that it shares with those that stand for one another."""
        size = len(self._lines)
        pairs = coo_array((np.ones(size, bool), (np.arange(size), self._lines)), (size, size))
        return connected_components(pairs, directed=False)[1]  # type: ignore[no-any-return]

    def _sized(self, inputs: Sequence[Tensor], result: Tensor, constant: bool) -> dict[int, str]:
        """Which axes of a result without channels are as long as numbers say, and which modules these stand in."""
        sized: dict[int, str] = {}
        for axis, extent in enumerate(result.shape):
            along = [(x, axis - result.dim() + x.dim()) for x in inputs]
            paths = [self.shadow(x).sized.get(own, "") for x, own in along if own >= 0 and x.shape[own] == extent > 1]
            if constant or (paths and all(paths)):
                sized[axis] = next(filter(None, paths), self.path())
        return sized

    def shadow(self, x: Tensor) -> Shadow:
        """What is known of a tensor."""
        return self._shadows.get(x) or Shadow()

    def note(self, x: Tensor, axes: Axes, *, weight: bool = False, apart: Apart | None = None) -> None:
        """Say what lies along the axes of a tensor."""
        self._shadows[x] = Shadow({k: v for k, v in axes.items() if v}, weight=weight, apart=apart)

    def product(self, amount: int, axes: Axes, shape: object) -> None:
        """Note a product of so many multiply-adds, with what lies along its result and what it sums over."""
        along = [(axis, labels) for axis, arrays in axes.items() for labels in arrays]
        self.products.setdefault(self.path(), []).append((amount, along, shape))

    def freeze(self, x: Tensor, reason: str, *, axes: Sequence[int] | None = None) -> None:
        """Freeze what lies along some axes of a tensor, by default along all."""
        for axis, arrays in self.shadow(x).axes.items():
            for labels in arrays if axes is None or axis in axes else ():
                self.components.freeze(labels, reason)
        apart = self.shadow(x).apart
        if apart is not None and (axes is None or apart.axis in axes):
            self.components.freeze(apart.labels, reason)
        for labels, _ in self.shadow(x).picked if axes is None else ():
            self.components.freeze(labels, reason)


def _take_first_kind(call: Call, shadow: Shadow | None) -> None:
    """Let the channels of the first kind stand for those of all, where an operator treats them as one."""
    if shadow is not None and shadow.apart is not None and not shadow.apart.is_kept_by(call):
        shadow.axes.setdefault(shadow.apart.axis, []).append(shadow.apart.labels[0])
        shadow.apart = None


@dataclass
class Call:
    """One operator as it was called."""

    walk: Walk
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    results: list[Tensor]

    @property
    def name(self) -> str:
        """Its name without namespace: `softmax`."""
        name: str = self.func._schema.name
        return name.partition("::")[2].strip("_")

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operator's signature."""
        for i, parameter in enumerate(self.func._schema.arguments):
            if parameter.name == name:
                if i < len(self.args):
                    return self.args[i]
                return self.kwargs.get(name, parameter.default_value if parameter.has_default_value() else default)
        return default

    def axes(self, x: Tensor) -> Axes:
        """The labels along a tensor's axes."""
        return self.walk.shadow(x).axes

    def freeze_all(self, reason: str) -> None:
        """Freeze everything that lies along any input."""
        for x in self.inputs:
            self.walk.freeze(x, reason)

    def mixes(self, x: Tensor, axes: Sequence[int]) -> None:
        """Freeze what lies along axes over which the operator mixes."""
        axes = [a % max(x.dim(), 1) for a in axes]
        self.walk.freeze(x, f"{self.walk.here()} mixes these channels ({self.name})", axes=axes)


Rule = Callable[[Call], bool]  # False: the operator cannot be followed as it was called

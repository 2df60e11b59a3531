"""Numbers of channels that modules keep as attributes: they shrink with the channels that they count.

`torch.split(x, [self.conv, self.rest], 1)` and `x[:, : self.conv]` take their sizes from the module. While
a network is followed, each such attribute is a number that knows where it is from; where a split or a slice is given
one, it counts the channels there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from archgrad.choices.channels import set_axes_lengths
from archgrad.copy_and_run import Intercepted
from archgrad.spaces.slim.dependency import Labels, Walk
from archgrad.spaces.slim.layer_sides import counting_heads, cuts, has_sides, is_layer, sides_of
from archgrad.spaces.slim.numbering import Numbering
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, run

FACTORIES = ("empty", "full", "ones", "rand", "randn", "zeros")  # what makes a tensor of sizes
Source = tuple[str, str]  # path of the module, and the attribute: "dim_conv", or "splits[1]"


class KeptSize(int):
    """A number that knows of which attribute it is the value; what is computed of it does not, but a difference."""

    source: Source
    counts_heads: bool
    notes: Notes
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        """As in `assert x.shape[1] == self.channels`."""
        same = super().__eq__(other)  # NotImplemented where the other knows, as a float or a tensor does
        if same is True and isinstance(other, AxisSize):
            self.notes.equal.append((self, other))
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __deepcopy__(self, memo: object) -> KeptSize:
        return self

    def __sub__(self, other: Any) -> Any:
        rest = super().__sub__(other)
        if isinstance(other, KeptSize):
            rest = _Rest(rest)
            rest.whole = self
        return rest

    def __mul__(self, other: Any) -> Any:
        """As `batch * self.out_channels`: a multiple of what this counts, unless the other counts something too."""
        several = super().__mul__(other)
        if isinstance(other, int) and not isinstance(other, KeptSize):
            several = _Multiple(several)
            several.size = self
        return several

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, KeptSize):
            self.notes.ratios.append((self, other))
        return self if isinstance(other, int) and other == 1 else super().__floordiv__(other)


class AxisSize(int):
    """The size of a tensor along an axis."""

    tensor: Tensor
    axis: int
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return other.__eq__(self) if isinstance(other, KeptSize) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _with_axes(x: Tensor, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `x.shape`, `x.size()` or `x.size(axis)` gave, of numbers that know where they are from."""

    def known(size: int, axis: int) -> AxisSize:
        number = AxisSize(size)
        number.tensor, number.axis = x, axis
        return number

    if isinstance(result, torch.Size):
        return torch.Size([known(size, axis) for axis, size in enumerate(result)])
    return known(result, [*args, *kwargs.values()][0] % x.dim()) if type(result) is int else result


class _Multiple(int):
    """A kept number times another."""

    size: KeptSize


class _Rest(int):
    """What is left of a kept number without another one."""

    whole: KeptSize


@dataclass
class Notes:
    """What the numbers of one network note while it runs.

    Attributes:
        ratios: those that were divided by others.
        equal: those that the network compared with a size of a tensor, and that are equal to it.
    """

    ratios: list[tuple[KeptSize, KeptSize]] = field(default_factory=list)
    equal: list[tuple[KeptSize, AxisSize]] = field(default_factory=list)


def _keep_checked(notes: Notes, network: nn.Module, example: tuple[Any, ...]) -> None:
    """Forget comparisons that the network does not insist on: it runs with another number, too.

    Modules of one class are asked once. The network is one that knows its sources; it is left as it is.
    """
    insists: dict[tuple[type, str], bool] = {}
    for size, _ in notes.equal:
        path, name = size.source
        attribute, module = name.partition("[")[0], network.get_submodule(path)
        if (type(module), name) in insists:
            continue
        before = vars(module)[attribute]
        if isinstance(before, dict):  # lengths of axes, which einops itself compares
            insists[type(module), name] = False
            continue
        several = isinstance(before, (tuple, list))
        vars(module)[attribute] = type(before)(int(v) + 1 for v in before) if several else size + 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one that warns of the number does not insist on it
                run(network, example)
            insists[type(module), name] = False
        except NETWORK_ERRORS:
            insists[type(module), name] = True
        finally:
            vars(module)[attribute] = before
    notes.equal[:] = [
        pair for pair in notes.equal
        if insists[type(network.get_submodule(pair[0].source[0])), pair[0].source[1]]
    ]  # fmt: skip


def know_sources(network: nn.Module) -> Notes:
    """Let the integer attributes of the user's own modules know where they are from, in place."""
    notes = Notes()

    def known(value: int, source: Source, heads: Sequence[str]) -> KeptSize:
        size = KeptSize(value)
        size.source, size.notes = source, notes
        size.counts_heads = source[1] in heads
        return size

    for path, module in network.named_modules():
        heads, own = counting_heads(module), [*vars(module)]
        if type(module).__module__.startswith("torch.") and not isinstance(module, (fx.GraphModule, nn.Unflatten)):
            sides = sides_of(module) if has_sides(module) else ()
            own = list(dict.fromkeys(n for side in sides for n in cuts(module, side)[1] if n in own))
        for name, value in [(name, vars(module)[name]) for name in own]:
            if name == "num_groups" or (name == "groups" and is_layer(module)):  # which go with the layer's channels
                continue
            if type(value) is int and value > 0:
                vars(module)[name] = known(value, (path, name), heads)
            elif type(value) in (tuple, list) and value and all(type(v) is int and v > 0 for v in value):
                vars(module)[name] = type(value)(known(v, (path, f"{name}[{i}]"), heads) for i, v in enumerate(value))
        lengths = vars(module).get("axes_lengths")  # of a layer of einops, such as Rearrange("b n (h d) -> ...", h=4)
        if isinstance(lengths, dict) and all(type(v) is int for v in lengths.values()):
            names = {axis: f"axes_lengths[{axis}]" for axis in lengths}
            of_heads = [names[axis] for axis in counting_heads(SimpleNamespace(**lengths))]
            set_axes_lengths(module, {axis: known(v, (path, names[axis]), of_heads) for axis, v in lengths.items()})
    return notes


def is_of_heads(size: object) -> bool:
    """Whether a number is the value of an attribute that counts heads."""
    return isinstance(size, KeptSize) and size.counts_heads


class Sizes:
    """What each attribute counts, as a walk finds it.

    Args:
        walk: the walk.
        notes: of the network's numbers; None where they, and sizes of tensors, stay plain ones.
    """

    def __init__(self, walk: Walk, notes: Notes | None) -> None:
        self._walk, self._notes, self._known = walk, notes or Notes(), notes is not None
        self._counted: dict[Source, list[Labels]] = {}
        self._made: dict[tuple[Source, bool], Labels] = {}  # of what is made out of nothing, zeros or not

    def noting(self) -> Intercepted:
        """Inside, splits and slices of what the walk follows are noted, and parts that stay equal are tied."""

        def noted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if getattr(function, "__name__", "") in ("reshape", "view"):
                return self._reshaped(function, args, kwargs)
            result = function(*args, **kwargs)
            x = args[0] if args and isinstance(args[0], Tensor) else None
            name = getattr(function, "__name__", "")
            if self._known and x is not None and (name == "size" or isinstance(result, torch.Size)):
                return _with_axes(x, result, args[1:] if name == "size" else (), kwargs)
            if (
                (name.removeprefix("new_") in FACTORIES or name == "new")
                and isinstance(result, Tensor)
                and not self._walk.paused
            ):
                self._make(name, kwargs.get("size", args if x is None else args[1:]), result)
            elif x is not None:
                if name in ("split", "split_with_sizes"):
                    self._split(x, args, kwargs, result)
                elif name == "chunk":
                    self._chunk(*args, **kwargs, parts=result)
                elif name == "narrow":
                    self._narrow(x, *args[1:], **kwargs)
                elif name == "__getitem__":
                    self._slices(x, args[1])
                elif name == "unflatten" and len(args) == 3:
                    for i, size in enumerate(args[2]):
                        self._count(size, result, args[1] % x.dim() + i, slice(None))
                elif name.startswith("conv"):  # of one to three axes, transposed or not: groups are the seventh
                    self._grouped(x, kwargs.get("groups", args[6] if len(args) > 6 else 1))
            return result

        return Intercepted(noted)

    def tie(self, numbering: Numbering, example: tuple[Any, ...]) -> None:
        """Number each attribute as a side of its module; the channels that one attribute counts go together."""
        _keep_checked(self._notes, numbering.modules[""], example)
        for equal, other in self._notes.equal:
            self._count(equal, other.tensor, other.axis, slice(None))
        for pair in self._notes.ratios:  # of equals, as `in_channels // groups` where each channel has its own filter
            for one, whole in (pair, pair[::-1]) if pair[0] == pair[1] else ():
                if whole.source in self._counted:
                    self._counted.setdefault(one.source, self._counted[whole.source])
        layers = {(path, name): side for (path, side), cut in numbering.cuts.items() for name in cut[2]}
        for (path, name), arrays in self._counted.items():
            own = layers.get((path, name.partition("[")[0]), "")  # of a layer's own number, which shrinks already
            side = (path, own or f"param {name}")
            known = numbering.sides.setdefault(side, arrays[0])
            numbering.cuts.setdefault(side, (len(known), (), (name,)))
            for labels in arrays:
                if len(labels) == len(known):
                    self._walk.components.join(known, labels, f"{path}.{name} counts these channels and fixed ones")

    def _make(self, name: str, given: Any, result: Tensor) -> None:
        """Number what lies along a tensor that is made out of nothing, as long as numbers of modules say."""
        sizes = given[0] if given and isinstance(given[0], (tuple, list)) else given
        for axis, size in enumerate(sizes[: result.dim()]):
            times = size // size.size if isinstance(size, _Multiple) else 1
            size = size.size if isinstance(size, _Multiple) else size
            if not isinstance(size, KeptSize) or size < 2 or result.shape[axis] != times * size:
                continue
            zero = name.endswith("zeros")
            if (size.source, zero) not in self._made:
                self._made[size.source, zero] = self._walk.more(size, zero=zero)
                self._counted.setdefault(size.source, []).append(self._made[size.source, zero])
            self._walk.shadow(result).axes[axis] = [np.tile(self._made[size.source, zero], times)]

    def _split(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Sequence[Tensor]) -> None:
        given = [*args[1:2], *(v for k, v in kwargs.items() if k.startswith("split"))]
        axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
        if not given:
            return
        sizes = given[0] if isinstance(given[0], (tuple, list)) else [given[0]] * len(parts)
        start = 0
        for size, part in zip(sizes, parts, strict=False):
            end = start + part.shape[axis]
            self._count(size, x, axis, slice(start, end))
            start = end

    def _chunk(self, x: Tensor, chunks: int, dim: int = 0, *, parts: Sequence[Tensor]) -> None:
        """Equal parts stay equal: a channel goes in all of them."""
        axis = dim % x.dim()
        for labels in self._walk.shadow(x).axes.get(axis, []) if x.shape[axis] % len(parts) == 0 else ():
            blocks = labels.reshape(len(parts), -1)
            for other in blocks[1:]:
                self._walk.components.join(blocks[0], other, f"{self._walk.here()} divides these channels (chunk)")

    def _reshaped(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Sizes that count channels; where one is a number of heads, channels that are divided go by whole heads."""
        sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        heads = [i for i, size in enumerate(sizes) if is_of_heads(size)]
        self._walk.heads = heads[0] if len(heads) == 1 else -1
        try:
            result = function(*args, **kwargs)
        finally:
            self._walk.heads = -1
        for axis, size in enumerate(sizes):
            self._count(size, result, axis, slice(None))
        return result

    def _narrow(self, x: Tensor, dim: int, start: int | Tensor, length: int) -> None:
        if not isinstance(start, Tensor):
            self._count(start, x, dim % x.dim(), slice(0, start))
            self._count(length, x, dim % x.dim(), slice(start, start + length))

    def _slices(self, x: Tensor, index: Any) -> None:
        given = list(index) if isinstance(index, tuple) else [index]
        if any(not (i is None or i is Ellipsis or isinstance(i, (int, slice))) for i in given):
            return
        taken = sum(i is not None and i is not Ellipsis for i in given)
        axis = 0
        for i in given:
            if i is Ellipsis:
                axis += x.dim() - taken
            elif i is not None:
                if isinstance(i, slice) and i.step in (None, 1):
                    self._count(i.start, x, axis, slice(0, i.start))
                    self._count(i.stop, x, axis, slice(0, i.stop))
                axis += 1

    def _grouped(self, x: Tensor, groups: Any) -> None:
        """Groups of a convolution with bare filters, each of which goes with the channels that it reads."""
        size = groups.size if isinstance(groups, _Multiple) else groups
        arrays = self._walk.shadow(x).axes.get(1, [])[:1] if isinstance(size, KeptSize) and size > 1 else []
        for labels in arrays:
            blocks = labels.reshape(-1, size, labels.size // groups)[:, :, 0]
            if (blocks == blocks[:1]).all():
                self._counted.setdefault(size.source, []).append(blocks[0])

    def _count(self, size: Any, x: Tensor, axis: int, where: slice) -> None:
        if (
            isinstance(size, _Rest) and where.stop is not None
        ):  # channels behind others, with which they are the whole
            size, where = size.whole, slice(max(0, where.stop - size.whole), where.stop)
        times = size // size.size if isinstance(size, _Multiple) else 1
        size = size.size if isinstance(size, _Multiple) else size
        if not isinstance(size, KeptSize):
            return
        apart = self._walk.shadow(x).apart
        arrays = self._walk.shadow(x).axes.get(axis, [])[:1] if apart is None or apart.axis != axis else apart.labels
        for labels in arrays:
            blocks = labels[where].reshape(times, -1) if len(labels[where]) == times * size else labels[:0]
            if len(blocks) and (blocks == blocks[:1]).all():
                self._counted.setdefault(size.source, []).append(blocks[0])


def unflattening(walk: Walk) -> Intercepted:
    """Tells a walk which size `unflatten` leaves open, or has as a number of heads: its view has all as numbers."""

    def noted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sizes: Any = ()
        if function in (Tensor.unflatten, torch.unflatten):
            sizes = kwargs.get("sizes", args[2] if len(args) > 2 else ())
        sizes = list(sizes) if isinstance(sizes, (tuple, list)) else []
        heads = [i for i, size in enumerate(sizes) if is_of_heads(size)]
        if len(heads) != 1 and -1 not in sizes:
            return function(*args, **kwargs)
        walk.unflattened = heads[0] if len(heads) == 1 else sizes.index(-1)
        try:
            return function(*args, **kwargs)
        finally:
            walk.unflattened = -1

    return Intercepted(noted)

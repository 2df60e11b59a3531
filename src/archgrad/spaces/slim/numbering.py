"""Labels for the sides of layers and the axes of tensors, and which of them may not be cut whatever a run says."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import MappingProxyType

import numpy as np
from torch import Tensor, nn
from torch.nn.utils import parametrize

from archgrad.choices.channel_norms import Norm, channel_norm, group_norm
from archgrad.choices.standardized_weights import StandardizedWeight, standardized_weight
from archgrad.spaces.slim.dependency import Labels, Shadow
from archgrad.spaces.slim.flat_kernels import Factors, shapes_like
from archgrad.spaces.slim.layer_sides import TABLES, cuts, has_sides, reads_each, sides_of, width_of
from archgrad.spaces.slim.recurrent import Cut, is_recurrent
from archgrad.spaces.slim.seeded_run import computed_weights
from archgrad.spaces.slim.torch_attention import Calls, attention_sides, is_torch_attention

Side = tuple[str, str]  # (module path, side)
NORM_SIDE = "out norm"
ROWS, ALONG = "rows", "along"
# Modules that hand their parameters to kernels of their own, and remember their sizes.
CLOSED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


class Numbering:
    """Labels for every side of every layer, and for every axis of every other tensor.

    Args:
        network: with all of its modules.
        thinned: paths of GroupNorms whose groups lose places, where else whole groups go.
        factors: sides along which lie the filters of a kernel.
    """

    def __init__(
        self, network: nn.Module, *, thinned: Collection[str] = (), factors: Factors = MappingProxyType({})
    ) -> None:
        self.network, self.thinned, self.factors = network, thinned, factors
        self.modules = dict(network.named_modules())
        self.sides: dict[Side, Labels] = {}
        self.cuts: dict[Side, Cut] = {}
        self.works: dict[Side, tuple[str, float]] = {}
        self.norms: dict[str, Norm] = {}
        self.standardized: dict[str, StandardizedWeight] = {}
        self.calls: Calls = {}
        self.tensors: dict[Tensor, Shadow] = {}
        self.ties: list[tuple[Labels, Labels]] = []  # of the same places of one tensor
        self.size = 0
        for path, module in self.modules.items():
            for side, cut in self._sides(path, module).items():
                for own in self._number(path, side, cut[0]):
                    self.cuts[path, own] = cut
                    for name, dim in cut[1]:
                        self._label(module, name, dim, self.sides[path, own], beside=own != side)
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                known = self.tensors.get(tensor)
                if known is None or (isinstance(module, nn.MultiheadAttention) and 0 not in known.axes):
                    dot = f"{path}.{name}" if path else name
                    for dim, width in enumerate(tensor.shape):
                        if width > 1 and (known is None or dim not in known.axes):
                            for own in self._number(dot, side := f"axis {dim}", width):
                                self._label(module, name, dim, self.sides[dot, own], beside=own != side)

    def _sides(self, path: str, module: nn.Module) -> dict[str, Cut]:
        """By side its width, and what is cut along it."""
        thinned = path in self.thinned and isinstance(module, nn.GroupNorm)
        if kind := group_norm(module) if thinned else channel_norm(module):  # type: ignore[arg-type]
            self.norms[path] = kind
            return {NORM_SIDE: (kind.width, kind.tensors, kind.counts)}
        if is_torch_attention(module):
            return attention_sides(module)
        if not has_sides(module):
            return {}
        sides = {side: (width_of(module, side), *cuts(module, side)) for side in sides_of(module)}
        if how := standardized_weight(module):
            self.standardized[path] = how
            width, tensors, counts = sides["out"]
            sides["out"] = (width, (*tensors, *([(how.gain, 0)] if how.gain else [])), counts)
        return sides

    def _number(self, path: str, side: str, width: int) -> tuple[str, ...]:
        """Number the places of a side, or the channels of each factor of it, and say what the sides are called."""
        factoring = self.factors.get((path, side))
        if factoring is None:
            self.sides[path, side] = np.arange(self.size, self.size + width)
            self.size += width
            return (side,)
        owner, names = self.owner((path, side)), list[str]()
        for factor, labels in factoring.labels(self.size):
            names.append(f"{side} factor {factor}" if names else side)
            self.sides[path, names[-1]] = labels
            for shape in shapes_like(self.modules[owner], factoring.sizes):
                count = f"{shape}[{factor}]"
                self.sides[owner, f"param {count}"] = np.unique(labels)
                self.cuts[owner, f"param {count}"] = (factoring.sizes[factor], (), (count,))
            self.size += factoring.sizes[factor]
        return tuple(names)

    def _label(self, module: nn.Module, name: str, dim: int, labels: Labels, *, beside: bool = False) -> None:
        tensor: Tensor | None = module._parameters.get(name)
        tensor = module._buffers.get(name) if tensor is None else tensor
        if tensor is not None and tensor.shape[dim] % len(labels) == 0:
            labels = np.tile(labels, tensor.shape[dim] // len(labels))
            axes = self.tensors.setdefault(tensor, Shadow(weight=isinstance(tensor, nn.Parameter))).axes
            if beside:
                axes[dim].append(labels)
            elif dim in axes:
                self.ties.append((axes[dim][0], labels))
            else:
                axes[dim] = [labels]

    def norm_of(self, path: str, side: str) -> Norm | StandardizedWeight | None:
        """What a module computes whose statistics are over the channels of this side."""
        grouped = getattr(self.modules[path], "groups", 1) > 1
        return self.norms.get(path) or (self.standardized.get(path) if side == "in" and not grouped else None)

    def sides_of(self, path: str) -> dict[str, Labels]:
        """By side the labels of one layer."""
        return {side: labels for (owner, side), labels in self.sides.items() if owner == path}

    def holds(self, side: Side, tensor: str) -> bool:
        """Whether a tensor of its module is cut along a side."""
        if side[1].startswith("axis"):
            return side[0].rpartition(".")[2] == tensor
        return any(name == tensor for name, _ in self.cuts[side][1])

    def is_parameter(self, path: str) -> bool:
        """Whether a tensor of this path is a parameter."""
        owner, _, name = path.rpartition(".")
        return owner in self.modules and name in self.modules[owner]._parameters

    def owner(self, side: Side) -> str:
        """The path of the module that a side belongs to."""
        return side[0].rpartition(".")[0] if side[1].startswith("axis") else side[0]


def untouchable(numbering: Numbering) -> Iterator[tuple[Side, str]]:
    """Sides that may not be cut, whatever the run says: shared, computed and closed weights."""
    by_module: dict[str, list[Side]] = {}
    for side in numbering.sides:
        by_module.setdefault(numbering.owner(side), []).append(side)
    owners: dict[nn.Parameter, tuple[str, str]] = {}
    for path, module in numbering.modules.items():
        reason = computed_weights(path, module)
        if path.endswith("_orig_mod"):  # a wrapper that answers for its layer hides the gates on its weights
            reason = f"{path.removesuffix('._orig_mod')} is a compiled layer; compile the network after slimming"
        whole = is_torch_attention(module)
        is_closed = isinstance(module, CLOSED) and not is_recurrent(module) and not whole
        if is_closed:
            what = (
                "keeps the width of what it reads and puts out" if isinstance(module, nn.MultiheadAttention) else ""
            )
            what = what or "is not a layer whose channels can be removed"
            reason = reason or f"{path} ({type(module).__name__}) {what}"
        for name, parameter in module.named_parameters(recurse=False):
            other, first = owners.setdefault(parameter, (path, name))
            if other != path and not (_is_plain(module) and _is_plain(numbering.modules[other])):
                for owner, attribute, sharer in ((other, first, path), (path, name, other)):
                    for side in by_module.get(owner, []):
                        if numbering.holds(side, attribute):
                            yield side, f"the {attribute} of {owner} is shared with {sharer}"
        if whole and not reason:
            for side in [*by_module.get(path, []), (f"{path}.out_proj".lstrip("."), "in")]:
                if not side[1].startswith("in "):
                    yield side, f"{path} (MultiheadAttention) loses whole heads or none"
        inner = [p for p in by_module if path and p.startswith(f"{path}.")]
        closed = is_closed or parametrize.is_parametrized(module)
        for owner in [path, *(inner if closed else [])] if reason else []:
            for side in by_module.get(owner, []):
                yield side, reason


def _is_plain(module: nn.Module) -> bool:
    """A layer that may share its weights: what is one tensor is cut alike wherever it stands."""
    return reads_each(module) or isinstance(module, TABLES)

"""Which channels of which layers are removed together, and how to remove them from a network."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from archgrad.choices.channel_norms import STATISTICS, Norm
from archgrad.choices.fewer_heads import AttentionCall, with_fewer_heads
from archgrad.choices.standardized_weights import StandardizedWeight
from archgrad.errors import ChoiceError

# Attribute of a layer with gated weights: the names of its parameters in their own order.
ORDER = "_archgrad_parameter_order"


@dataclass(frozen=True, eq=False)
class Coupling:
    """One side of one module that a gate's entries reach.

    Attributes:
        module: path of the module in the network ("" is the network itself).
        side: "in", "out" or "heads", with a name behind it where a module has several ("in weight_hh_l0"); "branch"
            where the whole module goes with the gate's only entry; "along -1" where it slides along that axis.
        places: [channels of that side], the gate entry that each channel belongs to, or -1 for none.
        tensors: (name, dimension) of the module's tensors that are cut along this side; one that is several times
            as long has all its channels several times (the blocks of an LSTM's weights).
        counts: integer attributes of the module that shrink in proportion, one of several ("splits[1]"), and shapes
            in which the width stands.
        selects: the module's input keeps all channels: once cut, the module selects those that it reads.
        attention: how the network calls this `nn.MultiheadAttention`, which is replaced once it is cut.
        norm: what this module computes, if it is a norm over these channels, or standardizes its weight over them.
        work: the part of the multiply-adds that the module computes itself, and its share, which this side scales.
        gated: (name, dimension) of the weight and bias that make these channels, on which the gate stands because a
            product of activations reads them.
        rescaled: what reads them divides by the root of their number: what makes them is multiplied by that of the
            part of them that is left.
    """

    module: str
    side: str
    places: Tensor
    tensors: tuple[tuple[str, int], ...] = ()
    counts: tuple[str, ...] = ()
    selects: bool = False
    attention: AttentionCall | None = None
    norm: Norm | StandardizedWeight | None = None
    work: tuple[str, float] = ("", 1.0)
    gated: tuple[tuple[str, int], ...] = ()
    rescaled: bool = False

    @property
    def kind(self) -> str:
        """The side without a name behind it."""
        return kind_of(self.side)


def require_whole(network: nn.Module) -> None:
    """Refuse a slimmed network inside of another, where its gates' paths lead to other layers or to none.

    Raises:
        ChoiceError: a gate stands in a layer that it does not know.
    """
    for path, module in network.named_modules():
        couplings, vanishing = getattr(module, "couplings", ()), getattr(module, "vanishing", None)
        layer, *inside = re.split(rf"(?:^|\.)(?:parametrizations|{STATISTICS})\.", path)
        if couplings and inside and vanishing is None and all(c.module != layer for c in couplings):
            known = ", ".join(repr(coupling.module) for coupling in couplings[:3])
            raise ChoiceError(
                f"the gate in {layer!r} of this {type(network).__name__} cuts the layers {known}, counted from the "
                f"network that archgrad.slim was given, which is a part of this one. Give that part alone, or slim "
                f"the whole: archgrad.slim(network, example=x)."
            )


def kind_of(side: str) -> str:
    """A side without the name behind it: "in" of "in weight_hh_l0"."""
    return side.partition(" ")[0]


@dataclass(frozen=True, eq=False)
class Vanishing:
    """What stays of a residual block without its branch, or of a sum without one of its terms.

    Attributes:
        module: path of the block, or of the term.
        parts: modules that compute the block without its branch, in order: paths inside the block (a projection
            shortcut, an activation) or new modules; none: the identity.
        term: the module stands in a list or dictionary of modules whose outputs are added up, and is removed from it.
        also: other modules of the branch, by path, and what stands in for them.
        width: path of a layer; the part puts out zeros, as many channels as that layer makes. "" where the part
            reads its width from its input.
    """

    module: str
    parts: tuple[str | nn.Module, ...]
    term: bool = False
    also: tuple[tuple[str, nn.Module], ...] = ()
    width: str = ""


def open_channels(coupling: Coupling, kept: Iterable[int]) -> Tensor:
    """[channels] bool: the channels of that side which stay when the gate keeps the entries `kept`."""
    places = coupling.places
    return (places < 0) | torch.isin(places, torch.tensor(sorted(kept), dtype=places.dtype))


def remove_channels(
    network: nn.Module, couplings: Mapping[str, Sequence[Coupling]], kept: Mapping[str, Iterable[int]]
) -> None:
    """Remove the closed channels from the network's layers, in place.

    A side that several gates reach (the input of a layer behind a concatenation) is cut once, to the channels that
    all of them keep.

    Args:
        network: a network without parametrizations on the tensors to be cut.
        couplings: of each gate.
        kept: the entries of each gate that stay.
    """
    sides: dict[tuple[str, str], tuple[Coupling, Tensor]] = {}
    for name, members in couplings.items():
        entries = frozenset(kept[name])
        for member in members:
            if member.side == "branch":
                continue
            if member.rescaled:
                _rescale(network.get_submodule(member.module), member, len(entries))
            # What several gates cut of the same tensors is cut once.
            key = (member.module, f"{member.tensors} {member.counts}" if member.tensors else member.side)
            mask = open_channels(member, entries)
            sides[key] = (member, sides[key][1] & mask if key in sides else mask)
    cut = _Cut()
    for (path, _), (member, mask) in sides.items():
        if not bool(mask.all()):
            cut(network.get_submodule(path), member, mask)
    for path in dict.fromkeys(path for path, _ in sides):
        if isinstance(layer := network.get_submodule(path), nn.RNNBase):
            layer._init_flat_weights()  # its kernels take all weights as one list
    for (path, _), (member, mask) in sides.items():
        attention = network.get_submodule(path)
        if member.attention and isinstance(attention, nn.MultiheadAttention) and not bool(mask.all()):
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, with_fewer_heads(attention, member.attention))
    # Last, since this changes the paths of the layers.
    for (path, _), (member, mask) in sides.items():
        if member.selects and not bool(mask.all()):
            _select(network, path, mask)
        if member.kind == "along" and not bool(mask.all()):
            _put_back(network, path, mask, axis=int(member.side.split()[1]))


def _set(module: nn.Module, attribute: str, value: Any) -> None:
    """Set an attribute, also for copies of a graph, which take those that its `meta` has."""
    setattr(module, attribute, value)
    if isinstance(module, fx.GraphModule):
        preserved: dict[str, Any] = module.meta.get("_user_preserved_attributes", {})
        if attribute in preserved:
            module.meta = {**module.meta, "_user_preserved_attributes": {**preserved, attribute: value}}


def _rescale(module: nn.Module, member: Coupling, left: int) -> None:
    """Multiply what makes a gate's channels by sqrt(left / all), in place."""
    factor = torch.ones(len(member.places), dtype=torch.float64)
    factor[member.places >= 0] = math.sqrt(left / (int(member.places.max()) + 1))
    for name, dim in member.gated:
        parameter = getattr(module, name)
        shape = [-1 if d == dim else 1 for d in range(parameter.dim())]
        scaled = parameter.detach() * factor.to(parameter).view(shape)
        setattr(module, name, nn.Parameter(scaled, requires_grad=parameter.requires_grad))


@dataclass
class _Cut:
    """Cuts modules, and a tensor that several of them share once, so that they share what is left."""

    shared: dict[tuple[int, int, bytes], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, member: Coupling, mask: Tensor) -> None:
        for name, dim in member.tensors:
            tensor = getattr(module, name, None)
            if tensor is not None:
                setattr(module, name, self._smaller(tensor, dim, mask))
        left = int(mask.sum())
        for name in member.counts:
            attribute, _, index = name.rstrip("]").partition("[")
            value = getattr(module, attribute)
            if isinstance(value, (tuple, list)):  # one of several numbers, or a shape, as LayerNorm has
                places = [int(index)] if index else [i for i, size in enumerate(value) if size == len(mask)]
                sizes = (left if i in places else size for i, size in enumerate(value))
                _set(module, attribute, type(value)(sizes))
                continue
            if isinstance(value, dict):
                set_axes_lengths(module, {**value, index: value[index] * left // len(mask)})
                continue
            scaled, remainder = divmod(value * left, len(mask))
            assert remainder == 0, f"{member.module}.{name}: {value} does not shrink from {len(mask)} to {left}"
            _set(module, attribute, scaled)

    def _smaller(self, tensor: Tensor, dim: int, mask: Tensor) -> Tensor:
        every = mask.repeat(tensor.shape[dim] // len(mask)).nonzero().flatten()
        smaller = tensor.detach().index_select(dim, every.to(tensor.device))
        if not isinstance(tensor, nn.Parameter):
            return smaller
        key = (id(tensor), dim, mask.numpy().tobytes())
        made = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
        return self.shared.setdefault(key, (tensor, made))[1]


def set_axes_lengths(module: nn.Module, lengths: dict[str, int]) -> None:
    """Give a layer of einops, such as `Rearrange("b n (h d) -> b h n d", h=4)`, other lengths, in place."""
    for name, value in (("axes_lengths", lengths), ("_axes_lengths", tuple(lengths.items()))):
        if name in vars(module):
            vars(module)[name] = value


def _select(network: nn.Module, path: str, mask: Tensor) -> None:
    """Put a selection of the channels that it reads in front of a layer that was cut."""
    layer = network.get_submodule(path)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    graph = fx.Graph()
    x = graph.placeholder("x")
    # Channels are the last dimension for a Linear, and for a convolution the one in front of its spatial ones.
    dim = -1 if isinstance(layer, nn.Linear) else 1 - weight.dim()
    graph.output(graph.call_function(torch.index_select, (x, dim, graph.get_attr("kept"))))
    root = nn.Module()
    root.register_buffer("kept", mask.nonzero().flatten().to(weight.device))
    parent, _, child = path.rpartition(".")
    selecting = nn.Sequential(fx.GraphModule(root, graph), layer)
    selecting.train(layer.training)
    setattr(network.get_submodule(parent), child, selecting)


def _put_back(network: nn.Module, path: str, mask: Tensor, *, axis: int) -> None:
    """Put zeros where channels were cut in front of a layer that slides along them, and take them out behind it."""
    layer, root = network.get_submodule(path), nn.Module()
    before, count = torch.arange(len(mask)), len(mask)
    if puts_back(layer):  # some were cut before
        before, count = layer.get_buffer("kept").cpu(), len(layer.get_buffer("source"))
        layer = layer.get_submodule("layer")
    root.layer, kept = layer, before[mask.cpu()]
    source = torch.full((count,), len(kept)).index_copy(0, kept, torch.arange(len(kept)))
    for name, places in (("source", source), ("kept", kept)):
        root.register_buffer(name, places.to(next(layer.parameters()).device))
    graph = fx.Graph()
    x = graph.placeholder("x")
    padded = graph.call_function(nn.functional.pad, (x, [0, 0] * (-axis - 1) + [0, 1]))  # zeros, in the last place
    every = graph.call_function(torch.index_select, (padded, axis, graph.get_attr("source")))
    made = graph.call_module("layer", (every,))
    graph.output(graph.call_function(torch.index_select, (made, axis, graph.get_attr("kept"))))
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, fx.GraphModule(root, graph).train(layer.training))


def puts_back(module: nn.Module) -> int:
    """The axis, from the end, along which a module puts zeros back where channels were cut before; 0 for others."""
    if not isinstance(module, fx.GraphModule) or {*module._modules, *module._buffers} != {"kept", "layer", "source"}:
        return 0
    return next((int(n.args[1]) for n in module.graph.nodes if n.target is torch.index_select), 0)


_WIDTHS = ("out_features", "out_channels", "num_features", "num_channels")  # of layers and norms


def remove_branches(network: nn.Module, branches: Iterable[Vanishing]) -> None:
    """Remove branches, those inside others first, in place."""
    for vanishing in sorted(branches, key=lambda v: -v.module.count(".")):
        remove_branch(network, vanishing)


def remove_branch(network: nn.Module, vanishing: Vanishing) -> None:
    """Replace a residual block by what it computes without its branch, or remove a term of a sum, in place."""
    block = network.get_submodule(vanishing.module)
    parent, _, child = vanishing.module.rpartition(".")
    if vanishing.term:
        # The other terms keep their keys, by which gates know them.
        delattr(network.get_submodule(parent), child)
        return
    parts = [block.get_submodule(p) if isinstance(p, str) else copy.deepcopy(p) for p in vanishing.parts]
    if vanishing.width:  # its weight was cut already, and the numbers beside it with it
        counts = vars(network.get_submodule(vanishing.width))
        parts[0].channels = next(counts[name] for name in _WIDTHS if name in counts)
    block_left = (parts[0] if len(parts) == 1 else nn.Sequential(*parts)) if parts else nn.Identity()
    for path, left in ((vanishing.module, block_left), *((p, copy.deepcopy(m)) for p, m in vanishing.also)):
        left.train(network.get_submodule(path).training)
        parent, _, child = path.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, child, left)
        if isinstance(owner, nn.TransformerEncoderLayer):
            owner.activation_relu_or_gelu = 0  # torch's fast path reads the weights of what is gone

"""Which channels of which layers live and die together, and how to take them out of a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True, eq=False)
class Coupling:
    """One side of one module that a gate's entries reach.

    Attributes:
        module: path of the module in the network ("" is the network itself).
        side: "in", "out" or "heads"; "branch" where the whole module goes with the gate's only entry.
        places: [channels of that side], the gate entry that each channel belongs to, or -1 for none.
        tensors: (name, dimension) of the module's tensors that are cut along this side.
        counts: integer attributes of the module that shrink in proportion.
        selects: what the module reads stays whole: once cut, it takes out of it the channels that it keeps.
    """

    module: str
    side: str
    places: Tensor
    tensors: tuple[tuple[str, int], ...] = ()
    counts: tuple[str, ...] = ()
    selects: bool = False


@dataclass(frozen=True, eq=False)
class Vanishing:
    """What stays of a residual block once its branch is gone, or of a sum without one of its terms.

    Attributes:
        module: path of the block, or of the term.
        parts: what computes the block without its branch, in order: paths inside the block (a projection
            shortcut, an activation) or new modules; nothing means identity.
        term: the module stands in a list or dictionary of modules whose outputs are added up: it is taken out.
    """

    module: str
    parts: tuple[str | nn.Module, ...]
    term: bool = False


def open_channels(coupling: Coupling, kept: Iterable[int]) -> Tensor:
    """[channels] bool: the channels of that side which stay when the gate keeps the entries `kept`."""
    places = coupling.places
    return (places < 0) | torch.isin(places, torch.tensor(sorted(kept), dtype=places.dtype))


def remove_channels(
    network: nn.Module, couplings: Mapping[str, Sequence[Coupling]], kept: Mapping[str, Iterable[int]]
) -> None:
    """Cut the closed channels out of the network's layers, in place.

    A side that several gates reach (the input of a layer behind a concatenation) is cut once, to the channels
    that all of them keep.

    Args:
        network: a network without parametrizations on the tensors to be cut.
        couplings: for each gate its couplings.
        kept: for each gate the entries that stay.
    """
    sides: dict[tuple[str, str], tuple[Coupling, Tensor]] = {}
    for name, members in couplings.items():
        stays = frozenset(kept[name])
        for member in members:
            if member.side == "branch":
                continue
            key = (member.module, member.side)
            mask = open_channels(member, stays)
            sides[key] = (member, sides[key][1] & mask if key in sides else mask)
    for (path, _), (member, mask) in sides.items():
        if not bool(mask.all()):
            _cut(network.get_submodule(path), member, mask)
    # Afterwards, since paths lead elsewhere from here on.
    for (path, _), (member, mask) in sides.items():
        if member.selects and not bool(mask.all()):
            _select(network, path, mask)


def _cut(module: nn.Module, member: Coupling, mask: Tensor) -> None:
    index = mask.nonzero().flatten()
    for name, dim in member.tensors:
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        smaller = tensor.detach().index_select(dim, index.to(tensor.device)).clone()
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
        else:
            setattr(module, name, smaller)
    for name in member.counts:
        total = getattr(module, name)
        scaled, rest = divmod(total * len(index), len(mask))
        assert rest == 0, f"{member.module}.{name}: {total} does not shrink from {len(mask)} to {len(index)}"
        setattr(module, name, scaled)


def _select(network: nn.Module, path: str, mask: Tensor) -> None:
    """Put a layer that was cut behind the selection of the channels that it reads."""
    layer = network.get_submodule(path)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    graph = fx.Graph()
    whole = graph.placeholder("whole")
    # Channels are the last dimension for a Linear, and for a convolution the one in front of its spatial ones.
    dim = -1 if isinstance(layer, nn.Linear) else 1 - weight.dim()
    graph.output(graph.call_function(torch.index_select, (whole, dim, graph.get_attr("kept"))))
    rest = nn.Module()
    rest.register_buffer("kept", mask.nonzero().flatten().to(weight.device))
    parent, _, child = path.rpartition(".")
    both = nn.Sequential(fx.GraphModule(rest, graph), layer)
    both.train(layer.training)
    setattr(network.get_submodule(parent), child, both)


def remove_branch(network: nn.Module, vanishing: Vanishing) -> None:
    """Put in a residual block's place what it computes without its branch, or take a term out, in place."""
    block = network.get_submodule(vanishing.module)
    parent, _, child = vanishing.module.rpartition(".")
    if vanishing.term:
        # The other terms keep their keys, by which gates know them.
        delattr(network.get_submodule(parent), child)
        return
    parts = [block.get_submodule(p) if isinstance(p, str) else copy.deepcopy(p) for p in vanishing.parts]
    rest = (parts[0] if len(parts) == 1 else nn.Sequential(*parts)) if parts else nn.Identity()
    rest.train(block.training)
    setattr(network.get_submodule(parent), child, rest)

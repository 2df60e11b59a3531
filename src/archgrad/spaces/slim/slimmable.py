"""Gates on every removable channel group of a network that the user already has."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from archgrad.choices.channels import Coupling, Vanishing
from archgrad.choices.modules import Gate
from archgrad.errors import ModelError
from archgrad.spaces.slim.attention import heads
from archgrad.spaces.slim.branches import branches
from archgrad.spaces.slim.channel_graph import NETWORK_ERRORS, ChannelGraph, input_features, trace
from archgrad.spaces.slim.trial import Groups, Trial, reads
from archgrad.tasks.task import Inputs, arguments

Network = TypeVar("Network", bound=nn.Module)
Example = Inputs | Sequence[Tensor]
FROZEN = "_archgrad_frozen"
log = logging.getLogger(__name__)


def slim(net: Network, example: Example, *, keep: Sequence[str] = (), inputs: bool = False) -> Network:
    """A copy of a network with a gate on every channel group that can be removed.

    Gates stand on the weights that read a channel, so that `g = 0` is exactly the removal of the channel,
    whatever lies between producer and reader: BatchNorm, any activation, pooling, flattening. Channels that a
    residual sum, a concatenation, a grouped convolution or a squeeze-and-excitation couples share one gate.
    Attention loses whole heads, and a residual block may lose its branch. Each removal has been tried out on a
    scrambled copy against the closed gate; what fails the trial is frozen, see `frozen`.

    Args:
        net: any network of plain layers; it is not changed.
        example: inputs that it runs on, [B, ...], one tensor or a sequence of them.
        keep: paths of layers (or of modules that contain them) whose outputs are to stay as they are.
        inputs: also a gate on the input features of each first layer: a Linear or convolution that reads the
            network's inputs, or what is computed of them without parameters. A network without some of them takes
            the full input still, and selects what it keeps.

    Returns:
        A network of the same class. Without a relaxation it computes what `net` computes.

    Raises:
        ModelError: the network fails on the example or has nothing to remove; `keep` names what is not there.

    Source: removable groups as in DNAL (arXiv 2103.02126), found through torch-pruning's dependency graph.
    """
    given = _checked(net, example)
    absent = [path for path in keep if path not in dict(net.named_modules())]
    if absent:
        names = [name for name, _ in net.named_modules() if name]
        raise ModelError(f"keep names {absent}, which {type(net).__name__} does not have; it has {names[:12]} ...")
    space = copy.deepcopy(net)
    graph = _traced(net, given)
    if inputs:
        graph.groups |= input_features(net, given)
    for path in [n for n in graph.groups if _within(graph.groups[n], keep)]:
        del graph.groups[path]
        graph.frozen[path] = "kept at the user's wish"
    trial = Trial(net, given)
    attention = _heads(trial, graph, keep)
    groups = _sound(trial, graph)
    groups = _joint(trial, groups, attention, graph)
    for name, couplings in groups.items():
        _attach(space, name, couplings)
    gated = {c.module for couplings in groups.values() for c in couplings if c.side == "out"}
    for path, last, vanishing in branches(trial, gated):
        if not any(path == k or path.startswith(f"{k}.") for k in keep):
            _attach_branch(space, path, last, vanishing)
    if not groups:
        reasons = "; ".join(f"{n}: {r}" for n, r in list(graph.frozen.items())[:5])
        raise ModelError(f"{type(net).__name__} has no channels that can be removed ({reasons or 'no layer found'})")
    setattr(space, FROZEN, dict(graph.frozen))
    log.info("%d gates, %d layers frozen", len(groups), len(graph.frozen))
    return space


def frozen(space: nn.Module) -> dict[str, str]:
    """The layers of a slim space whose outputs cannot be cut, each with the reason."""
    return dict(getattr(space, FROZEN, {}))


def _checked(net: nn.Module, example: Example) -> tuple[Tensor, ...]:
    if isinstance(example, dict):
        raise ModelError(
            "slim takes a network of one tensor or of several in order, and the example is a dict: put a module "
            "around yours whose forward takes them in order"
        )
    if not isinstance(net, nn.Module):
        kind = (
            f"the class {net.__name__}: make a network of it" if isinstance(net, type) else f"a {type(net).__name__}"
        )
        raise ModelError(f"slim takes a network, a torch.nn.Module, and got {kind}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in net.modules()):
        raise ModelError(
            f"{type(net).__name__} is TorchScript, whose layers cannot be changed; give the Python module that it "
            f"was made from"
        )
    if any(is_lazy(parameter) for parameter in net.parameters()):
        raise ModelError(
            f"{type(net).__name__} has lazy layers without weights; run it once, net(example), and they take shape"
        )
    inputs = arguments(example)
    shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in inputs)
    try:
        with torch.no_grad():
            copy.deepcopy(net).eval()(*inputs)
    except NETWORK_ERRORS as error:
        raise ModelError(
            f"{type(net).__name__} fails on the example {shapes}: {type(error).__name__}: {error}; give an example "
            f"of the shape and dtype that the network takes, with a batch dimension in front"
        ) from error
    return inputs


def _traced(net: nn.Module, inputs: tuple[Tensor, ...]) -> ChannelGraph:
    try:
        return trace(net, inputs)
    except NETWORK_ERRORS as error:
        raise ModelError(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {error}); its outputs have to depend "
            f"on its parameters through autograd"
        ) from error


def _within(couplings: Sequence[Coupling], keep: Sequence[str]) -> bool:
    return any(c.side == "out" and (c.module == k or c.module.startswith(f"{k}.")) for c in couplings for k in keep)


def _sound(trial: Trial, graph: ChannelGraph) -> dict[str, list[Coupling]]:
    """The largest set of groups, found by halving, that passes the trial together."""

    def fails(names: list[str]) -> str:
        chosen: Groups = {n: graph.groups[n] for n in names}
        return trial.failure(chosen, seed=0)

    def add(good: list[str], names: list[str]) -> list[str]:
        reason = fails(good + names) if names else ""
        if not reason:
            return good + names
        if len(names) == 1:
            graph.frozen[names[0]] = reason
            return good
        middle = len(names) // 2
        return add(add(good, names[:middle]), names[middle:])

    return {n: graph.groups[n] for n in add([], list(graph.groups))}


def _heads(trial: Trial, graph: ChannelGraph, keep: Sequence[str]) -> dict[str, list[Coupling]]:
    """Gates over attention heads; what the graph made of the same projections is dropped."""
    ways = {p: w for p, w in heads(trial.network) if not any(p == k or p.startswith(f"{k}.") for k in keep)}
    found: dict[str, list[Coupling]] = {}
    reasons: dict[str, str] = {}
    for rank in range(max(map(len, ways.values()), default=0)):
        left = {p: w[rank] for p, w in ways.items() if p not in found and rank < len(w)}
        if left and not trial.failure(left, seed=0):  # modules of one kind are laid out alike
            found |= left
        for path in left.keys() - found.keys():
            reasons[path] = (
                trial.failure({path: left[path]}, seed=0) if len(left) > 1 else "removal changes the output"
            )
            if not reasons[path]:
                found[path] = left[path]
    for path in ways:
        touched = {(c.module, c.side) for c in ways[path][0]}
        for name in [n for n, cs in graph.groups.items() if any((c.module, c.side) in touched for c in cs)]:
            del graph.groups[name]
        if path in found:
            for couplings in found[path]:
                graph.frozen.pop(couplings.module, None)
        else:
            graph.frozen[path] = f"its heads cannot be removed: {reasons[path]}"
    return {f"{path}.heads": couplings for path, couplings in found.items()}


def _joint(
    trial: Trial, groups: dict[str, list[Coupling]], attention: dict[str, list[Coupling]], graph: ChannelGraph
) -> dict[str, list[Coupling]]:
    """Channels and heads together, if they pass a second trial together; else the channels alone."""
    both = groups | attention
    reason = trial.failure(both, seed=1) if both else ""
    if reason and attention:
        graph.frozen |= dict.fromkeys(attention, f"not together with the other gates: {reason}")
        both, reason = groups, trial.failure(groups, seed=1) if groups else ""
    if reason:
        graph.frozen |= dict.fromkeys(both, reason)
        return {}
    return both


def _attach(space: nn.Module, name: str, couplings: list[Coupling]) -> None:
    size = 1 + max(int(c.places.max()) for c in couplings)
    for member in couplings:
        if reads(space, member):
            ((attribute, dim),) = member.tensors
            gate = Gate(size, name=name, places=_short(member.places, size), dim=dim, couplings=couplings)
            parametrize.register_parametrization(space.get_submodule(member.module), attribute, gate)


def _short(places: Tensor, size: int) -> Tensor | None:
    return None if torch.equal(places, torch.arange(size)) else places


def _attach_branch(space: nn.Module, path: str, last: str, vanishing: Vanishing) -> None:
    """A gate with one entry that scales the last layer of a branch: its weight and its bias."""
    layer = space.get_submodule(last)
    stays = [f"{path}.{p}" for p in vanishing.parts if isinstance(p, str)]
    couplings = [
        Coupling(n, "branch", torch.zeros(1, dtype=torch.long))
        for n, _ in space.named_modules()
        if (n == path or n.startswith(f"{path}.")) and ".parametrizations" not in n
    ]
    couplings = [c for c in couplings if not any(c.module == s or c.module.startswith(f"{s}.") for s in stays)]
    for attribute in ("weight", "bias"):
        tensor = getattr(layer, attribute, None)
        if isinstance(tensor, Tensor):
            places = torch.zeros(tensor.shape[0], dtype=torch.long)
            gate = Gate(1, name=f"{path}.branch", places=places, dim=0, couplings=couplings, vanishing=vanishing)
            parametrize.register_parametrization(layer, attribute, gate)

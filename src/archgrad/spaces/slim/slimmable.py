"""Gates on every removable channel group of a network that the user already has."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from archgrad.argument_types import checked
from archgrad.choices.channels import Coupling, Vanishing
from archgrad.choices.gate import Gate
from archgrad.choices.graph_numbers import with_numbers
from archgrad.choices.spectral_norms import add_spectral_norms, without_spectral_norms
from archgrad.choices.weight_norms import without_weight_norms
from archgrad.copy_and_run import copied, in_mode, require_values
from archgrad.errors import ModelError
from archgrad.spaces.slim.acceptance import Budget, exercised, settle
from archgrad.spaces.slim.attaching import attach
from archgrad.spaces.slim.attention import attention_heads
from archgrad.spaces.slim.branches import branches
from archgrad.spaces.slim.channel_graph import ChannelGraph, trace
from archgrad.spaces.slim.experts import experts
from archgrad.spaces.slim.flat_kernels import Factors
from archgrad.spaces.slim.frozen import Frozen, each_once, reach
from archgrad.spaces.slim.held_space import HeldSpace
from archgrad.spaces.slim.input_features import input_features
from archgrad.spaces.slim.own_widths import with_own_widths
from archgrad.spaces.slim.plain_tensors import with_buffers
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, parameters_read, quiet_graphs, run, runs, without_scripts
from archgrad.spaces.slim.spectral import in_front_of_norms, without_rescaled
from archgrad.spaces.slim.torch_attention import named_again, torch_heads
from archgrad.spaces.slim.trial import Removal, Trial
from archgrad.spaces.slim.trial_masks import MASKS
from archgrad.tasks.batch_checks import KEPT_TYPES, is_of_types
from archgrad.tasks.task import Inputs, arguments, tensors

Network = TypeVar("Network", bound=nn.Module)
Example = Inputs | Sequence[Tensor]
FROZEN = "_archgrad_frozen"
log = logging.getLogger(__name__)


def slim(net: Network, example: Example | None = None, *, keep: Sequence[str] = (), inputs: bool = False) -> Network:
    """A copy of a network with a gate on every channel group that can be removed.

    Gates stand on the weights that read a channel, so that `g = 0` is exactly the removal of the channel,
    whatever lies between producer and reader: BatchNorm, any activation, pooling, flattening. Channels that a
    residual sum, a concatenation, a grouped convolution or a squeeze-and-excitation couples share one gate.
    Attention loses whole heads, and a residual block may lose its branch. Each removal has been tried out on a
    scrambled copy against the closed gate; what fails the trial is frozen, see `frozen`.

    Args:
        net: any network of plain layers; it is not changed.
        example: inputs that it runs on, [B, ...]: one tensor, a sequence of them, or a dict by name, which `forward`
            takes as keywords or as one argument. Values that are no tensors may be among the named ones.
        keep: paths of layers (or of modules that contain them) whose outputs are to stay as they are.
        inputs: also a gate on the input features of each first layer: a Linear or convolution that reads the
            network's inputs, or what is computed of them without parameters. A network without some of them takes
            the full input still, and selects what it keeps.

    Returns:
        A network of the same class, of one that is compiled as a whole the class that was compiled. Without a
        relaxation it computes what `net` computes.

    Raises:
        ModelError: the network fails on the example or has nothing to remove; `keep` names what is not there.

    Example:
        >>> import torch, archgrad as ag
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = ag.slim(net, example=torch.randn(2, 4))
        >>> ag.build(space, ag.Architecture({"0": (1, 5, 6)}))[0].out_features
        3

    Source: removable groups as in DNAL (arXiv 2103.02126).
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return slim(net, example, keep=keep, inputs=inputs)
    net = _uncompiled(net)
    inputs_given = _checked(net, example)
    _warn_of_gradient_hooks(net)
    if isinstance(keep, str) or not isinstance(keep, Sequence) or not all(isinstance(path, str) for path in keep):
        raise ModelError(f"keep={keep!r} was given. Allowed is a list of paths of layers, such as ['head'].")
    absent = [path for path in keep if path not in dict(net.named_modules())]
    if absent:
        names = [name for name, _ in net.named_modules() if name]
        raise ModelError(f"keep names {absent}, which {type(net).__name__} does not have; it has {names[:12]} ...")

    def is_kept(path: str) -> bool:
        return any(path == k or path.startswith(f"{k}.") for k in keep)

    with quiet_graphs():
        _require_own_weights(net, inputs_given)
        numbered = with_buffers(with_numbers(net), inputs_given)
        plain = without_weight_norms(numbered)
        if plain is not numbered and not runs(plain, inputs_given):  # forward reads weight_v or weight_g itself
            plain = numbered
        return _slimmed(without_spectral_norms(plain), inputs_given, is_kept, inputs)


def _require_own_weights(net: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Raise where a copy computes with weights of the original: all that is made of it would."""
    copy = in_mode(copied(net))
    theirs = {id(p): name for name, p in net.named_parameters()}
    for shared in copy.parameters():  # by a __deepcopy__ of the user's
        theirs.pop(id(shared), None)
    if read := parameters_read(copy, given, theirs):
        raise ModelError(
            f"a copy of {type(net).__name__} computes with {', '.join(read[:3])} of the network that was given: a "
            f"function or a hook leads to its layer through an object that copying leaves as it is. Keep the object "
            f"as an attribute of a module, or let forward take the layer from its module (self.layer)"
        )


def _uncompiled(net: Network) -> Network:
    """What torch.compile was given: each mask that is tried, and each step of the gates, would be compiled anew."""
    if isinstance(net, nn.Module) and "_orig_mod" in net._modules:
        net = cast(Network, net._modules["_orig_mod"])
    return net


def _warn_of_gradient_hooks(net: nn.Module) -> None:
    """torch copies no tensor with its hooks, and one that is cut would give them other shapes."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    if hooked := [n for n, tensor in net.named_parameters() if any(getattr(tensor, kind, None) for kind in kinds)]:
        listed = f"{', '.join(hooked[:5])}{f' and {len(hooked) - 5} more' if len(hooked) > 5 else ''}"
        warnings.warn(
            f"hooks on the gradients of {listed} are left out: what slim returns is a copy, torch copies no such "
            f"hook, and parameters that are cut have other shapes. Register them anew on what slim returns",
            stacklevel=3,
        )


def _slimmed(net: Network, given: tuple[Tensor, ...], is_kept: Callable[[str], bool], inputs: bool) -> Network:
    graph = _traced(net, given, is_kept)
    rewritten = with_own_widths(net, given, graph.wides)
    if rewritten is not None:
        net = cast(Network, rewritten)
        graph = _traced(net, given, is_kept)
    if factors := graph.factors:
        graph = _traced(net, given, is_kept, factors=factors)
    if thinned := graph.grouped:
        graph = _traced(net, given, is_kept, thinned=thinned, factors=factors)
    within = (
        _traced(net, given, is_kept, outer=graph, thinned=thinned, factors=factors).groups if graph.divides else {}
    )
    if inputs:
        graph.groups |= input_features(in_mode(copied(net)), given)
    trial = Trial(net, given, macs=graph.whole)
    removals = without_rescaled(net, _accepted(trial, graph, within, is_kept), graph.frozen)
    if not removals:
        reasons = "; ".join(each_once(graph.frozen)[:5])
        raise ModelError(
            f"{type(net).__name__} has no channels that can be removed ({reasons or _without_layers(net)})"
            f"{'. The example holds NaN: give one without' if any(x.isnan().any() for x in tensors(given)) else ''}"
        )
    record = reach(trial, removals, graph)
    del trial
    space = copied(net)
    for removal in removals:
        attach(space, in_front_of_norms(net, removal))
    add_spectral_norms(space)
    setattr(space, FROZEN, record)
    log.info("%d gates; %s", len(removals), record.summary())
    return space


def _without_layers(net: nn.Module) -> str:
    if quantized := [path for path, module in net.named_modules() if ".quantized." in type(module).__module__]:
        return f"{quantized[0]} is quantized: slim the network in float, and quantize what you get back"
    return "no layer found"


@checked
def frozen(space: nn.Module) -> Frozen:
    """The layers with parameters of a slim space whose outputs cannot be cut, by path, each with the reason.

    The mapping also says how much of the network no architecture can remove: `parameters_fraction` and
    `macs_fraction`, both in [0, 1].

    Example:
        >>> import torch, archgrad as ag
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> ag.frozen(ag.slim(net, example=torch.randn(2, 4)))["2"]
        "its channels reach the network's output"
    """
    found = getattr(space, FROZEN, None)
    return found if isinstance(found, Frozen) else Frozen({})


def _accepted(
    trial: Trial, graph: ChannelGraph, within: Mapping[str, list[Coupling]], is_kept: Callable[[str], bool]
) -> list[Removal]:
    """Heads, channels and branches that pass the trial together; the reasons of the others go into `graph.frozen`.

    `within` are channels within heads: they are tried by themselves first, as is what activations are multiplied
    over, so that they cost the others nothing.
    """
    budget = Budget()
    removals = attention_heads(trial, graph, budget, is_kept)
    removals += torch_heads(trial, graph.calls, graph.frozen, is_kept)
    multiplied = [name for name, couplings in graph.groups.items() if any(c.gated for c in couplings)]
    removals += [Removal(name, couplings) for name, couplings in graph.groups.items() if name not in multiplied]
    inner = [Removal(f"{name}.channels", couplings) for name, couplings in within.items()]
    inner += [Removal(name, graph.groups[name]) for name in multiplied]
    for other in (False, True):  # what is known of the scale of attention, and the opposite: it may be computed
        tried = [Removal(r.name, _rescaled(r.couplings, other=other)) for r in inner]
        passed = settle(trial, tried, graph.frozen, Budget(len(MASKS) * 5), masks=MASKS[:2])
        removals += passed
        inner = [r for r in inner if r.name not in {p.name for p in passed}]
    for name in [n for n in graph.frozen if n.endswith(".channels") or any(n == r.name for r in removals)]:
        del graph.frozen[name]
    widths = {c.module for r in removals for c in r.couplings if c.kind == "out"}
    if widths:
        found, members = experts(trial)
        found += branches(trial, widths, members)
        removals += [r for r in found if not any(is_kept(c.module) for c in r.couplings)]
    refused: dict[str, str] = {}
    removals = exercised(trial, removals, refused, budget)
    removals = named_again(trial.network, settle(trial, removals, refused, budget))
    exact = settle(HeldSpace(trial), removals, refused, Budget())
    # Others than those that passed together may not.
    removals = exact if len(exact) == len(removals) else settle(trial, exact, refused, Budget())
    graph.frozen.update(
        {name: reason for name, reason in refused.items() if not name.endswith((".branch", ".channels"))}
    )
    for name, reason in refused.items():
        if name.endswith(".heads"):
            graph.frozen[name.removesuffix(".heads")] = f"its heads cannot be removed: {reason}"
    gated = [c.module for r in removals for c in r.couplings if c.kind == "out"]
    return [r for r in removals if not r.vanishing or _stands_alone(r.vanishing, gated)]


def _rescaled(couplings: Sequence[Coupling], *, other: bool) -> list[Coupling]:
    return [replace(c, rescaled=c.rescaled != (other and bool(c.gated))) for c in couplings]


def _stands_alone(vanishing: Vanishing, gated: Sequence[str]) -> bool:
    """Whether a branch has gates inside, or becomes zeros whatever is inside."""
    inside = any(g.startswith(f"{vanishing.module}.") for g in gated)
    return inside or any(isinstance(part, fx.GraphModule) for part in vanishing.parts)


def _checked(net: nn.Module, example: Example | None) -> tuple[Tensor, ...]:
    if not isinstance(net, nn.Module):
        kind = (
            f"the class {net.__name__}: make a network of it" if isinstance(net, type) else f"a {type(net).__name__}"
        )
        raise ModelError(f"slim takes a network, a torch.nn.Module, and got {kind}")
    if example is None:
        raise ModelError(
            f"slim runs {type(net).__name__} on an example of its inputs, and none was given: "
            f"archgrad.slim(net, example=x) with a tensor that forward takes, a batch dimension in front, such as "
            f"torch.zeros(1, 3, 32, 32), several of them as a tuple, or the example of a task (task.example)"
        )
    if gated := [path for path, module in net.named_modules() if isinstance(module, Gate)]:
        raise ModelError(
            f"{type(net).__name__} is a slimmable network already: {gated[0]} is a gate of archgrad; give it to "
            f"archgrad.dnal as it is, or slim the network that it was made of"
        )
    if isinstance(net, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(net).__name__} is TorchScript, whose layers cannot be changed; give the Python module that it "
            f"was made from. Where only the file is left, write its layers as a module (print(net.code) shows its "
            f"forward) and load its weights: module.load_state_dict(net.state_dict())"
        )
    if any(is_lazy(parameter) for parameter in net.parameters()):
        raise ModelError(
            f"{type(net).__name__} has lazy layers without weights; run it once, net(example), and they take shape"
        )
    require_values(net)
    inputs = arguments(example)
    strangers = [type(x).__name__ for x in inputs if not tensors(x)]
    if strangers or not tensors(inputs):
        raise ModelError(
            f"the example holds {strangers or 'no tensor'}: give what the network takes, a tensor, a tuple of "
            f"tensors, or a dict of them by name, with a batch dimension in front"
        )
    if not any(x.numel() for x in tensors(inputs)):
        raise ModelError(f"the example {_shapes(inputs)} holds no sample; give at least one")
    return inputs


def _shapes(inputs: Inputs) -> str:
    return ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in tensors(inputs))


def _traced(
    net: nn.Module,
    inputs: tuple[Tensor, ...],
    is_kept: Callable[[str], bool],
    *,
    outer: ChannelGraph | None = None,
    thinned: Collection[str] = (),
    factors: Factors = MappingProxyType({}),
) -> ChannelGraph:
    cause: Exception | None = None
    for sources in (True, False):  # code may ask whether a number is an int and nothing else
        try:
            network = without_scripts(in_mode(copied(net)))  # a run may change parameters in place
            return trace(network, inputs, keep=is_kept, sources=sources, outer=outer, thinned=thinned,
                         factors=factors)  # fmt: skip
        except NETWORK_ERRORS as error:
            cause = error
    try:
        run(in_mode(copied(net)), inputs)
    except NETWORK_ERRORS as error:
        raise ModelError(
            f"{type(net).__name__} fails on the example {_shapes(inputs)}: {type(error).__name__}: {error}; give an "
            f"example of the shape and dtype that the network takes, with a batch dimension in front"
            f"{f'. {KEPT_TYPES}' if is_of_types(error) else ''}"
        ) from error
    raise ModelError(
        f"the channels of {type(net).__name__} cannot be followed ({type(cause).__name__}: {cause}); its forward "
        f"has to run under a torch dispatch mode: leave out torch.jit, torch.func and captured graphs"
    ) from cause

"""From a space at an architecture to a network that holds no object of archgrad's."""

from __future__ import annotations

import functools
import operator

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from archgrad.choices.access import choices, decisions, using
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.channel_norms import remove_gates
from archgrad.choices.channels import ORDER
from archgrad.choices.gate import Gate
from archgrad.choices.lazy_candidates import Lazy
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.relaxations import Held
from archgrad.choices.tracing import CONTAINERS, is_ours, traced
from archgrad.copy_and_run import copied


def plain(network: nn.Module, architecture: Architecture) -> nn.Module:
    """The same function, made of torch's and the user's modules; the network given is changed on the way.

    Choices become their picks. A module of one of our classes (a cell of a ready space, an operation) becomes
    the `torch.fx.GraphModule` of what it computes, around the user's and torch's modules as they are.
    """
    vars(network).pop("_archgrad_frozen", None)
    for name, namesakes in choices(network).items():
        kept = namesakes[0].picked(architecture[name]).to(namesakes[0].live.device)
        for choice in namesakes:
            choice.relaxation, choice.override, choice.live = Held(kept), None, choice.live & kept
    return _Plain(architecture).of(network)


def picked(space: nn.Module, architecture: Architecture) -> nn.Module:
    """A copy of what runs of a space at an architecture; of a space of one of our classes that is a small part."""
    if not is_ours(space) or isinstance(space, Choice):
        return copied(space)
    masks = {n: c.picked(architecture[n]).to(c.live.device, torch.float) for n, c in decisions(space).items()}
    with using(space, masks):
        return copied(traced(space))


def unparametrize(network: nn.Module) -> None:
    """Remove the gates from all weights and norms, in place."""
    for module in list(network.modules()):
        remove_gates(module)
        # A wrapper, such as torch.compile's, answers for the parametrizations of what it wraps.
        if parametrize.is_parametrized(module) and "parametrizations" in module._modules:
            _without_gates(module)


class _Plain:
    """Makes modules plain, each once, however often it stands in the network."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.plain: dict[nn.Module, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        if module not in self.plain:
            self.plain[module] = self._convert(module)
        return self.plain[module]

    def _convert(self, module: nn.Module) -> nn.Module:
        if isinstance(module, Lazy):
            return self.of(module.build())
        if isinstance(module, Choice):
            return self._decided(module, self.architecture[module.name])
        if is_ours(module):
            self._make_leaves_plain(module)
            return traced(module)
        for name, child in list(module._modules.items()):
            if child is not None:
                setattr(module, name, self.of(child))
        return module

    def _make_leaves_plain(self, module: nn.Module) -> None:
        """Modules that tracing does not enter may hold objects of ours."""
        for name, child in list(module._modules.items()):
            if isinstance(child, Gate):
                setattr(module, name, self.of(child))
            elif child is not None and (is_ours(child) or type(child) in CONTAINERS):
                self._make_leaves_plain(child)
            elif child is not None:
                self.of(child)

    def _decided(self, choice: Choice, pick: Pick) -> nn.Module:
        """The plain module that a choice in the forward path becomes."""
        if isinstance(choice, OpChoice):
            assert isinstance(pick, int)
            return self.of(choice.candidates[pick])
        graph = fx.Graph()
        inputs = graph.placeholder("inputs")
        root = nn.Module()
        if isinstance(choice, InputChoice):
            assert isinstance(pick, tuple)
            terms = [graph.call_function(operator.getitem, (inputs, i)) for i in pick]
            if choice.edges is not None:
                for i in pick:
                    root.add_module(f"edge_{i}", self.of(choice.edges[i]))
                terms = [graph.call_module(f"edge_{i}", (term,)) for i, term in zip(pick, terms, strict=True)]
            graph.output(functools.reduce(lambda a, b: graph.call_function(operator.add, (a, b)), terms))
            return fx.GraphModule(root, graph)
        kept = choice.picked(pick)
        if bool(kept.all()):
            return nn.Identity()
        # A gate that the user's forward calls has no couplings: its mask stays, as a plain buffer.
        assert isinstance(choice, Gate)
        if choice.places is not None:
            kept = torch.cat([kept, torch.ones(1, dtype=torch.bool)])[choice.places.cpu()]
        root.register_buffer("mask", kept.to(choice.live.device, torch.get_default_dtype()))
        last = graph.call_function(torch.transpose, (inputs, choice.dim, -1))
        masked = graph.call_function(operator.mul, (last, graph.get_attr("mask")))
        graph.output(graph.call_function(torch.transpose, (masked, choice.dim, -1)))
        return fx.GraphModule(root, graph)


def _without_gates(module: nn.Module) -> None:
    """Put the plain tensors back.

    `parametrize.remove_parametrizations` removes the property from the module's class, which a deep copy shares with
    its original: that would break the space that was copied. The original class is put back instead.
    """
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    if not all(isinstance(step, Gate) for steps in parametrizations.values() for step in steps):  # type: ignore[attr-defined]
        return
    originals = {name: steps.original for name, steps in parametrizations.items()}
    original_class = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = original_class
    for name, tensor in originals.items():
        module.register_parameter(name, tensor)  # type: ignore[arg-type]
    order = vars(module).pop(ORDER, ())
    parameters = module._parameters
    for name in [n for n in order if n in parameters] + [n for n in parameters if n not in order]:
        parameters[name] = parameters.pop(name)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # the list of weights for its kernels

"""Whether a network with gates on its weights computes what it does with its channels at zero.

A gate is a parametrization: the weight that it scales keeps its place as an attribute, but among the parameters it
goes by another name, and is there as it was in front of the gate. A `forward` that reads it there, as by
`self.parameters()` or `state_dict()`, reads past the gate or does not find it; one that writes into it, as by
`self.weight.data *= self.mask`, writes into what the gate puts out, which is gone after the call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from archgrad.choices.gate import Gate
from archgrad.choices.relaxations import Held
from archgrad.errors import one_line
from archgrad.spaces.slim.attaching import attach
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS
from archgrad.spaces.slim.trial import Check, Failure, Removal, Trial
from archgrad.spaces.slim.trial_masks import MASKS


@dataclass
class HeldSpace:
    """Compares networks with gates that are held with those whose channels are at zero.

    Args:
        trial: has tried the removals; inputs and tolerances are its own.
    """

    trial: Trial

    @property
    def masks(self) -> Sequence[str]:
        """What is kept."""
        return MASKS[:1]

    def failure(
        self, removals: Sequence[Removal], mask: str, checks: Sequence[Check] | None, kept: Mapping[str, list[int]]
    ) -> Failure | None:
        """Why gates do not compute what zeros do; None where they do."""
        number = len(self.trial.inputs) - 1 if self.trial.large else 0  # the cheapest
        runs = [n for n in (number, *range(len(self.trial.inputs))) if self.trial.trains(n)][:1]
        own = [Check(number, False), *(Check(n, True) for n in runs)]
        with _shaken(self.trial.network):
            closed, held = self.trial.closed(removals, kept), self._held(removals, kept)
            # Twice, as what a run writes into a weight is read by the next.
            for check in [each for each in (own if checks is None else checks) for _ in range(2)]:
                try:
                    actual = self.trial.outputs(held, check)
                except NETWORK_ERRORS as error:
                    return Failure(_reason(held, removals[-1], f" ({one_line(error)})"), check)
                expected = self.trial.outputs(closed, check)  # it may write into weights that both have
                if self.trial.differ(expected, actual, check, removals, kept):
                    return Failure(_reason(held, removals[-1], ""), check)
        return None

    def _held(self, removals: Sequence[Removal], kept: Mapping[str, list[int]]) -> nn.Module:
        network = self.trial.copy()
        for removal in removals:
            attach(network, removal)
        for path, gate in _gates(network):
            if gate.name in kept:
                owner = network.get_submodule(path.rpartition(".")[0])
                gate.relaxation = Held(gate.picked(tuple(kept[gate.name])))
                gate.to(next(owner.parameters(), next(network.parameters())).device)
        return network


@contextlib.contextmanager
def _shaken(network: nn.Module) -> Iterator[None]:
    """Inside, weights are a little off: a network that runs once more sets to 0 again what it masks, and a held one
    should."""
    kept = {p: p.detach().clone() for p in network.parameters() if p.dim() > 1 and p.is_floating_point()}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        try:
            for weight, own in kept.items():
                noise = torch.randn(own.shape, generator=generator).to(own)
                weight.add_(0.05 * own.square().mean().sqrt() * noise)
            yield
        finally:
            for weight, own in kept.items():
                weight.data.copy_(own)


def _gates(network: nn.Module) -> list[tuple[str, Gate]]:
    return [(path, module) for path, module in network.named_modules() if isinstance(module, Gate)]


def _reason(held: nn.Module, removal: Removal, error: str) -> str:
    paths = [path.rpartition(".")[0] for path, gate in _gates(held) if gate.name == removal.name]
    weights = [path.replace("parametrizations.", "") for path in paths]
    return (
        f"its gate computes {', '.join(weights[:3])}{' and others' * (len(weights) > 3)} in each call, and forward "
        f"then computes something else{error}, as where it lists parameters (parameters(), named_parameters(), "
        f"state_dict()), in which these have other names and no gate, writes into a weight (weight.data *= mask), or "
        f"asks for the type of a layer; take them as attributes, such as layer.weight, and compute a tensor of its "
        f"own in place of writing"
    )

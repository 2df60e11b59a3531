"""Find the largest set of removals that is shown to be exact, in a number of runs that has a bound."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from archgrad.copy_and_run import in_mode
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, run, tensors_of
from archgrad.spaces.slim.trial import TOLERANCE, Check, Failure, Removal, Trial, readers
from archgrad.spaces.slim.trial_masks import BRANCHLESS, MASKS, kept_entries
from archgrad.spaces.slim.value_differences import as_real, largest

UNSHOWN = (
    "the example does not exercise it: closing its channels changes no output; give an example on which it counts"
)
OVERRUN = "too many removals fail for each to be tried; name those that should stay in keep="
RUNS = 160  # comparisons in all, whatever the size of the network
QUIET = 4.0  # seconds between lines of progress
log = logging.getLogger(__name__)


@dataclass
class Budget:
    """Comparisons that are left, and the lines that say how far the trial has come."""

    left: int = RUNS
    _next: float = field(default_factory=lambda: time.monotonic() + QUIET)

    def spend(self, doing: str, *, reserve: int = 0) -> bool:
        """Take one; False where no more than `reserve` are left."""
        if time.monotonic() > self._next:
            self._next = time.monotonic() + QUIET
            log.warning("slim: %s, %d runs of the network so far", doing, RUNS - self.left)
        self.left -= 1
        return self.left >= reserve


class Comparisons(Protocol):
    """What finds a reason why some removals are not exact together."""

    @property
    def masks(self) -> Sequence[str]:
        """What is kept, one after another."""

    def failure(
        self, removals: Sequence[Removal], mask: str, checks: Sequence[Check] | None, kept: Mapping[str, list[int]]
    ) -> Failure | None:
        """Why these are not exact under a mask, which keeps these entries; None where they are."""


def exercised(
    trial: Trial, removals: Sequence[Removal], frozen: MutableMapping[str, str], budget: Budget
) -> list[Removal]:
    """The removals whose closing changes an output of the example; the others are put in `frozen`."""
    silent = _silent(trial, removals, budget)
    frozen.update(dict.fromkeys(silent, UNSHOWN))
    return [r for r in removals if r.name not in silent]


def settle(
    trial: Comparisons,
    removals: Sequence[Removal],
    frozen: MutableMapping[str, str],
    budget: Budget,
    *,
    masks: Sequence[str] | None = None,
    checks: Sequence[Check] | None = None,
) -> list[Removal]:
    """The removals that are exact together under every mask; the reasons of the others are put in `frozen`.

    Args:
        trial: where they are tried.
        removals: all candidates.
        frozen: takes the reasons.
        budget: the runs that are left.
        masks: what is kept; default: all of the trial's.
        checks: the comparisons to make; default: those that belong to each mask.
    """
    accepted = list(removals)
    for mask in trial.masks if masks is None else masks:
        if mask in BRANCHLESS and not any(r.vanishing for r in accepted):
            continue
        while accepted and budget.spend(f"trying {len(accepted)} gates together"):
            kept = kept_entries(accepted, mask)
            failure = trial.failure(accepted, mask, checks, kept)
            if failure is None:
                break
            # Each keeps the same entries whatever others are tried beside it, or what fails may pass.
            search = _Search(trial, mask, checks if failure.check is None else [failure.check], kept, budget)
            found = search.largest(accepted)
            sound = [r for r in accepted if r in found]
            if len(sound) == len(accepted):  # it failed together and passes now: it does not compute the same twice
                search.reasons = {r.name: failure.reason for r in accepted}
                sound = []
            frozen.update(search.reasons)
            accepted = sound
        if budget.left < 0:
            frozen.update({r.name: OVERRUN for r in accepted})
            return []
    return accepted


def alike(removals: Sequence[Removal]) -> list[list[Removal]]:
    """Removals by what they are in the network, whatever block they stand in."""
    classes: dict[object, list[Removal]] = {}
    for removal in removals:
        sides = {(re.sub(r"\d+", "#", c.module), c.side, c.tensors, c.counts) for c in removal.couplings}
        key = (re.sub(r"\d+", "#", removal.name), frozenset(sides))
        classes.setdefault(key, []).append(removal)
    return list(classes.values())


@dataclass
class _Search:
    """Halving: a set that fails is divided until those that fail are found; the first of alike ones judges all."""

    trial: Comparisons
    mask: str
    checks: Sequence[Check] | None
    kept: Mapping[str, list[int]]
    budget: Budget
    reasons: dict[str, str] = field(default_factory=dict)

    def largest(self, removals: Sequence[Removal]) -> list[Removal]:
        """The largest set found that passes the comparison."""
        return self._add([], alike(removals), known="")

    def _fails(self, removals: list[Removal]) -> str:
        # Those that have passed are still to be tried under the masks that follow.
        if not self.budget.spend("looking for the gates that fail", reserve=3 * len(MASKS)):
            return OVERRUN
        failure = self.trial.failure(removals, self.mask, self.checks, self.kept)
        return failure.reason if failure else ""

    def _add(self, good: list[Removal], classes: list[list[Removal]], *, known: str) -> list[Removal]:
        """`good` and as many of the classes as pass with it; `known` is the reason if all are known to fail."""
        members = [r for same in classes for r in same]
        reason = known or (self._fails(good + members) if members else "")
        if not reason:
            return good + members
        if reason == OVERRUN or len(members) == 1:
            self.reasons.update({r.name: reason for r in members})
            return good
        if len(classes) == 1:
            first = self._fails([*good, members[0]])
            if first:  # the others are built alike
                self.reasons.update({r.name: first for r in members})
                return good
            return self._add(
                [*good, members[0]], [[r] for r in members[1:]], known="" if len(members) > 2 else reason
            )
        middle = len(classes) // 2
        left = self._add(good, classes[:middle], known="")
        passed = len(left) - len(good) == sum(map(len, classes[:middle]))
        return self._add(left, classes[middle:], known=reason if passed else "")


def _silent(trial: Trial, removals: Sequence[Removal], budget: Budget) -> set[str]:
    """Names of the removals whose closing changes no finite output on any of the trial's inputs."""
    unsure, inputs = list(removals), range(len(trial.inputs))
    for number in inputs[::-1] if trial.large else inputs:
        if unsure:
            slopes = _slopes(trial, unsure, number)
            least = 1e3 * torch.finfo(trial.dtype).eps ** 1.5 * max(slopes.values(), default=0.0)
            unsure = [r for r in unsure if not slopes.get(r.name, 0.0) > least]
    for number in inputs:
        if unsure:
            unsure = list(_unchanging(trial, unsure, budget, number))
    return {r.name for r in unsure}


def _slopes(trial: Trial, removals: Sequence[Removal], number: int) -> dict[str, float]:
    """The largest derivative of a random sum of the outputs by an entry of each gate, where there is one."""
    network = in_mode(trial.network)
    factors: dict[str, list[Tensor]] = {}
    handles = []
    for removal, member in readers(network, removals):
        if member.side != "in":  # of one weight among several, which no factor on the layer's input stands for
            continue
        factor = torch.ones(len(member.places), dtype=trial.dtype, requires_grad=True)
        factors.setdefault(removal.name, []).append(factor)
        handles.append(_scale_input(network.get_submodule(member.module), factor))
    for removal in (r for r in removals if r.vanishing):
        factor = torch.ones(1, dtype=trial.dtype, requires_grad=True)
        factors.setdefault(removal.name, []).append(factor)
        handles.append(_scale_output(network.get_submodule(removal.last), factor))
    requires = {p: p.requires_grad for p in network.parameters()}
    try:
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        with trial.precisely():
            outputs = tensors_of(run(network, trial.inputs[number], grad=True))
        total = _random_sum(outputs)
        leaves = [f for own in factors.values() for f in own]
        slopes = torch.autograd.grad(total, leaves, allow_unused=True) if leaves and total.requires_grad else []
    except NETWORK_ERRORS:
        return {}
    finally:
        for handle in handles:
            handle.remove()
        for parameter, needed in requires.items():
            parameter.requires_grad_(needed)
    steepest = iter([0.0 if s is None else float(s.abs().max().nan_to_num(0.0, 0.0, 0.0)) for s in slopes])
    return {name: max(next(steepest, 0.0) for _ in own) for name, own in factors.items()}


def _scale_input(module: nn.Module, factor: Tensor) -> torch.utils.hooks.RemovableHandle:
    trailing = len(getattr(module, "kernel_size", ())) if not isinstance(module, nn.Linear) else 0

    def scale(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * factor.to(inputs[0]).view(-1, *[1] * trailing), *inputs[1:])

    return module.register_forward_pre_hook(scale)


def _scale_output(module: nn.Module, factor: Tensor) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _module, _inputs, output: output * factor.to(output))


def _random_sum(outputs: Sequence[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for x in outputs:
        x = as_real(x)
        if x.is_floating_point() and x.requires_grad:
            weights = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
            total = total + torch.where(x.isfinite(), x * weights, torch.zeros_like(x)).sum().to(total)
    return total


def _unchanging(trial: Trial, removals: Sequence[Removal], budget: Budget, number: int) -> Iterator[Removal]:
    """Those of which closing all but one entry, together and then by halves, changes nothing."""
    reference = trial.reference(number)

    def silent(some: Sequence[Removal]) -> Iterator[Removal]:
        if not budget.spend("looking for gates that the example does not exercise"):
            yield from some
            return
        try:
            closed = trial.outputs(trial.closed(some, kept_entries(some, "smallest")), Check(number, training=False))
        except NETWORK_ERRORS:
            closed = []
        if not _changed(trial, reference, closed):
            yield from some
        elif len(some) > 1:
            middle = len(some) // 2
            yield from silent(some[:middle])
            yield from silent(some[middle:])

    return silent(removals)


def _changed(trial: Trial, before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether some finite output changed by more than rounding."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return True
    for a, b in zip(map(as_real, before), map(as_real, after), strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return True
            continue
        finite = a.isfinite() & b.isfinite()
        if bool(finite.any()) and float((a - b)[finite].abs().max()) > TOLERANCE[trial.dtype] * largest(a):
            return True
    return False

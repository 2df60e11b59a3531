"""Gates trained under a limit in a training loop of the user's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import logits
from archgrad.choices.architecture import Architecture
from archgrad.costs.count import macs
from archgrad.costs.limits import Limit
from archgrad.digests import digest
from archgrad.errors import ConfigError, LimitError, NonFiniteError
from archgrad.extract.discretize import build
from archgrad.files import shown
from archgrad.gates.gate_optimizer import (
    RATE_UNDER_LIMIT,
    GateOptimizer,
    entry_logits,
    limited_logit_optimizer,
    stand_in,
)
from archgrad.gates.importance import begin_by_magnitude
from archgrad.gates.selection import FLOOR, GateConstraint, gates
from archgrad.gates.width_rounding import RoundTo, WidthRounding
from archgrad.report.numbers import amount
from archgrad.run.nonfinite import finite
from archgrad.tasks.batch_checks import explained
from archgrad.tasks.task import call
from archgrad.training.fit import estimate_statistics


@checked
class GateTrainer:
    """Decides the gates of a space in your own training loop, and cuts the network under a limit.

    It relaxes the space in place, the logits of its gates in the order of the weights' magnitude, so that your loss
    has a gradient with respect to them too. After each step of your optimizer, `step` moves the logits by that
    gradient and back onto the limit (`GateOptimizer`, as `archgrad.dnal` does), and hardens the gates. `cut` gives
    the plain network, under the limit exactly.

    The loop stays yours: any optimizer of the weights, mixed precision, accumulation, a moving average, several
    processes. The optimizer must not train the logits: make it before the GateTrainer, or give it
    `archgrad.weights(space)`.

    Args:
        space: a network with gates, from `archgrad.slim`; train it and no copy of it.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`, or a list of several that all hold.
        steps: how often `step` will be called.
        example: inputs of the network, [1, ...], or a nest of such; needed for a limit on a measured cost, whose
            gradient is that of MACs.
        round_to: widths are multiples of this; 1 for any width. Default 8, less for narrow layers; under a limit on
            latency "auto", what is measured to suit its runtime here.
        learning_rate: of the logits.

    Raises:
        ChoiceError: the space has choices that are no gates, or none.
        ConfigError: `steps` is no whole number from 1 up, a measured limit comes without `example`, or
            `round_to="auto"` without a limit on latency.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.

    Example:
        >>> import torch, archgrad as ag
        >>> x = torch.randn(8, 16)
        >>> net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> space, limit = ag.slim(net, example=x), ag.macs(x[:1]).at_most(fraction=0.5)
        >>> optimizer = torch.optim.AdamW(space.parameters())
        >>> trainer = ag.GateTrainer(space, limit=limit, steps=4)
        >>> for step in range(4):
        ...     space(x).square().mean().backward()
        ...     optimizer.step(); optimizer.zero_grad(); figures = trainer.step()
        >>> ag.macs(x[:1]).of(trainer.cut()) <= 0.5 * ag.macs(x[:1]).of(net)
        True
    """

    def __init__(
        self,
        space: nn.Module,
        *,
        limit: Limit | Sequence[Limit],
        steps: int,
        example: Any = None,
        round_to: RoundTo = None,
        learning_rate: float = RATE_UNDER_LIMIT,
    ) -> None:
        if type(steps) is not int or steps < 1:
            raise ConfigError(f"steps={steps!r} was given. Allowed is how often step() will be called: 1 or more.")
        gates(space)  # a space of anything else is refused
        self.space, self.steps, self.steps_taken = space, steps, 0
        self._limit = limit
        self.constraint = GateConstraint(space, limit, WidthRounding.asked(round_to, space, limit))
        if not self.constraint.counted and example is None:
            measured = [part.name for part in self.constraint.parts or (self.constraint,) if not part.counted]
            raise ConfigError(
                f"a limit on {' and '.join(measured)} is measured and has no gradient: give example=, inputs of the "
                f"network, so that MACs can stand in for it while the gates are trained"
            )
        begin_by_magnitude(space)
        self._gates = GateOptimizer(space, None)
        if self.constraint.counted:
            self._gates.set_target(self.constraint, self.constraint.bound)
        else:
            counted = GateConstraint(space, macs(example).at_most(fraction=1.0), self.constraint.rounding)
            self._gates.set_target(counted, stand_in(self.constraint, counted))
        self._optimizer = limited_logit_optimizer(space, learning_rate)
        self._gates.grow_scale(0, 0.0, optimizer=self._optimizer)
        self._after_step = self._values()

    def __repr__(self) -> str:
        limit = Limit(self.constraint.cost, bound=self.constraint.bound)
        return f"<GateTrainer, {self.steps_taken} of {self.steps} steps: {len(gates(self.space))} gates, {limit!r}>"

    def step(self, scaler: torch.amp.GradScaler | None = None) -> dict[str, float]:
        """Move the gates by the gradient that `backward()` has left; call it after each step of your optimizer.

        Args:
            scaler: of mixed precision, after `scaler.step(optimizer)`; a step whose gradient overflowed is left out.

        Returns:
            Figures to log where the gates have hardened: the scale, the open gates, the expected cost; else none.

        Raises:
            ConfigError: no gradient has reached the logits, or the weights' optimizer has trained them.
        """
        self._check_loop()
        gradients = [p.grad for p in logits(self.space) if p.grad is not None]
        if scaler is not None:
            for gradient in gradients:
                gradient.div_(scaler.get_scale())
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            self._optimizer.step()
            self._gates.project(self.steps_taken)
        self._optimizer.zero_grad()
        self.steps_taken += 1
        progress = min(self.steps_taken / self.steps, 1.0)
        figures = self._gates.grow_scale(self.steps_taken, progress, optimizer=self._optimizer)
        self._after_step = self._values()
        return figures

    def cut(self, *, inputs: Iterable[Any] = ()) -> nn.Module:
        """The plain network under the limit, with the space's weights; the space is not changed.

        Args:
            inputs: batches of inputs [B, ...], or tuples of them, on which BatchNorm's running statistics are
                estimated anew; those that the space gathered are of another network.

        Raises:
            ConfigError: `inputs` are no batches.
            LimitError: a measured limit is not met when it is measured again.
            ModelError: the network does not run on the inputs.
            NonFiniteError: a weight of the space is NaN or infinite.
        """
        if wrong := [name for name, p in self.space.named_parameters() if not finite([p])]:
            raise NonFiniteError(
                f"{wrong[0]} of the space is NaN or infinite after {self.steps_taken} steps, {len(wrong)} parameters "
                f"in all. Go back to a state before that, and lower the learning rate or clip gradients"
            )
        network = build(self.space, self.architecture())
        if not isinstance(inputs, Iterable):
            raise ConfigError(
                f"inputs={shown(inputs)} was given. Allowed are batches of inputs, such as a list of them."
            )

        def forward(batch: Any) -> None:
            with explained("the network that was cut fails", batch):
                call(network, batch)

        estimate_statistics(network, (functools.partial(forward, batch) for batch in inputs))
        record = self.constraint.record(network)
        for limited in (record, *record.get("others", [])):
            if limited["reached"] > limited["bound"]:
                raise LimitError(
                    f"the network takes {amount(limited['reached'], limited['unit'])} when measured again, over its "
                    f"limit of {amount(limited['bound'])}; call cut() on a quieter machine, or raise the limit"
                )
        return network

    def architecture(self) -> Architecture:
        """The largest architecture under the limit in the order of the logits."""
        return self.constraint.best_feasible(entry_logits(self.space), floor=FLOOR * self.constraint.uniform_width())

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beyond `space.state_dict()`, which holds the logits."""
        return {
            "steps": self.steps, "steps_taken": self.steps_taken, "optimizer": self._optimizer.state_dict(),
            "gates": self._gates.state_dict(), "rounding": dataclasses.asdict(self.constraint.rounding),
            "limit": repr(self._limit), "logits": digest(self._values()),
            "scale": [*self._gates.scale, self._gates.rounds],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, after `space.load_state_dict`.

        Raises:
            ConfigError: the state is of something else, of a training of another length or under another limit, or
                the space holds other logits.
        """
        if not isinstance(state, Mapping) or set(state) != set(self.state_dict()):
            raise ConfigError("the state is of something else: give what state_dict() of a GateTrainer returned")
        if state["steps"] != self.steps:
            raise ConfigError(
                f"the state is of steps={state['steps']}, and this GateTrainer has steps={self.steps}: give the same"
            )
        if state["scale"] != [*self._gates.scale, self._gates.rounds]:
            raise ConfigError(
                "the state is of another version of archgrad, in which the gates harden otherwise: begin anew, or "
                "resume with that version"
            )
        if state["limit"] != repr(self._limit):
            raise ConfigError(f"the state is of {state['limit']}, and this is {self._limit!r}: give the same limit")
        if state["logits"] != digest(self._values()):
            raise ConfigError(
                "the space holds other logits than it had when the state was taken: load the space's state_dict of "
                "that moment first"
            )
        rounding = WidthRounding(**state["rounding"])
        if rounding != self.constraint.rounding:  # measured, on another day
            self.constraint = GateConstraint(self.space, self._limit, rounding)
        self.steps_taken = state["steps_taken"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._gates.load_state_dict(state["gates"])
        self._after_step = self._values()

    def _values(self) -> Tensor:
        # On the CPU, so that the space may be moved to a device between two steps.
        return torch.cat([p.detach().flatten().cpu() for p in logits(self.space)])

    def _check_loop(self) -> None:
        if not torch.equal(self._values(), self._after_step):
            raise ConfigError(
                "something other than GateTrainer has moved the logits of the gates: give your optimizer "
                "archgrad.weights(space) in place of space.parameters(), or make it before the GateTrainer; after "
                "space.load_state_dict call the GateTrainer's load_state_dict"
            )
        if all(p.grad is None for p in logits(self.space)):
            raise ConfigError(
                "no gradient has reached the logits of the gates: call step() after loss.backward(), compute the "
                "loss with the space itself, and set gradients of your optimizer's parameters alone to zero before it"
            )

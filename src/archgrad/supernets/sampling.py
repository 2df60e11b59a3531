"""What a method that samples a supernet carries from step to step: noise, baselines, the limit's penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.estimators import DecayingBaseline, Sample, control_variate, draw, soften
from archgrad.choices.modules import Choice, InputChoice
from archgrad.choices.subsets import Subsets
from archgrad.run.run import Run
from archgrad.supernets.bilevel import mixed
from archgrad.supernets.constraint import ArchitectureConstraint


@runtime_checkable
class Branched(Protocol):
    """A space whose nodes have two branches that may be the same."""

    def duplicates(self, weights: Mapping[str, Tensor]) -> Tensor:
        """S: the sum over nodes of the overlap of their branches, (), or [B] for weights [B, size]."""
        ...


class Sampler:
    """Draws architectures from the softmax of a space's logits, or from distributions over subsets.

    A choice with a distribution over subsets is drawn as one categorical choice among these: K is their number, and
    `named` turns their weights into those of the inputs.

    Args:
        space: every choice relaxed with a softmax or a distribution over subsets of its own.
        run: whose generator "architectures" is drawn from.
        temperature: of the relaxed samples.
        softening: added to every probability that is sampled from.
    """

    def __init__(self, space: nn.Module, run: Run, *, temperature: float, softening: float) -> None:
        self.space, self.temperature, self.softening = space, temperature, softening
        self.generator, self.across = run.generator("architectures"), run.mean_loss

    def draw(self, samples: int = 1) -> Sample:
        """Hard, relaxed and conditional weights, [samples, K] for each choice, with gradient to the logits."""
        soft = soften(
            [_logits(choice) for choice, *_ in choices(self.space).values()],
            self.softening,
        )
        return draw(soft, temperature=self.temperature, samples=samples, generator=self.generator)

    def named(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Weights as `using` takes them: [samples, K] for an architecture an image, [K] for one a batch."""
        named = {}
        for (name, (choice, *_)), row in zip(choices(self.space).items(), rows, strict=True):
            if isinstance(choice.relaxation, Subsets):
                row = row @ choice.relaxation.subsets.to(row)
            named[name] = row if len(row) > 1 else row[0]
        return named

    def architecture(self, sample: Sample) -> Architecture:
        """The architecture of the first one-hots of a sample."""
        picks: dict[str, Pick] = {}
        for (name, (choice, *_)), row in zip(choices(self.space).items(), sample.hard, strict=True):
            index = int(row[0].argmax())
            if isinstance(choice.relaxation, Subsets):
                picks[name] = tuple(choice.relaxation.subsets[index].nonzero().flatten().tolist())
            else:
                picks[name] = (index,) if isinstance(choice, InputChoice) else index
        return Architecture(picks)


def _logits(choice: Choice) -> Tensor:
    """What a choice is drawn from: [size], or [subsets]; -inf for what is dead."""
    assert choice.relaxation is not None
    if isinstance(choice.relaxation, Subsets):
        return choice.relaxation.log_probabilities(choice.live).float()
    (logit,) = choice.relaxation.parameters()
    return logit.masked_fill(~choice.live, float("-inf"))


class RebarEstimate:
    """REBAR surrogates with a decaying baseline: one for each term that has its own scale.

    Args:
        across: takes the mean of losses over all processes, `run.mean_loss`; these draw the same samples.
    """

    def __init__(self, across: Callable[[Tensor], Tensor]) -> None:
        self._across = across
        self.baseline = DecayingBaseline()

    def __call__(self, hard: Tensor, relaxed: Tensor, log_probability: Tensor) -> Tensor:
        """A scalar whose gradient is the estimate; arguments [samples] as in `control_variate`."""
        hard, relaxed = self._across(hard), self._across(relaxed)
        surrogate = control_variate(hard, relaxed, log_probability, baseline=self.baseline.value)
        self.baseline.update(hard.detach() - relaxed.detach())
        return surrogate


class LimitPenalty:
    """The limit as a term of a sampled search: beta * max(0, price / bound - 1), one architecture of its own a step.

    The price is that of the discrete architecture, measured where the cost is measured; the control variate is the
    penalty on the expected or surrogate price of the relaxed one.

    Args:
        sampler: draws the architecture.
        constraint: the limit.
        pressure: beta, after `ramp` steps in which it grows from 0.
    """

    def __init__(self, sampler: Sampler, constraint: ArchitectureConstraint, *, pressure: float, ramp: float) -> None:
        self.sampler, self.constraint, self.pressure, self.ramp = sampler, constraint, pressure, max(ramp, 1.0)
        self.estimate = RebarEstimate(sampler.across)
        self.done = 0
        self.price = float("nan")

    def __call__(self) -> Tensor:
        """The term's surrogate: a scalar with gradient to the logits."""
        sample, bound = self.sampler.draw(), self.constraint.bound
        self.price = self.constraint.price(self.sampler.architecture(sample))
        beta = self.pressure * min(self.done / self.ramp, 1.0)
        self.done += 1
        relaxed = beta * torch.relu(self.constraint.expected(self.sampler.named(sample.mixed)) / bound - 1.0)
        hard = torch.full((1,), beta * max(0.0, self.price / bound - 1.0)).to(sample.log_probability)
        return self.estimate(hard, relaxed.view(1).to(hard), sample.log_probability)

    def figures(self) -> dict[str, float]:
        """The latest price, and the expected one; a surrogate is fitted again to all that was measured."""
        self.constraint.refit()
        with torch.no_grad():
            expected = self.constraint.expected(mixed(self.sampler.space))
        return {"cost": self.price, f"expected_{self.constraint.cost.name}": float(expected)}

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        return {"done": self.done, "price": self.price, "baseline": self.estimate.baseline.state_dict(),
                "constraint": self.constraint.state_dict()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.done, self.price = state["done"], state["price"]
        self.estimate.baseline.load_state_dict(state["baseline"])
        self.constraint.load_state_dict(state["constraint"])

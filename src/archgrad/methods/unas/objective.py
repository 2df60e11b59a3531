"""The objective of UNAS: samples of architectures, the estimate of its gradient, the penalty of a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions, logits, using
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.estimators import DecayingBaseline, Sample, control_variate, draw, soften
from archgrad.choices.modules import Choice, InputChoice
from archgrad.choices.subsets import Subsets, topologies
from archgrad.errors import ConfigError
from archgrad.run.run import Run
from archgrad.supernets.bilevel import mixed
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.tasks.task import Batch, PerSample, Task, batch_size, first
from archgrad.training.schedules import Schedule, after, warm_up_cosine

SKIPPED = 0.05
BlackBox = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class UnasTerms:
    """The objective of UNAS: weights of its terms, and how its gradient is estimated.

    Attributes:
        task: weight of the training loss and the gap; 0 leaves only a black box.
        gap: between training and validation loss: "batch", "pairwise" (the authors' code), or "none".
        gap_weight: lambda_g.
        duplicates: lambda_s, weight of nodes whose two branches are the same.
        pressure: beta, weight of the limit.
        ramp: part of the search of the architecture over which beta grows from 0.
        temperature: of the relaxation.
        softening: added to every probability that is sampled from; 0 to leave it out.
        warm_up: part of the search, at its beginning, in which only the weights are trained; below 1.
        weights_at: what the weights are trained at samples of: the "uniform" policy throughout, or the searched
            "policy" (published), which trains most what it already prefers.
        rate: of Adam on the logits; default: 1e-3, as published (CIFAR: 2e-3), or more in short searches.
        floor: last rate of the logits, as a part of their first; published 0.3 (ImageNet) and 0.15 (CIFAR).
        restart: whether the weights keep their first rate in the warm-up, and their schedule begins after it, as
            published.
        estimator: "rebar" (published) or "score_function".
        per_image: one architecture for each image (published), in place of one for each batch.
    """

    task: float = 1.0
    gap: Literal["pairwise", "batch", "none"] = "batch"
    gap_weight: float = 0.5
    duplicates: float = 0.2
    pressure: float = 1.0
    ramp: float = 0.3
    temperature: float = 0.4
    softening: float = 0.05
    warm_up: float = 0.75
    weights_at: Literal["uniform", "policy"] = "uniform"
    rate: float | None = None
    floor: float = 0.0
    restart: bool = False
    estimator: Literal["rebar", "score_function"] = "rebar"
    per_image: bool = False

    def __post_init__(self) -> None:
        if not (0.0 <= self.warm_up < 1.0 and 0.0 <= self.ramp <= 1.0 and 0.0 <= self.floor <= 1.0):
            raise ConfigError(
                f"UnasTerms(warm_up={self.warm_up}, ramp={self.ramp}, floor={self.floor}) was given; allowed are "
                f"parts from 0 to 1, and a warm_up below 1, such as 0.5"
            )

    def schedules(self, of_weights: Schedule) -> tuple[Schedule, Schedule]:
        """Of the weights' and the logits' rates: the logits' begins when they do, half a cosine down to `floor`."""
        return (
            after(self.warm_up, of_weights) if self.restart else of_weights,
            after(self.warm_up, warm_up_cosine(0, last=self.floor)),
        )

    @property
    def per_sample(self) -> bool:
        """Whether the loss of each sample is needed."""
        return self.task != 0.0 and (self.per_image or self.gap == "pairwise")

    def beta(self, progress: float) -> float:
        """beta at `progress` in [0, 1]: 0 up to the end of the warm-up, then a ramp up to `pressure`."""
        passed = max(0.0, progress - self.warm_up) / (1.0 - self.warm_up)
        return self.pressure * (min(passed / self.ramp, 1.0) if self.ramp > 0.0 else 1.0)


@runtime_checkable
class Branched(Protocol):
    """A space whose nodes have two branches, which may be the same operation on the same input."""

    def duplicates(self, weights: Mapping[str, Tensor]) -> Tensor:
        """S: the sum over nodes of the overlap of their branches, [], or [B] for weights [B, size]."""
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
        self.generator, self.mean_loss = run.generator("architectures"), run.mean_loss

    def draw(self, samples: int = 1, *, uniform: bool = False) -> Sample:
        """Hard, relaxed and conditional weights, [samples, K] for each choice, with gradient to the logits.

        Where `uniform`, all that is alive is as likely, whatever the logits are.
        """
        rows = [_logits(choice) for choice in decisions(self.space).values()]
        if uniform:
            rows = [row.detach().masked_fill(row > -math.inf, 0.0) for row in rows]
        soft = soften(rows, self.softening)
        return draw(soft, temperature=self.temperature, samples=samples, generator=self.generator)

    def named(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Weights as `using` takes them: [samples, K] for an architecture an image, [K] for one a batch."""
        named = {}
        for (name, choice), row in zip(decisions(self.space).items(), rows, strict=True):
            if isinstance(choice.relaxation, Subsets):
                row = row @ choice.relaxation.subsets.to(row)
            named[name] = row if len(row) > 1 else row[0]
        return named

    def architecture(self, sample: Sample) -> Architecture:
        """The architecture of the first one-hots of a sample."""
        picks: dict[str, Pick] = {}
        indices = torch.stack([row[0].argmax() for row in sample.hard]).tolist()
        for (name, choice), index in zip(decisions(self.space).items(), indices, strict=True):
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
    """The REBAR estimator with a decaying baseline: one for each term that has a scale of its own.

    Args:
        mean_loss: takes the mean of losses over all processes (`run.mean_loss`); these draw the same samples.
    """

    def __init__(self, mean_loss: Callable[[Tensor], Tensor]) -> None:
        self._mean_loss = mean_loss
        self.baseline = DecayingBaseline()

    def __call__(self, hard: Tensor, relaxed: Tensor, log_probability: Tensor) -> Tensor:
        """A scalar whose gradient is the estimate; arguments [samples] as in `control_variate`."""
        hard, relaxed = self._mean_loss(hard), self._mean_loss(relaxed)
        surrogate = control_variate(hard, relaxed, log_probability, baseline=self.baseline.value)
        self.baseline.update(hard.detach() - relaxed.detach())
        return surrogate


class LimitPenalty:
    """The limit as a term of the objective: beta * max(0, price / bound - 1), with one sampled architecture a step.

    The price is that of the discrete architecture, measured where the cost is measured; the control variate is the
    penalty on the expected or surrogate price of the relaxed one.

    Args:
        sampler: draws the architecture.
        constraint: the limit.
        beta: from nothing to the present weight.
    """

    def __init__(self, sampler: Sampler, constraint: ArchitectureConstraint, *, beta: Callable[[], float]) -> None:
        self.sampler, self.constraint, self.beta = sampler, constraint, beta
        self.estimate = RebarEstimate(sampler.mean_loss)
        self.price = float("nan")

    def __call__(self) -> Tensor:
        """The term: a scalar whose gradient with respect to the logits is the estimate."""
        sample, bound, beta = self.sampler.draw(), self.constraint.bound, self.beta()
        self.price = self.constraint.price(self.sampler.architecture(sample))
        relaxed = beta * torch.relu(self.constraint.expected(self.sampler.named(sample.mixed)) / bound - 1.0)
        hard = torch.full((1,), beta * max(0.0, self.price / bound - 1.0)).to(sample.log_probability)
        return self.estimate(hard, relaxed.view(1).to(hard), sample.log_probability)

    def figures(self) -> dict[str, float]:
        """The latest price, and the expected one after fitting a surrogate again to everything measured so far."""
        self.constraint.refit()
        with torch.no_grad():
            expected = self.constraint.expected(mixed(self.sampler.space))
        return {"cost": self.price, f"expected_{self.constraint.cost.name}": float(expected)}

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        return {
            "price": self.price, "baseline": self.estimate.baseline.state_dict(),
            "constraint": self.constraint.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.price = state["price"]
        self.estimate.baseline.load_state_dict(state["baseline"])
        self.constraint.load_state_dict(state["constraint"])


class Objective:
    """The losses of one search step, and the state that they carry from step to step.

    Args:
        space: relaxed.
        task: what networks are trained on; `PerSample` where the terms need it.
        sampler: draws architectures.
        terms: weights, and how the gradient is estimated.
        black_box: from (network, validation batch) to a loss [] or [B] without gradient, which is added.
        penalty: of the limit.
    """

    def __init__(
        self,
        space: nn.Module,
        task: Task,
        sampler: Sampler,
        *,
        terms: UnasTerms,
        black_box: BlackBox | None = None,
        penalty: LimitPenalty | None = None,
    ) -> None:
        self.space, self.task, self.sampler, self.terms = space, task, sampler, terms
        self.black_box, self.penalty, self.estimate = black_box, penalty, RebarEstimate(sampler.mean_loss)
        self.branched = space if isinstance(space, Branched) and not topologies(space) else None
        self.relaxed: dict[str, Tensor] = {}

    def weight_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """l_train at a relaxed sample of the uniform policy, or at that of the architecture step before it."""
        uniform, relaxed, self.relaxed = self.terms.weights_at == "uniform", self.relaxed, {}
        if uniform or not relaxed:
            relaxed = self.sampler.named(self.sampler.draw(self._samples(batch), uniform=uniform).relaxed)
        if self.terms.per_image:
            batch = first(batch, len(next(iter(relaxed.values()))))
        with using(network, {name: row.detach() * (row.detach() >= SKIPPED) for name, row in relaxed.items()}):
            return self.task.loss(network, batch)

    def gradient(self, train: Batch, valid: Batch) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The objective at one draw, and the estimate of its gradient."""
        # Images are compared in pairs, and the shares of the data may come in batches of different sizes.
        train, valid = first(train, batch_size(valid)), first(valid, batch_size(train))
        sample = self.sampler.draw(self._samples(train))
        with torch.no_grad():
            hard = self._loss(sample.hard, train, valid)
            if self.black_box:
                with using(self.space, self.sampler.named(sample.hard)):
                    hard = hard + self.black_box(self.space, valid)
        relaxed = torch.zeros_like(hard)
        if self.terms.estimator == "rebar":
            relaxed = self._loss(sample.mixed, train, valid)
        loss = self.estimate(hard, relaxed, sample.log_probability) + (self.penalty() if self.penalty else 0.0)
        self.relaxed = self.sampler.named(sample.relaxed)
        return loss, torch.autograd.grad(loss, logits(self.space), allow_unused=True)

    def figures(self) -> dict[str, float]:
        """What is logged once an epoch."""
        return {"temperature": self.terms.temperature} | (self.penalty.figures() if self.penalty else {})

    def _samples(self, batch: Batch) -> int:
        return batch_size(batch) if self.terms.per_image else 1

    def _loss(self, rows: Sequence[Tensor], train: Batch, valid: Batch) -> Tensor:
        """L(z) or c(zeta), [samples]."""
        terms, weights = self.terms, self.sampler.named(rows)
        total = rows[0].new_zeros(len(rows[0]))
        if terms.task:
            with using(self.space, weights):
                loss = self._task_loss(train)
                if terms.gap != "none":
                    other = self._task_loss(valid)
                    gap = other - loss if terms.gap == "pairwise" else other.mean() - loss.mean()
                    loss = loss + terms.gap_weight * self.sampler.mean_loss(gap).abs()
            total = total + terms.task * (loss if terms.per_image else loss.mean())
        if terms.duplicates and self.branched is not None:
            total = total + terms.duplicates * self.branched.duplicates(weights)
        return total

    def _task_loss(self, batch: Batch) -> Tensor:
        """The loss of each sample, [B], where the terms need it, else of the batch, []."""
        if not self.terms.per_sample:
            return self.task.loss(self.space, batch)
        assert isinstance(self.task, PerSample)
        return self.task.losses(self.space, batch)

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs beyond the space and the optimizers."""
        return {
            "baseline": self.estimate.baseline.state_dict(),
            "penalty": self.penalty.state_dict() if self.penalty else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.estimate.baseline.load_state_dict(state["baseline"])
        if self.penalty:
            self.penalty.load_state_dict(state["penalty"])

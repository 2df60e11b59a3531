"""UNAS: search by an unbiased gradient, for differentiable losses and for what can only be measured.

Paper: Vahdat, Mallya, Liu, Kautz, "UNAS: differentiable architecture search meets reinforcement learning",
arXiv 1912.07651 (CVPR 2020). Implemented, z being one-hot picks drawn from p(z) = prod softmax(alpha), zeta their
Gumbel-softmax relaxation, zeta~ its conditional sample of the same noise:

    L(z) = l_train(z) + 0.5 |l_valid(z) - l_train(z)| + 0.2 S(z),      c(zeta) the same at zeta
    L_T(z) = beta_t max(0, T(z) / T_max - 1),   T measured,            c_T(zeta) with a ridge surrogate of T
    alpha: descend along (L(z) - c(zeta)) grad log p(z) + grad c(zeta) - grad c(zeta~), which is unbiased; L_T alike
    w: descend l_train(zeta)                                           after each step of alpha; alone at first
    derive: the likeliest pick of every choice
S counts nodes whose two branches are the same, in spaces that know it.

What the paper leaves open, or its code does otherwise, and what is done here:
- The authors' code takes the absolute value of each pair of images (`gap="pairwise"`), which prefers networks that
  answer always the same where little is learnt yet, as a test shows. The default is the difference of the two batch
  means ("batch").
- One-hots are exact, log p(z) is that of the softened logits that are sampled from, uniforms are clamped at 1e-12.
- One architecture a batch by default, with a decaying baseline, since images that share a BatchNorm but not an
  architecture bias the gradient a little and cost every operation; `per_image=True` is the published form.
- The penalty is relative to the bound (beta 1 is the published 0.1 per ms at its 10 ms); the surrogate is refitted.
- Relaxed weights below 0.05 are left out of weight steps, as in the authors' code.
- The logits' rate, 1e-3, is raised in short searches; SGD trains the weights, not Adam (`adam_of_unas`). Ours.
- The architecture under the limit is looked for among the likeliest and measured afresh. Ours.

Checked against: enumeration (bias, with controls that fail), a search with a planted answer, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from archgrad.choices.access import logits, relax, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Softmax
from archgrad.choices.subsets import topologies, without_topology
from archgrad.costs.limits import Limit
from archgrad.extract.discretize import decide
from archgrad.results.record import heading
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import EverySteps, alternate, logit_rate
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps, train_and_report
from archgrad.supernets.prior import recorded, warm_start
from archgrad.supernets.sampling import Branched, LimitPenalty, RebarEstimate, Sampler
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch, batch_size, first
from archgrad.training.recipe import OptimizerFactory, Recipe, sgd
from archgrad.training.schedules import cosine

SKIPPED = 0.05
BlackBox = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class UnasTerms:
    """The objective: weights of its terms, and how its gradient is estimated.

    Attributes:
        task: of the training loss and the gap; 0 leaves a black box alone.
        gap: "batch", "pairwise" (the authors' code), or "none".
        gap_weight: lambda_g.
        duplicates: lambda_s, of two branches of a node that are the same.
        pressure: beta, of the limit.
        ramp: share of the search over which beta grows from 0.
        temperature: of the relaxation.
        softening: added to every probability that is sampled from; 0 to leave it out.
        warm_up: share of the search in which the weights are trained alone.
        estimator: "rebar" (published) or "score_function".
        per_image: an architecture for each image (published) or for each batch.
    """

    task: float = 1.0
    gap: Literal["pairwise", "batch", "none"] = "batch"
    gap_weight: float = 0.5
    duplicates: float = 0.2
    pressure: float = 1.0
    ramp: float = 0.3
    temperature: float = 0.4
    softening: float = 0.05
    warm_up: float = 0.1
    estimator: Literal["rebar", "score_function"] = "rebar"
    per_image: bool = False


def adam_of_unas(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The published optimizer of the weights: Adam, rate 3e-4, decay 3e-4, gradient clipped at 5."""
    return Adam([{"params": list(parameters), "clip": 5.0}], lr=3e-4, weight_decay=3e-4)


def unas(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    black_box: BlackBox | None = None,
    terms: UnasTerms = UnasTerms(),
    search_fraction: float = 0.5,
    weights_fraction: float = 0.9,
    rate: float | None = None,
    optimizer: OptimizerFactory = sgd,
    train_optimizer: OptimizerFactory = sgd,
) -> Found:
    """Search a supernet by sampling it; the algorithm is on top of this file.

    Args:
        space: OpChoice and InputChoice of one input (`archgrad.darts_cells(factorized=True)`), or of several by
            distributions over subsets (`archgrad.choices.subsets.topology`); it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder, device.
        limit: on any cost, measured ones included: `archgrad.latency(x, device="cpu").at_most(ms=4.0)`.
        prior: logits to begin with, such as `archgrad.prior(...)` from scores of untrained networks.
        black_box: (network, validation batch) to a loss (), or [B] for each image, without gradient: the 0-1 error,
            a figure from a device. It is added to the objective.
        terms: the rest of the objective, and its estimator.
        search_fraction: share of the steps that is searched in; the rest trains what was found, from fresh weights.
        weights_fraction: part of the training data that the weights are trained on while searching.
        rate: of Adam on the logits; default as published, raised for short searches.
        optimizer: of the supernet's weights.
        train_optimizer: of the weights of what was found.

    Raises:
        ChoiceError: the space has no choice, has gates, or an InputChoice of several inputs without distribution.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: a loss became NaN or infinite.
    """
    space = prepare_supernet(space, run, needs="UNAS", single=True)
    warm_start(relax(space, Softmax, where=without_topology), prior)
    task.check(space)
    steps, rest = split_steps(run, task, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit else None
    settings = {
        "limit": limit and limit.record(),
        "black_box": black_box is not None,
        "terms": asdict(terms),
        "search_fraction": search_fraction,
        "weights_fraction": weights_fraction,
        "rate": rate,
        "prior": recorded(prior),
    }
    run.begin("unas", settings)
    if constraint:
        constraint.fit_surrogate(run)
    predict_peak_memory(space, task, run, optimizer=optimizer, passes=1 if terms.gap == "none" else 2)
    made = Recipe(optimizer_factory=optimizer).optimizer(space)
    decided = Adam(logits(space), lr=rate or logit_rate(1e-3, steps), weight_decay=1e-6)
    sampler = Sampler(space, run, temperature=terms.temperature, softening=terms.softening)
    penalty = (
        LimitPenalty(sampler, constraint, pressure=terms.pressure, ramp=terms.ramp * steps) if constraint else None
    )
    objective = _Objective(space, task, sampler, terms, black_box, penalty)
    run.register_state(space=space, weights=made, architecture=decided, objective=objective)
    alternate(
        space,
        task.split(weights_fraction),
        run,
        weights=made,
        architecture=decided,
        steps=steps,
        weight_loss=objective.weight_loss,
        architecture_gradient=objective.gradient,
        update_schedule=EverySteps(warm_up=terms.warm_up),
        schedule=cosine,
        time_fraction=search_fraction,
        figures=objective.figures,
    )
    architecture = _derived(space, run, constraint)
    return train_and_report(
        space, architecture, task, run, steps=rest, optimizer=train_optimizer, constraint=constraint,
        record=heading(unas, settings, f"{type(space).__name__} searched by UNAS"),
    )  # fmt: skip


def _derived(space: nn.Module, run: Run, constraint: ArchitectureConstraint | None) -> Architecture:
    """The likeliest architecture, under the limit if there is one; remembered, since a clock may decide otherwise."""
    if constraint is None:
        return decide(space)
    likely = scores(space, logarithms=True)
    return Architecture.from_json(
        run.compute_once("architecture", lambda: constraint.best_feasible(likely).to_json())
    )


class _Objective:
    """The losses of one search step, and what they carry from step to step."""

    def __init__(
        self, space: nn.Module, task: Classification, sampler: Sampler, terms: UnasTerms, black_box: BlackBox | None,
        penalty: LimitPenalty | None,
    ) -> None:  # fmt: skip
        self.space, self.task, self.sampler, self.terms = space, task, sampler, terms
        self.black_box, self.penalty, self.estimate = black_box, penalty, RebarEstimate(sampler.across)
        self.branched = space if isinstance(space, Branched) and not topologies(space) else None
        self.relaxed: dict[str, Tensor] = {}

    def weight_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """l_train at the relaxed sample of the architecture step before it, or at a fresh one."""
        relaxed = self.relaxed or self.sampler.named(self.sampler.draw(self._samples(batch)).relaxed)
        self.relaxed = {}
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
        """What the history shows once an epoch."""
        return {"temperature": self.terms.temperature} | (self.penalty.figures() if self.penalty else {})

    def _samples(self, batch: Batch) -> int:
        return batch_size(batch) if self.terms.per_image else 1

    def _loss(self, rows: Sequence[Tensor], train: Batch, valid: Batch) -> Tensor:
        """L(z) or c(zeta), [samples]."""
        terms, given = self.terms, self.sampler.named(rows)
        total = rows[0].new_zeros(len(rows[0]))
        if terms.task:
            with using(self.space, given):
                images = self.task.losses(self.space, train)
                if terms.gap != "none":
                    second = self.task.losses(self.space, valid)
                    differences = second - images if terms.gap == "pairwise" else second.mean() - images.mean()
                    images = images + terms.gap_weight * self.sampler.across(differences).abs()
            total = total + terms.task * (images if terms.per_image else images.mean())
        if terms.duplicates and self.branched is not None:
            total = total + terms.duplicates * self.branched.duplicates(given)
        return total

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs beyond the space and the optimizers."""
        return {
            "baseline": self.estimate.baseline.state_dict(),
            "penalty": self.penalty.state_dict() if self.penalty else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.estimate.baseline.load_state_dict(state["baseline"])
        if self.penalty:
            self.penalty.load_state_dict(state["penalty"])

"""MONAS: search for several goals at once, by a controller that is taught by a reward of accuracy and costs.

Paper: Hsu, Chang, Liang, Chou, Liu, Chang, Pan, Chen, Wei, Juan, "MONAS: multi-objective neural architecture search
using reinforcement learning", arXiv 1806.10332 (2018). Its full text was not at hand: the controller and its update
are as reading notes describe them, the rewards as recalled, consistent with the abstract. Implemented, a being the
picks, p the policy of an LSTM, b a running mean of the rewards:

    repeat:
        draw     a ~ p(a) = prod p_t(a_t | a_<t), N times
        try      train a's network from fresh weights, or look it up: accuracy Acc, costs C
        reward   R(a), for instance alpha Acc - (1 - alpha) En, or Acc if C < bound else 0; see `rewards.py`
        teach    theta ascends  1/N sum (R(a) - b) grad log p(a), and the entropy of p
    hand back    the highest reward among all tried, trained from fresh weights; and the front of all tried

What the paper leaves open, or is done otherwise here:
- b is 0 in the notes and a running mean here; the bonus for entropy, the width (32) and rate (0.01) of the controller
  are ours: at 0.03 a trial of ours saw it collapse.
- An architecture drawn again is not paid twice: its trial is remembered, and the controller taught by it again.
- What earns the lowest reward whatever its accuracy, since a cost is over its bound, is priced but not trained.
- `limit` is ours: what is over it earns the lowest reward, is not trained, and is not handed back.
- `prior` is ours: logits that the controller begins with.

Checked against: enumeration of the policy gradient with controls that fail, brute force on small tables, a planted
answer, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from archgrad.choices.access import choices, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Controller, Policy, Prior, Reinforce
from archgrad.costs.limits import Cost, Limit
from archgrad.errors import ConfigError, LimitError
from archgrad.methods.monas.rewards import Reward, refuse_conflict, under
from archgrad.results.record import heading
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps, train_and_report
from archgrad.supernets.prior import recorded
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Scored
from archgrad.training.recipe import OptimizerFactory, sgd
from archgrad.trials.archive import ArchitectureCosts, Archive, Trial, control, price
from archgrad.trials.evaluation import Evaluate, evaluator, perfect, rounds, taken_by

MakePolicy = Callable[..., Policy]
ACCURACY = under()


@dataclass(frozen=True)
class MonasTerms:
    """Numbers of the controller's teaching.

    Attributes:
        samples: N, architectures drawn for each update.
        rate: of Adam.
        bonus: reward for each nat of the policy's entropy.
        decay: of the running mean b.
        patience: updates in a row without a new trial after which the search ends before its budget.
    """

    samples: int = 1
    rate: float = 0.01
    bonus: float = 0.005
    decay: float = 0.9
    patience: int = 200

    def __post_init__(self) -> None:
        if self.samples < 1 or self.patience < 1:
            raise ConfigError(f"samples={self.samples}, patience={self.patience}: give 1 or more")


def monas(
    space: nn.Module,
    task: Classification | Scored,
    run: Run,
    *,
    reward: Reward = ACCURACY,
    costs: Sequence[Cost] = (),
    limit: Limit | None = None,
    prior: Prior | None = None,
    policy: MakePolicy = Controller,
    terms: MonasTerms = MonasTerms(),
    search_fraction: float = 0.5,
    optimizer: OptimizerFactory = sgd,
) -> Found:
    """Search for several goals by a controller; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end. Or what scores
            architectures itself, such as `archgrad.Tabular`: the network handed back then has fresh weights.
        run: trials (networks paid for; default 30 trained, 1000 looked up), epochs of search and training together
            (default 60), seed, folder, device.
        reward: what is looked for; default: accuracy, under the limit. See `archgrad.methods.monas.rewards`.
        costs: further ones, for the front alone.
        limit: on any cost; what is handed back keeps it.
        prior: logits to begin with, for instance of `archgrad.prior`.
        policy: from (space, prior=...) to the policy: `Controller`, `Categorical`, or a partial of one with a
            condition.
        terms: numbers of the teaching.
        search_fraction: share of the steps that is searched in; the rest trains what was found, from fresh weights.
        optimizer: from weights to their optimizer.

    Raises:
        ChoiceError: the space has no choice, or has gates, or the prior does not fit.
        ConfigError: a reward that conflicts with the limit.
        LimitError: nothing in the space keeps the limit or the reward's bounds, or nothing that was tried met them.
        NonFiniteError: a loss or reward became NaN or infinite.
    """
    space = prepare_supernet(space, run, needs="MONAS")
    if not isinstance(task, Scored):
        with using(space, {name: torch.ones(same[0].size) for name, same in choices(space).items()}):
            task.check(space)  # every candidate, before anything long starts
    steps, rest = split_steps(run, task, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit else None
    prices = ArchitectureCosts(space, {cost.name: cost for cost in (*reward.costs, *costs)}.values())
    trials = run.trials or (1000 if isinstance(task, Scored) else 30)
    settings = {
        "reward": reward.record(), "costs": list(prices.costs), "limit": limit and limit.record(),
        "prior": recorded(prior), "terms": asdict(terms), "search_fraction": search_fraction,
    }  # fmt: skip
    run.begin("monas", settings)
    if constraint:
        constraint.fit_surrogate(run)
    prices.begin(run)
    refuse_conflict(reward, limit, prices.lowest)

    if not isinstance(task, Scored):
        predict_peak_memory(space, task, run, optimizer=optimizer, drawn=5)
    evaluate = evaluator(
        space, task, run, trials=trials, steps=steps, time_fraction=search_fraction, optimizer=optimizer
    )
    hunt = _Hunt(evaluate, prices, constraint, run=run, reward=reward, scale=perfect(task))
    controller = policy(space, prior=prior)
    learner = Reinforce(controller, rate=terms.rate, bonus=terms.bonus, decay=terms.decay)
    generator, archive = run.generator("controller"), hunt.archive
    run.register_state(policy=controller, learner=learner, hunt=hunt)
    for step in rounds(task, run, trials * terms.patience, time_fraction=1.0):
        if len(archive) >= trials or hunt.idle >= terms.patience:
            break
        drawn = [controller.sample(generator) for _ in range(min(terms.samples, trials - len(archive)))]
        rewards = hunt(drawn)
        entropy = learner.step(drawn, rewards)
        run.log({"reward": sum(rewards) / len(rewards), "entropy": entropy, "trials": len(archive)}, step=step)
    evaluate.close()
    best = Architecture.from_json(run.compute_once("best", lambda: hunt.best().to_json()))
    beside = control(space, task, run, tried=archive, prices=prices, constraint=constraint)
    rest = max(0, rest + steps - taken_by(len(archive), trials=trials, steps=steps))
    rows = [{"architecture": dict(one.architecture), "score": one.score} for one in archive.trials.values()]
    record = {
        **heading(monas, settings, f"{type(space).__name__} searched by MONAS"),
        "trials": rows, "fronts": archive.record(prices.costs, found=best, control=beside),
    }  # fmt: skip
    return train_and_report(
        space, best, task, run, steps=rest, optimizer=optimizer, constraint=constraint, record=record,
        costs=archive[best].costs,
    )  # fmt: skip


class _Hunt:
    """What architectures earn, each paid for once; what earns the lowest reward by its price is not paid for."""

    def __init__(
        self,
        evaluate: Evaluate,
        prices: ArchitectureCosts,
        constraint: ArchitectureConstraint | None,
        *,
        run: Run,
        reward: Reward,
        scale: float,
    ) -> None:
        self.evaluate, self.prices, self.constraint, self.run = evaluate, prices, constraint, run
        self.reward, self.scale = reward, scale
        self.archive = Archive()
        self.refused = 0
        self.idle = 0

    def __call__(self, drawn: Sequence[Architecture]) -> list[float]:
        """The rewards of one draw of the policy."""
        paid = len(self.archive)
        fresh = dict.fromkeys(one for one in drawn if one not in self.archive and self._paid_for(one) is not None)
        self.evaluate.ahead(dict(enumerate(fresh, start=paid)))
        rewards = [self._earned(architecture) for architecture in drawn]
        self.idle = self.idle + 1 if len(self.archive) == paid else 0
        return rewards

    def _earned(self, architecture: Architecture) -> float:
        if architecture not in self.archive:
            costs = self._paid_for(architecture)
            if costs is None:
                self.refused += 1
                return self.reward.lowest
            score = self.evaluate(architecture, len(self.archive))
            self.archive.add(Trial(architecture, score, costs))
        return self.value(self.archive[architecture])

    def _paid_for(self, architecture: Architecture) -> dict[str, float] | None:
        """What an architecture takes; None where it is over a bound, and earns the lowest reward unseen."""
        if self.constraint is not None and price(self.constraint, architecture, self.run) > self.constraint.bound:
            return None
        costs = self.prices.of(architecture)
        return costs if self.reward.allows(costs) else None

    def value(self, trial: Trial) -> float:
        """The reward of a trial."""
        return self.reward(trial.score / self.scale, trial.costs, self.prices.scaled(trial.costs))

    def best(self) -> Architecture:
        """What earned most, of the first to be tried; where a limit is measured, of what still keeps it."""
        tried = sorted(self.archive.trials.values(), key=lambda trial: -self.value(trial))
        if not tried or self.value(tried[0]) <= self.reward.lowest:
            highest = f"{max(trial.score for trial in tried):.4g}" if tried else "none, since nothing was tried"
            raise LimitError(
                f"nothing earned more than the lowest reward, {self.reward.lowest:g}: {len(tried)} architectures "
                f"were tried (best score: {highest}) and {self.refused} draws were over a bound. Ease the goals of "
                f"{self.reward.record()}, give more trials or a prior, or take a reward that says how far off a "
                f"network is: archgrad.methods.monas.rewards.soft"
            )
        kept = next(
            (t.architecture for t in tried if self.constraint is None or self.constraint.is_feasible(t.architecture)),
            None,
        )
        if kept is None:
            raise LimitError(
                "none of the architectures tried kept its limit when measured again: the clock is too noisy for a "
                "limit this tight; raise it, or measure on a quieter machine"
            )
        return kept

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs where the trials are steps of one phase."""
        return {"archive": self.archive.state_dict(), "refused": self.refused, "idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.archive.load_state_dict(state["archive"])
        self.refused, self.idle = state["refused"], state["idle"]

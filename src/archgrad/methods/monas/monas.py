"""MONAS: search for several goals at once, by a controller trained on a reward of accuracy and costs.

Paper: Hsu, Chang, Liang, Chou, Liu, Chang, Pan, Chen, Wei, Juan, "MONAS: multi-objective neural architecture search
using reinforcement learning", arXiv 1806.10332 (2018). Its full text was not at hand: the controller and its update
are as reading notes describe them, the rewards as recalled, consistent with the abstract. Implemented, a being the
picks, p the policy of an LSTM, b a running mean of the rewards:

    repeat:
        draw     a ~ p(a) = prod p_t(a_t | a_<t), N times
        try      train a's network from fresh weights, or look it up: accuracy Acc, costs C
        reward   R(a), for instance alpha Acc - (1 - alpha) En, or Acc if C < bound else 0; see `rewards.py`
        update   theta ascends  1/N sum (R(a) - b) grad log p(a), and the entropy of p
    hand back    the highest reward among all tried, trained from fresh weights; and the front of all tried

What the paper leaves open, or is done otherwise here:
- b is 0 in the notes and a running mean here; the bonus for entropy, the width (32) and rate (0.01) of the controller
  are ours: at 0.03 a trial of ours saw it collapse.
- An architecture drawn again is not tried twice: its reward is remembered, and updates the controller again.
- What earns the lowest reward whatever its accuracy, since a cost is over its bound, is priced but not trained. A
  trial that fails, by an exception of its network, a loss or a score that is NaN or infinite, earns the lowest too.
- Acc is the score where that is a share of a perfect one. Of other scores, where lower is better or the first is not
  above 0, Acc = sigmoid(gain over the first / |first score|), in (0, 1) and without a unit. Ours.
- `limit` is ours: what is over it earns the lowest reward, is not trained, and is not handed back.
- `prior` is ours: logits that the controller begins with.

Checked against: enumeration of the policy gradient with controls that fail, brute force on small tables, a planted
answer, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from archgrad.argument_types import checked
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Controller, Policy, Prior, Reinforce
from archgrad.costs.limits import Cost, Limit
from archgrad.errors import ConfigError
from archgrad.methods.monas.rewarded_trials import RewardedTrials
from archgrad.methods.monas.rewards import Accurate, Reward, refuse_conflict, under
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import (
    check_candidates,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
    train_and_report,
)
from archgrad.tasks.task import Scored, Task, higher_is_better, require
from archgrad.training.recipe import Recipe
from archgrad.trials.archive import ArchitectureCosts, random_control
from archgrad.trials.evaluation import evaluator, report_failures, steps_before, trial_numbers

MakePolicy = Callable[..., Policy]
ACCURACY = under()


@dataclass(frozen=True)
class MonasTerms:
    """Numbers of the controller's training.

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


@dataclass(frozen=True)
class MonasSettings:
    """What a MONAS run is begun with; see `monas`."""

    reward: Reward
    costs: tuple[str, ...]
    limit: Limit | None
    prior: Prior | None
    policy: MakePolicy
    terms: MonasTerms
    search_fraction: float
    recipe: Recipe


@checked
def monas(
    space: nn.Module,
    task: Task | Scored,
    run: Run,
    *,
    reward: Reward = ACCURACY,
    costs: Sequence[Cost] = (),
    limit: Limit | None = None,
    prior: Prior | None = None,
    policy: MakePolicy = Controller,
    terms: MonasTerms = MonasTerms(),
    search_fraction: float = 0.5,
    recipe: Recipe = Recipe(),
) -> Found:
    """Search for several goals by a controller; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end. Or one that scores
            architectures itself, such as `archgrad.Tabular`: the network handed back then has fresh weights.
        run: trials (networks tried; default 30 trained, 1000 looked up), epochs of search and training together
            (default 60), seed, folder, device.
        reward: what is maximized; default: accuracy, under the limit. See `archgrad.methods.monas.rewards`.
        costs: further ones, for the front alone.
        limit: on any cost; what is handed back keeps it.
        prior: logits to begin with, for instance of `archgrad.prior`.
        policy: from (space, prior=...) to the policy: `Controller`, `Categorical`, or a partial of one with a
            condition.
        terms: numbers of the controller's training.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        recipe: how networks are trained, those tried and the one that is handed back.

    Raises:
        ChoiceError: the space has no choice, or has gates, or the prior does not fit.
        ConfigError: the task lacks what the method needs, or a reward that conflicts with the limit or the score.
        LimitError: nothing in the space keeps the limit or the reward's bounds, or nothing that was tried met them.
        ModelError, NonFiniteError: every trial failed, or the training of the result did.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> found = ag.monas(space, ag.Classification.load("digits"), ag.Run(steps=8, trials=2, progress=False))
        >>> found.architecture["layer"] in (0, 1)
        True
    """
    if not isinstance(task, Scored):
        require(task, method="MONAS")
    if not isinstance(reward, Reward):
        raise ConfigError(f"reward={reward!r} was given. Allowed are those of archgrad.methods.monas.rewards.")
    if isinstance(reward, Accurate) and not higher_is_better(task):
        raise ConfigError(
            f"the reward `accurate` asks for an accuracy of at least {reward.least}, and a lower score of "
            f"{type(task).__name__} is better; take archgrad.methods.monas.rewards.mixed, under or soft"
        )
    space = prepare_supernet(space, run, needs="MONAS")
    if not isinstance(task, Scored):
        check_candidates(space, task, recipe)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    prices = ArchitectureCosts(space, {cost.name: cost for cost in (*reward.costs, *costs)}.values())
    settings = MonasSettings(
        reward, tuple(prices.costs), limit, prior, policy, terms=terms, search_fraction=search_fraction, recipe=recipe
    )
    run.begin("monas", settings_record(settings), task=task, network=space)
    steps, rest = split_steps(run, task, search_fraction, search_recipe=recipe, recipe=recipe)
    if constraint:
        constraint.fit_surrogate(run)
    prices.begin(run)
    refuse_conflict(reward, limit, prices.lowest)

    trials = run.trials or (1000 if isinstance(task, Scored) else 30)
    if not isinstance(task, Scored):
        predict_peak_memory(space, task, run, optimizer=recipe.optimizer_factory, drawn=5)
    evaluate = evaluator(space, task, run, trials=trials, steps=steps, time_fraction=search_fraction, recipe=recipe)
    search = RewardedTrials(evaluate, prices, constraint, task=task, run=run, reward=reward)
    _train_controller(space, task, run, settings, search, trials=trials)
    evaluate.close()
    archive = search.archive
    report_failures([trial.record() for trial in archive.trials.values()], run)
    best = Architecture.from_json(run.compute_once("best", lambda: search.best().to_json()))
    control = random_control(space, task, run, tried=archive, prices=prices, constraint=constraint)
    rest = max(0, rest + steps - steps_before(len(archive), trials=trials, steps=steps))
    record = {
        **heading(monas, settings_record(settings), f"{type(space).__name__} searched by MONAS"),
        "trials": [trial.record() for trial in archive.trials.values()],
        "fronts": archive.record(prices.costs, found=best, control=control),
    }
    return train_and_report(
        space, best, task, run, steps=rest, recipe=recipe, constraint=constraint, record=record,
        costs=archive[best].costs,
    )  # fmt: skip


def _train_controller(
    space: nn.Module, task: Task | Scored, run: Run, settings: MonasSettings, search: RewardedTrials, *, trials: int
) -> None:
    """Draw, try, reward and update, until the trials are used up or the controller draws nothing new."""
    terms, archive = settings.terms, search.archive
    controller = settings.policy(space, prior=settings.prior)
    learner = Reinforce(controller, rate=terms.rate, bonus=terms.bonus, decay=terms.decay)
    generator = run.generator("controller")
    run.register_state(policy=controller, learner=learner, search=search)
    for step in trial_numbers(task, run, trials * terms.patience):
        if len(archive) >= trials or search.idle >= terms.patience:
            break
        drawn = [controller.sample(generator) for _ in range(min(terms.samples, trials - len(archive)))]
        rewards = search(drawn)
        entropy = learner.step(drawn, rewards)
        run.log({"reward": sum(rewards) / len(rewards), "entropy": entropy, "trials": len(archive)}, step=step)

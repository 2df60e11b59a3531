"""Neural iLQR: control of a system that can be tried out, by a network that learns its dynamics.

Paper: Cheng, Li, Chen, Ma, Lee, "Neural network iLQR: a new reinforcement learning architecture", arXiv 2011.10737
(2020). Its full text was not at hand: the algorithm is as read in the authors' code. Implemented, Z being a
trajectory (states x, actions u), J its cost, f the real system, g_w the network:

    explore     Z <- rollout of f without action; P rollouts of f with random actions; fit w to all transitions
    repeat:
        model   F_t = d g_w / d(x, u) at Z by autodiff, smoothed along time
        solve   feedback K, offsets k by the Riccati pass backwards (archgrad.control.ilqr)
        try     u_t = clip(u^_t + K_t (x_t - x^_t) + a k_t) on f, a = 1, 1/2, 1/4, ...: the first with a lower J is Z
        stalled no such a: one rollout of f with noise on the actions of Z
        refit   w on all that was measured; longer where J hardly fell
    restart     where J has not fallen for 6 steps: Z is the rollout without action again, w stays
    hand back   the best Z of all, K around it, and the network

What the paper leaves open, or is done otherwise here:
- The authors refit when J falls by less than 1e-6, on a window of accepted trajectories. Here the network learns from
  every rollout, rejected ones too, and is refitted after each step: that takes a fraction of the real rollouts.
- 10 random rollouts (100 there), 4 trials of the line search (10), noise of 0.1 x the largest action (1).
- The network predicts the scaled change of the state, by 128 and 64 tanh units unless another is given; the fit ends
  after a number of steps and not at an error.
- The restart is ours: iLQR ends in a local optimum, and a network that knows little takes the first steps.
- The network may be a space, which another method searches on the transitions of the random rollouts. What it finds
  and the default network are then trained apart, and the one with the lower error on another rollout is taken.

Checked against: the Riccati solution of a linear-quadratic problem, in one step, with the exact network; Jacobians
against differences; iLQR on exact equations, in the tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.control.dynamics_model import DynamicsModel, Experience
from archgrad.control.ilqr import line_search
from archgrad.control.system import System, scattered_points
from archgrad.control.trajectory import TrajectorySearch, gains_around, open_loop, report_control
from archgrad.control.transitions import Transitions
from archgrad.copy_and_run import copied
from archgrad.errors import ConfigError
from archgrad.fingerprint import described
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.lifecycle import picks
from archgrad.supernets.nested import Inner, search_inside
from archgrad.tasks.task import stable_seed
from archgrad.training.finalists import finalists
from archgrad.training.fit import optimize
from archgrad.training.recipe import Recipe, adamw

_WORLD = ("start", "low", "high", "cost", "step", "seed")  # of a system, beside its name and horizon
# How a dynamics model is trained.
DYNAMICS_RECIPE = Recipe(optimizer_factory=functools.partial(adamw, learning_rate=1e-3, weight_decay=1e-5))
ROLLOUTS = 200
# The largest parts of a budget in seconds that the phases before the control may use.
EXPLORE_FRACTION, SEARCH_FRACTION, FIT_FRACTION = 0.3, 0.2, 0.2
EXPLAINED = 0.9  # of the variance on another rollout; below it the fit is noted


@dataclass(frozen=True)
class NnilqrTerms:
    """Hyper-parameters of neural iLQR.

    Attributes:
        explore: P, random rollouts at first.
        fit, refit: training steps at first, and after each step of the control; three times as many where stalled.
        stalled: a fall of J by less than this fraction of it is a stall.
        smoothing: sigma of the Gaussian that averages the Jacobians along time, in steps; 0: none.
        noise: standard deviation in the exploring rollout, as a fraction of half the range of each action.
        trials: step sizes of the line search, each a real rollout.
        patience: steps in a row in which J does not fall, after which the search restarts.
        batch_size: transitions in a training batch.
        search: training steps of the method that searches the network.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> from archgrad.control import NnilqrTerms
        >>> NnilqrTerms(explore=5).trials
        4
    """

    explore: int = 10
    fit: int = 1500
    refit: int = 100
    stalled: float = 1e-2
    smoothing: float = 5.0
    noise: float = 0.1
    trials: int = 4
    patience: int = 6
    batch_size: int = 512
    search: int = 1500

    def __post_init__(self) -> None:
        least = min(self.explore, self.fit, self.refit, self.trials, self.patience, self.batch_size, self.search)
        if least < 1 or min(self.smoothing, self.noise, self.stalled) < 0.0:
            raise ConfigError(
                f"{self} was given. Allowed are counts from 1 up, and smoothing, noise and stalled from 0 up."
            )


@dataclass(frozen=True)
class NnilqrSettings:
    """What neural iLQR is begun with; see `nnilqr`."""

    search: Inner | None
    terms: NnilqrTerms
    recipe: Recipe

    def record(self, network: nn.Module, system: System) -> dict[str, Any]:
        """As JSON, with what it is begun on."""
        function = getattr(self.search, "func", self.search)  # of functools.partial
        return {
            "system": system.name,
            "horizon": system.horizon,
            "network": type(network).__name__,
            "parameters": sum(p.numel() for p in network.parameters()),
            **settings_record(self),
            **{name: described(getattr(system, name, None)) for name in _WORLD},
            "search": self.search and str(getattr(function, "__name__", type(self.search).__name__)),
        }


@checked
def nnilqr(
    network: nn.Module | None,
    system: System,
    run: Run,
    *,
    search: Inner | None = None,
    terms: NnilqrTerms = NnilqrTerms(),
    recipe: Recipe = DYNAMICS_RECIPE,
) -> Found:
    """Control a system by trying it out; the algorithm is on top of this file.

    Args:
        network: from scaled states and actions [B, n + m] to the scaled change of the state [B, n]; it is not
            changed. Or a space, which `search` searches. None: 128 and 64 tanh units.
        system: what is tried out, and its cost.
        run: trials (real rollouts in all; default 200, or as many as fit into `seconds`), seconds, seed, folder,
            device.
        search: a method that relaxes its space, such as `archgrad.darts`; for a space.
        terms: hyper-parameters.
        recipe: how the network is trained, at first and after each step.

    Returns:
        The network of the dynamics, with -J as its score; `record["control"]` has states and actions.

    Raises:
        ConfigError: a cost without gradient, actions without bounds, a horizon of 1, budgets of epochs or steps,
            seconds that end in the exploration, or a space without a method to search it.
        DataError: the system raised an error.
        NonFiniteError: the rollout without action is not finite, or a loss became NaN or infinite.

    Example:
        >>> import archgrad as ag
        >>> from archgrad.control import NnilqrTerms, cart_pole
        >>> terms = NnilqrTerms(explore=2, fit=5, refit=1)
        >>> found = ag.nnilqr(None, cart_pole(horizon=5), ag.Run(trials=4, progress=False), terms=terms)
        >>> found.costs["rollouts"]
        4
    """
    settings = NnilqrSettings(search, terms, recipe)
    _check(network, system, run, settings)
    torch.manual_seed(run.seed)  # of the network that is made here
    network = copied(network) if network is not None else _tanh_network(len(system.start), len(system.low))
    begun_with = settings.record(network, system)
    run.begin("nnilqr", begun_with, network=network)

    experience, trajectories = _explore(system, run, terms)
    model = DynamicsModel(network, states=len(system.start), actions=len(system.low)).to(run.device)
    architecture = Architecture({})
    task, compared = experience.task(model, batch_size=terms.batch_size), dict[str, float]()
    if search:
        model.network, architecture, compared = _searched(search, model, task, run, settings=settings)
    task.check(model.network)
    optimizer = recipe.optimizer(model.network)
    rates = [group["lr"] for group in optimizer.param_groups]
    run.register_state(model=model, optimizer=optimizer)
    optimize(
        model.network, task, run, optimizer=optimizer, steps=terms.fit, phase="fit", schedule=recipe.schedule,
        accumulate=recipe.accumulate, time_fraction=FIT_FRACTION,
    )  # fmt: skip
    _check_fit(model, task, run)

    def refit(step: int, steps: int) -> Tensor:
        """Train on within one step of the control; the learning rate falls from its start each time."""
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return optimize(
            model.network, experience.task(model, batch_size=terms.batch_size), run, optimizer=optimizer, steps=steps,
            phase=None, schedule=recipe.schedule, accumulate=recipe.accumulate,
            seed=stable_seed(run.seed, "refit", step),
        )  # fmt: skip

    run.register_state(model=model, optimizer=optimizer, experience=experience, trajectories=trajectories)
    _control(model, experience, trajectories, run, terms=terms, refit=refit)
    best = trajectories.best.trajectory
    gains = gains_around(model, best, run, cost=system.cost, sigma=terms.smoothing)
    record = {
        **heading(nnilqr, begun_with, f"{system.name} controlled by neural iLQR"),
        "picks": picks(network, architecture) if architecture else [], "data": task.splits,
        **({"finalists": compared} if compared else {}),
    }  # fmt: skip
    return report_control(
        model, trajectories, run, system=system, gains=gains, architecture=architecture, record=record
    )


def _searched(
    search: Inner, model: DynamicsModel, task: Transitions, run: Run, *, settings: NnilqrSettings
) -> tuple[nn.Module, Architecture, dict[str, float]]:
    """The network that a method finds or the default one, which is better; the error of each on another rollout."""
    inner, _ = search_inside(
        search, lambda: model.network, task, run, steps=settings.terms.search, name="dynamics",
        time_fraction=SEARCH_FRACTION / 2.0,
    )  # fmt: skip
    with run.isolated_rng("default network"):
        default = _tanh_network(len(model.shift), task.example.shape[1] - len(model.shift))
    networks = {"searched": inner.network.to(run.device), "default": default.to(run.device)}
    figures = finalists(
        networks, task, run, settings.recipe, steps=settings.terms.fit, time_fraction=SEARCH_FRACTION / 4.0,
        fresh=True,
    )  # fmt: skip
    losses = {name: figures[name]["loss"] for name in networks}
    if losses["searched"] <= losses["default"]:
        return networks["searched"], inner.architecture, losses
    run.note(
        f"The searched network has an error of {losses['searched']:.3g} on a rollout that it was not trained on, and "
        f"the default network {losses['default']:.3g}: the default network is taken."
    )
    return networks["default"], Architecture({}), losses


def _check_fit(model: DynamicsModel, task: Transitions, run: Run) -> None:
    """Log how much of the change of the state the network explains on another rollout; note where that is little."""
    explained = task.evaluate(model.network)["explained"]
    run.log({"fit_explained": explained})
    if explained < EXPLAINED:
        run.note(
            f"After its first training the network explains {explained:.0%} of the changes of the state in a rollout "
            f"that it was not trained on. Give more random rollouts (terms.explore), more training (terms.fit), or "
            f"another network."
        )


def _control(
    model: DynamicsModel, experience: Experience, trajectories: TrajectorySearch, run: Run, *, terms: NnilqrTerms,
    refit: Callable[[int, int], Tensor],
) -> None:  # fmt: skip
    """Solve, try and refit, until the rollouts or the seconds are used up."""
    system, budget = experience.system, _rollouts(run)
    if budget is None:
        run.total_steps(1, default_epochs=ROLLOUTS)  # no number of steps: the phase lasts as long as its time
    for step in run.steps(budget or ROLLOUTS, phase="control"):
        left = terms.trials if budget is None else budget - experience.used
        if left <= 0:
            break
        if trajectories.stalled >= terms.patience:
            trajectories.restart()
        current = trajectories.current
        gains = gains_around(model, current.trajectory, run, cost=system.cost, sigma=terms.smoothing)
        better = line_search(
            experience.rollout, system.cost, current, gains=gains, trials=min(terms.trials, left)
        )  # fmt: skip
        gain = trajectories.accept(better)
        if better is None and (budget is None or experience.used < budget):
            actions = trajectories.current.trajectory.actions
            experience.rollout(open_loop(actions + _noise(system, run, fraction=terms.noise)))
        stalled = gain < terms.stalled * abs(trajectories.current.cost)
        loss = refit(step, terms.refit * (3 if stalled else 1))
        cost, step_size = trajectories.best.cost, better.step_size if better else 0.0
        trajectories.costs.append((experience.used, cost))
        run.log({"cost": cost, "rollouts": experience.used, "step_size": step_size, "fit_loss": loss}, step=step)
    if len(trajectories.costs) == 1:
        run.note(f"seconds={run.seconds} left no time for a step of the control. Give more.")


def _rollouts(run: Run) -> int | None:
    """The budget of real rollouts; None where seconds are the only budget."""
    return run.trials or (None if run.seconds else ROLLOUTS)


def _check(network: nn.Module | None, system: System, run: Run, settings: NnilqrSettings) -> None:
    """Raise ConfigError for what can be refused before anything is tried."""
    recipe, first = settings.recipe, 1 + settings.terms.explore
    if run.epochs or run.max_steps:
        raise ConfigError(
            "neural iLQR is bounded by Run(trials=...), which are real rollouts, and Run(seconds=...). Leave epochs "
            "and steps out."
        )
    if run.world > 1:
        raise ConfigError(f"One process tries out the real system, and the run has {run.world}. Give Run(devices=1).")
    if not bool(torch.isfinite(system.low).all() and torch.isfinite(system.high).all()):
        raise ConfigError(
            f"the actions of {system.name} are between {system.low.tolist()} and {system.high.tolist()}. Random "
            f"rollouts need finite bounds."
        )
    if system.horizon < 2:
        raise ConfigError(
            f"{system.name} has a horizon of {system.horizon}. One state has no dynamics: give 2 or more."
        )
    if (budget := _rollouts(run)) is not None and budget <= first:
        raise ConfigError(
            f"trials={budget} real rollouts were given, and {first} are for the first fit. Give more trials."
        )
    if bool(network is not None and choices(network)) != (settings.search is not None):
        raise ConfigError(
            "search=... is the method that searches a network with choices, such as archgrad.darts. Give both, "
            "or a network without choices and no search."
        )
    if recipe.average or recipe.best_epoch or recipe.drop_path:
        raise ConfigError(
            "recipe= has average, best_epoch or drop_path, and the network is trained on after each step of the "
            "control. Leave them out."
        )
    system.cost.check(scattered_points(system))


def _explore(system: System, run: Run, terms: NnilqrTerms) -> tuple[Experience, TrajectorySearch]:
    """The rollout without action, where the search begins, and others with random actions."""
    experience, trajectories, planned = Experience(system, run), TrajectorySearch(), 1 + terms.explore
    run.register_state(experience=experience, trajectories=trajectories)
    for step in run.steps(planned, phase="explore", time_fraction=EXPLORE_FRACTION, counted=False):
        actions = _random_actions(system, run)
        trajectory = experience.rollout(open_loop(actions if step else torch.zeros_like(actions)))
        if step == 0:
            trajectories.begin(system, trajectory)
    if experience.used < planned:
        raise ConfigError(
            f"seconds={run.seconds} were given, and {EXPLORE_FRACTION:.0%} of them end after {experience.used} of "
            f"{planned} first rollouts. Give more seconds, or a smaller terms.explore."
        )
    return experience, trajectories


def _random_actions(system: System, run: Run) -> Tensor:
    """Actions [T, m], uniform between their bounds."""
    shape, generator = (system.horizon, len(system.low)), run.generator("explore")
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return system.low + (system.high - system.low) * drawn


def _noise(system: System, run: Run, *, fraction: float) -> Tensor:
    """Normal noise on actions [T, m], with a standard deviation of a fraction of half their range."""
    shape, generator = (system.horizon, len(system.low)), run.generator("explore")
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return fraction * (system.high - system.low) / 2.0 * drawn


def _tanh_network(n: int, m: int) -> nn.Module:
    """The default network, of n states and m actions."""
    return nn.Sequential(nn.Linear(n + m, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, n))

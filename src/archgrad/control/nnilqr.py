"""Neural iLQR: control of a system that can be tried out, by a network that learns its dynamics.

Paper: Cheng, Li, Chen, Ma, Lee, "Neural network iLQR: a new reinforcement learning architecture", arXiv 2011.10737
(2020). Its full text was not at hand: the algorithm is as read in the authors' code. Implemented, Z being a
trajectory (states x, actions u), J its cost, f the real system, g_w the network:

    explore     Z <- rollout of f without action; P rollouts of f with random actions; fit w to all transitions
    repeat:
        model   F_t = d g_w / d(x, u) at Z by autodiff, smoothed along time
        solve   feedback K, steps k by the Riccati pass backwards (archgrad.control.ilqr)
        try     u_t = clip(u_t + K_t (x_t - x_t) + a k_t) on f, a = 1, 1/2, 1/4, ...: the first with a lower J is Z
        stalled no such a: one rollout of f with noise on the actions of Z
        refit   w on all that was measured; longer where J hardly fell
    afresh      where J has not fallen for 6 steps: Z is the rollout without action again, w stays
    hand back   the best Z of all, K around it, and the network

What the paper leaves open, or is done otherwise here:
- The authors refit when J falls by less than 1e-6, on a window of accepted trajectories. Here every rollout is learnt
  from, rejected ones too, and the network is refitted after each step: it takes a fraction of the real rollouts.
- 10 random rollouts (100 there), 4 trials of the line search (10), noise of 0.1 x the largest action (1).
- The network predicts the scaled change of the state, by 128 and 64 tanh units unless another is given; the fit ends
  after a number of steps and not at an error.
- The fresh start is ours: iLQR ends in a local optimum, and the first steps are taken by a network that knows little.
- The network may be a space, which another method searches on the transitions of the random rollouts.

Checked against: the Riccati solution of a linear-quadratic problem, in one step, with the exact network; Jacobians
against differences; iLQR on exact equations, in the tests.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.control.dynamics_model import Dynamics, Experience, refit
from archgrad.control.ilqr import line_search
from archgrad.control.system import System, probe
from archgrad.control.trajectory import TrajectoryPlan, open_loop, piloted, solve
from archgrad.errors import ConfigError
from archgrad.results.record import heading
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.lifecycle import picks
from archgrad.supernets.nested import Inner, search_inside
from archgrad.training.fit import optimize
from archgrad.training.recipe import OptimizerFactory, Recipe, adamw
from archgrad.training.schedules import cosine

ADAM = functools.partial(adamw, learning_rate=1e-3, weight_decay=1e-5)
ROLLOUTS = 200


@dataclass(frozen=True)
class NnilqrTerms:
    """Numbers of neural iLQR.

    Attributes:
        explore: P, random rollouts at first.
        fit, refit: training steps at first, and after each step of the control; three times as many where stalled.
        stalled: a fall of J by less than this share of it is a stall.
        smoothing: sigma of the Gaussian that averages the Jacobians along time, in steps; 0: none.
        noise: of the exploring rollout, as a share of half the range of each action.
        trials: of the line search, each a real rollout.
        patience: steps in a row in which J does not fall, after which the search starts afresh.
        batch_size: transitions in a training batch.
        search: training steps of the method that searches the network.
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
            raise ConfigError(f"{self}: counts are 1 or more, smoothing, noise and stalled 0 or more")


def nnilqr(
    network: nn.Module | None,
    system: System,
    run: Run,
    *,
    search: Inner | None = None,
    terms: NnilqrTerms = NnilqrTerms(),
    optimizer: OptimizerFactory = ADAM,
) -> Found:
    """Control a system by trying it out; the algorithm is on top of this file.

    Args:
        network: from scaled states beside actions [B, n + m] to the scaled change of the state [B, n]; it is not
            changed. Or a space, which `search` searches. None: 128 and 64 tanh units.
        system: what is tried out, and its cost.
        run: trials (real rollouts in all; default 200), seconds, seed, folder, device.
        search: a method that relaxes its space, such as `archgrad.darts`; for a space.
        terms: numbers of the method.
        optimizer: from the network's weights to their optimizer.

    Returns:
        The network of the dynamics, with -J as its score; `record["control"]` has states and actions.

    Raises:
        ConfigError: a cost without gradient, actions without bounds, a horizon of 1, budgets of epochs or steps, or
            a space without a method to search it.
        DataError: the system raised an error.
        NonFiniteError: the rollout without action is not finite, or a loss became NaN or infinite.
    """
    budget = _checked(network, system, run, terms=terms, searched=search is not None)
    torch.manual_seed(run.seed)  # of the network that is made here
    made = copy.deepcopy(network) if network is not None else _tanh(len(system.start), len(system.low))
    settings = _settings(made, system, search, terms=terms)
    if run.world > 1:
        raise ConfigError(f"one process tries out the real system, and the run has {run.world}: give Run(devices=1)")
    run.begin("nnilqr", settings)
    seen, plan = _explored(system, run, count=terms.explore)
    dynamics = Dynamics(made, states=len(system.start), actions=len(system.low)).to(run.device)
    task, architecture = seen.task(dynamics, batch_size=terms.batch_size), Architecture({})
    if search:
        found, _ = search_inside(search, lambda: made, task, run, steps=terms.search, name="dynamics")
        architecture, dynamics.network = found.architecture, found.network.to(run.device)
    task.check(dynamics.network)
    weights = Recipe(optimizer_factory=optimizer).optimizer(dynamics.network)
    rates = [group["lr"] for group in weights.param_groups]
    run.register_state(dynamics=dynamics, weights=weights)
    optimize(dynamics.network, task, run, optimizer=weights, steps=terms.fit, phase="fit", schedule=cosine)

    run.register_state(dynamics=dynamics, weights=weights, experience=seen, plan=plan)
    for step in run.steps(budget, phase="control"):
        if seen.used >= budget:
            break
        if plan.idle >= terms.patience:
            plan.again()
        gains = solve(dynamics, plan.now.trajectory, run, cost=system.cost, sigma=terms.smoothing)
        left = min(terms.trials, budget - seen.used)
        better = line_search(seen.rollout, system.cost, plan.now, gains=gains, trials=left)
        gain = plan.take(better)
        if better is None and seen.used < budget:
            seen.rollout(open_loop(plan.now.trajectory.actions + _noise(system, run, share=terms.noise)))
        steps = terms.refit * (3 if gain < terms.stalled * abs(plan.now.cost) else 1)
        task = seen.task(dynamics, batch_size=terms.batch_size)
        loss = refit(dynamics, task, run, optimizer=weights, rates=rates, steps=steps, number=step)
        plan.costs.append((seen.used, plan.best.cost))
        size = better.size if better else 0.0
        run.log({"cost": plan.best.cost, "rollouts": seen.used, "step_size": size, "fit_loss": loss}, step=step)
    gains = solve(dynamics, plan.best.trajectory, run, cost=system.cost, sigma=terms.smoothing)
    record = {
        **heading(nnilqr, settings, f"{system.name} controlled by neural iLQR"),
        "picks": picks(made, architecture), "data": task.splits,
    }  # fmt: skip
    return piloted(
        dynamics, plan, run, system=system, gains=gains, space=made, architecture=architecture, record=record
    )  # fmt: skip


def _checked(network: nn.Module | None, system: System, run: Run, *, terms: NnilqrTerms, searched: bool) -> int:
    """The budget of real rollouts, once it is sure that nothing given stands against it."""
    if run.epochs or run.max_steps:
        raise ConfigError(
            "neural iLQR is bounded by Run(trials=...), real rollouts, and by seconds; not by epochs or steps"
        )
    if not bool(torch.isfinite(system.low).all() and torch.isfinite(system.high).all()):
        raise ConfigError(
            f"the actions of {system.name} are between {system.low.tolist()} and {system.high.tolist()}: random "
            f"rollouts need finite bounds"
        )
    if system.horizon < 2:
        raise ConfigError(
            f"{system.name} has a horizon of {system.horizon}: one state has no dynamics; give 2 or more"
        )
    budget = run.trials or ROLLOUTS
    if budget <= 1 + terms.explore:
        raise ConfigError(
            f"trials={budget} real rollouts, and {1 + terms.explore} are for the first fit; give more trials"
        )
    if bool(network is not None and choices(network)) != searched:
        raise ConfigError(
            "search=... is the method that searches a network with choices, such as archgrad.darts: give both, "
            "or a network without choices and no search"
        )
    system.cost.check(probe(system))
    return budget


def _settings(made: nn.Module, system: System, search: Inner | None, *, terms: NnilqrTerms) -> dict[str, Any]:
    function = getattr(search, "func", search)  # of functools.partial
    return {
        "system": system.name, "horizon": system.horizon, "network": type(made).__name__,
        "parameters": sum(p.numel() for p in made.parameters()),
        "search": search and str(getattr(function, "__name__", type(search).__name__)), "terms": asdict(terms),
    }  # fmt: skip


def _explored(system: System, run: Run, *, count: int) -> tuple[Experience, TrajectoryPlan]:
    """The rollout without action, where the search begins, and others with random actions."""
    seen, plan = Experience(system, run), TrajectoryPlan()
    run.register_state(experience=seen, plan=plan)
    for step in run.steps(1 + count, phase="explore"):
        random = _random(system, run)
        tried = seen.rollout(open_loop(random if step else torch.zeros_like(random)))
        if step == 0:
            plan.first(system, tried)
    return seen, plan


def _random(system: System, run: Run) -> Tensor:
    """Actions [T, m], uniform between their limits."""
    shape, generator = (system.horizon, len(system.low)), run.generator("explore")
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return system.low + (system.high - system.low) * drawn


def _noise(system: System, run: Run, *, share: float) -> Tensor:
    """Normal noise on actions [T, m], its deviation a share of half their range."""
    shape, generator = (system.horizon, len(system.low)), run.generator("explore")
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return share * (system.high - system.low) / 2.0 * drawn


def _tanh(n: int, m: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n + m, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, n))

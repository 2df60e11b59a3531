"""RL-DARTS: search of the encoder of an agent by the agent's own loss, while the supernet plays.

Paper: Miao, Song, Co-Reyes, Peng, Yue, Brevdo, Faust, "Differentiable architecture search for reinforcement learning"
(RL-DARTS), arXiv 2106.02229 (2021). Its text was not at hand: this follows the abstracts and the authors' code, read.
p are the softmaxes of the logits a, w the weights:

    build     an agent whose encoder is the supernet, a = 0
    repeat    play with the mixture of all operations
              descend  L_PPO(w, a)  on that experience, w and a together by one Adam: no second data, no two levels
    discrete  for each source of a node the operation of largest p, "none" left out and not made up for by a scale;
              for each node the two sources whose operation has the largest p
    train     a new agent with that cell, wider if wanted, from fresh weights by the same PPO
    judge     on levels that were not trained on, with actions drawn from the policy

What the paper leaves open, or is done otherwise here:
- Scale of the softmax: 1, constant; the code allows for one, its value is not known.
- Steps of the search: as many as of the training (recalled).
- Advantages are normalized over a rollout; a truncated episode is worth what the value says.
- The statistics of BatchNorm are those of the last rollout. The authors' code takes those of the present batch, so
  that a policy depends on its neighbors in the batch and the ratio of PPO is not 1 to begin with.
- Unseen levels alone count for the score; the authors' code judges on all levels.
- Rainbow and SAC are not here: `archgrad.rl.policy_kwargs` searches with those of Stable-Baselines3.
- Random cells and the hand-made IMPALA-CNN are trained for as many steps, and go into the record.

Checked against: finite differences of the loss, advantages by hand, the fixed cell in the limit of one-hot logits, a
killed run, in the tests.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decide
from archgrad.choices.relaxations import Softmax
from archgrad.choices.tracing import traced
from archgrad.copy_and_run import copied
from archgrad.costs.count import macs, params
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.report.charts.rl import encode_gif
from archgrad.results.record import conditions, heading
from archgrad.results.result import Found, latencies
from archgrad.rl.impala_space import impala_network
from archgrad.rl.ppo import Agent, PpoTerms, count_features, measure_rollout, train_agent
from archgrad.rl.task import Policy, Reinforcement
from archgrad.run.run import Run
from archgrad.supernets import collapse
from archgrad.supernets.bilevel import relaxation_figures
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.lifecycle import LOAD_SEARCHED, Described, picks, prepare_supernet

ENVIRONMENT_STEPS = 200_000
# Phases besides the training of what was found and of random cells, and what the record calls their agents.
BASELINES = {"search": "supernet", "hand-made": "hand-made encoder"}


@dataclass(frozen=True)
class RlDartsSettings:
    """What RL-DARTS is begun with; see `rl_darts`."""

    environment_steps: int | None
    terms: PpoTerms
    scale: float
    channels: int | None
    baselines: bool
    random_cells: int
    hand_made: nn.Module | None
    episodes: int

    @property
    def phases(self) -> int:
        """The number of agents that are trained, each for an equal part of the budget."""
        return 3 + self.random_cells if self.baselines else 2

    def record(self) -> dict[str, Any]:
        """As JSON."""
        own = {name: value for name, value in vars(self).items() if name not in ("terms", "hand_made")}
        return {**own, "terms": asdict(self.terms), "hand_made": self.hand_made and type(self.hand_made).__name__}


@checked
def rl_darts(
    space: nn.Module,
    task: Reinforcement,
    run: Run,
    *,
    environment_steps: int | None = None,
    terms: PpoTerms = PpoTerms(),
    scale: float = 1.0,
    channels: int | None = None,
    baselines: bool = True,
    random_cells: int = 1,
    hand_made: nn.Module | None = None,
    episodes: int = 64,
) -> Found:
    """Search the encoder of an agent; the algorithm is on top of this file.

    Args:
        space: from images [B, C, H, W] to features, with OpChoice and InputChoice; it is not changed. See
            `archgrad.impala_cells`.
        task: what is played; its unseen levels are for judging alone.
        run: seed, folder, device. `steps` or `epochs` bound the rollouts of all phases together; of `seconds` each
            phase gets an equal part.
        environment_steps: steps of the search, and as many of the training and of each baseline. None: 200,000, or
            as many as fit where the run has a budget of seconds alone.
        terms: hyper-parameters of PPO.
        scale: of the logits in the softmax.
        channels: of the first stage of the trained network, for spaces of cells; None for as many as searched.
        baselines: train random cells and the hand-made encoder too, for the record.
        random_cells: how many; one says little where cells differ.
        hand_made: an encoder in place of the IMPALA-CNN of depths 16, 32 and 32; it is copied.
        episodes: to judge by, on each kind of levels.

    Returns:
        `network` gives (logits of the actions [B, A], value [B]) of images in [0, 1]; `score` is the mean return on
        unseen levels.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: a number is out of range, seconds do not suffice, or there are several processes.
        DataError: an environment failed; what was done so far is in the folder.
        ModelError: the space does not take the task's images.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import archgrad as ag
        >>> from archgrad.rl import PixelGame, PpoTerms
        >>> task = ag.Reinforcement(PixelGame, num_envs=2, max_episode_steps=5)
        >>> space, terms = ag.impala_cells(size=8, depths=(2,), nodes=1, features=2), PpoTerms(rollout_steps=4)
        >>> run = ag.Run(progress=False)
        >>> found = ag.rl_darts(space, task, run, environment_steps=8, terms=terms, baselines=False, episodes=2)
    """
    settings = RlDartsSettings(
        environment_steps, terms, scale, channels, baselines, random_cells, hand_made=hand_made, episodes=episodes
    )
    _check(task, run, settings)
    space = prepare_supernet(space, run, needs="RL-DARTS")
    relax_as_mixture(space, functools.partial(Softmax, scale=scale))
    count_features(space, task.example.to(run.device))
    run.begin("rl_darts", settings.record(), task=task, network=space)

    agent, search_log = Agent(space, example=task.example, actions=task.actions), _SearchLog(space)
    rollouts = _plan_rollouts(agent, task, run, settings)
    train = functools.partial(
        train_agent, task=task, run=run, terms=terms, rollouts=rollouts, time_fraction=1 / settings.phases
    )
    train(agent, phase="search", on_update=search_log, more=search_log)
    architecture = decide(space)

    encoders = {"train": build(space, architecture, weights="fresh", channels=channels)}
    if baselines:
        for phase, name in _random_cells(random_cells).items():
            drawn = sample(space, generator=run.generator(name))
            encoders[phase] = build(space, drawn, weights="fresh", channels=channels)
        encoders["hand-made"] = copied(hand_made) if hand_made else _impala_cnn(task)
    agents = {"search": agent}
    for phase, encoder in encoders.items():
        agents[phase] = Agent(encoder, example=task.example, actions=task.actions)
        train(agents[phase], phase=phase)
    names = BASELINES | _random_cells(random_cells)
    played = {row["phase"]: row["environment_steps"] for row in run.history if "environment_steps" in row}
    figures = {
        phase: {
            **run.compute_once(
                f"judged {phase}", functools.partial(_evaluate, agents[phase], task, run, episodes=episodes)
            ),
            "environment_steps": played.get(phase, 0),
        }
        for phase in agents
    }
    record = {
        **heading(rl_darts, settings.record(), f"{type(space).__name__} searched by RL-DARTS on {task.name}"),
        "baselines": [{"name": names[phase], **figures[phase]} for phase in agents if phase != "train"],
        "cells": search_log.cells,
    }  # fmt: skip
    return _report(space, architecture, run, agent=agents["train"], task=task, after=figures["train"], record=record)


def _random_cells(count: int) -> dict[str, str]:
    """Their names by phase: {"random": "random cell", "random-2": "random cell 2", ...}."""
    return {"random": "random cell"} | {f"random-{i}": f"random cell {i}" for i in range(2, count + 1)}


def _check(task: Reinforcement, run: Run, settings: RlDartsSettings) -> None:
    """Raise ConfigError for what can be refused before the run begins."""
    if run.world > 1:
        raise ConfigError("RL-DARTS plays in one process. Give Run(devices=1), and more environments to the task.")
    steps, terms = settings.environment_steps, settings.terms
    if settings.random_cells < 1:
        raise ConfigError(
            f"random_cells={settings.random_cells}: give 1 or more, or baselines=False to train none of the baselines"
        )
    if steps is not None and steps < terms.rollout_steps * task.num_envs:
        raise ConfigError(
            f"environment_steps={steps} are less than one rollout of {terms.rollout_steps} steps in {task.num_envs} "
            f"environments. Give more, or a shorter rollout: terms=archgrad.rl.PpoTerms(rollout_steps=...)."
        )


def _plan_rollouts(agent: Agent, task: Reinforcement, run: Run, settings: RlDartsSettings) -> int:
    """Rollouts of each phase: what was asked for, or what the budgets of the run allow."""
    steps, terms, phases = settings.environment_steps, settings.terms, settings.phases
    asked = max(1, (steps or ENVIRONMENT_STEPS) // (terms.rollout_steps * task.num_envs))
    if steps and not run.epochs and not run.max_steps:
        return asked
    total = run.total_steps(
        1, default_epochs=phases * asked, measure_step=lambda: measure_rollout(agent, task, run, terms=terms)
    )
    if run.seconds and not run.epochs and not run.max_steps:
        run.require_steps(total // phases, phase=f"each of {phases} phases", least=2)
        return total // phases
    return min(asked, max(1, total // phases))


class _SearchLog:
    """The search over time: figures that are logged after each update, and the cell whenever it changed."""

    def __init__(self, space: nn.Module) -> None:
        self.space = space
        self.cells: list[dict[str, Any]] = []

    def __call__(self, played: int) -> dict[str, float]:
        """The entropy of the choices, and the weight of each candidate, after so many environment steps."""
        if isinstance(self.space, Described):
            text = str(self.space.describe(decide(self.space))["architecture_text"])
            if not self.cells or self.cells[-1]["cell"] != text:
                self.cells.append({"environment_steps": played, "cell": text})
        return relaxation_figures(self.space)

    def state_dict(self) -> dict[str, Any]:
        """The cells so far."""
        return {"cells": list(self.cells)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.cells[:] = state["cells"]


def _impala_cnn(task: Reinforcement) -> nn.Module:
    _, channels, height, width = task.example.shape
    return impala_network(in_channels=channels, size=(height, width))


def _policy(agent: Agent, run: Run) -> Policy:
    """The agent's policy: actions are drawn, with a generator that begins at the run's seed."""
    generator = torch.Generator().manual_seed(run.seed)

    @torch.no_grad()
    def act(images: Tensor) -> Tensor:
        scores, _ = agent(images.to(run.device))
        return torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator).squeeze(1)

    return act


def _evaluate(agent: Agent, task: Reinforcement, run: Run, *, episodes: int) -> dict[str, float]:
    """Returns on unseen and on training levels, and what the network takes."""
    unseen, train = (task.evaluate(_policy(agent, run), part, episodes=episodes) for part in ("test", "train"))
    size = sum(t.numel() * t.element_size() for t in agent.state_dict().values())
    return {
        "return_unseen": unseen["return"], "return_unseen_std": unseen["return_std"],
        "return_train": train["return"], "return_train_std": train["return_std"], "episodes": unseen["episodes"],
        "params": params().of(agent), "macs": macs(task.example.to(run.device)).of(agent), "size_bytes": size,
    }  # fmt: skip


def _report(
    space: nn.Module, architecture: Architecture, run: Run, *, agent: Agent, task: Reinforcement,
    after: Mapping[str, Any], record: Mapping[str, Any],
) -> Found:  # fmt: skip
    network = traced(agent.eval())
    example = run.to_device(task.example)
    times = run.compute_once("latency", lambda: latencies({"after": network}, example, runtimes=("eager",)))
    film = run.compute_once("film", lambda: encode_gif(task.record_frames(_policy(agent, run)).numpy()))
    # One loss is that of weights and logits.
    history = [row | {"architecture_loss": row["loss"]} for row in run.history if "loss" in row]
    full = {
        "after": {**after, "latency_ms": times["after"]},
        "picks": picks(space, architecture),
        **(dict(space.describe(architecture)) if isinstance(space, Described) else {}),
        "film": film,
        "alarms": collapse.alarms(space, architecture, history, method="rl_darts"),
        **conditions(run, task, score="return_unseen"),
        "load": LOAD_SEARCHED,
        **record,
    }
    costs = {name: after[name] for name in ("params", "macs")}
    found = Found(architecture, network, after["return_unseen"], costs, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    run.finish()
    return found

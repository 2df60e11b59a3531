"""RL-DARTS: search of an agent's encoder of images, by the agent's own loss, while the supernet plays.

Paper: Miao, Song, Co-Reyes, Peng, Yue, Brevdo, Faust, "Differentiable architecture search for reinforcement learning"
(RL-DARTS), arXiv 2106.02229 (2021). Its text was not at hand: this follows the abstracts and the authors' code, read.
p are the softmaxes of the logits a, w the weights:

    build     an agent whose encoder is the supernet, a = 0
    repeat    play by the mixture of all operations
              descend  L_PPO(w, a)  on what was played, w and a together by one Adam: no second data, no two levels
    discrete  of each source of a node the operation of largest p, "none" left out and nothing scaled up for it;
              of each node the two sources whose operation has the largest p
    train     a new agent with that cell, wider if wanted, from fresh weights by the same PPO
    judge     on levels that were not trained on, by the policy as it is (actions drawn, not the likeliest)

What the paper leaves open, or is done otherwise here:
- Scale of the softmax: 1, constant; the code allows for one, its value is not known.
- Steps of the search: as many as of the training (recalled).
- Advantages are brought to mean 0 and deviation 1 over a rollout; what is cut short is worth what the value says.
- Statistics of BatchNorm are those of the last rollout; the code's are those of the batch that is played or learnt
  from, by which a policy depends on its neighbors in the batch, and the ratio of PPO is not 1 to begin with.
- Unseen levels alone are judged on; the code judges on all levels.
- Rainbow and SAC are not here: see `archgrad.rl.stable_baselines` for algorithms off the policy.
- A random cell and the hand-made IMPALA-CNN are trained for as many steps, and go into the record.

Checked against: finite differences of the loss, advantages by hand, the fixed cell in the limit of one-hot logits, a
killed run, in the tests.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import Softmax
from archgrad.choices.tracing import traced
from archgrad.costs.count import macs, params
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build, decide
from archgrad.report.charts.rl import animated
from archgrad.results.record import conditions, heading
from archgrad.results.result import Found, latencies
from archgrad.rl.impala_space import impala_network
from archgrad.rl.ppo import SMALL, Agent, PpoTerms, features, learn
from archgrad.rl.task import Reinforcement
from archgrad.run.run import Run
from archgrad.supernets import collapse
from archgrad.supernets.bilevel import state
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.lifecycle import LOAD, Described, picks, prepare_supernet

# Phases, and what they are called in the record.
NAMES = {"search": "supernet", "random": "random cell", "hand-made": "hand-made encoder"}


def rl_darts(
    space: nn.Module,
    task: Reinforcement,
    run: Run,
    *,
    environment_steps: int = 200_000,
    terms: PpoTerms = SMALL,
    scale: float = 1.0,
    channels: int | None = None,
    baselines: bool = True,
    hand_made: nn.Module | None = None,
    episodes: int = 64,
) -> Found:
    """Search the encoder of an agent; the algorithm is on top of this file.

    Args:
        space: from images to features, with OpChoice and InputChoice; it is not changed. See `archgrad.impala_cells`.
        task: what is played; its unseen levels are for judging alone.
        run: seed, folder, device; `steps` or `epochs` bound the rollouts of all phases together.
        environment_steps: of the search; of the training and of each baseline as many.
        terms: numbers of PPO.
        scale: of the logits in the softmax.
        channels: of the first stage of what is trained, for spaces of cells; None for as many as searched.
        baselines: train a random cell and the hand-made encoder too, for the record.
        hand_made: an encoder in place of the IMPALA-CNN of depths 16, 32 and 32; it is copied.
        episodes: to judge by, on each kind of levels.

    Returns:
        `network` gives (logits of the actions [B, A], value [B]) of images in [0, 1]; `score` is the mean return on
        unseen levels.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: a number out of range, or several processes.
        DataError: an environment failed; what was done so far is in the folder.
        ModelError: the space does not take the task's images.
        NonFiniteError: the loss became NaN or infinite.
    """
    rollouts = _rollouts(task, run, environment_steps, terms=terms, phases=4 if baselines else 2)
    space = prepare_supernet(space, run, needs="RL-DARTS")
    relax_as_mixture(space, functools.partial(Softmax, scale=scale))
    features(space, task.example.to(run.device))
    settings = {
        "environment_steps": environment_steps, "terms": asdict(terms), "scale": scale, "channels": channels,
        "baselines": baselines, "hand_made": hand_made and type(hand_made).__name__, "episodes": episodes,
    }  # fmt: skip
    run.begin("rl_darts", {"environment": task.splits, **settings})

    agent, watch = Agent(space, example=task.example, actions=task.actions), _Watch(space)
    time_fraction = 1 / (4 if baselines else 2)
    train = functools.partial(learn, task=task, run=run, terms=terms, rollouts=rollouts, time_fraction=time_fraction)
    train(agent, phase="search", each=watch, more=watch)
    architecture = decide(space)

    encoders = {"train": build(space, architecture, weights="fresh", channels=channels)}
    if baselines:
        drawn = sample(space, generator=run.generator("random cell"))
        encoders["random"] = build(space, drawn, weights="fresh", channels=channels)
        encoders["hand-made"] = _hand_made(hand_made, task)
    agents = {"search": agent}
    for name, encoder in encoders.items():
        agents[name] = Agent(encoder, example=task.example, actions=task.actions)
        train(agents[name], phase=name)
    played = {row["phase"]: row["environment_steps"] for row in run.history if "environment_steps" in row}
    judged = {
        name: {
            **run.compute_once(f"judged {name}", functools.partial(_judged, one, task, run, episodes=episodes)),
            "environment_steps": played.get(name, 0),
        }
        for name, one in agents.items()
    }
    record = {
        **heading(rl_darts, settings, f"{type(space).__name__} searched by RL-DARTS on {task.name}"),
        "baselines": [{"name": told, **judged[name]} for name, told in NAMES.items() if name in agents],
        "cells": watch.cells,
    }  # fmt: skip
    return _concluded(
        space, architecture, run, agent=agents["train"], task=task, after=judged["train"], record=record
    )


def _rollouts(task: Reinforcement, run: Run, steps: int, *, terms: PpoTerms, phases: int) -> int:
    """Rollouts of each phase: what was asked for, or what the run allows."""
    if run.world > 1:
        raise ConfigError("RL-DARTS plays in one process; give Run(devices=1) and more environments to the task")
    wanted = steps // (terms.rollout * task.envs)
    if wanted < 1:
        raise ConfigError(
            f"environment_steps={steps} are less than one rollout of {terms.rollout} steps in {task.envs} "
            f"environments; give more, or fewer in a rollout (terms=archgrad.rl.ppo.PpoTerms(rollout=...))"
        )
    return min(wanted, max(1, run.total_steps(1, default_epochs=phases * wanted) // phases))


class _Watch:
    """The cell over the search: what is logged behind each update, and its text wherever it changed."""

    def __init__(self, space: nn.Module) -> None:
        self.space = space
        self.cells: list[dict[str, Any]] = []

    def __call__(self, played: int) -> dict[str, float]:
        """The entropy of the choices, and the weight of each candidate."""
        if isinstance(self.space, Described):
            text = str(self.space.describe(decide(self.space))["architecture_text"])
            if not self.cells or self.cells[-1]["cell"] != text:
                self.cells.append({"environment_steps": played, "cell": text})
        return state(self.space)

    def state_dict(self) -> dict[str, Any]:
        """The cells so far."""
        return {"cells": list(self.cells)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.cells[:] = state["cells"]


def _hand_made(given: nn.Module | None, task: Reinforcement) -> nn.Module:
    if given is not None:
        return copy.deepcopy(given)
    _, channels, height, width = task.example.shape
    return impala_network(in_channels=channels, size=(height, width))


def _act(agent: Agent, run: Run) -> Callable[[Tensor], Tensor]:
    """The policy as it is: actions are drawn from it."""
    generator = torch.Generator().manual_seed(run.seed)

    @torch.no_grad()
    def act(images: Tensor) -> Tensor:
        scores, _ = agent(images.to(run.device))
        return torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator).squeeze(1)

    return act


def _judged(agent: Agent, task: Reinforcement, run: Run, *, episodes: int) -> dict[str, float]:
    """Returns on unseen and on training levels, and what the network takes."""
    unseen, train = (task.evaluate(_act(agent, run), part, episodes=episodes) for part in ("test", "train"))
    size = sum(t.numel() * t.element_size() for t in agent.state_dict().values())
    return {
        "return_unseen": unseen["return"], "return_unseen_std": unseen["return_std"],
        "return_train": train["return"], "return_train_std": train["return_std"], "episodes": unseen["episodes"],
        "params": params().of(agent), "macs": macs(task.example.to(run.device)).of(agent), "size_bytes": size,
    }  # fmt: skip


def _concluded(
    space: nn.Module, architecture: Architecture, run: Run, *, agent: Agent, task: Reinforcement,
    after: Mapping[str, Any], record: Mapping[str, Any],
) -> Found:  # fmt: skip
    network = traced(agent.eval())
    example = run.to_device(task.example)
    times = run.compute_once("latency", lambda: latencies({"after": network}, example, runtimes=("eager",)))
    film = run.compute_once("film", lambda: animated(task.film(_act(agent, run)).numpy()))
    searched = [row | {"architecture_loss": row["loss"]} for row in run.history if "loss" in row]  # one for both
    full = {
        "after": {**after, "latency_ms": times["after"]},
        "picks": picks(space, architecture),
        **(dict(space.describe(architecture)) if isinstance(space, Described) else {}),
        "film": film,
        "alarms": collapse.alarms(space, architecture, searched),
        **conditions(run, task, score="return_unseen"),
        "load": LOAD,
        **record,
    }
    costs = {name: after[name] for name in ("params", "macs")}
    found = Found(architecture, network, after["return_unseen"], costs, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    run.finish()
    return found

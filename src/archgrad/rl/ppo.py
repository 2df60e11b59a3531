"""Proximal policy optimization for encoders that are searched or trained: one loss for weights and logits.

    r = pi(a|s) / pi_old(a|s)
    L = -mean min(r A, clip(r, 1 - e, 1 + e) A)
        + c_v mean max((V - G)^2, (V_old + clip(V - V_old, -e, e) - G)^2) - c_h H(pi)

A and G are those of `archgrad.rl.rollouts`. This is a PPO of our own, because exact resume needs the state of the
environments, which Stable-Baselines3 does not keep; for its algorithms see `archgrad.rl.policy_kwargs`. The network
is in eval mode while it acts and while it learns, so that r is 1 before the first step. The statistics of BatchNorm
are estimated anew from each rollout, after its update.

Sources: Schulman et al., PPO (arXiv 1707.06347), and generalized advantage estimation (arXiv 1506.02438); RL-DARTS's
code for the numbers and for clipping the value.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer

from archgrad.choices.access import logits, weights
from archgrad.copy_and_run import copied
from archgrad.errors import ConfigError, ModelError
from archgrad.rl.rollouts import ActorCritic, Rollout, RolloutCollector, full_precision
from archgrad.rl.task import SEEDS, Reinforcement, as_input
from archgrad.run.device import seconds_per_call
from archgrad.run.loop import watched
from archgrad.run.run import Run
from archgrad.run.stateful import Stateful
from archgrad.tasks.task import stable_seed
from archgrad.training.step import autocast, take_step


@dataclass(frozen=True)
class PpoTerms:
    """Hyper-parameters of PPO; the defaults suit small games on a CPU.

    Attributes:
        rollout_steps: steps in each environment before an update.
        minibatch_size: examples in a step of the optimizer.
        epochs: passes over each rollout.
        learning_rate: of Adam, for weights and logits alike; its eps is 1e-5.
        clip_range: e, of the ratio and of the value.
        entropy_coef: c_h.
        value_coef: c_v.
        max_grad_norm: largest norm of the gradient of all parameters together.
        gamma: discount.
        gae_lambda: lambda of the advantages.
        reseed_every: rollouts after which all environments begin anew under another seed. A resumed run plays again
            what was played since then.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> from archgrad.rl import PpoTerms
        >>> PpoTerms(rollout_steps=16).gamma
        0.99
    """

    rollout_steps: int = 32
    minibatch_size: int = 256
    epochs: int = 4
    learning_rate: float = 1e-3
    clip_range: float = 0.2
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    gamma: float = 0.99
    gae_lambda: float = 0.95
    reseed_every: int = 64

    def __post_init__(self) -> None:
        fractions = ("gamma", "gae_lambda")
        for field in fields(self):
            value = getattr(self, field.name)
            low = 1 if field.type == "int" else 0
            fits = isinstance(value, int if low else (int, float)) and not isinstance(value, bool) and value >= low
            if not fits or (field.name in fractions and value > 1):
                rule = f"a {'whole ' if low else ''}number from {low} up"
                rule = "a number from 0 to 1" if field.name in fractions else rule
                raise ConfigError(f"PpoTerms({field.name}={value!r}) was given. Allowed is {rule}.")


# The numbers of RL-DARTS's code for Procgen, with 64 environments.
PUBLISHED = PpoTerms(rollout_steps=1024, minibatch_size=2048, epochs=2, learning_rate=5e-4, gamma=0.999)


class Agent(nn.Module):
    """A policy and a value on one encoder: images [B, C, H, W] in [0, 1] to logits of actions [B, A] and values [B].

    Args:
        encoder: from images to features [B, F], or to what is flattened to them; a supernet or a plain network.
        example: [1, C, H, W].
        actions: A.

    Raises:
        ModelError: the encoder does not run on the example.

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.rl import Agent
        >>> x = torch.rand(2, 3, 8, 8)
        >>> agent = Agent(ag.impala_network(size=8, depths=(4,), features=16), example=x[:1], actions=5)
        >>> [list(output.shape) for output in agent(x)]
        [[2, 5], [2]]
    """

    def __init__(self, encoder: nn.Module, *, example: Tensor, actions: int) -> None:
        super().__init__()
        width = count_features(encoder, example.to(next(encoder.parameters()).device))
        self.encoder = encoder
        self.policy, self.value = nn.Linear(width, actions), nn.Linear(width, 1)
        # Nearly uniform to begin with.
        nn.init.orthogonal_(self.policy.weight, 0.01)
        nn.init.zeros_(self.policy.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the actions [B, A] and values [B]."""
        features = self.encoder(x).flatten(1)
        return self.policy(features), self.value(features).squeeze(-1)


def count_features(encoder: nn.Module, example: Tensor) -> int:
    """The number of features that an encoder makes of an image [1, C, H, W]; it is left in eval mode.

    Raises:
        ModelError: the encoder does not run on the example.
    """
    encoder.eval()
    try:
        with torch.no_grad():
            return int(encoder(example).flatten(1).shape[1])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{type(encoder).__name__} does not run on images of shape {list(example.shape)[1:]}: {error}. Make it "
            f"for the images at hand, for instance archgrad.impala_cells(in_channels=..., size=...)."
        ) from error


def ppo_loss(agent: ActorCritic, batch: Rollout, terms: PpoTerms) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [] on some steps, and figures to log: the entropy, the clipped fraction, and max |r - 1|."""
    scores, values = (full_precision(output) for output in agent(as_input(batch.images)))
    log_probs = torch.log_softmax(scores, dim=-1)
    ratio = (log_probs.gather(1, batch.actions[:, None]).squeeze(1) - batch.log_probs).exp()
    clipped = ratio.clamp(1 - terms.clip_range, 1 + terms.clip_range)
    gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages).mean()
    clipped_values = batch.values + (values - batch.values).clamp(-terms.clip_range, terms.clip_range)
    error = torch.maximum((values - batch.returns) ** 2, (clipped_values - batch.returns) ** 2).mean()
    entropy = torch.special.entr(log_probs.exp()).sum(dim=-1).mean()
    loss = -gain + terms.value_coef * error - terms.entropy_coef * entropy
    deviation = (ratio.detach() - 1).abs()
    return loss, {
        "policy_entropy": entropy.detach(),
        "clipped": (deviation > terms.clip_range).to(deviation).mean(),
        "ratio_off_by": deviation.max(),
    }


def agent_optimizer(agent: nn.Module, terms: PpoTerms) -> Optimizer:
    """One Adam for weights and logits without weight decay, the logits in a group of their own; clipped jointly."""
    groups: list[dict[str, Any]] = [{"params": weights(agent)}, {"params": logits(agent), "weight_decay": 0.0}]
    optimizer = Adam([group for group in groups if group["params"]], lr=terms.learning_rate, eps=1e-5)
    optimizer.register_step_pre_hook(functools.partial(_clip, terms.max_grad_norm))
    return optimizer


def _clip(largest: float, optimizer: Optimizer, *hooked: object) -> None:
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], largest)


def train_agent(
    agent: Agent,
    task: Reinforcement,
    run: Run,
    *,
    terms: PpoTerms,
    rollouts: int,
    phase: str,
    time_fraction: float = 1.0,
    on_update: Callable[[int], dict[str, float]] | None = None,
    more: Stateful | None = None,
) -> None:
    """Train an agent in place for one phase of a run; a step of the run is a rollout and its update.

    Args:
        agent: weights and logits are trained.
        task: what it plays.
        run: begun.
        terms: hyper-parameters.
        rollouts: length of the phase.
        phase: its name in the history.
        time_fraction: this phase's part of a budget in seconds.
        on_update: called after each update with the environment steps so far; the figures it returns are logged.
        more: what else is saved and restored.

    Raises:
        DataError: an environment failed; the run can be resumed.
        NonFiniteError: the loss became NaN or infinite; no step is taken on it.
    """
    agent.to(run.device).eval()
    optimizer = agent_optimizer(agent, terms)
    collector = _collector(task, run, terms, seed=_seed(run, phase, 0))
    run.register_state(agent=agent, optimizer=optimizer, collector=collector, **({"more": more} if more else {}))
    for number in run.steps(rollouts, phase=phase, time_fraction=time_fraction):
        if number % terms.reseed_every == 0:
            collector.reset(_seed(run, phase, number))
        figures, finished = _learn_from_rollout(agent, collector, run, terms=terms, optimizer=optimizer)
        played = (number + 1) * terms.rollout_steps * task.num_envs
        returns = {"return": sum(finished) / len(finished)} if finished else {}
        more_figures = on_update(played) if on_update else {}
        run.log({**figures, **returns, "environment_steps": played, **more_figures}, step=number)
    collector.env.close()


def measure_rollout(agent: Agent, task: Reinforcement, run: Run, *, terms: PpoTerms) -> float:
    """The seconds that a rollout and its update take, measured once on a copy of an agent."""
    agent = copied(agent).to(run.device).eval()
    optimizer, collector = agent_optimizer(agent, terms), _collector(task, run, terms, seed=0)

    def learn() -> None:
        _learn_from_rollout(agent, collector, run, terms=terms, optimizer=optimizer)

    seconds = seconds_per_call(learn, device=run.device, repeats=1)
    collector.env.close()
    return seconds


def _collector(task: Reinforcement, run: Run, terms: PpoTerms, *, seed: int) -> RolloutCollector:
    return RolloutCollector(
        task.vector_env(seed=seed), steps=terms.rollout_steps, gamma=terms.gamma, gae_lambda=terms.gae_lambda,
        generator=run.generator("act"), device=run.device,
    )  # fmt: skip


def _learn_from_rollout(
    agent: Agent, collector: RolloutCollector, run: Run, *, terms: PpoTerms, optimizer: Optimizer
) -> tuple[dict[str, float], list[float]]:
    """Collect a rollout and learn from it; figures to log, and the returns of finished episodes."""
    with watched(run), autocast(run):
        rollout, finished = collector.collect(agent)
    figures = _update(agent, rollout, run, terms=terms, optimizer=optimizer)
    with watched(run), autocast(run):
        _estimate_batch_norm(agent, rollout.images, run, batch_size=terms.minibatch_size)
    return figures, finished


def _update(agent: Agent, rollout: Rollout, run: Run, *, terms: PpoTerms, optimizer: Optimizer) -> dict[str, float]:
    """Steps on all minibatches, `terms.epochs` times; the means of the logged figures."""
    generator, size = run.generator("minibatches"), len(rollout.actions)
    rows: list[dict[str, Tensor]] = []
    for _ in range(terms.epochs):
        for index in torch.randperm(size, generator=generator).split(terms.minibatch_size):  # type: ignore[no-untyped-call]
            figures: dict[str, Tensor] = {}
            compute = functools.partial(_loss, agent, rollout.select(index, run.device), terms, figures)
            loss = take_step(optimizer, run, compute, observe=functools.partial(_norms, optimizer, figures))
            rows.append({"loss": loss, **figures})
    means = {name: float(torch.stack([row[name] for row in rows]).double().mean()) for name in rows[0]}
    return means | {"ratio_off_by": float(rows[0]["ratio_off_by"])}


def _loss(agent: Agent, batch: Rollout, terms: PpoTerms, figures: dict[str, Tensor]) -> Tensor:
    loss, watched_figures = ppo_loss(agent, batch, terms)
    figures.update(watched_figures)
    return loss


def _norms(optimizer: Optimizer, figures: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Put the norm of each parameter group's gradient into the figures: that of all is nearly that of the weights."""
    remaining = iter(gradients)
    for group, name in zip(optimizer.param_groups, ("weights", "logits"), strict=False):
        of_group = itertools.islice(remaining, len(group["params"]))
        figures[f"gradient_norm_{name}"] = nn.utils.get_total_norm([g for g in of_group if g is not None])


@torch.no_grad()
def _estimate_batch_norm(agent: Agent, images: Tensor, run: Run, *, batch_size: int) -> None:
    """Take the statistics of BatchNorm from a rollout's images [N, C, H, W]: the plain mean over its batches."""
    norms = [m for m in agent.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in images.split(batch_size):  # type: ignore[no-untyped-call]
        agent(as_input(batch.to(run.device)))
    agent.eval()


def _seed(run: Run, phase: str, number: int) -> int:
    return stable_seed("play", run.seed, phase, number) % SEEDS

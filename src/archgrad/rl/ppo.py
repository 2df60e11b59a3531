"""Proximal policy optimization, small, for encoders that are searched or trained: weights and logits by one loss.

    r = pi(a|s) / pi_old(a|s)
    L = -mean min(r A, clip(r, 1 - e, 1 + e) A)
        + c_v mean max((V - G)^2, (V_old + clip(V - V_old, -e, e) - G)^2) - c_h H(pi)

A and G are those of `archgrad.rl.rollouts`. An own PPO, since exact resume needs the state of the collection,
which Stable-Baselines3 does not keep; for its algorithms see `archgrad.rl.stable_baselines`. The network is in
eval mode while it acts and while it learns, so that r is 1 before the first step; statistics of BatchNorm are taken
anew from each rollout, behind its update.

Sources: Schulman et al., PPO (arXiv 1707.06347), and generalized advantages (arXiv 1506.02438); RL-DARTS's code for
the numbers and for clipping the value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer

from archgrad.choices.access import logits, weights
from archgrad.errors import ConfigError, ModelError
from archgrad.rl.rollouts import Collector, Play, Rollout
from archgrad.rl.task import ALL, Reinforcement, as_input
from archgrad.run.resource_errors import watched
from archgrad.run.run import Run
from archgrad.run.stateful import Stateful
from archgrad.tasks.task import stable_seed


@dataclass(frozen=True)
class PpoTerms:
    """Numbers of the algorithm; the defaults suit small games on a CPU.

    Attributes:
        rollout: steps in each environment before an update.
        minibatch: examples a step of the optimizer.
        passes: over each rollout.
        rate: of Adam, for weights and logits alike; its eps is 1e-5.
        clip: e, of the ratio and of the value.
        bonus: c_h, for the entropy of the policy.
        value: c_v.
        norm: largest norm of the gradient of all parameters together.
        discount: g.
        trace: l.
        reseed: rollouts after which all environments begin anew under another seed: what a resumed run plays again
            is what was played since.
    """

    rollout: int = 32
    minibatch: int = 256
    passes: int = 4
    rate: float = 1e-3
    clip: float = 0.2
    bonus: float = 0.01
    value: float = 0.5
    norm: float = 0.5
    discount: float = 0.99
    trace: float = 0.95
    reseed: int = 64

    def __post_init__(self) -> None:
        shares = ("discount", "trace")
        for one in fields(self):
            given = getattr(self, one.name)
            low = 1 if one.type == "int" else 0
            fits = isinstance(given, int if low else (int, float)) and not isinstance(given, bool) and given >= low
            if not fits or (one.name in shares and given > 1):
                rule = "from 0 to 1" if one.name in shares else f"a {'whole ' if low else ''}number from {low} up"
                raise ConfigError(f"{one.name}={given!r}: allowed is {rule}")


# The second has the numbers of RL-DARTS's code for Procgen, with 64 environments side by side.
SMALL = PpoTerms()
PUBLISHED = PpoTerms(rollout=1024, minibatch=2048, passes=2, rate=5e-4, discount=0.999)


class Agent(nn.Module):
    """A policy and a value on one encoder: images [B, C, H, W] in [0, 1] to logits [B, actions] and values [B].

    Args:
        encoder: to [B, F], or to what is flattened to it; a supernet, or a plain network.
        example: [1, C, H, W].
        actions: how many there are.

    Raises:
        ModelError: the encoder does not run on the example.
    """

    def __init__(self, encoder: nn.Module, *, example: Tensor, actions: int) -> None:
        super().__init__()
        width = features(encoder, example.to(next(encoder.parameters()).device))
        self.encoder = encoder
        self.policy, self.value = nn.Linear(width, actions), nn.Linear(width, 1)
        # Nearly uniform to begin with.
        nn.init.orthogonal_(self.policy.weight, 0.01)
        nn.init.zeros_(self.policy.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the actions and value."""
        found = self.encoder(x).flatten(1)
        return self.policy(found), self.value(found).squeeze(-1)


def features(encoder: nn.Module, example: Tensor) -> int:
    """How many features an encoder makes of an image, once it is in eval mode.

    Raises:
        ModelError: it does not run on the example [1, C, H, W].
    """
    encoder.eval()
    try:
        with torch.no_grad():
            return int(encoder(example).flatten(1).shape[1])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{type(encoder).__name__} does not run on images of shape {list(example.shape)[1:]}: {error}. Make it "
            f"for the images at hand, for instance archgrad.impala_cells(in_channels=..., size=...)"
        ) from error


def loss_of(agent: Play, part: Rollout, terms: PpoTerms) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss on some steps, and what is to be watched; see the top of this file."""
    scores, values = agent(as_input(part.images))
    log_probs = torch.log_softmax(scores, dim=-1)
    ratio = (log_probs.gather(1, part.actions[:, None]).squeeze(1) - part.log_probs).exp()
    clipped = ratio.clamp(1 - terms.clip, 1 + terms.clip)
    gain = torch.minimum(ratio * part.advantages, clipped * part.advantages).mean()
    near = part.values + (values - part.values).clamp(-terms.clip, terms.clip)
    error = torch.maximum((values - part.targets) ** 2, (near - part.targets) ** 2).mean()
    entropy = torch.special.entr(log_probs.exp()).sum(dim=-1).mean()
    loss = -gain + terms.value * error - terms.bonus * entropy
    off = (ratio.detach() - 1).abs()
    return loss, {
        "policy_entropy": entropy.detach(),
        "clipped": (off > terms.clip).to(off).mean(),
        "ratio_off_by": off.max(),
    }


def optimizer_of(agent: nn.Module, terms: PpoTerms) -> Optimizer:
    """One Adam for weights and logits, the logits in a group of their own; neither decays."""
    groups: list[dict[str, Any]] = [{"params": weights(agent)}, {"params": logits(agent), "weight_decay": 0.0}]
    return Adam([group for group in groups if group["params"]], lr=terms.rate, eps=1e-5)


def learn(
    agent: Agent,
    task: Reinforcement,
    run: Run,
    *,
    terms: PpoTerms,
    rollouts: int,
    phase: str,
    time_fraction: float = 1.0,
    each: Callable[[int], dict[str, float]] | None = None,
    more: Stateful | None = None,
) -> None:
    """Let an agent play and learn for one phase of a run; a step of the run is a rollout and its update.

    Args:
        agent: trained in place, weights and logits.
        task: what it plays.
        run: begun.
        terms: numbers of the algorithm.
        rollouts: length of the phase.
        phase: its name in the history.
        time_fraction: this phase's part of a budget in seconds.
        each: called behind each update with the steps played so far; the figures that it returns are logged.
        more: what else is saved and restored.

    Raises:
        DataError: an environment failed; the run can be resumed.
        NonFiniteError: the loss became NaN or infinite; no step is taken on it.
    """
    agent.to(run.device).eval()
    made = optimizer_of(agent, terms)
    players = task.players(seed=_seed(run, phase, 0))
    collector = Collector(
        players, steps=terms.rollout, discount=terms.discount, trace=terms.trace, generator=run.generator("act"),
        device=run.device,
    )  # fmt: skip
    run.register_state(agent=agent, optimizer=made, collector=collector, **({"more": more} if more else {}))
    for number in run.steps(rollouts, phase=phase, time_fraction=time_fraction):
        if number % terms.reseed == 0:
            collector.begin(_seed(run, phase, number))
        with watched(run):
            rollout, finished = collector(agent)
            figures = _update(agent, rollout, run, terms=terms, optimizer=made)
            _renew(agent, rollout.images, run, batch=terms.minibatch)
        played = (number + 1) * terms.rollout * players.size
        told = {"return": sum(finished) / len(finished)} if finished else {}
        run.log({**figures, **told, "environment_steps": played, **(each(played) if each else {})}, step=number)
    players.close()


def _update(agent: Agent, rollout: Rollout, run: Run, *, terms: PpoTerms, optimizer: Optimizer) -> dict[str, float]:
    """The passes over a rollout; means over all minibatches of what was watched."""
    generator, size = run.generator("minibatches"), len(rollout.actions)
    rows: list[dict[str, Tensor]] = []
    for _ in range(terms.passes):
        for index in torch.randperm(size, generator=generator).split(terms.minibatch):  # type: ignore[no-untyped-call]
            loss, figures = loss_of(agent, rollout.at(index, run.device), terms)
            run.check_finite({"loss": loss})
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            stepped = [p for group in optimizer.param_groups for p in group["params"]]
            run.check_gradients(stepped, [p.grad for p in stepped])
            # The norm of all is nearly that of the weights alone, so that both are told.
            norms = [_norm(group["params"]) for group in optimizer.param_groups]
            names = ("gradient_norm_weights", "gradient_norm_logits")
            nn.utils.clip_grad_norm_(agent.parameters(), terms.norm)
            optimizer.step()
            rows.append({"loss": loss.detach(), **figures, **dict(zip(names, norms, strict=False))})
    means = {name: float(torch.stack([row[name] for row in rows]).double().mean()) for name in rows[0]}
    return means | {"ratio_off_by": float(rows[0]["ratio_off_by"])}


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def _renew(agent: Agent, images: Tensor, run: Run, *, batch: int) -> None:
    """Statistics of BatchNorm from what was just played."""
    norms = [m for m in agent.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    for start in range(0, len(images), batch):
        agent(as_input(images[start : start + batch].to(run.device)))
    agent.eval()


def _seed(run: Run, phase: str, number: int) -> int:
    return stable_seed("play", run.seed, phase, number) % ALL

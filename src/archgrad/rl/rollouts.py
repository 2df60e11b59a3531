"""The experience that an agent learns from: rollouts, their advantages, and the scale of rewards.

    d_t = r_t + g V(s_{t+1}) [not ended] - V(s_t),   A_t = d_t + g l A_{t+1} [same episode],   G = A + V

Source: Schulman et al., generalized advantages (arXiv 1506.02438).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archgrad.rl.task import as_input

if TYPE_CHECKING:
    from archgrad.rl.vector_environment import Players

# From images [B, C, H, W] in [0, 1] to logits of the actions [B, A] and values [B].
Play = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rollout:
    """N steps of experience.

    Attributes:
        images: [N, C, H, W], as they were seen.
        actions: [N] int64.
        log_probs: [N], of the actions, by the policy that played.
        values: [N], V_old.
        advantages: [N], A; brought to mean 0 and standard deviation 1 over the rollout.
        targets: [N], G.
    """

    images: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor

    def at(self, index: Tensor, device: torch.device) -> Rollout:
        """Some of the steps, on a device."""
        return Rollout(*(getattr(self, one.name)[index].to(device) for one in fields(self)))


def advantages(
    rewards: Tensor, values: Tensor, following: Tensor, *, ended: Tensor, over: Tensor, discount: float, trace: float
) -> Tensor:
    """Generalized advantages, [T, E]; see the top of this file.

    Args:
        rewards: [T, E].
        values: [T, E], of what was seen.
        following: [T, E], of what was seen next in the same episode.
        ended: [T, E] bool: nothing comes behind.
        over: [T, E] bool: ended, or cut.
        discount: g.
        trace: l.
    """
    found, last = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        error = rewards[t] + discount * following[t] * ~ended[t] - values[t]
        found[t] = last = error + discount * trace * last * ~over[t]
    return found


class Scale:
    """Rewards divided by the standard deviation of discounted returns, for collection alone.

    Its own state is the returns so far in E environments, and the mean and variance over all that there were.
    """

    def __init__(self, size: int, discount: float) -> None:
        self.discount = discount
        self.returns = torch.zeros(size, dtype=torch.float64)
        self.count = self.mean = self.squares = 0.0

    def __call__(self, rewards: Tensor, over: Tensor) -> Tensor:
        """[E] rewards of one step, scaled, at most 10."""
        self.returns = self.discount * self.returns + rewards.double()
        before, self.count = self.count, self.count + len(rewards)
        mean, squares = float(self.returns.mean()), float(self.returns.var(correction=0)) * len(rewards)
        gap = mean - self.mean
        self.squares += squares + gap**2 * before * len(rewards) / self.count
        self.mean += gap * len(rewards) / self.count
        self.returns[over] = 0.0
        deviation: float = (self.squares / self.count + 1e-8) ** 0.5
        return (rewards / deviation).clamp(-10.0, 10.0)


class Collector:
    """Plays, and remembers what exact resume needs: the environments, the scale, the episodes in progress.

    Args:
        players: the environments.
        steps: of a rollout, in each environment.
        discount: g.
        trace: l.
        generator: of the actions.
        device: of the agent.
    """

    def __init__(
        self,
        players: Players,
        *,
        steps: int,
        discount: float,
        trace: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.players, self.steps, self.discount, self.trace = players, steps, discount, trace
        self.generator, self.device = generator, device
        self.scale = Scale(players.size, discount)
        self.returns = torch.zeros(players.size)

    def begin(self, seed: int) -> None:
        """New episodes everywhere."""
        self.players.begin(seed)
        self.returns.zero_()
        self.scale.returns.zero_()

    @torch.no_grad()
    def __call__(self, agent: nn.Module) -> tuple[Rollout, list[float]]:
        """A rollout, and the returns of the episodes that ended in it, as the environment gave them."""
        played: list[tuple[Tensor, ...]] = []
        finished: list[float] = []
        for _ in range(self.steps):
            seen = self.players.seen
            scores, value = self._ask(agent, seen)
            action = torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(1)
            log_prob = torch.log_softmax(scores, -1).gather(1, action[:, None]).squeeze(1)
            step = self.players.step(action)
            over = step.ended | step.cut
            after = torch.zeros_like(value)
            if bool(step.cut.any()):
                after[step.cut] = self._ask(agent, step.last[step.cut])[1]
            self.returns += step.rewards
            finished += self.returns[over].tolist()
            self.returns[over] = 0.0
            reward = self.scale(step.rewards, over)
            played.append((seen, action, log_prob, value, reward, step.ended, over, after))
        seen, action, log_prob, value, reward, ended, over, after = (
            torch.stack(part) for part in zip(*played, strict=True)
        )
        following = torch.cat([value[1:], self._ask(agent, self.players.seen)[1][None]]).where(~over, after)
        found = advantages(reward, value, following, ended=ended, over=over, discount=self.discount, trace=self.trace)
        even = (found - found.mean()) / (found.std() + 1e-8)
        parts = (seen, action, log_prob, value, even, found + value)
        return Rollout(*(part.flatten(0, 1) for part in parts)), finished

    def _ask(self, agent: nn.Module, seen: Tensor) -> tuple[Tensor, Tensor]:
        scores, values = agent(as_input(seen).to(self.device))
        return scores.cpu(), values.cpu()

    def state_dict(self) -> dict[str, Any]:
        """The environments, the scale and the episodes in progress."""
        scale = {k: v for k, v in vars(self.scale).items() if k != "discount"}
        return {"players": self.players.state_dict(), "scale": scale, "returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.players.load_state_dict(state["players"])
        vars(self.scale).update(state["scale"])
        self.returns = state["returns"]

"""The experience that an agent learns from: rollouts, generalized advantages, and scaled rewards.

    d_t = r_t + gamma V(s_{t+1}) [not terminated] - V(s_t)
    A_t = d_t + gamma lambda A_{t+1} [same episode],   G = A + V

Source: Schulman et al., generalized advantage estimation (arXiv 1506.02438).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archgrad.rl.task import as_input

if TYPE_CHECKING:
    from archgrad.rl.vector_environment import ReplayableVectorEnv

# From images [B, C, H, W] in [0, 1] to logits of the actions [B, A] and values [B].
ActorCritic = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rollout:
    """N steps of experience.

    Attributes:
        images: [N, C, H, W], as observed.
        actions: [N] int64.
        log_probs: [N], of the actions, by the policy that acted.
        values: [N], V of that policy.
        advantages: [N], A, with mean 0 and standard deviation 1 over the rollout.
        returns: [N], G: the targets of the value.
    """

    images: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def select(self, index: Tensor, device: torch.device) -> Rollout:
        """The steps at `index` [n], on a device."""
        return Rollout(*(getattr(self, field.name)[index].to(device) for field in fields(self)))


def full_precision(values: Tensor) -> Tensor:
    """Values [...] of a network under autocast in float32, so that probabilities are not rounded; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantages [T, E]; the equations are on top of this file.

    Args:
        rewards: [T, E].
        values: [T, E], of the states.
        next_values: [T, E], of the next states in the same episodes.
        terminated: [T, E] bool: the episode ended.
        done: [T, E] bool: it ended or was truncated.
        gamma: discount.
        gae_lambda: lambda.
    """
    advantages, last = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        error = rewards[t] + gamma * next_values[t] * ~terminated[t] - values[t]
        advantages[t] = last = error + gamma * gae_lambda * last * ~done[t]
    return advantages


class RewardScaling:
    """Divides rewards by the standard deviation of discounted returns; for learning alone.

    Its state is the running returns in E environments, and the mean and variance over all returns so far.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.count = self.mean = self.squares = 0.0

    def __call__(self, rewards: Tensor, done: Tensor) -> Tensor:
        """The rewards [E] of one step, scaled, in [-10, 10]."""
        self.returns = self.gamma * self.returns + rewards.double()
        before, self.count = self.count, self.count + len(rewards)
        mean, squares = float(self.returns.mean()), float(self.returns.var(correction=0)) * len(rewards)
        gap = mean - self.mean
        self.squares += squares + gap**2 * before * len(rewards) / self.count
        self.mean += gap * len(rewards) / self.count
        self.returns[done] = 0.0
        deviation: float = (self.squares / self.count + 1e-8) ** 0.5
        return (rewards / deviation).clamp(-10.0, 10.0)


class RolloutCollector:
    """Collects rollouts; its state is all that exact resume needs: environments, reward scaling, running returns.

    Args:
        env: the environments.
        steps: of a rollout, in each environment.
        gamma: discount.
        gae_lambda: lambda of the advantages.
        generator: of the actions.
        device: of the agent.
    """

    def __init__(
        self,
        env: ReplayableVectorEnv,
        *,
        steps: int,
        gamma: float,
        gae_lambda: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.env, self.steps, self.gamma, self.gae_lambda = env, steps, gamma, gae_lambda
        self.generator, self.device = generator, device
        self.scaling = RewardScaling(env.num_envs, gamma)
        self.episode_returns = torch.zeros(env.num_envs)

    def reset(self, seed: int) -> None:
        """Begin new episodes in all environments."""
        self.env.reset(seed)
        self.episode_returns.zero_()
        self.scaling.returns.zero_()

    @torch.no_grad()
    def collect(self, agent: nn.Module) -> tuple[Rollout, list[float]]:
        """A rollout, and the unscaled returns of the episodes that were over in it."""
        rows: list[tuple[Tensor, ...]] = []
        finished: list[float] = []
        for _ in range(self.steps):
            images = self.env.images
            scores, value = self._act(agent, images)
            action = torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(1)
            log_prob = torch.log_softmax(scores, -1).gather(1, action[:, None]).squeeze(1)
            step = self.env.step(action)
            final_value = torch.zeros_like(value)
            if bool(step.truncated.any()):
                final_value[step.truncated] = self._act(agent, step.final_images[step.truncated])[1]
            self.episode_returns += step.rewards
            finished += self.episode_returns[step.done].tolist()
            self.episode_returns[step.done] = 0.0
            reward = self.scaling(step.rewards, step.done)
            rows.append((images, action, log_prob, value, reward, step.terminated, step.done, final_value))
        images, action, log_prob, value, reward, terminated, done, final_value = (
            torch.stack(column) for column in zip(*rows, strict=True)
        )
        last_value = self._act(agent, self.env.images)[1]
        next_values = torch.cat([value[1:], last_value[None]]).where(~done, final_value)
        advantages = generalized_advantages(
            reward, value, next_values, terminated=terminated, done=done, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        normalized = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        columns = (images, action, log_prob, value, normalized, advantages + value)
        return Rollout(*(column.flatten(0, 1) for column in columns)), finished

    def _act(self, agent: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        scores, values = agent(as_input(images).to(self.device))
        return full_precision(scores).cpu(), full_precision(values).cpu()

    def state_dict(self) -> dict[str, Any]:
        """The environments, the reward scaling and the returns of the episodes in progress."""
        scaling = {name: value for name, value in vars(self.scaling).items() if name != "gamma"}
        return {"env": self.env.state_dict(), "scaling": scaling, "episode_returns": self.episode_returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.env.load_state_dict(state["env"])
        vars(self.scaling).update(state["scaling"])
        self.episode_returns = state["episode_returns"]

"""Search the encoder of an agent in a training loop of your own: the supernet plays, and its logits learn with it.

    python examples/search_in_my_rl_loop.py --updates 400

The loop is a plain advantage actor-critic on a small game, on one CPU core about two minutes; it knows nothing of
archgrad. What is searched are the first lines and the last ones.
"""

from __future__ import annotations

import argparse

import gymnasium
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices import Open
from archgrad.rl import PixelGame

ENVS, STEPS, DISCOUNT = 32, 16, 0.97


class ActorCritic(nn.Module):
    """Images [B, H, W, 3] of bytes to a policy and a value [B]."""

    def __init__(self, encoder: nn.Module, features: int, actions: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.actor, self.critic = nn.Linear(features, actions), nn.Linear(features, 1)

    def forward(self, seen: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        x = self.encoder(seen.movedim(-1, 1).float() / 255)
        return torch.distributions.Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


def main() -> None:
    """Search, then show what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two updates, in seconds")
    given = parser.parse_args()
    given.updates = 2 if given.smoke else given.updates
    torch.manual_seed(given.seed)

    # The supernet: a softmax on each operation; all inputs of a node are in, and the two strongest stay.
    space = ag.impala_cells(size=8, depths=(16,), nodes=2, features=64)
    ag.relax(space, ag.softmax, where=lambda choice: isinstance(choice, ag.OpChoice))
    ag.relax(space, Open, where=lambda choice: isinstance(choice, ag.InputChoice))
    agent = ActorCritic(space, 64, 4)
    optimizer = torch.optim.Adam(
        [{"params": ag.weights(agent)}, {"params": ag.logits(agent), "weight_decay": 0.0}], lr=1e-3
    )

    env = SyncVectorEnv([PixelGame] * ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env, buffer_length=200)
    seen = torch.from_numpy(env.reset(seed=given.seed)[0])
    for update in range(given.updates):
        kept = []
        for _ in range(STEPS):
            policy, value = agent(seen)
            action = policy.sample()
            images, reward, ended, cut, _ = env.step(action.numpy())
            over = torch.from_numpy(ended | cut)
            kept.append((policy.log_prob(action), policy.entropy(), value, torch.from_numpy(reward).float(), over))
            seen = torch.from_numpy(images)
        with torch.no_grad():
            following = agent(seen)[1]
        loss = torch.zeros(())
        for log_prob, entropy, value, reward, over in reversed(kept):
            following = reward + DISCOUNT * following * ~over
            advantage = following - value
            loss = loss + (0.5 * advantage**2 - advantage.detach() * log_prob - 0.01 * entropy).mean()
        optimizer.zero_grad()
        (loss / STEPS).backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        if update % 50 == 0 and len(env.return_queue):
            mean = sum(env.return_queue) / len(env.return_queue)
            print(f"update {update}: mean return {float(mean):.2f}")

    architecture = ag.decide(space)
    encoder = ag.build(
        space, architecture, weights="fresh", channels=32
    )  # plain, wider: train it as you trained this
    print(space.describe(architecture)["architecture_text"])
    print(f"{ag.params().of(encoder):,.0f} parameters")


if __name__ == "__main__":
    main()

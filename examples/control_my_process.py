"""Control a process that can be tried out, with a dynamics network that DARTS finds on the measured transitions.

    python examples/control_my_process.py

`Rig` stands for a process of your own: it has a first state, limits of its actions, a cost, and can be tried out.
"""

from __future__ import annotations

import argparse
import functools
import math

import torch
from torch import Tensor

import archgrad as ag
from archgrad.control import DYNAMICS_RECIPE, NnilqrTerms, Policy, Trajectory, dynamics_space, quadratic_cost


class Rig:
    """A pendulum that hangs down and is to stand: state (angle, rate), action (torque)."""

    name = "rig"
    start = torch.tensor([math.pi, 0.0], dtype=torch.float64)
    low, high = torch.tensor([-4.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    horizon = 60
    cost = quadratic_cost(weights=(1.0, 0.1, 0.01), target=(0.0, 0.0, 0.0), last=(300.0, 30.0, 0.01))

    def __init__(self) -> None:
        self.rollouts = 0

    def rollout(self, policy: Policy) -> Trajectory:
        """Bring the process to its start, then apply the policy step by step and write down what is measured."""
        self.rollouts += 1
        states: list[Tensor] = []
        actions: list[Tensor] = []
        angle, rate = self.start.tolist()
        for t in range(self.horizon):
            states.append(torch.tensor([angle, rate], dtype=torch.float64))
            actions.append(torch.clamp(policy(t, states[-1]), self.low, self.high))
            angle, rate = angle + 0.05 * rate, rate + 0.05 * (5.0 * math.sin(angle) + float(actions[-1]) - 0.1 * rate)
        return Trajectory(torch.stack(states), torch.stack(actions), self.horizon)


def main() -> None:
    parser = argparse.ArgumentParser(description="Control a process of your own by trying it out.")
    parser.add_argument("--smoke", action="store_true", help="a few rollouts, nothing kept, in seconds")
    smoke = parser.parse_args().smoke
    torch.manual_seed(0)
    rig = Rig()
    found = ag.nnilqr(
        dynamics_space(states=2, actions=1),
        rig,
        ag.Run(trials=13 if smoke else 60, seed=0, folder=None if smoke else "runs/rig"),
        search=functools.partial(ag.darts, search_recipe=DYNAMICS_RECIPE),
        terms=NnilqrTerms(fit=20, refit=5, search=10) if smoke else NnilqrTerms(fit=500, search=500),
    )
    print(found.report())
    print(f"{rig.rollouts} rollouts; the last angle is {found.record['control']['states'][-1][0]:.3f}")


if __name__ == "__main__":
    main()

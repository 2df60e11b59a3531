"""A search space of networks for the dynamics of a system: width and activation of residual blocks.

No block can be left out: where all are, the network is linear, which random rollouts near rest do not show.
"""

from __future__ import annotations

from torch import Tensor, nn

from archgrad.choices.modules import OpChoice

# Smooth ones, because the Jacobians of ReLU networks are piecewise constant.
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "silu": nn.SiLU}
WIDTHS = (32, 128)


class DynamicsSpace(nn.Module):
    """h = stem(z), h = h + block_i(h) for each block, head(h); each block is one of several candidates."""

    def __init__(self, states: int, actions: int, *, features: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(states + actions, features)
        self.blocks = nn.ModuleList(OpChoice(_candidates(features), name=f"block{i}") for i in range(blocks))
        self.head = nn.Linear(features, states)

    def forward(self, points: Tensor) -> Tensor:
        """Scaled changes of the state [B, n] from scaled states and actions [B, n + m]."""
        hidden = self.stem(points)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        change: Tensor = self.head(hidden)
        return change


def dynamics_space(states: int, actions: int, *, features: int = 32, blocks: int = 3) -> DynamicsSpace:
    """A space for `archgrad.nnilqr`: each block has 32 or 128 units of tanh or SiLU.

    Args:
        states, actions: n and m; a network takes [B, n + m] and gives [B, n].
        features: width between the blocks.
        blocks: their number.

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.control import dynamics_space
        >>> space = dynamics_space(states=2, actions=1)
        >>> network = ag.build(space, ag.sample(space), weights="fresh")
        >>> list(network(torch.rand(5, 3)).shape)
        [5, 2]
    """
    return DynamicsSpace(states, actions, features=features, blocks=blocks)


def _candidates(features: int) -> dict[str, nn.Module]:
    return {
        f"{name}_{width}": nn.Sequential(nn.Linear(features, width), act(), nn.Linear(width, features))
        for name, act in ACTIVATIONS.items()
        for width in WIDTHS
    }

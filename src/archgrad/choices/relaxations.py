"""From architecture parameters (logits) to mixing weights.

A relaxation is a small module. Its `forward(live)` takes the live support, [size] bool, and returns the mixing
weights, [size], with exact zeros where `live` is false. Architecture parameters are its parameters, and
nothing else is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archgrad.errors import ChoiceError


class ScaledSigmoid(nn.Module):
    """Deterministic gates that a growing scale drives to 0 or 1.

        g(s; scale) = 1 / (1 + exp(-scale * s)),   dg/ds = scale * g * (1 - g),
        |g - 1[s > 0]| <= exp(-scale * |s|)

    Args:
        size: number of gates; the logits s, [size], start at 0, where g = 1/2 at every scale.

    Source: DNAL (arXiv 2103.02126), scaled sigmoid; the bound follows by algebra.
    """

    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, live: Tensor) -> Tensor:
        """[size] gates in (0, 1), 0 where not live."""
        return torch.sigmoid(self.scale * self.logits) * live


class TwoTemperature(nn.Module):
    """Gates that are nearly binary forward and soft backward.

        a = sigmoid(hard * s),   da/ds := soft * sigmoid(soft * s) * (1 - sigmoid(soft * s))

    With G the true gradient with respect to s, what comes back is g = R G with the diagonal
    R = sigmoid_soft'(s) / sigmoid_hard'(s) > 0: each coordinate keeps its sign, so g is a descent direction. With
    soft = hard it is the true gradient.

    Args:
        size: number of gates; the logits s, [size], start at 0.
        hard: M, of the forward pass; sigmoid(50 * 0.1) = 0.993.
        soft: m, of the backward pass; at 1 the slope stays above 78 % of its largest for |s| < 1.

    Raises:
        ChoiceError: not 0 < soft <= hard.

    Source: DAP (arXiv 2107.03375), reconstructed from its abstract.
    """

    def __init__(self, size: int, *, hard: float = 50.0, soft: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < soft <= hard < float("inf"):
            raise ChoiceError(
                f"temperatures hard={hard}, soft={soft}: allowed is 0 < soft <= hard, such as hard=50, soft=1"
            )
        self.logits = nn.Parameter(torch.zeros(size))
        self.hard, self.soft = hard, soft

    def forward(self, live: Tensor) -> Tensor:
        """[size] gates in (0, 1), 0 where not live."""
        value, slope = torch.sigmoid(self.hard * self.logits.detach()), torch.sigmoid(self.soft * self.logits)
        return (value + (slope - slope.detach())) * live


class Softmax(nn.Module):
    """Mixing weights on the simplex: w = softmax(scale * logits) over the live candidates.

    Args:
        size: number of candidates; the logits start at 0, which mixes evenly.
        scale: above 0; the greater, the nearer to discrete the same logits are.
    """

    def __init__(self, size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0.0:
            raise ChoiceError(f"a softmax of scale {scale}: give a number above 0")
        self.logits = nn.Parameter(torch.zeros(size))
        self.scale = scale

    def forward(self, live: Tensor) -> Tensor:
        """[size] weights that sum to 1, 0 where not live."""
        logits = self.logits if self.scale == 1.0 else self.scale * self.logits
        return torch.softmax(logits.masked_fill(~live, float("-inf")), dim=0)


class GumbelSoftmax(nn.Module):
    """Mixing weights drawn from the Gumbel-softmax distribution; the draw stays until the next `draw`.

        w = softmax((logits + g) / temperature) over the live candidates,   g_k ~ Gumbel(0, 1)

    All choices that share the relaxation see the same draw, as often as the network runs, so that it can be
    repeated (recomputation, several micro-batches). In eval mode there is no noise. Before the first draw
    there is none either.

    Args:
        size: number of candidates; the logits start at 0.
        temperature: towards 0 the weights go to one-hot samples of softmax(logits).
        straight_through: the one-hot sample goes forward, the gradient is that of w.

    Source: Jang, Gu, Poole 2017 (arXiv 1611.01144); Maddison, Mnih, Teh 2017 (arXiv 1611.00712).
    """

    noise: Tensor
    temperature: Tensor

    def __init__(self, size: int, *, temperature: float = 1.0, straight_through: bool = False) -> None:
        super().__init__()
        if not temperature > 0.0:
            raise ChoiceError(f"a temperature of {temperature}: give a number above 0, for instance 0.4")
        self.logits = nn.Parameter(torch.zeros(size))
        self.straight_through = straight_through
        self.register_buffer("noise", torch.zeros(size))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def draw(self, generator: torch.Generator | None = None) -> None:
        """New noise, from the CPU generator if one is given."""
        # A uniform of 0 would be infinite noise.
        uniform = torch.rand(self.noise.shape, generator=generator, dtype=torch.float64).clamp_min(1e-12)
        self.noise.copy_(-torch.log(-torch.log(uniform)))

    def forward(self, live: Tensor) -> Tensor:
        """[size] weights that sum to 1, 0 where not live."""
        noisy = self.logits + self.noise if self.training else self.logits
        soft = torch.softmax((noisy / self.temperature).masked_fill(~live, float("-inf")), dim=0)
        if not (self.straight_through and self.training):
            return soft
        hard = nn.functional.one_hot(soft.detach().argmax(), len(soft)).to(soft.dtype)
        return hard + (soft - soft.detach())


class Open(nn.Module):
    """Every live candidate at full strength: w = 1; no parameters. The inputs of a DARTS node are mixed so."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, live: Tensor) -> Tensor:
        """[size] ones, 0 where not live."""
        return live.to(torch.get_default_dtype())


class Held(nn.Module):
    """Mixing weights that do not move: 1 on what an architecture keeps, 0 elsewhere; no parameters."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, live: Tensor) -> Tensor:
        """[size] zeros and ones."""
        return (self.kept & live).to(torch.get_default_dtype())


gumbel_softmax = GumbelSoftmax
scaled_sigmoid = ScaledSigmoid
softmax = Softmax
two_temperature = TwoTemperature

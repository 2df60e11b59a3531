"""From architecture parameters (logits) to mixing weights.

A relaxation is a small module. Its `forward(live)` takes the live support, [size] bool, and returns the mixing
weights, [size], with exact zeros where `live` is false. Its parameters are architecture parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from archgrad.argument_types import checked
from archgrad.errors import ChoiceError


@checked
class ScaledSigmoid(nn.Module):
    """Deterministic gates that a growing scale drives to 0 or 1: a relaxation, from logits to weights [size].

        g(s; scale) = 1 / (1 + exp(-scale * s)),   dg/ds = scale * g * (1 - g),
        |g - 1[s > 0]| <= exp(-scale * |s|)

    Args:
        size: number of gates; the logits s, [size], start at 0, where g = 1/2 at every scale.

    Source: DNAL (arXiv 2103.02126), scaled sigmoid; the bound follows by algebra.

    Example:
        >>> import torch, archgrad as ag
        >>> gates = ag.scaled_sigmoid(2)
        >>> gates.logits.data = torch.tensor([0.1, -0.1])
        >>> gates.scale.fill_(100.0)
        tensor(100.)
        >>> gates(live=torch.ones(2, dtype=torch.bool)).detach().round()
        tensor([1., 0.])
    """

    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = _logits(size)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, live: Tensor) -> Tensor:
        """[size] gates in (0, 1), 0 where not live."""
        return torch.sigmoid(self.scale * self.logits) * live


@checked
class TwoTemperature(nn.Module):
    """Gates that are binary forward far from 0, and soft backward: a relaxation, from logits to weights [size].

        a = sigmoid(hard * s),   da/ds := soft * sigmoid(soft * s) * (1 - sigmoid(soft * s))

    With G the true gradient with respect to s, the backward pass gives g = R G with the diagonal
    R = sigmoid_soft'(s) / sigmoid_hard'(s) > 0: each coordinate keeps its sign, so g is a descent direction. With
    soft = hard it is the true gradient.

    Args:
        size: number of gates; the logits s, [size], start at 0.
        hard: M, of the forward pass; sigmoid(50 * 0.1) = 0.993.
        soft: m, of the backward pass; at 1 the slope stays above 78 % of its largest for |s| < 1.

    Raises:
        ChoiceError: not 0 < soft <= hard.

    Source: DAP (arXiv 2107.03375), reconstructed from its abstract.

    Example:
        >>> import torch, archgrad as ag
        >>> gates = ag.two_temperature(2, hard=50.0, soft=1.0)
        >>> gates.logits.data = torch.tensor([0.1, -0.1])
        >>> gates(live=torch.ones(2, dtype=torch.bool)).detach()
        tensor([0.9933, 0.0067])
    """

    def __init__(self, size: int, *, hard: float = 50.0, soft: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < soft <= hard < float("inf"):
            raise ChoiceError(
                f"temperatures hard={hard}, soft={soft}: allowed is 0 < soft <= hard, such as hard=50, soft=1"
            )
        self.logits = _logits(size)
        self.hard, self.soft = hard, soft

    def forward(self, live: Tensor) -> Tensor:
        """[size] gates in (0, 1), 0 where not live."""
        value, slope = torch.sigmoid(self.hard * self.logits.detach()), torch.sigmoid(self.soft * self.logits)
        return (value + (slope - slope.detach())) * live


@checked
class Softmax(nn.Module):
    """Mixing weights [size] on the simplex: w = softmax(scale * logits) over the live candidates.

    Args:
        size: number of candidates; the logits start at 0, which mixes evenly.
        scale: above 0; a larger one makes the same logits more nearly discrete.

    Raises:
        ChoiceError: a scale that is not above 0.

    Example:
        >>> import torch, archgrad as ag
        >>> ag.softmax(4)(live=torch.tensor([True, True, False, True])).tolist()
        [0.3333333432674408, 0.3333333432674408, 0.0, 0.3333333432674408]
    """

    def __init__(self, size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0.0:
            raise ChoiceError(f"a softmax of scale {scale}: give a number above 0")
        self.logits = _logits(size)
        self.scale = scale

    def forward(self, live: Tensor) -> Tensor:
        """[size] weights that sum to 1, 0 where not live."""
        logits = self.logits if self.scale == 1.0 else self.scale * self.logits
        return torch.softmax(logits.masked_fill(~live, float("-inf")), dim=0)


@checked
class GumbelSoftmax(nn.Module):
    """Mixing weights [size] drawn from the Gumbel-softmax distribution; a draw lasts until the next `draw`.

        w = softmax((logits + g) / temperature) over the live candidates,   g_k ~ Gumbel(0, 1)

    All choices that share the relaxation, and all passes until the next draw, see the same noise: recomputation and
    several micro-batches repeat it. There is no noise in eval mode, nor before the first draw.

    Args:
        size: number of candidates; the logits start at 0.
        temperature: towards 0 the weights go to one-hot samples of softmax(logits).
        straight_through: the one-hot sample goes forward, the gradient is that of w.

    Raises:
        ChoiceError: a temperature that is not above 0.

    Source: Jang, Gu, Poole 2017 (arXiv 1611.01144); Maddison, Mnih, Teh 2017 (arXiv 1611.00712).

    Example:
        >>> import torch, archgrad as ag
        >>> relaxation = ag.gumbel_softmax(3, temperature=0.4, straight_through=True)
        >>> relaxation.draw(torch.Generator().manual_seed(0))
        >>> relaxation(live=torch.ones(3, dtype=torch.bool)).tolist()
        [1.0, 0.0, 0.0]
    """

    noise: Tensor
    temperature: Tensor

    def __init__(self, size: int, *, temperature: float = 1.0, straight_through: bool = False) -> None:
        super().__init__()
        if not temperature > 0.0:
            raise ChoiceError(f"a temperature of {temperature}: give a number above 0, for instance 0.4")
        self.logits = _logits(size)
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
    """Every live candidate at full strength, w = 1, without parameters, as the inputs of a DARTS node are mixed."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, live: Tensor) -> Tensor:
        """[size] ones, 0 where not live."""
        return live.to(torch.get_default_dtype())


class Held(nn.Module):
    """Constant mixing weights: 1 on what an architecture keeps, 0 elsewhere."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, live: Tensor) -> Tensor:
        """[size] zeros and ones."""
        return (self.kept & live).to(torch.get_default_dtype())


gumbel_softmax = GumbelSoftmax
scaled_sigmoid = ScaledSigmoid


def _logits(size: int) -> nn.Parameter:
    """Logits [size] of 0. Raises ChoiceError where there is nothing to choose from."""
    if size < 1:
        raise ChoiceError(f"a relaxation of size={size} was asked for. Allowed is a whole number of at least 1.")
    return nn.Parameter(torch.zeros(size))


softmax = Softmax
two_temperature = TwoTemperature


# Values of small tensors that decide what a program does next. Reading one from an accelerator waits for all the work
# that it has, and a support or the weights of a block rarely change: values are kept until something writes there.
_READ: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # from a tensor to its version and values


def read_values(tensor: Tensor) -> list[Any]:
    """`tensor.tolist()` of a tensor [size]; from an accelerator, read once between two changes in place.

    A tensor made in `torch.inference_mode` does not count its changes, and is read each time.
    """
    if tensor.is_cpu or tensor.is_inference():
        return tensor.tolist()
    if _kept(tensor) is None:
        read_together([tensor])
    kept: list[Any] = _kept(tensor) or []
    return kept


def true_places(mask: Tensor) -> list[int]:
    """The indices at which a mask [size] bool is true; read as `read_values` does."""
    return [place for place, true in enumerate(read_values(mask)) if true]


def read_together(tensors: Sequence[Tensor]) -> None:
    """Read tensors [size] from an accelerator, those of a dtype in one wait, for `read_values` to give.

    Tensors of the CPU, of other dimensions and of inference mode are left alone.
    """
    read: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        if not t.is_cpu and t.dim() == 1 and not t.is_inference() and _kept(t) is None:
            read.setdefault((t.device, t.dtype), []).append(t)
    for there in read.values():
        row = iter(torch.cat([t.detach() for t in there]).tolist())
        for tensor in there:
            _READ[tensor] = tensor._version, [next(row) for _ in range(len(tensor))]


def _kept(tensor: Tensor) -> list[Any] | None:
    version, kept = _READ.get(tensor, (None, None))  # type: ignore[no-untyped-call]
    return kept if version == tensor._version else None

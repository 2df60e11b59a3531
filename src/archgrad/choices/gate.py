"""Gates: factors on the channels, heads or branches of a network, of which closed ones can be removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from archgrad.argument_types import checked
from archgrad.choices.architecture import Pick
from archgrad.choices.channels import Coupling, Vanishing
from archgrad.choices.modules import Choice
from archgrad.choices.relaxations import true_places
from archgrad.errors import ChoiceError


@checked
class Gate(Choice):
    """One factor a channel (or attention head, or residual branch): closed channels can be removed.

        y = x * w[places]   along dimension `dim`

    A gate may stand in a network's forward on an activation [B, C, ...], or parametrize a weight: scaling the
    input columns of a layer's weight is the same function as scaling its input, at no cost per example.
    Without a relaxation a gate is open: y = x where all entries are live. `archgrad.slim` puts gates on any network.

    Args:
        size: number of entries; the pick is the tuple of those that stay.
        name: key of the choice in an architecture.
        places: [x.shape[dim]], the entry that each channel belongs to, -1 for none; default: one each.
        dim: the dimension that is gated.
        couplings: which channels of which layers are removed with each entry.
        vanishing: for a gate over a residual branch: what stays without the branch.

    Example:
        >>> import torch, archgrad as ag
        >>> gate = ag.relax(ag.Gate(3, name="gate"), ag.scaled_sigmoid)  # sigmoid(0) = 1/2
        >>> gate(torch.ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]], grad_fn=<MulBackward0>)
        >>> ag.hold(gate, ag.Architecture({"gate": (0, 2)}))(torch.ones(1, 3))
        tensor([[1., 0., 1.]])
    """

    places: Tensor | None

    def __init__(
        self,
        size: int,
        *,
        name: str,
        places: Tensor | None = None,
        dim: int = 1,
        couplings: Sequence[Coupling] = (),
        vanishing: Vanishing | None = None,
    ) -> None:
        super().__init__(size, name=name)
        self.dim = dim
        self.couplings = tuple(couplings)
        self.vanishing = vanishing
        if places is not None and (places.is_floating_point() or places.is_complex()):
            raise ChoiceError(
                f"gate {name!r}: places is a tensor of {places.dtype}; give the entry of each channel, whole numbers"
            )
        # Entry `size` stands for "not of this gate": the vector of factors is extended by a 1.
        index = None if places is None else torch.where(places < 0, size, places)
        self.register_buffer("places", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x with its channels scaled."""
        weights = self.mixing()
        if weights is None:
            if len(self.alive()) == self.size:
                return x
            weights = self.live.to(x.dtype)
        if self.places is not None:
            weights = torch.cat([weights, weights.new_ones(1)])[self.places]
        channels = x.shape[self.dim] if x.dim() > self.dim else 0
        if len(weights) not in (1, channels):
            raise ChoiceError(
                f"gate {self.name!r} has factors for {len(weights)} channels along dimension {self.dim}; given was "
                f"a tensor of shape {tuple(x.shape)}"
            )
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return x * weights.to(x.dtype).view(shape)

    def picked(self, pick: Pick) -> Tensor:
        """[size] bool; only the gate of a residual branch may close altogether."""
        if self.vanishing is not None and pick == ():
            return torch.zeros(self.size, dtype=torch.bool)
        return self._entries(pick)

    def _allowed(self) -> str:
        if self.vanishing is None:
            return super()._allowed()
        kept = "(0,), which keeps the branch" if self.size == 1 else super()._allowed()
        return f"{kept}, or (), which removes it"

    def sampled(self, generator: torch.Generator | None) -> tuple[int, ...]:
        """A uniform number of live entries, then a uniform set; at least one unless the branch may vanish."""
        alive = true_places(self.live)
        least = 0 if self.vanishing is not None else 1
        count = int(torch.randint(least, len(alive) + 1, (), generator=generator))
        order = torch.randperm(len(alive), generator=generator)[:count].tolist()
        return tuple(sorted(alive[place] for place in order))

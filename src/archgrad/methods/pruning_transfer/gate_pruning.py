"""Parts of pruning by gates: what each part is charged, weights drawn afresh, signs that settle, magnitudes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import logits
from archgrad.choices.gate import Gate
from archgrad.choices.spectral_norms import without_spectral_norms
from archgrad.choices.weight_norms import without_weight_norms
from archgrad.copy_and_run import state_tensors
from archgrad.costs.count import Macs, Params
from archgrad.extract.discretize import draw_anew
from archgrad.gates.importance import weight_magnitude
from archgrad.gates.selection import gates


def charges(space: nn.Module, cost: Macs | Params | None) -> Tensor:
    """[parts] what each gate entry adds to a cost with everything open, float32, normalized to the sum 1.

    Args:
        space: of gates alone.
        cost: counted; None charges every part alike.
    """
    count = sum(gate.size for gate in gates(space).values())
    entries = torch.ones(count, dtype=torch.float64, requires_grad=True)
    total = entries.sum() if cost is None else cost.counter(space).at(entries)
    (slopes,) = torch.autograd.grad(total, entries)
    return (slopes / slopes.sum()).float()


def mixing_weights(space: nn.Module) -> Tensor:
    """[parts] the present mixing weights of all gates, with gradient."""
    rows = [gate.mixing() for gate in gates(space).values()]
    return torch.cat([row for row in rows if row is not None])


def adopt(space: nn.Module, network: nn.Module) -> None:
    """Copy all weights and buffers of the full network, `build(space, full(space))`, into its space, in place."""
    own = {re.sub(r"parametrizations\.(.*)\.original$", r"\1", n): t for n, t in space.state_dict().items()}
    with torch.no_grad():
        for name, tensor in state_tensors(network).items():
            own[name].copy_(tensor)


def redraw(space: nn.Module, twin: nn.Module) -> None:
    """Draw all weights of a space afresh (`draw_anew`), through a plain twin of it.

    Behind a gate, or a norm of the weight, a layer's own `reset_parameters` would write into what that computed, and
    be lost.
    """
    twin = without_spectral_norms(without_weight_norms(twin))
    draw_anew(twin)
    adopt(space, twin)


class Signs:
    """Which parts are on, and for how many rounds none has changed since the first that did.

    Attributes:
        unchanged: that number of rounds.
    """

    def __init__(self) -> None:
        self.on = torch.zeros(0, dtype=torch.bool)
        self.moved = False
        self.unchanged = 0

    def observe(self, logits: Tensor) -> dict[str, float]:
        """Compare the logits, [parts], at the end of a round with those before; returns figures to log."""
        on = logits.detach().cpu() > 0
        flips = int((on != self.on).sum()) if len(self.on) else 0
        self.moved = self.moved or flips > 0
        self.unchanged = self.unchanged + 1 if self.moved and not flips else 0
        self.on = on
        return {"flips": float(flips), "open_gates": float(on.sum())}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"on": self.on, "moved": self.moved, "unchanged": self.unchanged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.on, self.moved, self.unchanged = state["on"], state["moved"], state["unchanged"]


class Evidence:
    """What several draws of the weights say of each part: a mean over them, in place of gates that are trained.

    Args:
        space: relaxed, all gates open.
        statistic: "magnitude": `magnitudes` of the weights; "gradient": squared gradients of the loss in the logits,
            which are in proportion to those in the gates where all are open alike; "theta": nothing is gathered.
    """

    def __init__(self, space: nn.Module, statistic: str) -> None:
        self.space, self.statistic, self.count = space, statistic, 0
        self.sums = [torch.zeros_like(row) for row in magnitudes(space).values()] if statistic != "theta" else []

    def observe_weights(self, *, first: bool) -> None:
        """Take the present weights in, at the first step behind the weights' steps of a round."""
        if self.statistic == "magnitude" and first:
            self._add(list(magnitudes(self.space).values()))

    def observe_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of a step of the gates in, in the order of the logits."""
        if self.statistic == "gradient":
            self._add([torch.zeros(()) if g is None else g.detach().cpu().square() for g in gradients])

    def _add(self, rows: Sequence[Tensor]) -> None:
        self.sums = [total + row for total, row in zip(self.sums, rows, strict=True)]
        self.count += 1

    def decide(self) -> None:
        """Write the means into the logits, which then order the parts."""
        for theta, total in zip(logits(self.space), self.sums, strict=True):
            theta.data.copy_(total / max(self.count, 1))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.sums, self.count = list(state["sums"]), state["count"]


def magnitudes(space: nn.Module) -> dict[str, Tensor]:
    """For each gate the mean absolute weight of each entry, [entries], divided by the mean over the gate.

    The weights are those of the layers that make an entry's channels, for a gate on input features of the layer that
    reads them. The division makes layers comparable. A residual branch, which has nothing to be divided by, is 1.
    """
    return {name: _magnitude(space, gate) for name, gate in gates(space).items()}


def _magnitude(space: nn.Module, gate: Gate) -> Tensor:
    if gate.vanishing is not None:
        return torch.ones(1)
    total = torch.zeros(gate.size)
    for member in gate.couplings:
        each = weight_magnitude(space.get_submodule(member.module), member)
        if each is None:
            continue
        each = each.cpu()
        inside = member.places >= 0
        sums = torch.zeros(gate.size).index_add(0, member.places[inside], each[inside])
        total += sums / sums.mean()
    return total / total.mean() if bool(total.any()) else torch.ones(gate.size)

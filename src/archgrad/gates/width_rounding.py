"""Widths as multiples that hardware likes: asked for, usual, or measured in the runtime that ships."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from archgrad.choices.gate import Gate
from archgrad.costs.count import macs_by_module
from archgrad.costs.latency import Latency
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError

Once = Callable[[str, Callable[[], Any]], Any]
RoundTo = int | Literal["auto"] | None
_MULTIPLES = (16, 8, 4, 2)
_PROBED = (36, 40, 44, 48)  # widths that "auto" times
_CONVOLUTIONS: dict[type[nn.Module], tuple[int, ...]] = {nn.Conv1d: (256,), nn.Conv2d: (16, 16), nn.Conv3d: (6, 6, 6)}
_NARROW = 4  # a gate keeps at least this many steps of rounding to choose from


@dataclass(frozen=True)
class WidthRounding:
    """Widths as multiples that hardware likes.

    Attributes:
        to: the multiple asked for; None for `most`, or less where a gate has fewer than four times as many channels.
        most: 8, or what `measured` found.
        measured: how a multiple was found by the clock, as JSON; None where it was not.
    """

    to: int | None = None
    most: int = 8
    measured: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.to is not None and self.to < 1:
            raise ConfigError(
                f"round_to={self.to}: widths are multiples of 1, 8, 16, ...; leave it out for the default"
            )

    def step(self, gate: Gate) -> int:
        """The multiple for one gate, in entries; heads and branches are not rounded."""
        if gate.vanishing is not None or any(c.side == "heads" for c in gate.couplings):
            return 1
        # An entry of a grouped convolution or a GroupNorm is a block of channels.
        channels = max((int((c.places == 0).sum()) for c in gate.couplings if c.side == "out"), default=1)
        width = gate.size * channels
        steps = (s for s in _MULTIPLES if s <= self.most and width >= _NARROW * s and width % s == 0)
        fit = self.to or next(steps, 1)
        return min(math.ceil(fit / channels), gate.size)

    def count(self, gate: Gate, wanted: int) -> int:
        """The nearest multiple to `wanted`, at least one step (none at all only for a branch)."""
        if gate.vanishing is not None or wanted == gate.size:
            return wanted
        step = self.step(gate)
        return min(gate.size, max(step, step * math.floor(wanted / step + 0.5)))

    @classmethod
    def asked(
        cls,
        round_to: RoundTo,
        space: nn.Module,
        limits: Limit | Sequence[Limit],
        *,
        once: Once | None = None,
    ) -> WidthRounding:
        """As `round_to` says; measured for "auto", and for None under a limit on latency, in that limit's runtime.

        Args:
            round_to: a multiple, "auto" or None.
            space: of gates.
            limits: one or several.
            once: computes a JSON value once in a run's life.

        Raises:
            ConfigError: "auto" without a limit on latency.
        """
        listed = limits if isinstance(limits, list | tuple) else [limits]
        clock = next((one.cost for one in listed if isinstance(one, Limit) and isinstance(one.cost, Latency)), None)
        if round_to == "auto" and clock is None:
            raise ConfigError(
                'round_to="auto" measures in the runtime of a limit on latency, and there is none. Give '
                'limit=archgrad.latency(x, runtime="onnx").at_most(ms=...), or a multiple such as round_to=16'
            )
        if clock is None or isinstance(round_to, int):
            return cls(round_to if isinstance(round_to, int) else None)
        measured = functools.partial(_measured_multiple, space, clock)
        found = once("round_to", measured) if once else measured()
        return cls(most=found["round_to"], measured=found)


def _measured_multiple(space: nn.Module, cost: Latency) -> dict[str, Any]:
    """The coarsest multiple whose widths between save less than half of the time that they leave out of channels.

    Three layers 36 to 48 wide are timed in turns, of the kind of convolution that most MACs of the space are in, or
    linear ones where it has none; low percentiles count.
    """
    layer, x = _probe(space, cost)
    state = torch.get_rng_state()
    networks = {
        str(width): nn.Sequential(layer(16, width), nn.ReLU(), layer(width, width), nn.ReLU(), layer(width, width))
        for width in _PROBED
    }  # fmt: skip
    torch.set_rng_state(state)
    if cost.device is None:
        device = next((parameter.device for parameter in space.parameters()), torch.device("cpu"))
        networks = {width: network.to(device) for width, network in networks.items()}
    timings = replace(cost, x=x, batch=None, repeats=50, warmup=10).timings(networks)
    times = {width: timings[str(width)].low_ms for width in _PROBED}

    def saves(multiple: int) -> bool:
        pairs = [(width, multiple * math.ceil(width / multiple)) for width in _PROBED if width % multiple]
        saved = sum(1 - times[width] / times[up] for width, up in pairs)
        return saved > 0.5 * sum(1 - width / up for width, up in pairs)

    multiple = next((m for m in (16, 8) if not saves(m)), 4)
    return {
        "round_to": multiple,
        "runtime": cost.runtime if cost.dtype == "float32" else f"{cost.runtime} in {cost.dtype}",
        "low_ms": {str(w): round(ms, 6) for w, ms in times.items()},
    }


def _probe(space: nn.Module, cost: Latency) -> tuple[Callable[[int, int], nn.Module], torch.Tensor]:
    """The layer that is timed, made from two widths, and its input of 16 channels."""
    work: dict[type[nn.Module], float] = {}
    if any(isinstance(module, tuple(_CONVOLUTIONS)) for module in space.modules()):
        modules = dict(space.named_modules())
        for path, macs in macs_by_module(space, cost.x).items():
            for kind in _CONVOLUTIONS:
                if isinstance(modules.get(path), kind):
                    work[kind] = work.get(kind, 0.0) + macs
    if not work:
        return nn.Linear, torch.zeros(256, 16)
    most = max(work, key=lambda kind: work[kind])
    return functools.partial(most, kernel_size=3, padding=1), torch.zeros(1, 16, *_CONVOLUTIONS[most])

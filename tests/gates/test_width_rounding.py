"""How a multiple of widths is measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families.convolutional import plain
from torch import nn

from archgrad.choices.channels import Coupling
from archgrad.choices.gate import Gate
from archgrad.costs.count import macs
from archgrad.costs.latency import Latency, Timing
from archgrad.errors import ConfigError
from archgrad.gates.width_rounding import WidthRounding
from archgrad.spaces.slim.slimmable import slim

X = torch.randn(2, 3, 8, 8)


def gate(size: int) -> Gate:
    return Gate(size, name="gate", couplings=[Coupling("layer", "out", torch.arange(size))])


def timed_as(monkeypatch: pytest.MonkeyPatch, milliseconds: Callable[[int], float]) -> list[dict[str, nn.Module]]:
    """Let a clock say so of networks of a width; what it was asked for."""
    asked: list[dict[str, nn.Module]] = []

    def timings(self: Latency, networks: dict[str, nn.Module]) -> dict[str, Timing]:
        asked.append(networks)
        return {
            name: Timing(*(milliseconds(int(name)),) * 3, repeats=1, runtime=self.runtime, device="cpu", threads=1)
            for name in networks
        }

    monkeypatch.setattr(Latency, "timings", timings)
    return asked


@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_auto_is_the_coarsest_multiple_below_which_nothing_is_saved(
    multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed_as(monkeypatch, lambda width: 0.1 + multiple * -(-width // multiple))
    space, limits = slim(plain(), X), [macs(X).at_most(fraction=0.5), Latency(X).at_most(ms=4.0)]
    for round_to in ("auto", None):
        rounding = WidthRounding.asked(round_to, space, limits)
        assert rounding.most == multiple and rounding.to is None
        assert rounding.measured and rounding.measured["runtime"] == "eager"
        assert rounding.step(gate(128)) == multiple and rounding.step(gate(16)) == min(multiple, 4)
    assert len(asked) == 2
    # What was asked for is not measured, nor is anything without a limit on latency; and once in a run is enough.
    assert WidthRounding.asked(2, space, limits) == WidthRounding(2)
    assert WidthRounding.asked(None, space, limits[:1]) == WidthRounding()
    stored = {"round_to": 8, "runtime": "onnx", "low_ms": {}}
    assert WidthRounding.asked(None, space, limits, once=lambda key, measure: stored).most == 8
    assert len(asked) == 2
    with pytest.raises(ConfigError, match=r'round_to="auto" measures .* Give limit=archgrad\.latency'):
        WidthRounding.asked("auto", space, limits[:1])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_what_is_timed_is_what_the_space_works_in(axes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed_as(monkeypatch, float)
    kind, other = ((nn.Conv1d, nn.Conv2d, nn.Conv3d)[n % 3] for n in (axes - 1, axes))
    net = nn.Sequential(
        kind(2, 8, 3), nn.ReLU(), kind(8, 8, 3), nn.Flatten(), nn.Linear(8 * 4**axes, 3),
        nn.Unflatten(1, (3, *(1,) * (axes % 3 + 1))), other(3, 2, 1),
    )  # fmt: skip
    x = torch.randn(1, 2, *(8,) * axes)
    WidthRounding.asked("auto", slim(net, x), Latency(x).at_most(ms=1.0))
    for network in asked[0].values():
        assert {type(layer) for layer in network.children()} == {kind, nn.ReLU}
        assert network(torch.zeros(1, 16, *(4,) * axes)).isfinite().all()


@pytest.mark.parametrize(("device", "wanted"), [("cpu", "cpu"), (None, "meta")])
def test_what_is_timed_lies_where_the_limit_says_or_the_space(
    device: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed_as(monkeypatch, float)
    net, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(1, 8)
    WidthRounding.asked("auto", slim(net, x).to("meta"), Latency(x, device=device).at_most(ms=1.0))
    assert {p.device.type for network in asked[0].values() for p in network.parameters()} == {wanted}


def test_a_clock_is_read_for_auto() -> None:
    net, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(1, 8)
    state = torch.get_rng_state()
    rounding = WidthRounding.asked("auto", slim(net, x), Latency(x, warmup=0).at_most(ms=1.0))
    assert rounding.most in (4, 8, 16) and rounding.measured
    assert set(rounding.measured["low_ms"]) == {"36", "40", "44", "48"}
    assert torch.equal(state, torch.get_rng_state())

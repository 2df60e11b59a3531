"""The passive-aggressive regularizer in both readings, the temperature, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.choices.subsets import topologies, topology
from archgrad.errors import ChoiceError, ConfigError
from archgrad.methods.toponas.topology_schedule import PassiveAggressive, figures, set_temperature
from archgrad.supernets.bilevel import relaxation_figures

WINNER = {"factorized": torch.tensor([9.0, -9.0, -9.0, 9.0]), "table": torch.tensor([9.0, 0, 0, 0, 0, 0])}


def node(form: str = "factorized", logits: list[float] | None = None, **options: object) -> nn.Module:
    space = topology(ag.InputChoice(4, name="inputs", keep=2), form=form, **options).double()
    if logits is not None:
        with torch.no_grad():
            space.relaxation.logits.copy_(torch.tensor(logits, dtype=torch.float64))
    return space


def gradient(term: torch.Tensor, space: nn.Module) -> torch.Tensor:
    (found,) = torch.autograd.grad(term, ag.logits(space))
    return found


@pytest.mark.parametrize(("form", "reading"), [("factorized", "mass"), ("factorized", "margin"), ("table", "margin")])
def test_it_is_passive_inside_the_margin_and_aggressive_outside(form: str, reading: str) -> None:
    settled = node(form, WINNER[form].tolist())
    term = PassiveAggressive(settled, reading=reading)()
    assert float(term.detach()) == 0.0
    assert not bool(gradient(term, settled).any())

    open_space = node(form, (0.1 * torch.arange(float(len(WINNER[form])))).tolist())
    distribution, live = topologies(open_space)["inputs"]

    def measure() -> float:
        value = distribution.invalid(live) if reading == "mass" else -distribution.lead(live)
        return float(value.detach())

    before, term = measure(), PassiveAggressive(open_space, reading=reading)()
    assert float(term.detach()) > 0.0
    step = gradient(term, open_space)
    with torch.no_grad():
        distribution.logits -= 0.01 * step
    assert measure() < before
    with torch.no_grad():
        distribution.logits += 0.02 * step
    assert measure() > before, "the other way it grows"


def test_the_mass_is_that_of_independent_inputs() -> None:
    """At even logits each of 16 codes has probability 1/16, and 6 of them are valid."""
    space = node(logits=[0.0] * 4)
    assert float(PassiveAggressive(space, tolerance=0.0)().detach()) == pytest.approx(1.0 - 6.0 / 16.0, abs=1e-12)
    assert float(PassiveAggressive(space, tolerance=0.2)().detach()) == pytest.approx(0.8 - 6.0 / 16.0, abs=1e-12)


def test_the_margin_is_that_of_the_two_likeliest() -> None:
    space = node("table", [math.log(w) for w in (4.0, 3.0, 1.0, 1.0, 0.5, 0.5)])
    assert float(PassiveAggressive(space, reading="margin")().detach()) == pytest.approx(0.5 - 0.1, abs=1e-12)


def test_the_weight_grows_along_the_ramp() -> None:
    space, passed = node(logits=[0.0] * 4), [0.0]
    term = PassiveAggressive(space, weight=2.0, ramp=0.5, progress=lambda: passed[0])
    full = 2.0 * float(term.terms().sum().detach())
    values = []
    for passed[0] in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0):
        values.append(float(term().detach()) / full)
    assert values == pytest.approx([0.0, 0.25, 0.5, 1.0, 1.0, 1.0])
    assert float(PassiveAggressive(space, weight=2.0)().detach()) == pytest.approx(full), "without a ramp"


def test_nodes_without_a_choice_add_nothing_to_the_margin() -> None:
    space = topology(ag.InputChoice(2, name="both", keep=2))
    term = PassiveAggressive(space, reading="margin", margin=1.0)()
    assert float(term.detach()) == 0.0


def test_the_temperature_falls_geometrically() -> None:
    space = node()
    seen = []
    for progress in (0.0, 1 / 3, 2 / 3, 1.0):
        set_temperature(space, 8.0, 1.0, progress)
        seen.append(float(space.relaxation.temperature))
    assert seen == pytest.approx([8.0, 4.0, 2.0, 1.0])


def test_the_history_shows_marginals_and_the_distribution() -> None:
    space = node(logits=[0.0] * 4)
    shown = relaxation_figures(space)
    assert shown["entropy"] == pytest.approx(math.log(6.0))
    assert [shown[f"weight/inputs/{i}"] for i in range(4)] == pytest.approx([0.5] * 4)
    assert figures(space) == pytest.approx(
        {"topology_temperature": 1.0, "topology_lead": 0.0, "topology_invalid": 1.0 - 6.0 / 16.0}
    )
    assert relaxation_figures(node("table"))["entropy"] == pytest.approx(math.log(6.0))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"margin": -0.1, "reading": "margin"}, ConfigError, r"margin=-0\.1: give a finite number from 0 to 1"),
        ({"margin": 1.5}, ConfigError, r"margin=1\.5"),
        ({"tolerance": -1.0}, ConfigError, r"tolerance=-1\.0"),
        ({"weight": -1.0}, ConfigError, r"weight=-1\.0: give a finite number from 0"),
        ({"weight": float("nan")}, ConfigError, "weight=nan"),
        ({"reading": "hinge"}, ConfigError, "'mass' and 'margin'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        PassiveAggressive(node(), **options)


def test_a_regularizer_that_could_do_nothing_is_refused() -> None:
    for space in (node("table"), node(hard=True)):
        with pytest.raises(ChoiceError, match="reading='margin'"):
            PassiveAggressive(space, reading="mass")
    with pytest.raises(ChoiceError, match="no distribution over subsets"):
        PassiveAggressive(ag.InputChoice(3, name="x"))

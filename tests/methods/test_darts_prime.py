"""DARTS-PRIME: DARTS bit for bit where its parts are off, each part at work where on, state, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.choices.subsets import Subsets, topology
from archgrad.errors import ConfigError, LimitError
from archgrad.methods.darts_prime.darts_prime import DartsPrimeSettings, DartsPrimeTerms, _optimizer, darts_prime
from archgrad.run.signals import Stopped

OFF = DartsPrimeTerms(schedule="static", f=1, regularizer="proximity", rho=0.0)
FULL = DartsPrimeTerms(activation="clipped", f=2, regularizer="admm")


def task() -> ag.Classification:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 8, 8, generator=g)
    return ag.Classification((x, (3 * torch.sigmoid(4 * x.mean((1, 2, 3)))).long().clamp_max(2)), batch_size=16)


def space() -> torch.nn.Module:
    torch.manual_seed(0)
    return ag.darts_cells(channels=2, cells=1, in_channels=1, classes=3, nodes=2, operations=4)


def run(**settings: object) -> ag.Run:
    return ag.Run(
        **{"steps": 40, "seed": 1, "device": "cpu", "progress": False, "output": ag.Output(log_every=1), **settings}
    )


def trajectory(found: ag.Found) -> list[tuple[object, ...]]:
    return [(row["step"], row["loss"], row.get("architecture_loss")) for row in found.history if "loss" in row]


def same(first: ag.Found, second: ag.Found) -> bool:
    others = second.network.state_dict()
    return (
        trajectory(first) == trajectory(second)
        and first.architecture == second.architecture
        and all(torch.equal(value, others[name]) for name, value in first.network.state_dict().items())
    )


def test_with_its_parts_off_it_is_darts_bit_for_bit() -> None:
    darts = ag.darts(space(), task(), run())
    assert same(darts_prime(space(), task(), run(), terms=OFF), darts)


@pytest.mark.parametrize("terms", [DartsPrimeTerms(f=2), FULL])
@pytest.mark.parametrize("form", ["table", "factorized"])
def test_a_topology_of_its_own_is_kept(terms: DartsPrimeTerms, form: str) -> None:
    given = topology(space(), form=form)
    found = darts_prime(given, task(), run(steps=20), terms=terms)
    first = next(row for row in found.history if "entropy" in row)
    nodes = [name for name, same in choices(given).items() if isinstance(same[0].relaxation, Subsets)]
    assert nodes
    for name in nodes:
        # Inclusion probabilities: they sum to the two inputs that a node keeps, which no softmax does.
        weights = [value for key, value in first.items() if key.startswith(f"weight/{name}/")]
        assert sum(weights) == pytest.approx(2.0, abs=1e-4)
        assert len(found.architecture[name]) == 2


@pytest.mark.parametrize(
    "on",
    [
        DartsPrimeTerms(schedule="static", f=1, rho=0.1),
        DartsPrimeTerms(schedule="static", f=2, rho=0.0),
        DartsPrimeTerms(schedule="dynamic", f=1, rho=0.0),
        DartsPrimeTerms(schedule="static", f=1, rho=0.0, activation="clipped"),
    ],
)
def test_with_any_part_on_it_is_not(on: DartsPrimeTerms) -> None:
    darts = ag.darts(space(), task(), run())
    assert trajectory(darts_prime(space(), task(), run(), terms=on, weights_fraction=0.5)) != trajectory(darts)


def test_the_division_of_the_data_follows_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, split = [], ag.Classification.split
    monkeypatch.setattr(ag.Classification, "split", lambda self, part: asked.append(part) or split(self, part))
    darts_prime(space(), task(), run(steps=8), terms=DartsPrimeTerms(f=3))
    darts_prime(space(), task(), run(steps=8), terms=DartsPrimeTerms(f=3), weights_fraction=0.5)
    assert asked == [0.75, 0.5]


def test_a_static_schedule_takes_every_fth_step_and_a_dynamic_one_says_its_threshold() -> None:
    static = darts_prime(space(), task(), run(), terms=DartsPrimeTerms(schedule="static", f=3))
    assert sum("architecture_loss" in row for row in static.history) == 20 // 3
    dynamic = darts_prime(space(), task(), run(), terms=DartsPrimeTerms(f=1))
    assert all("log10_threshold" in row for row in dynamic.history if row["phase"] == "search" and "loss" in row)


def test_a_schedule_that_never_lets_a_step_happen_is_an_alarm() -> None:
    held = run(steps=2)
    found = darts_prime(space(), task(), held, terms=DartsPrimeTerms(f=10))
    (alarm,) = (alarm for alarm in found.record["alarms"] if "never took a step" in alarm)
    assert alarm in held.notes and "ALARM: the architecture never took a step" in found.report()
    assert alarm not in found.record["notes"], "said once"


def test_proximity_brings_the_weights_nearer_to_discrete_ones() -> None:
    ends = {}
    for rho in (0.0, 20.0):
        terms = DartsPrimeTerms(schedule="static", f=1, rho=rho)
        found = darts_prime(space(), task(), run(steps=120), terms=terms, rate=0.1)
        ends[rho] = [row["distance"] for row in found.history if "distance" in row][-1]
    assert ends[20.0] < 0.5 * ends[0.0]


def test_clipped_candidates_die_and_the_network_found_has_no_norm_of_the_nodes() -> None:
    given = space()
    terms = DartsPrimeTerms("clipped", "static", 1, rho=20.0)
    found = darts_prime(given, task(), run(steps=80), terms=terms, rate=0.1)
    last = [row for row in found.history if "distance" in row][-1]
    weights = {name: value for name, value in last.items() if name.startswith("weight/")}
    assert all(value == 0.0 for name, value in weights.items() if name.endswith("/none"))
    assert sum(value == 0.0 for value in weights.values()) > len(choices(given)) / 2
    plain = ag.build(given, found.architecture)
    assert plain.state_dict().keys() == found.network.state_dict().keys()
    assert all(bool(same[0].live.all()) for same in choices(given).values())


def test_clipped_weights_keep_a_limit_too() -> None:
    limit = ag.macs(torch.zeros(1, 1, 8, 8)).at_most(fraction=0.9)
    terms = DartsPrimeTerms("clipped", "static", 1, rho=20.0)
    found = darts_prime(space(), task(), run(steps=60), limit=limit, terms=terms, rate=0.1)
    assert found.costs["macs"] <= found.record["limit"]["bound"]


@pytest.mark.parametrize("terms", [FULL, DartsPrimeTerms(f=2)])
def test_a_stopped_run_goes_on_exactly(
    terms: DartsPrimeTerms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the targets and duals of ADMM, the support, the threshold and its average."""
    whole = darts_prime(space(), task(), run(steps=80), terms=terms)
    original, calls = ag.Run.log, []

    def log(self: ag.Run, figures: dict[str, float], *, step: int | None = None) -> None:
        original(self, figures, step=step)
        calls.append(step)
        if len(calls) == 29:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(ag.Run, "log", log)
        with pytest.raises(Stopped):
            darts_prime(space(), task(), run(steps=80, folder=tmp_path / "run"), terms=terms)
    assert 10 < len(calls) < 40
    resumed = darts_prime(space(), task(), run(steps=80, folder=tmp_path / "run"), terms=terms)
    assert same(resumed, whole)
    assert resumed.record["discretization"] == whole.record["discretization"]


@pytest.mark.parametrize(("terms", "decay"), [
    (DartsPrimeTerms(), 1e-3), (DartsPrimeTerms("clipped"), 0.0), (DartsPrimeTerms("clipped", decay=1e-3), 1e-3),
    (DartsPrimeTerms(decay=0.0), 0.0),
])  # fmt: skip
def test_the_logits_have_the_published_rate_in_the_published_epochs_and_the_decay_that_is_asked_for(
    terms: DartsPrimeTerms, decay: float
) -> None:
    """50 epochs on 10 of 11 parts of 50,000 images in batches of 64; a tenth of them needs ten times the rate."""
    recipe = ag.Recipe()
    settings = DartsPrimeSettings(
        None,
        None,
        terms,
        0.5,
        weights_fraction=10 / 11,
        rate=None,
        finalists=None,
        search_recipe=recipe,
        recipe=recipe,
    )
    relaxed = ag.relax(space(), ag.softmax)
    published = round(50 * 50_000 * 10 / 11 / 64)
    for steps, times in ((4 * published, 1), (published, 1), (published // 10, 10)):
        (group,) = _optimizer(relaxed, settings, steps=steps).param_groups
        assert group["lr"] == pytest.approx(3e-4 * times, rel=0.03) and group["weight_decay"] == decay


def test_a_measured_limit_is_refused_by_name() -> None:
    with pytest.raises(LimitError, match="DARTS-PRIME trains a mixture"):
        darts_prime(space(), task(), run(), limit=ag.latency(torch.zeros(1, 1, 8, 8)).at_most(ms=5.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rho": -0.1}, "rho"),
        ({"f": 0}, "f=0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"schedule": "static", "f": 2.5}, "a whole number n from 1"),
        ({"decay": -1e-3}, "decay=-0.001"),
        ({"through": True}, "without adjusted=True"),
    ],
)
def test_constraints_that_make_no_sense_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        darts_prime(space(), task(), run(), terms=DartsPrimeTerms(**wrong))


@pytest.mark.parametrize("name", ["activation", "schedule", "regularizer"])
def test_names_that_there_are_not_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}='other' was given; allowed are"):
        DartsPrimeTerms(**{name: "other"})

"""Alarms on histories and architectures made by hand, with neighbors that raise none; the gap of a real search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.choices.relaxations import Softmax
from archgrad.errors import LimitError
from archgrad.supernets.collapse import alarms, discretization

LABELS = ("skip_connect", "conv", "pool")


def decisions(count: int = 4) -> nn.Module:
    return ag.relax(nn.ModuleList([ag.OpChoice(LABELS, name=f"c{i}") for i in range(count)]), Softmax)


def picks(*chosen: int) -> ag.Architecture:
    return ag.Architecture({f"c{i}": pick for i, pick in enumerate(chosen)})


def history(
    entropies: list[float], *, moved: float = 0.5, steps: int = 100, decided: bool = True
) -> list[dict[str, Any]]:
    last = len(entropies) - 1
    return [
        {
            "phase": "search", "step": round(steps * i / last), "entropy": value,
            "weight/c0/conv": 0.3 + moved * i / last,
            **({"architecture_loss": 1.0} if decided and i < last else {}),
        }
        for i, value in enumerate(entropies)
    ]  # fmt: skip


SOUND = history([1.1, 1.0, 0.9, 0.7, 0.5, 0.3])


def test_a_sound_search_raises_no_alarm() -> None:
    assert alarms(decisions(), picks(0, 1, 2, 0), SOUND, method="darts") == []
    assert alarms(decisions(2), picks(0, 0), SOUND, method="darts") == [], "two operations are too few to tell"


def test_skip_connections_that_dominate() -> None:
    (found,) = alarms(decisions(), picks(0, 0, 0, 1), SOUND, method="darts")
    assert "collapsed to skip connections: 3 of the 4" in found


def test_an_identity_is_a_skip_connection_by_whatever_name() -> None:
    space = nn.Sequential(*(ag.OpChoice({"pass": nn.Identity(), "f": nn.Tanh()}, name=f"c{i}") for i in range(3)))
    found = alarms(ag.relax(space, Softmax), picks(0, 0, 1), SOUND, method="darts")
    assert len(found) == 1 and "collapsed to skip connections: 2 of the 3 operations found are pass." in found[0]


def test_a_convolution_that_is_called_skip_is_none() -> None:
    for made, many in ((lambda: nn.Conv2d(2, 2, 1), 0), (nn.Identity, 1)):
        space = nn.Sequential(*(ag.OpChoice({"skip": made(), "f": nn.Tanh()}, name=f"c{i}") for i in range(3)))
        assert len(alarms(ag.relax(space, Softmax), picks(0, 0, 1), SOUND, method="darts")) == many


@pytest.mark.parametrize("method", ["darts", "darts_prime", "unas", "toponas", "radars", "rl_darts"])
def test_what_is_advised_is_no_method_that_ran(method: str) -> None:
    (found,) = alarms(decisions(), picks(0, 0, 0, 1), SOUND, method=method)
    advice = found.partition("are skip_connect. ")[2]
    assert advice.endswith("compare with random_search") and f"with {method}," not in advice
    assert ("Search for longer" in advice) == (method == "unas"), "what samples already is not to search for less"
    (found,) = alarms(decisions(), picks(0, 1, 2, 0), history([1.1] * 6, moved=0.0, decided=False), method=method)
    assert ("schedule" in found) == (method == "darts_prime"), "the one whose schedule may be dynamic"


def test_one_operation_everywhere() -> None:
    (found,) = alarms(decisions(), picks(1, 1, 1, 1), SOUND, method="darts")
    assert found == "one operation everywhere: all 4 operations found are conv"


def test_an_entropy_that_is_gone_at_once_and_one_that_goes_slowly() -> None:
    (found,) = alarms(decisions(), picks(0, 1, 2, 0), history([1.1, 0.05, 0.04, 0.03, 0.02, 0.01]), method="darts")
    assert "entropy of the choices was gone at once" in found
    assert alarms(decisions(), picks(0, 1, 2, 0), history([1.1, 0.9, 0.04, 0.03, 0.02, 0.01]), method="darts") == []


def test_weights_that_do_not_move() -> None:
    (found,) = alarms(decisions(), picks(0, 1, 2, 0), history([1.1] * 6, moved=0.002), method="darts")
    assert "have not moved" in found and "5 steps of the architecture" in found


def test_an_architecture_that_never_takes_a_step() -> None:
    (found,) = alarms(decisions(), picks(0, 1, 2, 0), history([1.1] * 6, moved=0.0, decided=False), method="darts")
    assert "never took a step in 100 steps" in found


def test_searches_that_relax_nothing_raise_none() -> None:
    assert alarms(decisions(), picks(0, 0, 0, 0), [{"phase": "trial", "step": 1, "loss": 1.0}], method="darts") == []


def test_operations_that_no_node_uses_do_not_count() -> None:
    space = ag.darts_cells(channels=2, cells=3, in_channels=1, classes=2, nodes=2)
    text = "normal 0:sep_conv_3x3,1:max_pool_3x3 | 0:sep_conv_3x3,1:avg_pool_3x3"
    text += " reduce 0:sep_conv_3x3,1:max_pool_3x3 | 0:sep_conv_3x3,1:avg_pool_3x3"
    architecture = space.from_string(text)
    skip = space.labels.index("skip_connect")
    unused = {name: skip for name in architecture if name in ("normal.3.2", "reduce.3.2")}
    from archgrad.choices.relaxations import Open

    ag.relax(space, Softmax)
    ag.relax(space, Open, where=lambda choice: isinstance(choice, ag.InputChoice))
    assert alarms(space, ag.Architecture({**architecture, **unused}), SOUND, method="darts") == []


def task() -> ag.Classification:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 8, 8, generator=generator)
    return ag.Classification((x, (x.mean((1, 2, 3)) > 0).long()), batch_size=16)


def test_the_gap_is_of_the_supernet_and_of_the_network_with_its_weights() -> None:
    run = ag.Run(steps=12, seed=0, device="cpu", progress=False)
    space = ag.nasbench201_cells(channels=2, cells=1, classes=2, in_channels=1)
    found = ag.darts(space, task(), run, search_fraction=0.5)
    jump = found.record["discretization"]
    assert jump["gap"] == jump["supernet"] - jump["derived"] and jump["score"] == "accuracy"
    (row,) = (row for row in found.history if "discretization_gap" in row)
    assert row["discretization_gap"] == jump["gap"]
    assert "discretization gap" in found.report()


def test_a_space_at_its_architecture_has_no_gap_and_one_far_from_it_may() -> None:
    torch.manual_seed(0)
    space = ag.relax(ag.nasbench201_cells(channels=4, cells=1, classes=2, in_channels=1), Softmax)
    architecture = space.from_string(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|none~2|"
    )
    run = ag.Run(steps=1, device="cpu", progress=False)
    run.begin("test", {})
    with torch.no_grad():
        for choice, logit in zip(architecture, ag.logits(space), strict=True):
            logit[architecture[choice]] = 200.0
    before = {name: value.clone() for name, value in space.state_dict().items()}
    jump = discretization(space, architecture, task(), run)
    assert jump is not None and jump["gap"] == pytest.approx(0.0, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in space.state_dict().items())


def test_a_space_without_relaxation_has_no_gap() -> None:
    space = ag.nasbench201_cells(channels=2, cells=1, classes=2, in_channels=1)
    run = ag.Run(steps=1, device="cpu", progress=False)
    architecture = ag.sample(space, generator=torch.Generator().manual_seed(0))
    assert discretization(space, architecture, task(), run) is None


def test_report_names_gap_and_alarms_and_the_page_draws_them() -> None:
    from archgrad.report.page import page
    from archgrad.report.text import plain

    record = {
        "method": "darts", "alarms": ["one operation everywhere"], "after": {"accuracy": 0.9},
        "discretization": {"score": "accuracy", "supernet": 0.95, "derived": 0.6, "gap": 0.35},
    }  # fmt: skip
    told = plain(record)
    assert "ALARM: one operation everywhere" in told
    assert "discretization gap: 35.00 points of accuracy" in told and "60.00 %" in told
    drawn = page(record, [{"phase": None, "step": None, "discretization_gap": 0.35}])
    assert "From the supernet to the network" in drawn and "one operation everywhere" in drawn
    assert "<h3>Discretization gap" not in drawn, "one figure is no curve"


def test_a_search_shorter_than_an_epoch_has_taken_its_steps() -> None:
    run = ag.Run(steps=4, seed=0, device="cpu", progress=False)
    space = ag.nasbench201_cells(channels=2, cells=1, classes=2, in_channels=1)
    found = ag.darts(space, task(), run, search_fraction=0.5)
    assert [row["architecture_steps"] for row in found.history if "architecture_steps" in row] == [0, 2]
    assert not [alarm for alarm in found.record["alarms"] if "never took a step" in alarm]


@pytest.mark.parametrize("limit", [0.5, 0])
def test_a_number_is_no_limit_of_a_search(limit: float) -> None:
    space = ag.nasbench201_cells(channels=2, cells=1, classes=2, in_channels=1)
    for method in (ag.darts, ag.unas, ag.random_search):
        with pytest.raises(LimitError, match=rf"limit={limit}\) was given. Allowed is a bound on a cost"):
            method(space, task(), ag.Run(steps=8, progress=False), limit=limit)

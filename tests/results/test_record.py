"""The human-intervention card: what differs from the defaults is counted, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.methods.monas.monas import MonasTerms, monas
from archgrad.methods.monas.rewards import mixed, under
from archgrad.methods.unas import unas
from archgrad.results.record import card, departures


def run(**given: Any) -> ag.Run:
    return ag.Run(device="cpu", progress=False, **given)


def items(found: dict[str, Any]) -> dict[str, int]:
    return {row["item"]: row["count"] for row in found["items"]}


def test_options_at_their_defaults_are_not_counted_and_goals_never() -> None:
    settings = {
        "limit": {"cost": "macs"},
        "search": 0.5,
        "share": 0.9,
        "rate": None,
        "prior": None,
        "black_box": False,
    }
    assert departures(unas, settings) == []
    assert departures(unas, settings | {"share": 0.5, "black_box": True}) == ["black_box=True", "share=0.5"]


def test_of_terms_each_number_is_counted() -> None:
    terms = {"samples": 4, "rate": 0.1, "bonus": 0.005, "decay": 0.9, "patience": 200}
    assert departures(monas, {"terms": terms, "search": 0.5}) == ["terms.samples=4", "terms.rate=0.1"]
    assert departures(monas, {"terms": {**terms, "samples": 1, "rate": 0.01}}) == []
    assert MonasTerms().samples == 1


def test_two_configurations_made_by_hand() -> None:
    space = nn.Sequential(nn.Conv2d(1, 4, 3), ag.OpChoice({"a": nn.Conv2d(4, 4, 1), "b": nn.Identity()}, name="op"))
    plain = card(space, run(), options=[], data={"batch_size": 128, "valid_fraction": 0.2, "augmentation": []})
    assert items(plain) == {
        "given without a default": 2,
        "made for this data, of these and of the options": 1,
        "layers fixed by hand, outside all choices": 1,
        "parts trained before": 0,
        "steps of preprocessing": 0,
        "options off their defaults": 0,
        "decisions during and after the search": 0,
        "other data used in place of the target's": 0,
        "classes of one's own code in the space": 0,
    }
    assert plain["total"] == 3

    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    busy = card(
        nn.Sequential(space, Own(), nn.Linear(2, 2)), run(epochs=5, precision="bf16-true"), options=["share=0.5"],
        data={"batch_size": 64, "augmentation": ["flip", "crop"]}, weights_given=True, transfers=True,
    )  # fmt: skip
    counts = list(items(busy).values())
    assert counts == [2, 2, 2, 1, 2, 4, 0, 1, 1]
    assert busy["total"] == 13 and busy["items"][5]["what"][0] == "share=0.5"


def test_a_space_without_data_has_none_to_be_given() -> None:
    assert items(card(nn.Linear(2, 2), run(), options=[], data={}))["given without a default"] == 1


@pytest.mark.parametrize("method", ["unas", "dnal", "freenas"])
def test_every_kind_of_run_has_its_card_beside_the_architecture(method: str, tmp_path: Path) -> None:
    task = ag.Classification.load("digits", batch_size=64)
    if method == "dnal":
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                            nn.Linear(16, 10))  # fmt: skip
        found = ag.dnal(ag.slim(net, example=task.example), task, run(steps=12, folder=tmp_path), pretrained=True)
    elif method == "unas":
        space = ag.nasbench201_cells(channels=4, cells=1, in_channels=1)
        found = ag.unas(space, task, run(steps=4, folder=tmp_path), share=0.5)
    else:
        space = ag.nasbench201_cells(channels=4, cells=1, in_channels=1)
        found = ag.freenas(space, run(folder=tmp_path), example=torch.ones(1, 1, 8, 8))
    written = json.loads((tmp_path / "card.json").read_text())
    assert written == found.record["card"] and "chosen" not in found.record
    counts = items(written)
    assert counts["options off their defaults"] == {"unas": 3, "dnal": 3, "freenas": 0}[method]
    assert counts["parts trained before"] == (method == "dnal")
    assert "Human intervention" in (tmp_path / "report.html").read_text()
    assert "human intervention" in found.report()


def test_what_is_looked_up_is_told_with_its_reward() -> None:
    count = ag.params()
    assert departures(
        monas,
        {
            "reward": mixed(count, alpha=0.5).record(),
        },
    ) == ["reward=given"]
    assert departures(monas, {"reward": under().record()}) == []


def test_operations_that_two_choices_share_are_candidates() -> None:
    counts = [
        items(card(ag.darts_cells(channels=2, cells=3, factorized=form), run(), options=[], data={}))
        for form in (True, False)
    ]
    assert counts[0] == counts[1]
    assert counts[0]["layers fixed by hand, outside all choices"] == 10

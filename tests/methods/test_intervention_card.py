"""The human-intervention card: what differs from the defaults is counted, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import archgrad as ag
from archgrad.methods.multimodal_random.intervention_card import card, departures
from archgrad.methods.multimodal_random.multimodal_random import ROUNDS, multimodal_random


def run(**given: Any) -> ag.Run:
    return ag.Run(device="cpu", progress=False, **given)


def items(found: dict[str, Any]) -> dict[str, int]:
    return {row["item"]: row["count"] for row in found["items"]}


def test_options_at_their_defaults_are_not_counted_and_goals_never() -> None:
    settings = {"limit": {"cost": "macs"}, "prior": None, "halving": asdict(ROUNDS), "refused_count": False}
    assert departures(multimodal_random, settings) == []
    changed = settings | {"refused_count": True, "finalists": 2, "prior": {"first": [0.1, 0.9]}}
    assert departures(multimodal_random, changed) == ["prior=given", "finalists=2", "refused_count=True"]


def test_of_a_dataclass_each_field_is_counted() -> None:
    halving = asdict(ROUNDS)
    assert departures(multimodal_random, {"halving": halving | {"eta": 2}}) == ["halving.eta=2"]
    assert departures(multimodal_random, {"halving": halving | {"eta": 2, "least": 1}}) == [
        "halving.eta=2", "halving.least=1",
    ]  # fmt: skip


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
        "classes of one's own code in the space": 0,
    }
    assert plain["total"] == 3

    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    busy = card(
        nn.Sequential(space, Own(), nn.Linear(2, 2)), run(epochs=5, precision="bf16-mixed"), options=["share=0.5"],
        data={"batch_size": 64, "augmentation": ["flip", "crop"]}, weights_given=True,
    )  # fmt: skip
    counts = list(items(busy).values())
    assert counts == [2, 2, 2, 1, 2, 4, 0, 1]
    assert busy["total"] == 12 and busy["items"][5]["what"][0] == "share=0.5"


def test_a_space_without_data_has_none_to_be_given() -> None:
    assert items(card(nn.Linear(2, 2), run(), options=[], data={}))["given without a default"] == 1


def test_the_card_is_in_the_record_and_on_the_page_of_multimodal_random_alone(tmp_path: Path) -> None:
    task = ag.Classification.load("digits", batch_size=64)
    space = ag.nasbench201_cells(channels=4, cells=1, in_channels=1)
    found = ag.multimodal_random(space, task, run(steps=12, trials=3, folder=tmp_path), finalists=2)
    counts = items(found.record["card"])
    assert counts["options off their defaults"] == 4  # steps, trials, finalists, and the batch size
    assert counts["parts trained before"] == 0
    assert json.loads((tmp_path / "record.json").read_text())["card"] == found.record["card"]
    assert "Human intervention" in (tmp_path / "report.html").read_text()

    other = ag.unas(space, task, run(steps=8, folder=tmp_path / "unas"), search_fraction=0.5)
    assert "card" not in other.record and "human" not in other.report()
    assert "Human intervention" not in (tmp_path / "unas" / "report.html").read_text()


def test_operations_that_two_choices_share_are_candidates() -> None:
    counts = [
        items(card(ag.darts_cells(channels=2, cells=3, factorized=form), run(), options=[], data={}))
        for form in (True, False)
    ]
    assert counts[0] == counts[1]
    assert counts[0]["layers fixed by hand, outside all choices"] == 10

"""Multimodal random search on two small senses that only together tell the label."""

from __future__ import annotations

import statistics

import pytest
import torch

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.multimodal.fusion import Fusion


def task(seed: int = 0) -> ag.Classification:
    """Four classes: a bright half of an image says one bit, a number the other."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (240,), generator=g)
    images = 0.5 * torch.randn(240, 1, 8, 9, generator=g)
    images[:, :, :4] += (y % 2 * 2 - 1)[:, None, None, None]
    facts = torch.randn(240, 3, generator=g)
    facts[:, 0] += 3 * (y // 2 * 2 - 1)
    return ag.Classification(ag.Modalities({"image": images, "facts": facts}, y), batch_size=20)


def space(given: ag.Classification) -> Fusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ag.fusion(given.example, classes=4, features=8, widths={"4": (4,), "8": (8,)})


def run(**settings: object) -> ag.Run:
    return ag.Run(
        **{
            "steps": 240,
            "trials": 6,
            "device": "cpu",
            "progress": False,
            "output": ag.Output(log_every=1),
            **settings,
        }
    )


def test_finds_a_fusion_that_uses_both_and_reports_the_finalists() -> None:
    given = task()
    made = run()
    found = ag.multimodal_random(space(given), given, made, finalists=2)
    last = found.record["finalists"]
    assert found.score == last["scores"][0] > 0.7, "one sense alone tells half"
    assert last["mean"] == statistics.mean(last["scores"]) and len(last["scores"]) == 2
    assert "mean" in "".join(found.record["notes"]) and "Test scores of the best 2" in found.report()
    assert given.test_reads == 3, "each finalist, and what is handed back"
    losses = [row["loss"] for row in made.history if "loss" in row]
    assert len(losses) == 240
    assert losses[84] < losses[0] / 2, "finalists go on from the weights of their trials"
    rows = found.record["trials"]
    latest = max(row["round"] for row in rows)
    best = max(row["score"] for row in rows if row["round"] == latest)
    assert rows[last["trials"][0]]["score"] == best
    assert rows[last["trials"][0]]["architecture"] == dict(found.architecture)
    assert found.record["best_so_far"] == sorted(found.record["best_so_far"])


@pytest.mark.parametrize("finalists", [3, 4])
def test_every_finalist_was_in_the_last_round(finalists: int) -> None:
    given = task()
    found = ag.multimodal_random(space(given), given, run(steps=60), finalists=finalists)
    rows = found.record["trials"]
    latest = max(row["round"] for row in rows)
    assert [rows[i]["round"] for i in found.record["finalists"]["trials"]] == [latest] * finalists
    assert "fresh weights" not in "".join(found.record["notes"])


def test_the_finalists_are_trained_on_validation_data_too() -> None:
    given = task()
    whole = given.with_validation()
    sizes = {part: given.splits[part]["size"] for part in ("train", "valid", "test")}
    assert whole.splits["train"]["size"] == sizes["train"] + sizes["valid"]
    seen = {
        tuple(row) for step in range(whole.steps_per_epoch) for row in whole.stream(seed=0)(step)[0]["facts"].tolist()
    }

    def rows(part: str) -> set[tuple[float, ...]]:
        return {tuple(row) for x, _ in given._batches(part) for row in x["facts"].tolist()}

    assert seen <= rows("train") | rows("valid") and seen & rows("valid") and not seen & rows("test")


@pytest.mark.parametrize("kind", ["arrays", "pixels", "two datasets"])
def test_whole_joins_parts_of_every_kind(kind: str) -> None:
    x, y = torch.arange(40.0).reshape(20, 2), torch.arange(20) % 2
    if kind == "pixels":
        x = torch.arange(20 * 4).reshape(20, 1, 2, 2).to(torch.uint8)
    if kind == "two datasets":
        sets = [
            torch.utils.data.TensorDataset(x[rows], y[rows]) for rows in (slice(0, 12), slice(12, 16), slice(16, 20))
        ]
        given = ag.Classification(*sets, batch_size=8)
    else:
        given = ag.Classification((x[:12], y[:12]), (x[12:16], y[12:16]), (x[16:], y[16:]), batch_size=8)
    whole = given.with_validation()
    parts = torch.cat([b[0] for part in ("train", "valid") for b in given._batches(part)])
    both = torch.cat([b[0] for b in whole._batches("train")])
    assert len(both) == 16 and whole.steps_per_epoch == 2
    assert torch.equal(both.flatten(1).sort(dim=0).values, parts.flatten(1).sort(dim=0).values)


def test_a_limit_is_kept_by_all_that_is_tried() -> None:
    given = task()
    cost = ag.params()
    made = space(given)
    found = ag.multimodal_random(made, given, run(), limit=cost.at_most(1500), finalists=1)
    assert cost.of(found.network) <= 1500
    tried = [ag.Architecture(row["architecture"]) for row in found.record["trials"]]
    assert len(tried) == 6 and all(cost.of(ag.build(made, one)) <= 1500 for one in tried)
    more = run(trials=30, steps=60)
    paid = ag.multimodal_random(made, given, more, limit=cost.at_most(2500), finalists=1, refused_count=True)
    assert 0 < len(paid.record["trials"]) < 30


@pytest.mark.parametrize("settings", [{"finalists": 0}, {"search_fraction": 1.0}])
def test_settings_that_leave_no_finalist_are_refused(settings: dict[str, float]) -> None:
    given = task()
    with pytest.raises(ConfigError, match="give 1 or more finalists, and a search_fraction"):
        ag.multimodal_random(space(given), given, run(), **settings)  # type: ignore[arg-type]


def test_the_order_of_the_inputs_in_a_batch_does_not_matter() -> None:
    given = task()
    network = ag.build(space(given), ag.sample(space(given), generator=torch.Generator().manual_seed(0))).eval()
    x = given.stream(seed=0)(0)[0]
    assert isinstance(x, dict)
    assert torch.equal(network(x), network(dict(reversed(x.items()))))

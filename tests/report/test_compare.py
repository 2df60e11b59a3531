"""Runs side by side: what is held against what, what is warned of, and folders that hold no run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_up_runs import EVIL, ended, finished, front, rows, run_json, write
from test_page import fetches_nothing, read

from archgrad.errors import RunError
from archgrad.report import compare
from archgrad.report.charts import comparison as beside
from archgrad.report.compare import as_json, differences, page, plain, warnings


def sides(*paths: Path) -> list[compare.Side]:
    return compare.read(paths)


def test_figures_costs_limits_and_what_the_runs_took(tmp_path: Path) -> None:
    write(
        tmp_path / "b",
        "record.json",
        {**ended(), "before": {"accuracy": 0.95}, "after": {"accuracy": 0.8, "macs": 3e4}},
    )
    write(tmp_path / "b", "history.jsonl", rows(0, 3))
    found = dict(compare.rows(sides(finished(tmp_path / "a"), tmp_path / "b")))
    assert found["accuracy"] == ["90.00 %", "80.00 %"] and found["accuracy, before"] == ["-", "95.00 %"]
    assert found["MACs"] == ["20,000", "30,000"] and found["parameters"] == ["1,234", "-"]
    assert found["limit"] == ["MACs 25,000"] * 2 and found["limit kept"] == ["yes", "yes"]
    assert found["time in loops"] == ["14.5 s", "1.0 s"] and found["decisions left to a person"] == ["2", "2"]
    assert found["networks tried"] == ["8", "8"] and found["alarms"] == ["1", "1"]
    assert "size on disk" not in found


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(("reached", "kept"), [(10, "yes"), (11, "NO")])
def test_of_several_limits_each_is_shown_and_all_have_to_be_kept(
    place: int, reached: int, kept: str, tmp_path: Path
) -> None:
    costs = ("macs", "params", "onnx file size")
    first, *others = [
        {"cost": cost, "bound": 10, "reached": reached if k == place else 9} for k, cost in enumerate(costs)
    ]
    over = {"limit": {**first, "others": others}}
    write(tmp_path / "b", "record.json", over)
    write(tmp_path / "c", "record.json", {})
    found = dict(compare.rows(sides(tmp_path / "b", tmp_path / "c")))
    assert found["limit"] == ["MACs 10; parameters 10; onnx file size 10", "-"]
    assert found["limit kept"] == [kept, "-"]
    assert found["reached"][0].split("; ")[place] == str(reached)


def test_a_limit_that_is_not_kept(tmp_path: Path) -> None:
    over = {"limit": {"cost": "macs", "bound": 10, "reached": 11}}
    write(tmp_path / "b", "record.json", over)
    write(tmp_path / "c", "record.json", {})
    write(tmp_path / "c", "run.json", run_json("finished"))
    found = dict(compare.rows(sides(tmp_path / "b", tmp_path / "c")))
    assert found["limit kept"] == ["NO", "-"] and found["reached"] == ["11", "-"]


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    found = dict(differences(sides(finished(tmp_path / "a", steps=30), finished(tmp_path / "b", steps=20))))
    assert found == {"--channels": ["30", "20"]}
    changed = {**ended(), "settings": {"search": 0.25, "terms": {"deep": [1, 2]}}, "run": {"seed": 4}}
    write(tmp_path / "b", "record.json", changed)
    found = dict(differences(sides(tmp_path / "a", tmp_path / "b")))
    assert found["settings.search"] == ["0.5", "0.25"] and found["settings.terms.deep"] == ["-", "[1, 2]"]
    assert found["run.seed"] == ["3", "4"] and "versions.torch" not in found


def test_other_data_other_figures_and_runs_that_go_on_are_warned_of(tmp_path: Path) -> None:
    first = finished(tmp_path / "a")
    assert warnings(sides(first, finished(tmp_path / "same"))) == []
    other = {**ended(), "data": {"train": {"size": 7}}, "after": {"score": 3}, "device": "cuda"}
    write(tmp_path / "b", "record.json", other)
    write(tmp_path / "c", "run.json", run_json())
    write(tmp_path / "c", "history.jsonl", "{}\n{broken\n")
    said = "\n".join(warnings(sides(first, tmp_path / "b", tmp_path / "c")))
    for told in (
        "different data", "different figures: accuracy, score", "Not finished: c", "different devices",
        "c: 1 line is",
    ):  # fmt: skip
        assert told in said
    # The size of a batch makes no other data.
    write(tmp_path / "b", "record.json", {**ended(), "data": {**ended()["data"], "batch_size": 3}})
    assert warnings(sides(first, tmp_path / "b")) == []


def test_names_are_the_shortest_that_tell_the_folders_apart(tmp_path: Path) -> None:
    found = sides(finished(tmp_path / "x" / "run"), finished(tmp_path / "y" / "run"), finished(tmp_path / "y" / "z"))
    assert [one.name for one in found] == ["x/run", "y/run", "y/z"]


def test_folders_that_cannot_be_compared(tmp_path: Path) -> None:
    good = finished(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "broken", "record.json", "{")
    write(tmp_path / "strange", "record.json", {"after": 3})
    for given, message in (
        ([good], "two or more folders"),
        ([good, good], "each once"),
        ([good, tmp_path / "none"], "There is no run folder"),
        ([good, tmp_path / "empty"], "empty holds no run"),
        ([good, tmp_path / "broken"], "record.json is damaged"),
        ([good, tmp_path / "strange"], "damaged at after"),
    ):
        with pytest.raises(RunError, match=message):
            compare.read(given)


def test_text_and_json(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    write(tmp_path / "b", "record.json", {**ended(), "after": {"accuracy": float("nan")}})
    found = sides(tmp_path / "a", tmp_path / "b")
    text = plain(found)
    assert "accuracy" in text and "90.00 %" in text and "Where they differ" in text
    assert max(map(len, text.splitlines())) < 120
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert [one["name"] for one in told["runs"]] == ["a", "b"]
    assert told["runs"][0]["after"]["accuracy"] == 0.9 and told["runs"][1]["after"]["accuracy"] is None
    assert told["runs"][0]["seconds"] == 14.5 and told["runs"][0]["card_total"] == 2
    assert told["differences"]["--channels"] == {"a": "30", "b": "-"}


def test_the_page_holds_curves_fronts_and_cells_in_one(tmp_path: Path) -> None:
    paths = [finished(tmp_path / name, steps=steps) for name, steps in (("a", 30), ("b", 20), ("c", 10))]
    html = page(sides(*paths))
    reader = read(html)
    fetches_nothing(html, reader)
    words = " ".join(" ".join(reader.words).split())
    for shown in ("3 runs side by side", "Loss", "Fronts: score against MACs", "Accuracy against MACs", "|conv~0|"):
        assert shown in words, shown
    assert words.count("conv~0") == 3 and html.count('role="img"') == reader.tags.count("svg") - 6
    losses = next(json.loads(one) for one in reader.spots if "loss 2" in one)
    assert {line for _, _, line, _ in losses} == {0, 1, 2} and len(losses) == 60
    assert all(f"var(--line{k})" in html for k in (1, 2, 3))


def test_the_page_of_strangers(tmp_path: Path) -> None:
    html = page(
        sides(finished(tmp_path / "a", evil=EVIL), finished(tmp_path / "b", evil=EVIL), finished(tmp_path / "c"))
    )
    reader = read(html)
    fetches_nothing(html, reader)
    assert "img" not in reader.tags


def test_more_runs_than_colors_are_told_apart_by_dashes(tmp_path: Path) -> None:
    first = finished(tmp_path / "run0")
    paths = [first, *(Path(shutil.copytree(first, tmp_path / f"run{k}")) for k in range(1, 10))]
    html = page(sides(*paths))
    assert "stroke-dasharray: " in html and html.count('class="g-line g-line1"') >= 2


def test_curves_are_of_what_two_runs_logged_more_than_once() -> None:
    one = [{"step": k, "loss": 1.0, "alone": 1.0, "once": 1.0} for k in range(3)]
    other = [{"step": k, "loss": 2.0} for k in range(5)] + [{"step": 5, "rate": 1.0}]
    third = [{"step": 0, "rate": 1.0}]
    found = beside.curves([("a", {}, one), ("b", {}, other), ("c", {}, third)])
    assert [chart.heading for chart in found] == ["Loss"]
    assert found[0].spots[0].text == "a: step 0: loss 1" and len(found[0].spots) == 8


def test_fronts_of_one_cost_share_a_picture() -> None:
    runs = [("a", {"fronts": [front()]}, ()), ("b", {"fronts": [front(5), {**front(), "cost": "other"}]}, ())]
    found = beside.fronts(runs)
    assert [chart.heading for chart in found] == ["Fronts: score against MACs", "Fronts: score against other"]
    handed = [spot.text for spot in found[0].spots if "handed back" in spot.text]
    assert handed == ["a: handed back: score 0.55, macs 30,000", "b: handed back: score 0.8, macs 60,000"]

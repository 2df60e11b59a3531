"""`archgrad bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_estimators_are_measured(cli: Callable) -> None:
    result = cli("bench", "estimators", "--quick", "--seeds", "1", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert (body["name"], body["seeds"], body["quick"]) == ("estimators", 1, True)
    rows = {(row["loss"], row["estimator"], row["temperature"]): row for row in body["rows"]}
    rebar, biased = rows["smooth", "REBAR", 1.0], rows["smooth", "Gumbel-softmax", 1.0]
    assert rebar["bias"] < 5 * rebar["bias_error"]
    assert biased["bias"] > 5 * biased["bias_error"]


def test_the_estimators_as_a_table(cli: Callable) -> None:
    lines = cli("bench", "estimators", "--quick", "--seeds", "1").stdout.splitlines()
    assert lines[0].startswith("| loss ")
    assert any(line.startswith("| wiggly | REBAR") for line in lines)


def test_what_is_no_benchmark_is_refused(refused: Callable[..., str]) -> None:
    said = refused("bench", "estimator")
    assert said.startswith("There is no benchmark 'estimator'. Did you mean estimators? There are estimators, ")
    assert "supernet_step" in said and "ledger" not in said and "networks" not in said
    assert "--seeds: 0 was given" in refused("bench", "estimators", "--seeds", "0")


def test_a_script_of_a_checkout_is_run_and_stands_in_the_ledger(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archgrad.cli import bench

    folder, here = tmp_path / "benchmarks", Path(__file__).parents[2] / "benchmarks"
    (folder / "results").mkdir(parents=True)
    (folder / "ledger.py").write_text((here / "ledger.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "cells.py").write_text(
        "import argparse, json, pathlib\nparser = argparse.ArgumentParser()\n"
        'parser.add_argument("--seeds", type=int)\nparser.add_argument("--out", type=pathlib.Path)\n'
        "given = parser.parse_args()\nprint('on the way')\n"
        'rows = [{"method": m, "seed": s, "regret": 0.1 * k + 0.01 * s} for s in range(given.seeds) '
        'for k, m in enumerate(("random", "darts"))]\ngiven.out.write_text(json.dumps({"rows": rows}))\n'
    )
    monkeypatch.setattr(bench, "archgrad", type("", (), {"__file__": str(tmp_path / "src/archgrad/__init__.py")}))
    monkeypatch.setattr(bench, "_run", lambda command: __import__("subprocess").run(command, check=True))
    body = json.loads(cli("bench", "cells", "--seeds", "2", "--json").stdout)
    assert body["lost"] == ["regret, points: behind random (0.5): darts"]
    assert {(one["who"], round(one["value"], 3), one["runs"]) for one in body["figures"]} == {
        ("random", 0.5, 2), ("darts", 10.5, 2),
    }  # fmt: skip
    assert "threads" in body["machine"] and "torch" in body["versions"]
    text = (folder / "RESULTS.md").read_text()
    assert "*random* (peer) | 0.5 ± 0.707 (2)" in text and "behind random" in text

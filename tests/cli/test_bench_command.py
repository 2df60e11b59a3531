"""`archgrad bench`."""

from __future__ import annotations

import json
from collections.abc import Callable


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
    assert refused("bench", "speed") == "There is no benchmark 'speed'. There are estimators."
    assert "--seeds: 0 was given" in refused("bench", "estimators", "--seeds", "0")

"""The front: every network under its budget, exact resume, the choice among them, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import ConfigError, LimitError
from archgrad.report import text

torch.set_num_threads(1)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> ag.Classification:
    data = ag.digits()
    return ag.Classification((data.x[:400], data.y[:400]), batch_size=32)


FRACTIONS = (0.25, 0.7, 0.5)
PHASES = ["weights"] + [
    f"{stage}-{fraction}"
    for fraction in ("0.7", "0.5", "0.25")
    for stage in ("gates", "finalist_gates", "finalist_uniform", "train")
]


def front_of(task: ag.Classification, folder: Path | None = None, **output: object) -> ag.Front:
    run = ag.Run(
        steps=440, device="cpu", progress=False, folder=folder, output=ag.Output(log_every=1, **output)
    )  # fmt: skip
    space = ag.slim(conv_net(), task.example)
    return ag.slim_front(space, task, run, cost=ag.macs(task.example), fractions=FRACTIONS, round_to=1)


@pytest.fixture(scope="module", autouse=True)
def short_finalists() -> Iterator[None]:
    """So that short runs have finalists."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("front", "under_limit"):
            patch.setattr(f"archgrad.methods.dnal.{module}.FEWEST", 8)
        yield


@pytest.fixture(scope="module")
def whole(digits: ag.Classification, tmp_path_factory: pytest.TempPathFactory) -> tuple[ag.Front, Path]:
    folder = tmp_path_factory.mktemp("front") / "run"
    return front_of(digits, folder), folder


def test_every_network_keeps_its_budget_and_the_costs_are_nested(
    digits: ag.Classification, whole: tuple[ag.Front, Path]
) -> None:
    front, _ = whole
    cost = ag.macs(digits.example)
    assert [point.fraction for point in (front.whole, *front.points)] == [1.0, 0.7, 0.5, 0.25]
    reference = cost.of(conv_net())
    assert front.whole.costs["macs"] == reference
    costs = [cost.of(point.network) for point in front.points]
    for point, recounted in zip(front.points, costs, strict=True):
        # No channel more would fit: the dearest of this network takes 10 % of its MACs.
        assert (point.fraction - 0.1) * reference < recounted <= point.fraction * reference
        assert point.costs["macs"] == recounted
        assert digits.evaluate(point.network, "valid")["accuracy"] == point.valid
        assert digits.evaluate(point.network, "test")["accuracy"] == point.score
    assert costs == sorted(costs, reverse=True)


def test_the_steps_are_those_of_the_run_and_the_phases_those_of_the_budgets(
    whole: tuple[ag.Front, Path],
) -> None:
    lines = (whole[1] / "history.jsonl").read_text().splitlines()
    steps = [row["phase"] for row in map(json.loads, lines) if "lr" in row]
    assert len(steps) == 440 and list(dict.fromkeys(steps)) == PHASES
    # 7/22, 7/22, 4/22 and 4/22 of the steps; of each budget 15 % for its gates.
    counts = {phase: steps.count(phase) for phase in PHASES}
    assert counts["weights"] == 140
    budgets = {part: sum(n for phase, n in counts.items() if phase.endswith(f"-{part}")) for part in (0.7, 0.5, 0.25)}
    assert budgets == {0.7: 140, 0.5: 80, 0.25: 80}
    assert [counts[f"gates-{fraction}"] for fraction in ("0.7", "0.5", "0.25")] == [21, 12, 12]


def test_later_budgets_are_trained_at_half_the_rates(whole: tuple[ag.Front, Path]) -> None:
    rows = [json.loads(line) for line in (whole[1] / "history.jsonl").read_text().splitlines()]
    highest = {phase: max(row["lr"] for row in rows if row["phase"] == phase and "lr" in row) for phase in PHASES}
    for phase, rate in highest.items():
        allowed = 0.05 if phase == "weights" or phase.endswith("-0.7") else 0.025
        assert 0.9 * allowed < rate <= allowed, phase


def test_the_folder_holds_the_front_and_a_result_for_each_budget(whole: tuple[ag.Front, Path]) -> None:
    front, folder = whole
    for point in front.points:
        place = folder / f"macs-{point.fraction:g}"
        assert ag.Architecture.load(place / "architecture.json") == point.architecture
        x = torch.randn(3, 1, 8, 8)
        loaded = torch.export.load(place / "network.pt2").module()
        assert torch.allclose(loaded(x), point.network(x), atol=1e-5)
        record = json.loads((place / "record.json").read_text())
        assert record["after"]["macs"] == point.costs["macs"] <= record["limit"]["bound"]
        assert record["before"]["macs"] == front.whole.costs["macs"]
    record = json.loads((folder / "record.json").read_text())
    assert record["fronts"][0]["scores"] == [point.valid for point in (front.whole, *front.points)]
    assert record["fronts"][0]["random"]["label"].startswith("uniform widths")
    assert text.plain(record) == front.report()
    for name in ("whole", "macs-0.7", "macs-0.5", "macs-0.25"):
        assert name in front.report()
    page = (folder / "report.html").read_text()
    assert "Score against macs" in page and "uniform widths" in page and "The networks of the front" in page


class Broken(RuntimeError):
    """What ends a run in the middle."""


@pytest.mark.parametrize("phase", ["weights", "train-0.7", "gates-0.5", "finalist_uniform-0.25"])
def test_a_run_that_ends_in_any_stage_resumes_exactly(
    digits: ag.Classification, whole: tuple[ag.Front, Path], tmp_path: Path, phase: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("archgrad.results.result.latencies", lambda *given, **options: {})

    def fail(row: dict[str, object]) -> None:
        if row.get("phase") == phase and row.get("step") == 5:
            raise Broken

    with pytest.raises(Broken):
        front_of(digits, tmp_path, on_log=fail, checkpoint_seconds=0)
    resumed = front_of(digits, tmp_path)
    for point, again in zip(whole[0].points, resumed.points, strict=True):
        assert (point.architecture, point.valid, point.score) == (again.architecture, again.valid, again.score)
        state = again.network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in point.network.state_dict().items())


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("total", [41, 47, 53])
def test_no_step_of_the_run_is_left_over(digits: ag.Classification, total: int, pretrained: bool) -> None:
    run = ag.Run(steps=total, device="cpu", progress=False, output=ag.Output(log_every=1))
    ag.slim_front(
        ag.slim(conv_net(), digits.example), digits, run, cost=ag.params(), fractions=(0.8, 0.6, 0.5),
        pretrained=pretrained, check_weights=False,
    )  # fmt: skip
    assert sum("lr" in row for row in run.history) == total


def test_trained_weights_are_the_whole_network(digits: ag.Classification) -> None:
    network = conv_net()
    ag.fit(network, digits, ag.Run(steps=60, device="cpu", progress=False))
    run = ag.Run(steps=20, device="cpu", progress=False)
    front = ag.slim_front(
        ag.slim(network, digits.example), digits, run, cost=ag.params(), fractions=[0.5], pretrained=True
    )  # fmt: skip
    assert front.whole.valid == digits.evaluate(network, "valid")["accuracy"]
    assert {str(row["phase"]) for row in run.history if "lr" in row} == {"gates-0.5", "train-0.5"}
    (half,) = front.points
    assert half.costs["params"] <= 0.5 * ag.params().of(network)
    assert front.smallest(within=100.0) is half


def front_with(scores: dict[float, float], *, higher: bool = True) -> ag.Front:
    found = ag.Found(ag.Architecture({}), nn.Identity())
    whole, *points = (ag.FrontPoint(fraction, valid, found) for fraction, valid in scores.items())
    return ag.Front("macs", whole, points, higher)


@pytest.mark.parametrize(
    ("scores", "higher", "within", "fraction"),
    [
        ({1.0: 0.9, 0.5: 0.896, 0.25: 0.8}, True, 0.5, 0.5),  # half a percentage point
        ({1.0: 0.9, 0.5: 0.895, 0.25: 0.8949}, True, 0.5, 0.5),  # on the edge, and just beyond
        ({1.0: 0.9, 0.5: 0.8, 0.25: 0.91}, True, 0.0, 0.25),  # better than the whole
        ({1.0: 0.9, 0.5: 0.8, 0.25: 0.7}, True, 0.5, 1.0),  # none is within
        ({1.0: 0.9, 0.5: float("nan")}, True, 50.0, 1.0),
        ({1.0: 92.0, 0.5: 91.6, 0.25: 91.5}, True, 0.5, 0.5),  # 0.5 % of 92 is 0.46
        ({1.0: 0.2, 0.5: 0.2009, 0.25: 0.2011}, False, 0.5, 0.5),  # lower is better: 0.5 % of 0.2 is 0.001
        ({1.0: -2.0, 0.5: -2.01, 0.25: -2.02}, True, 0.5, 0.5),  # 0.5 % of |-2|
    ],
)
def test_the_smallest_within_so_many_points(
    scores: dict[float, float], higher: bool, within: float, fraction: float
) -> None:
    assert front_with(scores, higher=higher).smallest(within).fraction == fraction


@pytest.mark.parametrize("within", [-0.1, float("nan"), float("inf"), "half", True, None])
def test_points_that_are_no_number_are_refused(within: object) -> None:
    with pytest.raises(ConfigError, match=r"within=.* Allowed are points of the score from 0 up"):
        front_with({1.0: 0.9}).smallest(within)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fractions", "steps", "error", "said"),
    [
        ((), 40, ConfigError, r"fractions=\(\) was given"),
        ((0.5, 0.5), 40, ConfigError, "different fractions"),
        (0.5, 40, ConfigError, r"slim_front\(fractions=0.5\) was given"),
        ((0.5, 1.5), 40, LimitError, "fraction=1.5 of macs"),
        ((0.5, 1e-4), 40, LimitError, "the lowest reachable is"),
        (
            (0.5, 0.25),
            4,
            ConfigError,
            "4 steps are too few for a front of 2 networks: give the Run some epochs for each",
        ),
    ],
)
def test_what_makes_no_front_is_refused_before_anything_is_trained(
    digits: ag.Classification, tmp_path: Path, fractions: object, steps: int, error: type[Exception], said: str
) -> None:
    run = ag.Run(steps=steps, device="cpu", progress=False, folder=tmp_path / "run")
    with pytest.raises(error, match=said):
        ag.slim_front(
            ag.slim(conv_net(), digits.example), digits, run, cost=ag.macs(digits.example), fractions=fractions
        )  # fmt: skip
    assert not (tmp_path / "run" / "run.json").exists()

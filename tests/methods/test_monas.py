"""MONAS: rewards on a grid, brute force on a table, nothing paid twice, exact resume, refusals."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.choices.policies import Categorical
from archgrad.costs.table_column import TableColumn
from archgrad.errors import ChoiceError, ConfigError, LimitError
from archgrad.methods.monas.monas import MonasTerms, monas
from archgrad.methods.monas.rewards import Reward, accurate, mixed, soft, under
from archgrad.trials.archive import Archive

FIRST, SECOND, THIRD = (ag.black_box(len, name=name, unit="u") for name in ("e", "f", "g"))
SIZES = {"a": 3, "b": 2, "c": 4}


class Table:
    """24 networks by formula, counted how often each is looked up."""

    perfect = 100.0

    def __init__(self) -> None:
        self.asked: list[ag.Architecture] = []

    def score(self, architecture: ag.Architecture, /) -> float:
        self.asked.append(architecture)
        a, b, c = (architecture[name] for name in "abc")
        return 40.0 + 10 * a + 4 * b + 8 * c - 6 * (a == 2 and c == 3)

    def cost(self, cell: ag.Architecture, column: str | None = None) -> float:
        a, b, c = (cell[name] for name in "abc")
        return {"lat_ms": 1.0 + 3 * a * a + b + c, "energy_mj": 5.0 + a + 7 * b + 2 * c}[column or "lat_ms"]


class Space(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            ag.OpChoice({str(i): nn.Linear(4, 4) for i in range(n)}, name=name) for name, n in SIZES.items()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


EVERY = [ag.Architecture(dict(zip(SIZES, p, strict=True))) for p in itertools.product(*map(range, SIZES.values()))]


def priced(table: Table) -> tuple[TableColumn, TableColumn]:
    return TableColumn(table, "lat_ms"), TableColumn(table, "energy_mj")


def quiet(trials: int = 24, seed: int = 0, folder: Path | None = None, seconds: float = 30.0) -> ag.Run:
    return ag.Run(
        trials=trials,
        seed=seed,
        device="cpu",
        progress=False,
        folder=folder,
        output=ag.Output(log_every=1, checkpoint_seconds=seconds),
    )


def test_rewards_on_a_grid_and_at_their_thresholds() -> None:
    costs, scaled = {"e": 5.0, "f": 2.0}, {"e": 0.25, "f": 1.0}
    assert [mixed(FIRST, alpha=a)(0.8, costs, scaled) for a in (0.0, 0.5, 1.0)] == pytest.approx([-0.25, 0.275, 0.8])
    assert mixed(FIRST, SECOND, alpha=0.5)(0.8, costs, scaled) == pytest.approx(0.4 - 0.5 * 0.625)
    assert mixed(FIRST, SECOND, alpha=0.0, shares=(0.2, 0.8))(0.8, costs, scaled) == pytest.approx(-0.85)
    for bound, expected in ((4.9, 0.0), (5.0, 0.0), (5.1, 0.8)):  # strictly below
        power = under(FIRST.at_most(bound))
        assert power(0.8, costs, scaled) == expected and power.allows(costs) == (expected > 0)
    assert under(FIRST.at_most(6.0), SECOND.at_most(1.0))(0.8, costs, scaled) == 0.0
    assert under()(0.8, {}, {}) == 0.8
    for least, expected in ((0.79, 0.75), (0.8, 0.75), (0.81, 0.0)):  # reached counts
        assert accurate(FIRST, least=least)(0.8, costs, scaled) == expected
    assert accurate(FIRST, SECOND, least=0.5)(0.8, costs, scaled) == pytest.approx(0.375)
    assert soft(FIRST.at_most(10.0))(0.8, costs, scaled) == 0.8
    assert soft(FIRST.at_most(2.5))(0.8, costs, scaled) == pytest.approx(0.4)
    assert soft(FIRST.at_most(2.5), SECOND.at_most(1.0), exponent=-0.5)(0.8, costs, scaled) == pytest.approx(0.4)


REWARDS = {
    "mixed 0.75": lambda lat, en: mixed(lat, en, alpha=0.75),
    "mixed 0.25": lambda lat, en: mixed(lat, alpha=0.25),
    "under": lambda lat, en: under(lat.at_most(8.0), en.at_most(15.0)),
    "accurate": lambda lat, en: accurate(en, least=0.7),
    "soft": lambda lat, en: soft(lat.at_most(4.0)),
}


def taken(architecture: ag.Architecture, *costs: TableColumn) -> dict[str, float]:
    return {cost.name: cost.predict(architecture) for cost in costs}


def brute(reward: Reward, table: Table, costs: tuple[TableColumn, ...]) -> dict[ag.Architecture, float]:
    ends = {c.name: (min(map(c.predict, EVERY)), max(map(c.predict, EVERY))) for c in costs}
    worth = {}
    for a in EVERY:
        prices = taken(a, *costs)
        scaled = {n: (v - ends[n][0]) / (ends[n][1] - ends[n][0]) for n, v in prices.items()}
        worth[a] = reward(table.score(a) / 100, prices, scaled)
    return worth


@pytest.mark.parametrize("name", REWARDS)
def test_the_best_of_a_space_that_was_covered_is_that_of_brute_force(name: str) -> None:
    table = Table()
    lat, en = priced(table)
    reward = REWARDS[name](lat, en)
    worth = brute(reward, table, (lat, en))
    table.asked.clear()
    found = monas(Space(), table, quiet(), reward=reward, costs=[lat, en], terms=MonasTerms(rate=1e-4))
    assert worth[found.architecture] == pytest.approx(max(worth.values()))
    searched = table.asked[: len(found.record["trials"])]  # then come the control and what is handed back
    assert len(set(searched)) == len(searched), "an architecture was paid for twice"
    assert set(searched) == {a for a in EVERY if reward.allows(taken(a, lat, en))}
    part = next(one for one in found.record["fronts"] if one["cost"] == "lat_ms")
    assert part["costs"][part["found"]] == lat.predict(found.architecture)


def test_the_controller_moves_to_where_the_reward_is() -> None:
    table = Table()
    lat, _ = priced(table)
    for alpha, better in ((0.95, max), (0.05, min)):
        run = quiet(trials=24, seed=1)
        monas(Space(), table, run, reward=mixed(lat, alpha=alpha), terms=MonasTerms(rate=0.03, patience=150))
        rewards = [row["reward"] for row in run.history if "reward" in row]
        assert np.mean(rewards[-50:]) > np.mean(rewards[:50]) + 0.02, better


def test_a_limit_is_kept_and_what_is_over_it_not_paid() -> None:
    table = Table()
    lat, en = priced(table)
    found = monas(Space(), table, quiet(), reward=mixed(en, alpha=0.9), limit=lat.at_most(6.0))
    assert lat.predict(found.architecture) <= 6.0 and found.costs["lat_ms"] == lat.predict(found.architecture)
    assert all(lat.predict(a) <= 6.0 for a in table.asked)
    worth = brute(mixed(en, alpha=0.9), Table(), (en,))
    assert worth[found.architecture] == max(v for a, v in worth.items() if lat.predict(a) <= 6.0)


def test_on_a_trained_task_several_costs_are_weighed_and_a_clock_is_read_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def clock(network: nn.Module) -> float:
        asked.append(1)
        return float(sum(p.numel() for p in network.parameters())) + len(asked) % 2

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = {f"{n}": nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in (2, 8, 32)}
            self.body = ag.OpChoice(widths, name="width")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    task = ag.Classification((x, (x[:, 0] * x[:, 1] > 0).long()), batch_size=20)
    example = torch.zeros(1, 4)
    measured = ag.black_box(clock, name="clock", unit="u")
    reward = mixed(ag.macs(example), ag.params(), measured, alpha=0.2)

    def searched() -> tuple[ag.Run, ag.Found]:
        run = ag.Run(
            epochs=4,
            trials=3,
            seed=0,
            device="cpu",
            progress=False,
            folder=tmp_path / "run",
            output=ag.Output(log_every=1),
        )
        limit = measured.at_most(100.0)
        return run, monas(Small(), task, run, reward=reward, limit=limit, terms=MonasTerms(patience=20))

    run, found = searched()
    assert found.architecture["width"] == 0, "the smallest, since costs weigh most"
    assert found.costs["macs"] == ag.macs(example).of(found.network) and set(found.costs) >= {"params", "clock"}
    read = len(asked)
    assert searched()[1].architecture == found.architecture
    assert len(asked) == read, "what was read off the clock is not read again"
    assert [one["cost"] for one in found.record["fronts"]] == ["macs", "params", "clock"]
    # The page tells the picks of what was tried by label.
    labels = found.record["labels"]
    for one in found.record["trials"]:
        assert all(pick < len(labels[choice]) for choice, pick in one["architecture"].items())
    assert (tmp_path / "run" / "report.html").read_text().count(f"width {labels['width'][0]}") > 0
    assert "Score against macs" in (tmp_path / "run" / "report.html").read_text()
    assert sum("loss" in row for row in run.history) == 4 * task.steps_per_epoch


def test_a_prior_decides_what_is_tried_first() -> None:
    prior = {"a": torch.tensor([0.0, 30.0, 0.0]), "c": torch.tensor([30.0, 0.0, 0.0, 0.0])}
    found = monas(Space(), Table(), quiet(trials=2), prior=prior)
    assert all((one["architecture"]["a"], one["architecture"]["c"]) == (1, 0) for one in found.record["trials"])


def test_conditions_hold_for_all_that_is_tried() -> None:
    def condition(name: str, picks: dict[str, int]) -> list[int] | None:
        return [0] if name == "c" and picks["a"] == 2 else None

    found = monas(Space(), Table(), quiet(), policy=functools.partial(Categorical, condition=condition))
    tried = [one["architecture"] for one in found.record["trials"]]
    assert all(one["c"] == 0 for one in tried if one["a"] == 2)
    assert len(tried) == 18


def test_the_same_seed_does_the_same_and_several_draws_share_an_update() -> None:
    def history(seed: int, samples: int = 3) -> list[dict[str, object]]:
        run = quiet(trials=10, seed=seed)
        monas(Space(), Table(), run, terms=MonasTerms(samples=samples))
        return [{k: v for k, v in row.items() if k != "time"} for row in run.history]

    assert history(0) == history(0) != history(1)
    assert len(history(0)) < len(history(0, samples=1))


def test_a_search_killed_in_mid_run_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(folder: Path) -> ag.Found:
        table, run = Table(), quiet(20, folder=folder, seconds=0.05)
        try:
            return monas(Space(), table, run, reward=mixed(priced(table)[0], alpha=0.7))
        finally:
            run.close()

    whole = searched(tmp_path / "whole")
    add, count = Archive.add, [0]

    def dies(self: Archive, trial: object) -> None:
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt
        add(self, trial)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "killed")
    resumed = searched(tmp_path / "killed")
    assert resumed.architecture == whole.architecture
    assert resumed.record["trials"] == whole.record["trials"]
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True)
    )
    rows = [[json.loads(line) for line in (tmp_path / n / "history.jsonl").read_text().splitlines()]
            for n in ("whole", "killed")]  # fmt: skip
    timeless = [[{k: v for k, v in row.items() if k != "time"} for row in one] for one in rows]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixed(FIRST, alpha=1.2), r"give numbers in \[0, 1\]"),
        (lambda: mixed(FIRST, alpha=-0.1), r"give numbers in \[0, 1\]"),
        (lambda: mixed(FIRST, SECOND, shares=(0.7, 0.7)), "sum to 1.4"),
        (lambda: mixed(FIRST, SECOND, shares=(1.0,)), "one share for each"),
        (lambda: mixed(alpha=0.5), "give one or more"),
        (lambda: mixed(FIRST, FIRST), "each once"),
        (lambda: accurate(FIRST, least=85.0), "0.9 for 90 %"),
        (lambda: under(FIRST.at_most(fraction=0.5)), "not fractions"),
        (lambda: under(FIRST.at_most(1.0), FIRST.at_most(2.0)), "two bounds"),
        (soft, "a limit"),
        (lambda: soft(FIRST.at_most(1.0), exponent=0.5), "below 0"),
        (lambda: MonasTerms(samples=0), "1 or more"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(make: functools.partial[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_goals_that_conflict_or_cannot_be_met_are_refused() -> None:
    table = Table()
    lat, en = priced(table)
    with pytest.raises(ConfigError, match="they conflict"):
        monas(Space(), table, quiet(), reward=under(lat.at_most(9.0)), limit=lat.at_most(5.0))
    monas(Space(), table, quiet(), reward=under(lat.at_most(9.0)), limit=lat.at_most(9.0))
    with pytest.raises(LimitError, match=r"lowest reachable is 1; raise the bound, or use .*soft"):
        monas(Space(), table, quiet(), reward=under(lat.at_most(1.0)))
    with pytest.raises(LimitError, match=r"best score: 82.*rewards.soft"):
        monas(Space(), table, quiet(), reward=accurate(lat, least=0.99))
    with pytest.raises(LimitError, match=r"nothing was tried\) and \d+ draws were over a bound.*rewards.soft"):
        monas(Space(), table, quiet(), reward=under(lat.at_most(1.5), en.at_most(5.5)),
              prior={"a": torch.tensor([0.0, 0.0, 40.0])}, terms=MonasTerms(patience=30))  # fmt: skip
    with pytest.raises(ChoiceError, match="no choice is named 'z'"):
        monas(Space(), table, quiet(), prior={"z": torch.zeros(2)})

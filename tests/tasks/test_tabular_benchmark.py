"""Look-ups: what a table says is what comes back, and a table that says something else is refused."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import archgrad as ag
from archgrad.choices.estimators import score_function
from archgrad.errors import ArchgradError, ArchitectureError, DataError
from archgrad.spaces import nasbench201
from archgrad.tasks.tabular_benchmark import EDGES, OPERATIONS, Tabular

Arrays = dict[str, np.ndarray[Any, Any]]
OPS = np.array(list(itertools.product(range(5), repeat=6)), dtype=np.int8)[::-1]
PUBLISHED = {"cifar10": 94.37, "cifar100": 73.51, "imagenet16_120": 47.31}
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
PICKS = {"1.0": 3, "2.0": 0, "2.1": 1, "3.0": 0, "3.1": 0, "3.2": 4}
MERIT = np.array([0.0, 3.0, 5.0, 8.0, 2.0])  # of an operation, made up; edges count alike


def string(codes: Any) -> str:
    return nasbench201.to_string(ag.Architecture(dict(zip(EDGES, map(int, codes), strict=True))))


STRINGS = np.array([string(codes) for codes in OPS], dtype="S")


def arrays(**changed: Any) -> Arrays:
    """A complete table of made-up scores, best for 3x3 convolutions everywhere. None takes a column out."""
    merit = MERIT[OPS].sum(1)
    full: dict[str, Any] = {"arch": STRINGS, "lat_ms_toy": 1.0 + merit.astype(np.float32)}
    for data, best in PUBLISHED.items():
        full[f"{data}_test_e200"] = (best * (merit + 10) / 58).astype(np.float32)
        full[f"{data}_test_e12_1seed"] = (best * (merit + 5) / 60).astype(np.float32)
    return {name: array for name, array in (full | changed).items() if array is not None}


def saved(path: Path, table: Arrays) -> Path:
    np.savez(path, **table)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def table() -> Tabular:
    return Tabular(arrays())


def row(cell: str) -> int:
    return STRINGS.tolist().index(cell.encode())


def test_operations_and_edges_are_those_of_the_space() -> None:
    assert OPERATIONS == nasbench201.LABELS
    assert EDGES == nasbench201.EDGES


@pytest.mark.parametrize("data", sorted(PUBLISHED))
@pytest.mark.parametrize(("epochs", "column"), [(200, "test_e200"), (12, "test_e12_1seed")])
def test_score_is_the_entry_of_the_named_column(tmp_path: Path, data: str, epochs: int, column: str) -> None:
    path = saved(tmp_path / "table.npz", arrays())
    task = Tabular.load(path, data=data, epochs=epochs)
    assert task.column == f"{data}_{column}"
    assert task.score(CELL) == float(arrays()[f"{data}_{column}"][row(CELL)])
    assert task.notes == ()


def test_every_row_is_found_in_the_order_of_the_table(table: Tabular) -> None:
    assert len(table) == 15625
    assert list(table) == [text.decode() for text in STRINGS.tolist()]
    assert [table.score(cell) for cell in table] == arrays()["cifar10_test_e200"].astype(float).tolist()


def test_optimum_rank_and_regret(table: Tabular) -> None:
    assert table.best == string([3] * 6)
    assert table.optimum == table.score(table.best) == pytest.approx(94.37, abs=1e-5)
    assert table.rank(table.best) == 1
    assert table.regret(table.best) == 0.0
    second = string([3, 3, 2, 3, 3, 3])  # one of six cells that share the second place
    assert table.rank(second) == 2
    third = string([3, 3, 2, 2, 3, 3])
    scores = arrays()["cifar10_test_e200"]
    assert table.rank(third) == int((scores > scores[row(third)]).sum()) + 1 > 8
    assert table.regret(third) == pytest.approx(94.37 * 6 / 58, abs=1e-4)
    assert table.rank(string([0] * 6)) == 15625


@pytest.mark.parametrize("spelling", [f"  {CELL}\n", PICKS, ag.Architecture(PICKS), np.str_(CELL)])
def test_other_exact_spellings_are_the_same_cell(table: Tabular, spelling: Any) -> None:
    assert table.score(spelling) == table.score(CELL)
    assert table.cost(spelling, "lat_ms_toy") == table.cost(CELL, "lat_ms_toy")
    assert spelling in table


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", "character 1, the end of the string", r"'\|'"),
        (CELL.replace("none~1", "nonee~1"), f"character {CELL.index('none~1') + 1}, 'nonee", ".*nearest: none"),
        (CELL.replace("none~1", "none~0"), f"character {CELL.index('none~1') + 6}, '0", r"'1\|'"),
        (CELL[:-1], f"character {len(CELL)}, the end of the string", r"'\|'"),
        (CELL + "|", f"character {len(CELL) + 1}, '\\|'", "the end"),
        (CELL.replace("|+|", "|"), "character 17, 'none", r"'\+\|'"),
        (CELL.replace("+", "＋"), "character 17,", r"'\+\|'"),
        (CELL.upper(), "character 2,", "an operation"),
        ("|" + "none" * 100000, "character 2,", "an operation"),
    ],
)
def test_a_string_that_is_no_cell_is_refused_at_the_place(
    table: Tabular, text: str, place: str, expected: str
) -> None:
    with pytest.raises(ArchitectureError, match=f"{place}.*expected {expected}") as caught:
        table.score(text)
    assert len(str(caught.value)) < 500
    assert text not in table


@pytest.mark.parametrize("cell", [CELL.encode(), None, 3])
def test_what_is_neither_string_nor_mapping_is_refused(table: Tabular, cell: Any) -> None:
    with pytest.raises(ArchitectureError, match=f"not as {type(cell).__name__}"):
        table.score(cell)


@pytest.mark.parametrize("pick", [5, -1, True, (1,), None])
def test_picks_of_another_space_are_refused(table: Tabular, pick: Any) -> None:
    with pytest.raises(ArchitectureError, match=r"choice '3\.2': the pick is"):
        table.score({**PICKS, "3.2": pick})
    with pytest.raises(ArchitectureError, match="has the choices"):
        table.score({**PICKS, "3.3": pick})


def test_costs_and_columns(tmp_path: Path) -> None:
    path = saved(tmp_path / "table.npz", arrays(edges=np.zeros((6, 2), np.int8), other=np.zeros(3)))
    task = Tabular.load(path, cost="lat_ms_toy")
    assert task.cost(string([3] * 6)) == task.cost(string([3] * 6), "lat_ms_toy") == 49.0
    assert task.cost(CELL, "cifar100_test_e200") == Tabular.load(path, data="cifar100").score(CELL)
    assert set(task.columns()) == set(arrays()) - {"arch"}
    with pytest.raises(DataError, match=r"no column 'lat_ms_toi' \(nearest: lat_ms_toy\)"):
        task.cost(CELL, "lat_ms_toi")
    with pytest.raises(DataError, match="name it here or"):
        Tabular.load(path).cost(CELL)
    with pytest.raises(DataError, match=r"other is float64 of shape \[3\]"):
        Tabular.load(path, cost="other")


def test_indices_and_hundredths_say_the_same_as_strings_and_percent() -> None:
    whole = {name: np.rint(a * 100) for name, a in arrays().items() if name.endswith(("e200", "1seed"))}
    floats = Tabular(arrays(**{name: a / 100 for name, a in whole.items()}))
    core: dict[str, Any] = {name: a.astype(np.uint16) for name, a in whole.items()}
    core |= {
        "arch": None,
        "ops": OPS,
        "op_names": np.array(OPERATIONS),
        "rep_index": np.arange(15625, dtype=np.uint16),
    }
    packed = Tabular(arrays(**core))
    assert list(packed) == list(floats)
    assert [packed.score(c) for c in packed] == pytest.approx([floats.score(c) for c in floats], abs=1e-5)
    assert packed.optimum == 94.37
    assert packed.notes == ()
    assert packed.cost(packed.best, "cifar100_test_e12_1seed") == pytest.approx(73.51 * 53 / 60, abs=0.006)
    assert packed.cost(CELL, "rep_index") == row(CELL)


def test_other_optima_are_noted_and_not_refused() -> None:
    own = Tabular(arrays(cifar100_test_e200=arrays()["cifar100_test_e200"] - 5.0))
    assert len(own.notes) == 1
    assert "cifar100_test_e200 is 68.51, the published one 73.51" in own.notes[0]
    near = Tabular(arrays(cifar100_test_e200=arrays()["cifar100_test_e200"] + 0.009))
    assert near.notes == ()
    assert Tabular(arrays(cifar10_test_e200=None), epochs=12).notes == ()


def test_a_part_of_the_cells_only_where_asked_for(tmp_path: Path) -> None:
    part = {name: array[:15000] for name, array in arrays().items()}
    path = saved(tmp_path / "part.npz", part)
    with pytest.raises(DataError, match=r"15,000 of 15,625 cells; \|none~0.*complete=False"):
        Tabular.load(path)
    task = Tabular.load(path, complete=False)
    assert len(task) == 15000
    missing = STRINGS[-1].decode()
    assert missing not in task
    with pytest.raises(DataError, match="no row for"):
        task.score(missing)
    assert {task.sample() for _ in range(50)} <= set(task)


def test_a_cell_that_is_there_twice_is_refused() -> None:
    twice = STRINGS.copy()
    twice[7] = twice[3]
    for complete in (True, False):
        with pytest.raises(DataError, match="rows 3 and 7 are the same cell"):
            Tabular(arrays(arch=twice), complete=complete)


def replaced(array: Any, place: Any, value: Any) -> Any:
    changed = array.copy()
    changed[place] = value
    return changed


SCORES = arrays()["cifar10_test_e200"]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"cifar10_test_e200": replaced(SCORES, 5, np.nan)}, "1 entries .* nan in row 5"),
    "infinite": ({"cifar10_test_e200": replaced(SCORES, [2, 5], np.inf)}, "2 entries .* inf in row 2"),
    "no_cells": ({"arch": None}, "neither .arch."),
    "no_value": ({"cifar10_test_e200": np.full(15625, 65535, np.uint16)}, "beyond 100 %"),
    "whole": ({"cifar10_test_e200": SCORES.astype(int)}, "is int64; accuracies are floats"),
    "strings": ({"cifar10_test_e200": SCORES.astype(str)}, "must hold one number"),
    "complex": ({"cifar10_test_e200": SCORES.astype(complex)}, "must hold one number"),
    "short": ({"cifar10_test_e200": SCORES[:-1]}, r"shape \[15624\]; it must hold one number"),
    "misnamed": ({"cifar10_test_e200": None, "cifar10_test_200": SCORES}, "nearest: .*cifar10_test_200"),
    "cells_misnamed": ({"arch": None, "archs": STRINGS}, "nearest: archs"),
    "cells_as_numbers": ({"arch": np.arange(15625)}, "arch is int64"),
    "cells_in_a_square": ({"arch": STRINGS.reshape(125, 125)}, "arch is"),
    "no_cell": ({"arch": replaced(STRINGS, 9, b"|none~0|")}, "arch in row 9: .*character 9"),
    "no_ascii": ({"arch": replaced(STRINGS, 9, b"\xff\xfe")}, "arch in row 9"),
    "empty": ({"arch": STRINGS[:0]}, "no rows"),
    "ops_floats": ({"arch": None, "ops": OPS.astype(float)}, "ops is float64"),
    "ops_beyond": ({"arch": None, "ops": replaced(OPS, (4, 2), 5)}, "ops has 5 in row 4, edge 2.1"),
    "ops_other": ({"ops": OPS[::-1]}, "arch and ops name different cells, first in row 0"),
    "ops_names": ({"arch": None, "ops": OPS, "op_names": np.array(OPERATIONS[::-1])}, "op_names"),
    "ops_edges": ({"arch": None, "ops": OPS, "edges": np.zeros((6, 2), np.int8)}, "edges"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_wrong_table_is_refused(case: str) -> None:
    changed, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        Tabular(arrays(**changed))


def test_a_cost_without_a_number_is_refused_when_it_is_read() -> None:
    hole = arrays(lat_ms_toy=replaced(arrays()["lat_ms_toy"], row(CELL), np.nan))
    with pytest.raises(DataError, match=f"nan in row {row(CELL)}"):
        Tabular(hole, cost="lat_ms_toy")
    task = Tabular(hole)
    assert task.cost(task.best, "lat_ms_toy") == 49.0
    with pytest.raises(DataError, match="lat_ms_toy is nan"):
        task.cost(CELL, "lat_ms_toy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "cifar"}, "data='cifar'.*nearest: cifar10"),
        ({"data": 10}, "data=10.*'imagenet16_120'"),
        ({"epochs": 100}, "epochs=100"),
        ({"epochs": [200]}, "epochs="),
        ({"cost": "energy"}, "no column 'energy'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Tabular(arrays(), **options)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            Tabular.load(path)
    for name, content in {"empty": b"", "text": b"PAR1 no zip 100%s", "zip": b"PK\x03\x04" + bytes(100)}.items():
        path = tmp_path / f"{name} 100%s.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged or not a"):
            Tabular.load(path)
    np.save(tmp_path / "one.npy", OPS)
    with pytest.raises(DataError, match="is damaged or not a"):
        Tabular.load(tmp_path / "one.npy")


class Trap:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = saved(tmp_path / "table.npz", arrays(extra=np.array([Trap(sprung)], dtype=object)))
    with pytest.raises(DataError, match="extra holds pickled Python objects"):
        Tabular.load(path)
    assert not sprung.exists()


def test_damaged_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    few = {name: array[:40] for name, array in arrays().items()}
    whole = saved(tmp_path / "whole.npz", few).read_bytes()
    expected = [Tabular(few, complete=False).score(cell) for cell in Tabular(few, complete=False)]
    path, generator, refused = tmp_path / "damaged.npz", np.random.default_rng(0), 0
    for trial in range(200):
        content = bytearray(whole)
        if trial % 4 == 0:
            content = content[: generator.integers(len(content))]
        else:
            for place in generator.integers(len(content), size=trial % 4):
                content[place] = generator.integers(256)
        path.write_bytes(bytes(content))
        try:
            task = Tabular.load(path, complete=False)
        except DataError as error:
            refused += 1
            assert len(str(error)) < 1000
        else:
            assert [task.score(cell) for cell in task] == expected
    assert refused > 100


def test_samples_are_uniform_and_repeat_with_the_generator(table: Tabular) -> None:
    draws = [table.sample(generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert draws[0] == draws[1]
    generator = torch.Generator().manual_seed(0)
    seen = [table.sample(generator=generator) for _ in range(5000)]
    share = np.mean([cell.startswith("|none~0|") for cell in seen])
    assert abs(share - 0.2) < 0.03  # five standard deviations
    assert len(set(seen)) > 4000


def test_methods_that_sample_run_on_look_ups(table: Tabular) -> None:
    """Random search, ageing evolution and a policy gradient of ours; a trial takes milliseconds at most."""
    generator = torch.Generator().manual_seed(0)
    space = ag.nasbench201_cells(channels=1, cells=1)
    began = time.process_time()
    drawn = max((ag.sample(space, generator=generator) for _ in range(200)), key=table.score)
    evolved = evolve(table, trials=400, generator=generator)
    decided = steer(table, steps=100, generator=generator)
    assert (time.process_time() - began) / 1500 < 5e-3
    assert 1 < table.rank(drawn) < 500  # the best of 200: rank 78 on average
    assert table.rank(evolved) < 50
    assert table.rank(decided) <= 7  # at most one edge is wrong


def evolve(task: Tabular, *, trials: int, generator: torch.Generator) -> ag.Architecture:
    """Ageing evolution: a child of the best of ten replaces the oldest of 40."""

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    living = deque((ag.Architecture({edge: draw(5) for edge in EDGES}) for _ in range(40)), maxlen=40)
    best = max(living, key=task.score)
    for _ in range(trials - len(living)):
        parent = max((living[draw(len(living))] for _ in range(10)), key=task.score)
        child = ag.Architecture({**parent, EDGES[draw(6)]: draw(5)})
        living.append(child)
        best = max(best, child, key=task.score)
    return best


def steer(task: Tabular, *, steps: int, generator: torch.Generator) -> dict[str, int]:
    """A categorical policy for each edge, by the score function of ten cells a step."""

    def loss(weights: list[torch.Tensor]) -> torch.Tensor:
        picks = torch.stack([one.argmax(1) for one in weights], dim=1).tolist()
        return torch.tensor([-task.score(dict(zip(EDGES, row, strict=True))) for row in picks])

    logits = [torch.zeros(len(OPERATIONS), requires_grad=True) for _ in EDGES]
    optimizer, baseline = torch.optim.Adam(logits, lr=0.1), -50.0
    for _ in range(steps):
        value = score_function(loss, logits, samples=10, generator=generator, baseline=baseline)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        baseline = 0.9 * baseline + 0.1 * value.item()
    return {edge: int(one.argmax()) for edge, one in zip(EDGES, logits, strict=True)}


def real(name: str) -> Path:
    folder = os.environ.get("ARCHGRAD_DATA")
    path = Path(folder or "") / "nasbench201" / name
    if not folder or not path.is_file():
        pytest.skip(f"ARCHGRAD_DATA is not set, or has no nasbench201/{name}")
    return path


@pytest.mark.parametrize("name", ["nasbench201.npz", "nasbench201_core.npz"])
def test_the_published_table(name: str) -> None:
    rank_correlation = {"cifar10": 0.871, "cifar100": 0.824, "imagenet16_120": 0.809}
    for data, published in PUBLISHED.items():
        task, short = Tabular.load(real(name), data=data), Tabular.load(real(name), data=data, epochs=12)
        assert task.notes == short.notes == ()
        assert len(task) == 15625
        assert task.optimum == pytest.approx(published, abs=0.01)
        assert len({task.cost(cell, "rep_index") for cell in task}) == 6466
        ranks = [np.argsort(np.argsort([one.score(cell) for cell in task])) for one in (task, short)]
        assert np.corrcoef(*ranks)[0, 1] == pytest.approx(rank_correlation[data], abs=0.002)


def test_the_published_table_has_its_costs_and_the_rows_of_the_space() -> None:
    task = Tabular.load(real("nasbench201.npz"), cost="params_m_cifar10")
    for cell in list(task)[::1000]:
        network = ag.nasbench201_network(cell)
        assert task.cost(cell) == pytest.approx(sum(p.numel() for p in network.parameters()) / 1e6, rel=1e-6)
    assert {task.cost(cell, "index") for cell in task} == set(range(15625))
    packed = Tabular.load(real("nasbench201_core.npz"))
    assert list(packed) == list(task)
    with pytest.raises(ArchgradError, match="nearest: lat_ms_help_raspi4"):
        task.cost(task.best, "latency_help_raspi4")

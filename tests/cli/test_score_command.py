"""`archgrad score`: what it ranks, writes and says, goes on with, and every input that it refuses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

import archgrad as ag
from archgrad import proxies
from archgrad.cli.schemas.score import PROXIES
from archgrad.proxies import rank_agreement
from archgrad.spaces.nasbench201 import nasbench201_cells

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
OTHER = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
SMALL = ("--cells", "1", "--channels", "2", "--size", "8", "--threads", "1")

NETS = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, in_channels=3, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Linear(width, classes)

    def forward(self, x):
        return self.last(self.body(x).mean((2, 3)))

def wide(classes=3, in_channels=3):
    return Net(classes, in_channels, width=32)

def empty():
    return nn.Sequential(nn.ReLU(), nn.Flatten())

def nan():
    net = Net()
    nn.init.constant_(net.last.weight, float("nan"))
    return net

def half():
    return Net().half()

def meta():
    return Net().to("meta")

def smooth():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten())

def later():
    if not os.path.exists(os.environ["READY"]):
        raise ValueError("not yet")
    return Net()
"""


def ops() -> np.ndarray:
    return np.array(list(itertools.product(range(5), repeat=6)))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with networks, labelled images, and tables, whole and not."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "nets.py").write_text(NETS)
    codes = ops()
    accuracy = 40 + np.array([0.0, 3.0, 5.0, 8.0, 2.0])[codes].sum(1)
    np.savez(folder / "table.npz", ops=codes, cifar10_test_e200=accuracy)
    np.savez(folder / "part.npz", ops=codes[-40:], cifar10_test_e200=accuracy[-40:])
    np.savez(folder / "columns.npz", ops=codes, accuracy=accuracy)
    np.savez(folder / "nan.npz", ops=codes, cifar10_test_e200=np.where(codes[:, 0] == 1, np.nan, accuracy))
    (folder / "damaged.npz").write_bytes((folder / "table.npz").read_bytes()[:5000])
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(40, 3, 8, 8)).astype(np.float32), y=np.arange(40) % 4)
    return folder


def test_one_cell_is_scored_as_the_library_scores_it(cli: Callable) -> None:
    result = cli("score", "--arch", CELL, *SMALL, "--proxy", "synflow", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    (row,) = record["networks"]
    torch.manual_seed(0)
    network = ag.nasbench201_network(CELL, channels=2, cells=1)
    assert row["name"] == CELL and row["scores"]["params"] == ag.params().of(network)
    space = nasbench201_cells(channels=2, cells=1).resized()
    torch.manual_seed(0)
    network = ag.build(space, space.from_string(CELL), weights="fresh")
    assert row["scores"]["synflow"] == proxies.synflow(network, torch.zeros(1, 3, 8, 8))
    # The sizes stand beside whatever is asked for.
    assert [one["name"] for one in record["proxies"]] == ["params", "macs", "synflow"]
    assert all("spearman" not in one for one in record["proxies"])


def test_the_default_needs_no_data_and_says_how_far_to_trust_it(cli: Callable) -> None:
    result = cli("score", "--arch", CELL, "--arch", OTHER, *SMALL)
    assert result.exit_code == 0, result.output
    for word in ("params", "macs", "synflow", "zen", "meco", ".74 / .76 / .75", "mean rank", CELL, OTHER):
        assert word in result.stdout
    said = " ".join(result.stdout.split())
    assert "Nothing was measured here" in said and "Take several of the first" in said


def test_a_table_gives_the_correlations_and_the_folder_a_report(shelf: Path, tmp_path: Path, cli: Callable) -> None:
    out = tmp_path / "run"
    arguments = ("--sample", "12", "--table", shelf / "table.npz", *SMALL, "--proxy", "params", "--proxy", "synflow")
    result = cli("score", *arguments, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert len(record["networks"]) == 12 == len({one["name"] for one in record["networks"]})
    assert [one["rank"] for one in record["networks"]] == sorted(one["rank"] for one in record["networks"])
    accuracies = [one["accuracy"] for one in record["networks"]]
    params = [one["scores"]["params"] for one in record["networks"]]
    found = record["proxies"][0]
    assert found["spearman"] == pytest.approx(spearmanr(params, accuracies).statistic)
    assert found["kendall"] == pytest.approx(kendalltau(params, accuracies).statistic)
    assert 0 <= found["regret"] <= max(accuracies) - min(accuracies)
    assert {"record.json", "report.html", "history.jsonl", "command.json", "cell_1_cell.svg"} <= {
        path.name for path in out.iterdir()
    }
    page = (out / "report.html").read_text()
    assert "Scores against accuracy" in page and "The first by mean rank" in page and "What was found" not in page
    assert json.loads((out / "record.json").read_text()) == record
    again = cli("score", *arguments, "--out", out, "--json")
    assert json.loads(again.stdout) == record
    assert "params" in cli("report", out).stdout


def test_the_same_seed_gives_the_same_scores_whatever_stands_beside(cli: Callable) -> None:
    def scores(*cells: str) -> dict[str, object]:
        given = [word for cell in cells for word in ("--arch", cell)]
        result = cli("score", *given, *SMALL, "--proxy", "naswot", "--batch-size", "8", "--json")
        assert result.exit_code == 0, result.output
        return {one["name"]: one["scores"] for one in json.loads(result.stdout)["networks"]}

    assert scores(CELL, OTHER)[OTHER] == scores(OTHER)[OTHER]


def test_networks_of_ones_own_beside_each_other_on_labelled_data(shelf: Path, cli: Callable) -> None:
    nets = shelf / "nets.py"
    result = cli(
        "score", f"{nets}:Net", f"{nets}:wide", "--data", shelf / "data.npz", "--batch-size", "16", "--threads", "1",
        "--proxy", "snip", "--proxy", "params", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    first = record["networks"][0]
    assert first["name"].endswith(":wide") and first["scores"]["params"] == 3 * 9 * 32 + 3 * 32 + 32 * 4 + 4
    assert math.isfinite(first["scores"]["snip"]) and record["graphs"] == []


def test_all_is_what_can_be_computed(shelf: Path, cli: Callable) -> None:
    result = cli(
        "score", f"{shelf / 'nets.py'}:smooth", "--size", "6", "--batch-size", "4", "--proxy", "all", "--json"
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    names = {one["name"] for one in record["proxies"]}
    assert names == {name for name, known in PROXIES.items() if known.needs in ("nothing", "inputs")}
    assert record["networks"][0]["scores"]["naswot"] == "nan"
    assert any("naswot is left out" in note and "no ReLU" in note for note in record["notes"])


def test_joined_proxies_rank_a_population(cli: Callable) -> None:
    result = cli("score", "--sample", "3", *SMALL, "--batch-size", "8", "--proxy", "az_nas", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    scores = [one["scores"]["az_nas"] for one in record["networks"]]
    assert scores == sorted(scores, reverse=True)
    assert set(record["networks"][0]["scores"]) == {*PROXIES["az_nas"].joins, "params", "az_nas"}


@pytest.mark.parametrize(
    "text",
    [
        f"# mine\n\n{CELL}\n  {OTHER}\n",
        json.dumps([CELL, OTHER]),
        json.dumps([{"1.0": 3, "2.0": 0, "2.1": 1, "3.0": 0, "3.1": 0, "3.2": 4}, OTHER]),
        f'"{CELL}"\n{{"1.0": 1, "2.0": 0, "2.1": 1, "3.0": 0, "3.1": 0, "3.2": 4}}\n',
    ],
)
def test_architectures_from_a_file(tmp_path: Path, cli: Callable, text: str) -> None:
    (tmp_path / "cells").write_text(text)
    result = cli("score", "--architectures", tmp_path / "cells", *SMALL, "--proxy", "params", "--json")
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)["networks"]] == [CELL, OTHER]


def test_the_architecture_of_a_run(tmp_path: Path, cli: Callable) -> None:
    nasbench201_cells(cells=1).from_string(CELL).save(tmp_path / "architecture.json")
    result = cli("score", "--architectures", tmp_path / "architecture.json", *SMALL, "--proxy", "params", "--json")
    assert json.loads(result.stdout)["networks"][0]["name"] == CELL


@pytest.mark.parametrize("space", ["darts", "mobile"])
def test_other_spaces(cli: Callable, space: str) -> None:
    result = cli(
        "score", "--space", space, "--cells", "1", "--channels", "2", "--size", "16", "--sample", "2",
        "--proxy", "synflow", "--threads", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"2 networks of {space}" in result.stdout


def test_a_network_that_fails_leaves_what_can_be_gone_on_with(
    shelf: Path, tmp_path: Path, cli: Callable, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READY", str(tmp_path / "ready"))
    nets = shelf / "nets.py"
    arguments = ("score", f"{nets}:Net", f"{nets}:later", "--size", "8", "--threads", "1")
    message = refused(*arguments, "--out", tmp_path / "run")
    assert f"{nets}:later: " in message and "ValueError: not yet" in message
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 1
    (tmp_path / "ready").touch()
    resumed = cli("resume", tmp_path / "run", "--json")
    assert resumed.exit_code == 0, resumed.output
    whole = json.loads(cli(*arguments, "--json").stdout)
    assert json.loads(resumed.stdout)["networks"] == whole["networks"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "has no weights of two or more dimensions"),
        ("nan", "'last.weight' has NaN or infinite values"),
        ("half", "is torch.float16; proxies need float32 or float64"),
        ("meta", "is on the meta device and has no values"),
        ("none", "has no 'none'. It defines Net, wide"),
    ],
)
def test_networks_that_are_refused(shelf: Path, refused: Callable[..., str], name: str, said: str) -> None:
    assert said in refused("score", f"{shelf / 'nets.py'}:{name}", "--size", "8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "there is nothing to score: give a MODEL, --arch, --architectures or --sample"),
        (["--arch", CELL, "--proxy", "snip"], "proxy snip needs labels: give --data, or one of those"),
        (["--arch", CELL, "--proxy", "synfow"], "'synfow' was given. Did you mean synflow? Allowed are params, macs"),
        (["--arch", CELL, "--proxy", "az_nas"], "proxy az_nas needs other networks"),
        (["--arch", CELL, "--proxy", "naswot", "--batch-size", "1"], "proxy naswot: a batch of 1 examples"),
        (["--arch", CELL.replace("none~1", "non~1")], "node 3 has the operation 'non'"),
        (["--arch", ""], "--arch: '' is no NAS-Bench-201 cell"),
        (["--arch", CELL, "--space", "mobile"], "is no mobile architecture"),
        (["--arch", CELL, "--space", "nasbench"], "space 'nasbench' is not known. Did you mean nasbench201"),
        (["--sample", "0"], "--sample: 0 was given"),
        (["--sample", "15626"], "--sample 15626: the space has 15,625 architectures"),
        (["--sample", "2", "--device", "cuda:9"], "device='cuda:9' was given"),
        (["--sample", "2", "--space", "darts", "--table", "x.npz"], "a table holds cells of the space nasbench201"),
        (["--sample", "2", "--partial"], "partial goes with a table"),
        (["--sample", "2", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["--sample", "2", "--data", "x.npz", "--classes", "3"], "classes=3 goes without data"),
        (["net.py:Net", "--sample", "2"], "MODEL 'net.py:Net' and --sample do not go together"),
    ],
)
def test_score_options_that_are_refused(refused: Callable[..., str], options: list[str], said: str) -> None:
    size = SMALL if not {"darts", "mobile", "net.py:Net", "nowhere"} & set(options) else ()
    assert said in refused("score", *options, *size)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no architecture"),
        (bytes(range(256)), "cannot be read"),
        (f"{CELL}\n{CELL}x\n".encode(), "line 2: "),
        (b'["a",', "this is not JSON"),
        (b"[3]", "entry 1: 3 is neither text nor an object"),
        (b'[{"1.0": 0}]', "is for another space: it lacks ['2.0'"),
        (b'[{"1.0": 9, "2.0": 0, "2.1": 0, "3.0": 0, "3.1": 0, "3.2": 0}]', "'1.0': the pick is 9; allowed"),
    ],
)
def test_files_of_architectures_that_are_refused(
    tmp_path: Path, refused: Callable[..., str], content: bytes, said: str
) -> None:
    (tmp_path / "cells").write_bytes(content)
    assert said in refused("score", "--architectures", tmp_path / "cells", *SMALL)
    assert "is a folder" in refused("score", "--architectures", tmp_path, *SMALL)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("part.npz", "has 40 of 15,625 cells; |none~0|"),
        ("columns.npz", "has no column 'cifar10_test_e200'"),
        ("nan.npz", "entries that are NaN"),
        ("damaged.npz", "is damaged or not a .npz file"),
        ("nets.py", "is damaged or not a .npz file"),
        ("nowhere.npz", "no such file"),
    ],
)
def test_tables_that_are_refused(
    shelf: Path, tmp_path: Path, refused: Callable[..., str], file: str, said: str
) -> None:
    message = refused("score", "--sample", "2", "--table", shelf / file, *SMALL, "--out", tmp_path / "run")
    assert said in message
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_part_of_a_table_is_taken_where_that_is_said(
    shelf: Path, cli: Callable, refused: Callable[..., str]
) -> None:
    table = ("--table", shelf / "part.npz", "--partial", *SMALL, "--proxy", "params")
    result = cli("score", "--sample", "8", *table, "--json")
    assert result.exit_code == 0, result.output
    assert all(one["name"].startswith("|avg_pool_3x3~0|") for one in json.loads(result.stdout)["networks"])
    assert "has no row for" in refused("score", "--arch", CELL, *table)
    assert "the table has 40 cells" in refused("score", "--sample", "41", *table)


def test_a_folder_of_other_scores_is_left_alone(tmp_path: Path, cli: Callable, refused: Callable[..., str]) -> None:
    arguments = ("score", *SMALL, "--proxy", "params", "--out", tmp_path / "run", "--arch")
    assert cli(*arguments, CELL).exit_code == 0
    before = (tmp_path / "run" / "record.json").read_bytes()
    assert "holds another run. It differs in arch" in refused(*arguments, OTHER)
    assert (tmp_path / "run" / "record.json").read_bytes() == before
    (tmp_path / "file").touch()
    assert "cannot be created" in refused("score", *SMALL, "--arch", CELL, "--out", tmp_path / "file")


def test_agreement_against_hand_counts() -> None:
    accuracies = [float(k) for k in range(1, 61)]
    perfect = rank_agreement(accuracies, accuracies)
    assert (perfect["spearman"], perfect["kendall"], perfect["top_tenth"], perfect["regret"]) == (1.0, 1.0, 1.0, 0.0)
    reversed_ = rank_agreement(accuracies[::-1], accuracies)
    assert (reversed_["spearman"], reversed_["kendall"], reversed_["regret"]) == (-1.0, -1.0, 59.0)
    # NaN is the worst, equal scores have no order, and too few networks say nothing.
    undefined = rank_agreement([math.nan, *accuracies[1:]], accuracies)
    assert undefined["spearman"] == 1.0
    level = rank_agreement([0.0] * 60, accuracies)
    assert level["spearman"] is None and level["regret"] == pytest.approx(60 - 30.5)
    assert rank_agreement([1.0, 2.0], [1.0, 2.0])["kendall"] is None

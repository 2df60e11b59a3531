"""`archgrad train` of architectures that were searched, the recipe's options, and every input that it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import archgrad
from archgrad.cli.inputs import spaces
from archgrad.spaces.darts import darts_cells

FEW = ("--steps", "4", "--batch-size", "18", "--threads", "1", "--no-onnx")


def test_a_found_cell_is_trained_larger_with_an_auxiliary_head_and_drop_path(
    searched: Path, place: Path, tmp_path: Path, cli: Callable, no_onnx: None
) -> None:
    result = cli(
        "train", searched / "architecture.json", place / "data.npz", "--cells", "4", "--channels", "3",
        "--auxiliary", "0.4", "--drop-path", "0.2", "--augment", "crop=1,cutout=2", "--optimizer", "adamw",
        "--learning-rate", "0.01", "--weight-decay", "0.1", "--clip", "5", "--smoothing", "0.1", *FEW,
        "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["title"] == "darts (factorized, 4 cells, 3 channels) trained"
    assert record["settings"] == {
        "recipe": {
            "optimizer_factory": "adamw(learning_rate=0.01, weight_decay=0.1)", "schedule": "cosine", "clip": 5.0,
            "average": None, "accumulate": 1, "drop_path": 0.2, "best_epoch": False,
        },
        "auxiliary": 0.4,
    }  # fmt: skip
    assert record["data"]["smoothing"] == 0.1
    assert [graph["name"] for graph in record["graphs"]] == ["normal", "reduce"]

    space = darts_cells(cells=3, channels=2, classes=3, in_channels=1, factorized=True)
    architecture = archgrad.Architecture.load(tmp_path / "run" / "architecture.json")
    assert architecture == archgrad.Architecture.load(searched / "architecture.json")
    network = archgrad.build(space, architecture, cells=4, channels=3)
    missing, unexpected = safetensors.torch.load_model(network, tmp_path / "run" / "network.safetensors")
    assert not missing and not unexpected
    assert sum(p.numel() for p in network.parameters()) == record["after"]["params"]
    # The score is that of the weights that were kept, which those of another network do not have.
    task = archgrad.Classification.load(place / "data.npz", batch_size=18)
    assert task.evaluate(network, "test")["loss"] == pytest.approx(record["after"]["loss"], rel=1e-5)
    other = archgrad.build(space, architecture, cells=4, channels=3)
    assert task.evaluate(other, "test")["loss"] != pytest.approx(record["after"]["loss"], rel=1e-5)
    x = torch.randn(3, 1, 8, 8)
    exported = torch.export.load(tmp_path / "run" / "network.pt2").module()
    torch.testing.assert_close(exported(x), network.eval()(x), rtol=1e-4, atol=1e-5)
    assert spaces.recorded(tmp_path / "run" / "architecture.json") == spaces.SpaceDescription(
        kind="darts", cells=4, channels=3, factorized=True
    )


@pytest.fixture
def own(place: Path, tmp_path: Path) -> Path:
    """The file of an architecture of space.py:Space, alone."""
    archgrad.Architecture({"op": 1, "last": 2}).save(tmp_path / "own.json")
    return tmp_path / "own.json"


def test_an_architecture_of_ones_own_space_is_trained_and_resumed(
    own: Path, place: Path, tmp_path: Path, cli: Callable, refused: Callable[..., str], no_onnx: None
) -> None:
    space = f"{place / 'space.py'}:Space"
    arguments = ("train", own, place / "data.npz", "--space", space, "--average", "0.5", *FEW)
    result = cli(*arguments, "--json", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["space"] == {"kind": space, "classes": 3}
    assert record["settings"]["recipe"]["average"] == 0.5
    assert record["after"]["params"] == 8 * 9 + 8 + 8 * 8 * 9 + 8 + 16 + 8 * 3 + 3
    again = cli("resume", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["after"] == record["after"]
    # A record may come from anywhere, and naming code is no reason to run it.
    found = tmp_path / "run" / "architecture.json"
    message = refused("train", found, place / "data.npz", "--out", tmp_path / "two")
    assert f"To run its code, name it: --space {space}" in message
    for option in ("--cells", "3"), ("--drop-path", "0.2"), ("--auxiliary", "0.4"):
        assert "it has one size only" in refused(*arguments, *option, "--out", tmp_path / "two")


@pytest.mark.parametrize(
    ("space", "cells", "wanted"),
    [
        (
            darts_cells(cells=5, channels=4),
            None,
            spaces.SpaceDescription(kind="darts", cells=8, channels=16, factorized=False),
        ),
        (
            darts_cells(cells=3, factorized=True, channels=4),
            20,
            spaces.SpaceDescription(kind="darts", cells=8, channels=16, factorized=True),
        ),
        (
            darts_cells(cells=2, channels=4),
            2,
            spaces.SpaceDescription(kind="darts", cells=2, channels=16, factorized=False),
        ),
    ],
)
def test_the_form_of_a_darts_space_is_told_by_its_architecture(
    tmp_path: Path, space: torch.nn.Module, cells: int | None, wanted: spaces.SpaceDescription
) -> None:
    architecture = archgrad.sample(space)
    path = tmp_path / "architecture.json"
    assert spaces.searched_in(path, architecture, "darts", cells=cells, channels=None) == wanted
    assert spaces.searched_in(path, architecture, None, cells=cells, channels=None) is None


def test_a_mobile_architecture_tells_its_depth(tmp_path: Path) -> None:
    architecture = archgrad.Architecture({f"layer{i:02d}": 0 for i in range(1, 12)})
    found = spaces.searched_in(tmp_path / "a.json", architecture, "mobile", cells=None, channels=8)
    assert found == spaces.SpaceDescription(kind="mobile", cells=2, channels=8)


def test_sizes_that_do_not_fit_are_refused(
    searched: Path, place: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data, out = place / "data.npz", ("--out", tmp_path / "run")
    found = searched / "architecture.json"
    assert "give 3 cells or more to both" in refused("train", found, data, "--cells", "2", *out)
    net = f"{place / 'net.py'}:Net"
    assert "cells may be given for an architecture" in refused("train", net, data, "--cells", "4", *out)
    assert "space may be given" in refused("train", found, data, "--model", net, "--space", "darts", *out)
    assert "Allowed is a tuple (logits, auxiliary logits)" in refused("train", net, data, "--auxiliary", "0.4", *out)
    assert "no module named drop_path" in refused("train", net, data, "--drop-path", "0.2", *out)
    for options in (["--average", "1"], ["--smoothing", "-1"], ["--clip", "0"], ["--drop-path", "1"]):
        assert f"{options[0]}: {float(options[1])} was given" in refused("train", net, data, *options, *out)
    refused("train", net, data, "--optimizer", "lion", *out)


@pytest.mark.parametrize(
    ("edit", "options", "said"),
    [
        (lambda text: text[:-20], [], "is not JSON"),
        (lambda text: "{}", [], '"format" is None'),
        (lambda text: text.replace('"normal.2.op0": ', '"normal.2.op0": 9'), [], "'normal.2.op0': the pick is 9"),
        (lambda text: text.replace('"normal.2.op0": ', '"normal.2.op0": -1'), [], "the pick is -1"),
        (lambda text: text.replace("normal.2.op0", "normal.2.op7"), [], "is for another space"),
        (lambda text: text, ["--space", "nasbench201"], "is for another space"),
        (lambda text: text, ["--space", "mobile"], "is for another space"),
        (lambda text: text, ["--space", "dartz"], "space 'dartz' is not known. Did you mean darts?"),
    ],
)  # fmt: skip
def test_architectures_that_are_refused(
    searched: Path, place: Path, tmp_path: Path, refused: Callable[..., str], edit: Callable, options: list, said: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(searched / "record.json", run)
    text = (searched / "architecture.json").read_text()
    (run / "architecture.json").write_text(edit(text))
    message = refused("train", run / "architecture.json", place / "data.npz", *options, "--out", tmp_path / "out")
    assert said in message


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "no record beside it says which space it is of. Give --space darts"),
        ("{}", "no record beside it says which space"),
        ("{", "record.json is damaged"),
        ('{"space": []}', "record.json is damaged"),
        ('{"space": {"kind": "darts"}}', "the space darts needs cells and channels"),
        ('{"space": {"kind": "darts", "cells": "many", "channels": 4}}', "record.json is damaged"),
        ('{"space": {"kind": "darts", "cells": 0, "channels": 4}}', "record.json is damaged"),
    ],
)
def test_records_that_are_refused(
    own: Path, place: Path, tmp_path: Path, refused: Callable[..., str], record: str | None, said: str
) -> None:
    if record is not None:
        (tmp_path / "record.json").write_text(record)
    assert said in refused("train", own, place / "data.npz", "--out", tmp_path / "run")

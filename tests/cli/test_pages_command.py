"""board, compare and report on real runs, and the command that a run's folder can be made again with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SLIM, invoke
from typer.testing import Result

from archgrad.cli.command_file import arguments
from archgrad.cli.schemas.score import ScoreOptions
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.slim import SlimOptions


def test_compare_prints_a_table_and_draws_a_page(slimmed: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    page, other = tmp_path / "compare.html", Path(shutil.copytree(slimmed, tmp_path / "other"))
    record = json.loads((other / "record.json").read_text())
    (other / "record.json").write_text(json.dumps({**record, "method": "unas", "before": None, "settings": {"a": 1}}))
    result = cli("compare", slimmed, other, "--out", page)
    assert result.exit_code == 0, result.output
    for told in (
        "dnal",
        "unas",
        "MACs, before",
        "limit kept",
        "Where they differ",
        str(page),
    ):
        assert told in result.stdout, told
    assert "decisions left" not in result.stdout  # neither method's record has that card
    assert "2 runs side by side" in page.read_text()
    told = json.loads(cli("compare", slimmed, other, "--json").stdout)
    assert [one["method"] for one in told["runs"]] == ["dnal", "unas"] and told["runs"][0]["seconds"] > 0
    assert "warnings" in told and "method" not in told["differences"]


def test_what_cannot_be_compared_ends_with_status_2(
    slimmed: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "two or more folders" in refused("compare", slimmed)
    assert "There is no run folder" in refused("compare", slimmed, tmp_path / "none")
    assert "holds no run" in refused("compare", slimmed, tmp_path)
    assert "give a file" in refused("compare", slimmed, slimmed, "--out", tmp_path)


def test_a_report_is_written_where_asked(
    slimmed: Path, tmp_path: Path, cli: Callable[..., Result], refused: Callable[..., str]
) -> None:
    out = tmp_path / "mine.html"
    before = {path.name: path.stat().st_mtime_ns for path in slimmed.iterdir()}
    assert f"The report is {out}" in cli("report", slimmed, "--out", out).stdout
    assert {path.name: path.stat().st_mtime_ns for path in slimmed.iterdir()} == before
    assert out.read_text() == (slimmed / "report.html").read_text()
    for wrong in (tmp_path, tmp_path / "none" / "a.html", tmp_path / "a.pdf", tmp_path / "a"):
        for command in (("report", slimmed), ("compare", slimmed, slimmed)):
            assert "give a file .html" in refused(*command, "--out", wrong)


def test_what_cannot_be_served_ends_with_status_2(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "There is no run folder" in refused("board", tmp_path / "none", "--no-open")
    assert "65535" in refused("board", tmp_path, "--port", "70000")


def test_the_board_is_served_until_it_is_interrupted(slimmed: Path) -> None:
    command = [sys.executable, "-m", "archgrad", "board", str(slimmed), "--no-open", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as board:
        try:
            assert board.stdout is not None
            line = board.stdout.readline()
            address = line.partition(" at ")[2].split()[0]
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert "Finished" in answer.read().decode()
            board.send_signal(signal.SIGINT)
            _, errors = board.communicate(timeout=30)
        finally:
            board.kill()
    assert board.returncode == 0 and errors == ""


def test_the_folder_tells_the_command_that_makes_it_again(
    slimmed: Path, place: Path, tmp_path: Path, no_onnx: None
) -> None:
    held = json.loads((slimmed / "command.json").read_text())["arguments"]
    model = f"{place / 'net.py'}:Net"
    assert held[:3] == ["slim", model, str(place / "data.npz")]
    line = " ".join(held)
    assert "--limit macs=0.5" in line and f"--out {slimmed}" in line and "--seed" not in line
    assert f"archgrad slim {model}" in (slimmed / "report.html").read_text()
    # And it does make it again.
    again = [str(tmp_path / "again") if word == str(slimmed) else word for word in held]
    result = invoke(*again)
    assert result.exit_code == 0, result.output
    for name in ("architecture.json", "network.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (slimmed / name).read_bytes()


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        (
            "slim",
            SlimOptions(model="m:f", data="d", keep=["a b", "c"], pretrained=False, onnx=False, seed=3),
            ["slim", "m:f", "d"],
        ),
        ("search", SearchOptions(data="digits", method="random_search", factorized=False, shared=True), ["search"]),
        ("score", ScoreOptions(space="nasbench201", proxy=["synflow", "params"], sample=3), ["score"]),
    ],
)
def test_options_off_their_defaults_are_told_as_they_are_given(
    command: str, options: object, expected: list[str]
) -> None:
    found = arguments(command, options)  # type: ignore[arg-type]
    assert found[: len(expected)] == expected
    line = " ".join(found)
    wanted = {
        "slim": ("--keep a b --keep c", "--retrain", "--no-onnx", "--seed 3", "--out runs/slim"),
        "search": ("--data digits", "--method random_search", "--published", "--shared"),
        "score": ("--proxy synflow --proxy params", "--sample 3"),
    }[command]
    assert all(word in line for word in wanted), line
    assert "--batch-size" not in line and SLIM[0] not in line

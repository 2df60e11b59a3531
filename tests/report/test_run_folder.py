"""Whether a run goes on, by its lock: the board, the list of runs, the comparison and a second run agree."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import finished, run_json, write
from typer.testing import CliRunner

from archgrad.cli.app import app
from archgrad.cli.commands.runs import listed
from archgrad.errors import RunError
from archgrad.report import compare
from archgrad.report.board import draw
from archgrad.report.data.live_status import status
from archgrad.report.data.run_folder import present
from archgrad.report.data.run_format import (
    CheckpointName,
    forget,
    is_running,
    lock_text,
    parse_checkpoint_name,
    parse_lock,
    parse_record,
)
from archgrad.run import folder as folders
from archgrad.run.folder import RunFolder
from archgrad.run.output import record_line

HERE = platform.node()
GONE = 999_999_999


@contextmanager
def locked(folder: Path, content: str) -> Iterator[None]:
    """The folder's lock, taken, with this in it."""
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(content)
        lock.flush()
        yield


@pytest.mark.parametrize(
    ("content", "taken", "state"),
    [
        (f"{os.getpid()} {HERE}\n", True, "running"),
        (f"{os.getpid()} {HERE}\n", False, "stopped"),
        (f"{GONE} {HERE}\n", True, "stopped"),  # its data loaders are left
        (f"{2**40} {HERE}\n", True, "stopped"),
        (f"{GONE} {HERE}.elsewhere\n", True, "running"),
        (f"{GONE} {HERE}.elsewhere\n", False, "stopped"),
        (f"{GONE} {HERE} 0123abcd\n", True, "running"),  # in another container of this name
        (f"{os.getpid()} {HERE} 0123abcd\n", False, "stopped"),
        ("", True, "running"),
        ("no number", False, "stopped"),
        (None, False, "stopped"),
    ],
    ids=range(11),  # the content holds this process's number, and test workers must name their tests alike
)
def test_all_readers_agree(
    tmp_path: Path, content: str | None, taken: bool, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, "run.json", run_json())
    if content is not None:
        write(folder, "lock", content)
    with locked(folder, content or "") if taken else nullcontext():
        (row,) = listed(folder)
        sides = compare.read([folder, finished(tmp_path / "other")])
        assert (row["state"], present(folder).state, sides[0].folder.state) == (state, state, state)
        assert status(present(folder))["kind"] == state
        assert state.capitalize() in draw(folder)
        for name in ("_ORPHANS_SECONDS", "_READERS_SECONDS"):
            monkeypatch.setattr(folders, name, 0.0)
        if taken:
            with pytest.raises(RunError, match=r"Another Run of this process|is running"):
                RunFolder(folder).acquire()


def test_a_run_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_READERS_SECONDS", 0.0)
    with locked(tmp_path, "77 elsewhere\n"), pytest.raises(RunError, match=r"is running \(pid 77 on elsewhere\)"):
        RunFolder(tmp_path).acquire()


def test_a_reader_that_looks_at_the_lock_does_not_keep_a_run_out(tmp_path: Path) -> None:
    write(tmp_path, "lock", lock_text())
    with (tmp_path / "lock").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        taken = folders._locked

        def leave(lock: Any) -> bool:
            if taken(lock):
                return True
            fcntl.flock(reader, fcntl.LOCK_UN)
            return False

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folders, "_locked", leave)
            folder = RunFolder(tmp_path)
            folder.acquire()
    assert is_running(tmp_path)
    folder.release()
    assert not is_running(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[1]", "{}", '{"status": "asleep"}', '{"status": "running"}'])
def test_a_run_json_that_says_nothing_is_damaged_for_all(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, "history.jsonl", [{"phase": "search", "step": 3}])
    if content is not None:
        write(folder, "run.json", content)
    (row,) = listed(folder)
    assert (row["state"], present(folder).state) == ("damaged", "damaged")
    assert "run.json" in row["reason"] and "run.json" in draw(folder) and "Damaged" in draw(folder)
    assert (row["phase"], row["step"]) == ("search", 3)


def test_a_folder_with_a_command_alone_is_not_begun(tmp_path: Path) -> None:
    write(tmp_path, "command.json", {"command": "search", "arguments": ["search"]})
    (row,) = listed(tmp_path)
    assert (row["state"], row["reason"], present(tmp_path).state) == ("not begun", None, "not begun")


def test_forms_come_back() -> None:
    owner = parse_lock(lock_text())
    assert owner and owner.is_here and owner.is_alive() and owner.pid == os.getpid()
    for mark in ("12", "end", "left"):
        name = CheckpointName(3, "warm-up", mark)
        assert str(parse_checkpoint_name(str(name))) == str(name)
    record = {"phase": "nan", "step": 3, "loss": float("inf"), "score": 0.5}
    assert parse_record(record_line(record)) == record


def test_what_was_trained_is_not_forgotten(tmp_path: Path) -> None:
    write(tmp_path, "run.json", run_json())
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "0000-search-0000000000.safetensors"
    checkpoint.write_bytes(b"x")
    forget(tmp_path)
    assert (tmp_path / "run.json").exists()
    checkpoint.unlink()
    forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


_TEXTS = ("\ud800", "loss \udfff", "\x00", "\x1b[2J", "\U0001f600", "$a_{", "")
_NUMBERS = (1e308, -1.7e308, 5e-324, 10**300, float("nan"), float("inf"), True, None, [1e308], {"a": 1}, "1e999")


@pytest.mark.parametrize("seed", range(12))
def test_a_strangers_folder_is_a_page_or_one_message(seed: int, tmp_path: Path) -> None:
    """Texts and numbers of every kind, anywhere in history and record."""
    draw_from = random.Random(seed)

    def text(usual: str) -> str:
        return draw_from.choice([usual, usual + draw_from.choice(_TEXTS), draw_from.choice(_TEXTS)])

    def number(usual: float) -> Any:
        return draw_from.choice([usual, draw_from.choice(_NUMBERS), draw_from.choice(_NUMBERS[:5])])

    figures = [text(name) for name in ("loss", "valid_accuracy", "temperature")]
    rows = [
        {
            "phase": text("search"),
            "step": number(step),
            "time": number(1.0),
            **{name: number(0.5) for name in figures},
        }
        for step in range(30)
    ]
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        identity = {"method": text("dnal"), "settings": {text("rate"): number(0.1)}}
        (folder / "run.json").write_text(
            json.dumps({"status": "finished", "identity": identity, "started": text("")})
        )
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        record = {
            "method": text("dnal"), "title": text("a run"), "notes": [text("a note")],
            "settings": {text("rate"): number(0.1)}, "before": {"accuracy": number(0.9), "params": number(1000)},
            "after": {text("accuracy"): number(0.9), "params": number(500)},
        }  # fmt: skip
        (folder / "record.json").write_text(json.dumps(record))
    runner = CliRunner()
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    page = ["--out", str(tmp_path / "page.html")]
    commands = ["report", a], ["report", a, "--json"], ["compare", a, b], ["compare", a, b, *page]
    for command in (*commands, ["runs", str(tmp_path)]):
        result = runner.invoke(app, command)
        assert result.exit_code in (0, 2) and isinstance(result.exception, SystemExit | None), (command, result)
        assert "\x1b" not in result.output and "\x00" not in result.output
    assert draw(tmp_path / "a").encode("utf-8")

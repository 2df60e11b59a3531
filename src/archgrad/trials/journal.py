"""The finished trials of a run, on the disk before anything builds on them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.data.run_format import TRIALS, WEIGHTS, run_id
from archgrad.run import checkpoint_file as checkpoint
from archgrad.trials.job import Job, Outcome

_LINE = 16 * files.MIB  # characters of one trial, which has a pick for each choice


class Journal:
    """The finished trials, by name: trials.jsonl, with weights in trials/; in memory alone without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._run = run_id(folder) if folder else ""
        self._rows: dict[str, dict[str, Any]] = {}
        self._done: dict[str, Outcome] = {}
        if folder and (path := folder / TRIALS).exists():
            self._rows = {name: row for name, row in _rows(path) if row["run"] == self._run}
            files.write_text(path, "".join(_line(row) for row in self._rows.values()), RunError)

    def outcome(self, job: Job) -> Outcome | None:
        """What is known of a trial; None for one of another architecture, or whose weights are lost."""
        if job.name not in self._done and (row := self._rows.get(job.name)):
            if row["architecture"] != picks_of(job):
                return None
            try:
                kept = checkpoint.load(self._weights(job)) if job.keep and not row["failed"] else {}
                weights = kept["weights"] if kept else {}
                if kept and (kept["run"], kept["trial"]) != (self._run, job.name):
                    return None
            except (RunError, LookupError, TypeError):
                return None
            self._done[job.name] = Outcome(
                row["figures"], weights, row["where"], seconds=row["seconds"], failed=row["failed"]
            )
        return self._done.get(job.name)

    def write(self, job: Job, outcome: Outcome) -> None:
        """Take in a finished trial; it is on the disk before anything builds on it."""
        self._done[job.name] = outcome
        if not self._folder:
            return
        if job.keep and not outcome.failed:
            self._weights(job).parent.mkdir(exist_ok=True)
            kept = {"run": self._run, "trial": job.name, "weights": outcome.weights}
            checkpoint.save(self._weights(job), kept)
        row = {
            "trial": job.name, "architecture": picks_of(job), "figures": outcome.figures, "failed": outcome.failed,
            "where": outcome.where, "seconds": outcome.seconds, "run": self._run,
        }  # fmt: skip
        path = self._folder / TRIALS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"Could not write {path}: {error}. Make room, then run the same program again.") from error

    def _weights(self, job: Job) -> Path:
        assert self._folder
        return self._folder / WEIGHTS / f"{job.name}.safetensors"


def picks_of(job: Job) -> dict[str, Any]:
    """The architecture as it reads after a round through JSON."""
    return {name: list(pick) if isinstance(pick, tuple) else pick for name, pick in job.architecture.items()}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file up to the first line that is not whole."""
    rows: list[tuple[str, dict[str, Any]]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(_LINE):
            try:
                row = files.parse_json(line, RunError, source="a line", finite=False)
                name, figures = str(row["trial"]), {str(key): float(value) for key, value in row["figures"].items()}
                text = {key: str(row[key]) for key in ("where", "failed", "run")}
                rest = {"architecture": dict(row["architecture"]), "seconds": float(row["seconds"])}
                rows.append((name, {"trial": name, "figures": figures, **rest, **text}))
            except (RunError, ValueError, LookupError, TypeError, AttributeError):
                break
    return rows

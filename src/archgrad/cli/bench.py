"""`archgrad bench`: the gradient estimators, which need nothing, and the scripts of a checkout's benchmarks/."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import archgrad
from archgrad.cli.near import meant
from archgrad.errors import ConfigError, RunError
from archgrad.search.variance import variance_lines, variance_report

# Under another name than the script's own.
_RESULTS = {"slim": "small-vgg"}
_SEEDS = 3


def bench(
    name: str, *, seeds: int | None, quick: bool, options: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Run a benchmark; returns it as JSON, and as lines for a reader.

    A script of benchmarks/ writes its rows below benchmarks/results; the machine is added to them, and the ledger,
    benchmarks/RESULTS.md and RESULTS.json, is made anew.

    Args:
        name: of the benchmark.
        seeds: repetitions; None for three, or what the script takes by itself.
        quick: of the estimators alone.
        options: more of the script's own.

    Raises:
        ConfigError: a name that there is not, a number of seeds below 1, or an option that the script has not.
        RunError: the script failed.
    """
    found = scripts()
    known = [*BENCHMARKS, *(one for one in found if one not in BENCHMARKS)]
    if name not in known:
        where = "" if found else " The others are scripts of the repository: run this in a checkout."
        raise ConfigError(f"There is no benchmark {name!r}.{meant(name, known)} There are {', '.join(known)}.{where}")
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds: {seeds} was given. Allowed is a whole number from 1 up.")
    if name not in BENCHMARKS or (not quick and name in found):
        return _script(found[name], seeds, options)
    # So small tensors are slower on several.
    torch.set_num_threads(1)
    rows, lines = BENCHMARKS[name](seeds or _SEEDS, quick)
    return {"name": name, "seeds": seeds or _SEEDS, "quick": quick, "torch": torch.__version__, "rows": rows}, lines


def scripts() -> dict[str, Path]:
    """The benchmarks of the checkout that archgrad runs from, or that one stands in; none outside of one."""
    for root in (Path(archgrad.__file__).parents[2], Path.cwd()):
        folder = root / "benchmarks"
        if (folder / "ledger.py").is_file():
            every = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "ledger"}
            return {name: path for name, path in every.items() if _has(path, "--out") or _has(path, "--json")}
    return {}


def _has(path: Path, option: str) -> bool:
    return f'add_argument("{option}"' in path.read_text(encoding="utf-8")


def _script(path: Path, seeds: int | None, options: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    out = path.parent / "results" / f"{_RESULTS.get(path.stem, path.stem)}.json"
    if seeds is not None and not _has(path, "--seeds"):
        raise ConfigError(f"--seeds: the benchmark {path.stem} has none; {path.name} --help shows what it takes.")
    said = [] if seeds is None else ["--seeds", str(seeds)]
    command = [sys.executable, str(path), *said, "--out" if _has(path, "--out") else "--json", str(out), *options]
    _run(command)
    _run([sys.executable, str(path.parent / "ledger.py"), "--stamp", str(out)])
    found: dict[str, Any] = json.loads((path.parent / "RESULTS.json").read_text(encoding="utf-8"))[out.stem]
    lost = found["lost"] or ["nothing"]
    return {"name": path.stem, **found}, [f"rows: {out}", f"ledger: {path.parent / 'RESULTS.md'}", "lost:", *lost]


def _run(command: list[str]) -> None:
    # What a benchmark prints on its way goes to stderr, so that --json stays alone on stdout.
    done = subprocess.run(command, stdout=sys.stderr.fileno(), check=False)
    if done.returncode:
        raise RunError(f"{' '.join(command[1:])} ended with status {done.returncode}; what it said is above.")


def _estimators(seeds: int, quick: bool) -> tuple[list[Any], list[str]]:
    """Bias and variance of the gradient estimators; about half a minute a seed, quick about a second."""
    rows = variance_report(seeds=seeds, calls=50, steps=500, digits=False) if quick else variance_report(seeds=seeds)
    return rows, variance_lines(rows)


BENCHMARKS: dict[str, Callable[[int, bool], tuple[list[Any], list[str]]]] = {"estimators": _estimators}

"""`archgrad search`: find an architecture in a space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archgrad.cli import folder, spaces
from archgrad.cli.configuration import SearchOptions
from archgrad.cli.preparing import limit_of, prepare, write_onnx
from archgrad.methods.darts import darts
from archgrad.methods.random_search import random_search
from archgrad.methods.unas import unas
from archgrad.report import page
from archgrad.search.checkpoint import replace_text
from archgrad.search.found import Found


def search(options: SearchOptions) -> dict[str, Any]:
    """Search a space; returns the run's record."""
    out = Path(options.out)
    run, task, onnx = prepare("search", options, out, trials=options.trials)
    factorised = options.method == "unas" if options.factorised is None else options.factorised
    form = spaces.form(options.space, cells=options.cells, channels=options.channels, factorised=factorised)
    space, made = spaces.make(form, task)
    limit, share = limit_of(options.limit, task.example), options.search
    folder.write(out, "search", options)
    with folder.resumable(out):
        if options.method == "unas":
            found = unas(space, task, run, limit=limit, search=share)
        elif options.method == "darts":
            found = darts(space, task, run, limit=limit, search=share)
        else:
            found = random_search(space, task, run, limit=limit, shared=options.shared, search=share)
        _record(found, out, made)
        write_onnx(found, out, onnx)
    return found.record


def _record(found: Found, out: Path, space: dict[str, Any]) -> None:
    """Add the space to what the method wrote: for the reader, and for `archgrad train`."""
    found.record["space"] = space
    found.record["settings"] = {"space": spaces.described(space), **found.record["settings"]}
    replace_text(out / "record.json", json.dumps(found.record, indent=1) + "\n")
    page.write(out)

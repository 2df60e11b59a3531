"""`archgrad latency`: exported files, timed as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from archgrad.cli.command_output import Outcome
from archgrad.costs.file_latency import measure_files
from archgrad.errors import ConfigError
from archgrad.extract.runtimes import Runtime


def time_files(
    files: Sequence[Path], *, runtime: str | None, shapes: Sequence[str], batch: int, threads: int, repeats: int
) -> Outcome:
    """The median, 10th and 90th percentile of a pass of each file, in milliseconds."""
    timings = measure_files(
        {str(path): path for path in files}, runtime=cast("Runtime | None", runtime),
        shapes=[_shape(text) for text in shapes], batch=batch, threads=threads, repeats=repeats,
    )  # fmt: skip
    given = f"shapes {' and '.join(shapes)}" if shapes else f"batch {batch} where that is open"
    sizes = {str(path): path.stat().st_size for path in files}
    body = [{"file": name, "size_bytes": sizes[name], **dataclasses.asdict(t)} for name, t in timings.items()]
    lines = [
        f"{name}: {t.median_ms:.4g} ms in {t.runtime} ({t.low_ms:.4g} to {t.high_ms:.4g}), {sizes[name]:,} bytes"
        + ("; the machine was busy, measure again" if t.noisy else "")
        for name, t in timings.items()
    ]
    said = f"medians of {repeats} passes (10th to 90th percentile), in turns, {threads} CPU threads, {given}"
    return Outcome(body, "\n".join([*lines, said]))


def _shape(text: str) -> list[int]:
    try:
        shape = [int(word) for word in text.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise ConfigError(f"--shape {text}: give whole numbers from 1, joined by commas, such as 1,3,224,224")
    return shape

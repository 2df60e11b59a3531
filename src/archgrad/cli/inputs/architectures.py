"""The architectures that `archgrad score` is given: as text, in a file, or drawn at random."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from archgrad import files
from archgrad.choices.access import choices, matched, sample
from archgrad.choices.architecture import FORMAT, Architecture
from archgrad.choices.modules import InputChoice
from archgrad.errors import ArchitectureError, ConfigError
from archgrad.tasks.tabular_benchmark import Tabular

# Draws in a row that bring nothing new, after which a space counts as exhausted.
_PATIENCE = 1000


@runtime_checkable
class Written(Protocol):
    """A space whose architectures have a text."""

    def to_string(self, architecture: Architecture) -> str:
        """The text."""
        ...

    def from_string(self, text: str) -> Architecture:
        """The architecture. Raises ArchitectureError, saying where the text goes wrong."""
        ...


def named(space: nn.Module, architecture: Architecture) -> str:
    """How an architecture is called: its text, or its picks where the space has none."""
    if isinstance(space, Written):
        return space.to_string(architecture)
    return ", ".join(f"{name}={json.dumps(pick)}" for name, pick in architecture.items())


def parse(space: nn.Module, entry: object, place: str) -> Architecture:
    """One architecture: text, or an object {choice: pick} or as in architecture.json.

    Raises ArchitectureError, naming the place, for what is none of the space.
    """
    try:
        architecture = _read(space, entry)
        matched(space, architecture)
    except ArchitectureError as error:
        raise ArchitectureError(f"{place}: {error}") from None
    return architecture


def from_file(space: nn.Module, path: Path) -> list[Architecture]:
    """Those of a file: a JSON list, an architecture.json, or one a line as text or JSON; lines after # are not read.

    Raises ConfigError where the file cannot be read or is empty, ArchitectureError for an entry.
    """
    try:
        text = files.read_text(path, ConfigError, most=64 * files.MIB)
    except (FileNotFoundError, ConfigError) as error:
        reason = "is a folder" if path.is_dir() else f"cannot be read ({error})"
        raise ConfigError(
            f"--architectures {path} {reason}; give a text file, one architecture a line, or JSON"
        ) from None
    architectures = [parse(space, entry, f"{path}, {place}") for place, entry in _entries(path, text)]
    if not architectures:
        raise ConfigError(f"--architectures {path} holds no architecture; write one a line, or a JSON list")
    return architectures


def draw(space: nn.Module, count: int, *, table: Tabular | None, seed: int) -> list[Architecture]:
    """Different ones of the table, or else of the space, at random. Raises ConfigError where it has fewer."""
    generator = torch.Generator().manual_seed(seed)
    if table is not None:
        cells = list(table)
        if count > len(cells):
            raise ConfigError(f"--sample {count}: the table has {len(cells):,} cells")
        assert isinstance(space, Written)
        return [space.from_string(cells[k]) for k in torch.randperm(len(cells), generator=generator)[:count].tolist()]
    total = _total(space)
    if count > total:
        raise ConfigError(f"--sample {count}: the space has {total:,} architectures")
    sampled: dict[Architecture, None] = {}
    idle = 0
    while len(sampled) < count:
        before = len(sampled)
        sampled[sample(space, generator=generator)] = None
        idle = 0 if len(sampled) > before else idle + 1
        if idle > _PATIENCE * min(total, 1000):
            raise ConfigError(f"--sample {count}: no more than {before} different architectures were found")
    return list(sampled)


def _total(space: nn.Module) -> int:
    decisions = [same[0] for same in choices(space).values()]
    candidates = [int(choice.pickable.sum()) for choice in decisions]
    return math.prod(
        math.comb(count, choice.keep) if isinstance(choice, InputChoice) else count
        for count, choice in zip(candidates, decisions, strict=True)
    )


def _read(space: nn.Module, entry: object) -> Architecture:
    if isinstance(entry, str):
        if not isinstance(space, Written):
            raise ArchitectureError(
                f"{entry[:60]!r} is text, and {type(space).__name__} reads none; give a JSON object "
                f"{{choice: pick}}; its choices are {', '.join(list(choices(space))[:8])}"
            )
        return space.from_string(entry)
    if not isinstance(entry, dict):
        raise ArchitectureError(f"{json.dumps(entry)[:60]} is neither text nor an object {{choice: pick}}")
    if entry.get("format") == FORMAT:
        return Architecture.from_json(json.dumps(entry))
    return Architecture({name: tuple(pick) if isinstance(pick, list) else pick for name, pick in entry.items()})


def _entries(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """Each entry and its place, entry 1 or line 1."""
    stripped = text.strip()
    entries: Any = None
    if stripped.startswith("["):
        entries = _json(stripped, str(path))
    elif stripped.startswith("{") and (FORMAT in stripped[:200] or "\n" not in stripped):
        entries = [_json(stripped, str(path))]
    if entries is not None:
        yield from ((f"entry {place}", entry) for place, entry in enumerate(entries, start=1))
        return
    for place, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield f"line {place}", _json(line, f"{path}, line {place}") if line[0] in '{"' else line


def _json(text: str, place: str) -> Any:
    return files.parse_json(text, ArchitectureError, source=f"{place}: this")

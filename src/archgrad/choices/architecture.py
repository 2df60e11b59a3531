"""An architecture: one pick per choice, frozen, hashable, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from archgrad import files
from archgrad.errors import ArchitectureError

Pick = int | tuple[int, ...]
FORMAT = "archgrad.architecture"
VERSION = 1
_LONGEST = 160


class Architecture(Mapping[str, Pick]):
    """One pick per choice, `{choice name: pick}`: frozen, hashable, and equal in any order of its names.

    The pick of an `OpChoice` is the index of its candidate. The pick of an `InputChoice` or a `Gate` is the
    sorted tuple of the inputs or channels that are kept.

    Raises:
        ArchitectureError: a name that is no string, or a pick that is neither an index nor a tuple of indices.

    Example:
        >>> import archgrad as ag
        >>> architecture = ag.Architecture({"layer": 1, "node": (2, 0)})
        >>> architecture["node"]
        (0, 2)
        >>> architecture.save("cell.json")
        >>> ag.Architecture.load("cell.json") == architecture
        True
    """

    __slots__ = ("_picks",)
    _picks: dict[str, Pick]

    def __init__(self, picks: Mapping[str, Pick]) -> None:
        if not isinstance(picks, Mapping):
            raise ArchitectureError(f"Architecture({picks!r}) was given. Allowed is a dict of picks by choice.")
        object.__setattr__(self, "_picks", {name: _pick(name, picks[name]) for name in sorted(picks)})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an Architecture is frozen; make a new one: Architecture({**old, name: pick})")

    def __getitem__(self, name: str) -> Pick:
        return self._picks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._picks)

    def __len__(self) -> int:
        return len(self._picks)

    def __hash__(self) -> int:
        return hash(tuple(self._picks.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self._picks == other._picks

    def __repr__(self) -> str:
        text = f"Architecture({self._picks!r})"
        if len(text) <= _LONGEST:
            return text
        few = ", ".join(f"{name}={pick!r:.24}" for name, pick in list(self._picks.items())[:3])
        return f"Architecture({len(self)} choices: {few}, ...)"

    def __reduce__(self) -> tuple[type[Architecture], tuple[dict[str, Pick]]]:
        return Architecture, (self._picks,)

    def to_json(self) -> str:
        """The architecture as JSON text, one choice a line."""
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(pick)}" for name, pick in self._picks.items())
        return f'{{"format": "{FORMAT}", "version": {VERSION}, "picks": {{\n{rows}\n}}}}\n'

    @staticmethod
    def from_json(text: str, *, source: str = "the text") -> Architecture:
        """Read `to_json` back.

        Raises:
            ArchitectureError: damaged text, another format or version, or a pick as in the constructor's errors.
        """
        body = files.parse_document(text, _refused, source=source, form=FORMAT, version=VERSION)
        picks = body.get("picks")
        if not isinstance(picks, dict):
            raise _refused(f'{source} has no "picks": the file is damaged')
        return Architecture({name: tuple(p) if isinstance(p, list) else p for name, p in picks.items()})

    def save(self, path: str | Path) -> None:
        """Write the JSON file, all or nothing.

        Raises:
            ArchitectureError: the folder is missing, or may not be written in.
        """
        files.write_text(Path(path), self.to_json(), ArchitectureError)

    @staticmethod
    def load(path: str | Path) -> Architecture:
        """Read a file that `save` wrote.

        Raises:
            ArchitectureError: no such file, or what `from_json` raises.
        """
        text = files.read_text(Path(path), _refused, refuse_absent=True)
        return Architecture.from_json(text, source=str(path))


def _refused(reason: str) -> ArchitectureError:
    return ArchitectureError(f"{reason}; an architecture is a file that Architecture.save wrote")


def _pick(name: object, pick: object) -> Pick:
    if not isinstance(name, str):
        raise ArchitectureError(f"a choice is named by a string, given {name!r}")
    if isinstance(pick, int) and not isinstance(pick, bool) and pick >= 0:
        return pick
    if isinstance(pick, tuple) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in pick):
        if len(set(pick)) != len(pick):
            raise ArchitectureError(f"choice {name!r}: the pick names one entry twice: {files.shown(pick)}")
        return tuple(sorted(pick))
    raise ArchitectureError(
        f"choice {name!r}: the pick is {files.shown(pick)}; allowed are an index (0, 1, ...) or a tuple of indices"
    )

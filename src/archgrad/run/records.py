"""A list of records of numbers that takes little memory: a search of a day logs millions."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

Record = dict[str, Any]
_EXACT = 2**53  # below it doubles hold whole numbers


class Records(Sequence[Record]):
    """Records as they were appended, each a new dict when it is read; equal to a list of the same ones.

    Records of the same keys and types share these; each then takes 8 bytes a number and 16 more. Changing a dict that
    was read changes nothing here.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._places: dict[tuple[Any, ...], int] = {}
        self._forms: list[tuple[Any, ...]] = []
        self._figures: list[array[float]] = []
        self._rows = array("q")  # of each record the place of its form, and its place among those of that form
        for record in records:
            self.append(record)

    def append(self, record: Record) -> None:
        """Take in a record of numbers, strings and None."""
        numbers = {key: value for key, value in record.items() if _compact(value)}
        rest = tuple((key, value) for key, value in record.items() if key not in numbers)
        form = (tuple(record), tuple(type(value) for value in numbers.values()), rest)
        place = self._places.setdefault(form, len(self._forms))
        if place == len(self._forms):
            self._forms.append(form)
            self._figures.append(array("d"))
        self._rows.extend((place, len(self._figures[place])))
        self._figures[place].extend(numbers.values())

    def __len__(self) -> int:
        return len(self._rows) // 2

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._read(index % len(self))

    def _read(self, index: int) -> Record:
        place, start = self._rows[2 * index], self._rows[2 * index + 1]
        keys, kinds, rest = self._forms[place]
        figures = iter(zip(kinds, self._figures[place][start : start + len(kinds)], strict=True))
        others = dict(rest)
        found: Record = {}
        for key in keys:
            if key in others:
                found[key] = others[key]
            else:
                kind, value = next(figures)
                found[key] = kind(value)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} records>"


def _compact(value: object) -> bool:
    if type(value) is int:
        return abs(value) < _EXACT
    return type(value) in (float, bool)

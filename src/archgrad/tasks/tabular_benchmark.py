"""A task that is a look-up: the accuracies of all NAS-Bench-201 cells, in a table that you have.

The table has the form of NAS-Bench-201 (arXiv 2001.00326), the topology space of NATS-Bench (arXiv 2009.00437).
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from archgrad import files
from archgrad.errors import ArchitectureError, DataError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

# Position in this tuple is the code in the tables; it is also the order of the space's candidates.
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# The edge "2.1" leads into node 2 from node 1; the order is that of the string.
EDGES = ("1.0", "2.0", "2.1", "3.0", "3.1", "3.2")
FORM = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
BETWEEN = ("|", "~0|+|", "~0|", "~1|+|", "~0|", "~1|", "~2|")  # what stands before, between and after the six ops

DATA = ("cifar10", "cifar100", "imagenet16_120")
SCORES = {200: "test_e200", 12: "test_e12_1seed"}
OPTIMA = {"cifar10": 94.37, "cifar100": 73.51, "imagenet16_120": 47.31}  # of the 200-epoch columns, in %


def _string(codes: Iterable[int]) -> str:
    words = [before + OPERATIONS[code] for before, code in zip(BETWEEN, codes, strict=False)]
    return "".join(words) + BETWEEN[-1]


def _every() -> Iterator[str]:
    """All 15,625 cells."""
    return map(_string, itertools.product(range(len(OPERATIONS)), repeat=len(EDGES)))


TOTAL = len(OPERATIONS) ** len(EDGES)
CELL = re.compile(f"(?:{'|'.join(OPERATIONS)})".join(map(re.escape, BETWEEN)))


class Tabular:
    """Cells of NAS-Bench-201 judged by a table: `score` looks an accuracy up, and nothing is trained.

    Wherever a `cell` is asked for, give its published string, or a mapping from the six choices "1.0", "2.0",
    "2.1", "3.0", "3.1", "3.2" to the index of the operation in `OPERATIONS`, such as an Architecture of
    `ag.nasbench201_cells()`. Iteration yields the strings in the order of the table.

    `optimum` is the highest score and `best` the first cell that has it; `column` names what is looked up;
    `notes` says where the table differs from the published one. `perfect` is 100, since scores are in %.

    Args:
        arrays: the columns, as arrays of numpy. Cells are `arch` [N], strings, or `ops` [N, 6], the operations'
            indices in the order of the string. Accuracies are floats in %, or uint16 in hundredths of a %.
        data: "cifar10", "cifar100" or "imagenet16_120".
        epochs: 200 reads the column {data}_test_e200 (means over seeds), 12 reads {data}_test_e12_1seed (one
            run of a training of 12 epochs).
        cost: the column that `cost` reads where it is given none.
        complete: refuse a table that lacks some of the 15,625 cells.
        source: what messages call the table.

    Raises:
        DataError: no such column, a column of another length or type, NaN, a cell that is there twice or is no
            cell, or too few cells.

    Example:
        >>> import numpy as np, archgrad as ag
        >>> columns = {"ops": np.array([[3] * 6, [0] * 6]), "cifar10_test_e200": np.array([94.0, 10.0])}
        >>> table = ag.Tabular(columns, complete=False)
        >>> table.score("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"), table.optimum
        (10.0, 94.0)
    """

    perfect = 100.0

    def __init__(
        self,
        arrays: Mapping[str, Array],
        *,
        data: str = "cifar10",
        epochs: int = 200,
        cost: str | None = None,
        complete: bool = True,
        source: str = "the table",
    ) -> None:
        if not isinstance(arrays, Mapping):
            raise DataError(f"{source} is a {type(arrays).__name__}; give a dict of columns, arrays of numpy")
        if data not in DATA:
            raise DataError(f"data={data!r}: give one of {', '.join(map(repr, DATA))}{_nearest(data, DATA)}")
        if epochs not in tuple(SCORES):
            raise DataError(f"epochs={epochs!r}: give 200, or 12 for the separate short training")
        self._source = source
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self._cells = _cells(arrays, source=source)
        self._rows = {text: row for row, text in enumerate(self._cells)}
        _check_cells(self._cells, complete=complete, source=source)
        self._values = {
            name: _percent(name, array)
            for name, array in arrays.items()
            if name not in ("arch", "ops") and array.shape == (len(self._cells),) and array.dtype.kind in "iuf"
        }
        self.column = f"{data}_{SCORES[epochs]}"
        self._scores: list[float] = self._checked(self.column, arrays).tolist()
        self._sorted = sorted(self._scores)
        self._cost = cost
        if cost is not None:
            self._checked(cost, arrays)
        self.optimum: float = self._sorted[-1]
        self.best: str = self._cells[self._scores.index(self.optimum)]
        self.notes: tuple[str, ...] = tuple(self._differences())

    def __repr__(self) -> str:
        return f"Tabular({self.column}, {len(self._cells):,} cells)"

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        data: str = "cifar10",
        epochs: int = 200,
        cost: str | None = None,
        complete: bool = True,
    ) -> Tabular:
        """Read the table from a `.npz` file; the arguments are those of the class.

        Raises:
            DataError: no such file, damaged bytes, pickled objects (never read), or what the class refuses.
        """
        arrays = _read(Path(path))
        return cls(arrays, data=data, epochs=epochs, cost=cost, complete=complete, source=str(path))

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __contains__(self, cell: object) -> bool:
        return (cell.strip() if isinstance(cell, str) else _text(cell)) in self._rows

    def score(self, cell: str | Mapping[str, Any]) -> float:
        """The cell's accuracy in %, higher is better.

        Raises:
            ArchitectureError: this is no cell of NAS-Bench-201; the message says where the string goes wrong.
            DataError: the table lacks this cell.
        """
        return self._scores[self._row(cell)]

    def cost(self, cell: str | Mapping[str, Any], column: str | None = None) -> float:
        """The cell's entry of any column, in the unit that the column's name says (uint16 accuracies in %).

        Raises:
            ArchitectureError: as for `score`.
            DataError: the table lacks this cell or column or has no number there, or no column is named.
        """
        name = self._cost if column is None else column
        if name is None:
            raise DataError("cost needs a column; name it here or with Tabular.load(path, cost=column)")
        if name not in self._values:
            self._lacks(name)
        row = self._row(cell)
        value = float(self._values[name][row])
        if not math.isfinite(value):
            raise DataError(f"{self._source}: {name} is {value} for {self._cells[row]}; use another column")
        return value

    def columns(self) -> tuple[str, ...]:
        """The names of all columns of one number a cell, in the order of the table."""
        return tuple(self._values)

    def rank(self, cell: str | Mapping[str, Any]) -> int:
        """1 for the best cell; cells of equal score share the better rank. Raises as `score`."""
        return len(self) - bisect.bisect_right(self._sorted, self.score(cell)) + 1

    def regret(self, cell: str | Mapping[str, Any]) -> float:
        """`optimum` minus the cell's score, in percentage points. Raises as `score`."""
        return self.optimum - self.score(cell)

    def sample(self, *, generator: torch.Generator | None = None) -> str:
        """A cell of the table, each with equal probability."""
        import torch

        return self._cells[int(torch.randint(len(self), (), generator=generator))]

    def _row(self, cell: str | Mapping[str, Any]) -> int:
        row = self._rows.get(cell) if isinstance(cell, str) else None
        if row is None:
            text = _text(cell)
            row = self._rows.get(text)
            if row is None:
                raise DataError(
                    f"{self._source} has no row for {text}; it has {len(self):,} of {TOTAL:,} cells, which "
                    f"iteration yields. Test with `cell in table`, or give a complete table"
                )
        return row

    def _checked(self, name: str, arrays: Mapping[str, Array]) -> Array:
        """A column [N] as float64, all of it finite."""
        if name not in self._values:
            if name in arrays:
                raise DataError(
                    f"{self._source}: {name} is {arrays[name].dtype} of shape {list(arrays[name].shape)}; it must "
                    f"hold one number for each cell, shape [{len(self)}]"
                )
            self._lacks(name)
        given, values = arrays[name].dtype, self._values[name].astype(np.float64)
        if name == self.column and given.kind != "f" and given != np.uint16:
            raise DataError(
                f"{self._source}: {name} is {given}; accuracies are floats in %, or uint16 in hundredths of a %"
            )
        wrong = ~np.isfinite(values)
        if name == self.column and given == np.uint16:
            wrong |= values > 100  # 65535 and its like stand for no value where there is no NaN
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{self._source}: {name} has {int(wrong.sum())} entries that are NaN, infinite or beyond 100 %, the "
                f"first is {values[row]:g} in row {row} ({self._cells[row]}); repair them, or leave the rows out and "
                f"give complete=False"
            )
        return values

    def _lacks(self, name: str) -> NoReturn:
        names = self.columns()
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise DataError(
            f"{self._source} has no column {name!r}{_nearest(name, names)}; it has "
            f"{shown or 'no columns of numbers'}. Name one of its columns"
        )

    def _differences(self) -> Iterator[str]:
        for data, published in OPTIMA.items():
            name = f"{data}_{SCORES[200]}"
            if name not in self._values:
                continue
            values = self._values[name][np.isfinite(self._values[name])]
            if not values.size or abs(float(values.max()) - published) > 0.01:
                found = f"{values.max():.2f}" if values.size else "no number"
                yield (
                    f"the highest entry of {name} is {found}, the published one {published}: these are other "
                    f"trainings, another unit or a part of the cells; do not compare them with published figures"
                )


def _percent(name: str, values: Array) -> Array:
    """A column as it is, but accuracies kept as uint16 in hundredths of a % become %."""
    accuracy = name.startswith(tuple(f"{data}_{part}_" for data in DATA for part in ("test", "val")))
    return values / 100.0 if accuracy and values.dtype == np.uint16 else values


def _nearest(name: object, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    return f" (nearest: {', '.join(close)})" if close else ""


def _read(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .npz file of NAS-Bench-201's cells")
    return dict(files.read_arrays(path, DataError, wanted=lambda name: True))


def _cells(arrays: Mapping[str, Array], *, source: str) -> list[str]:
    """The cells in the order of the rows, as strings."""
    if "arch" not in arrays and "ops" not in arrays:
        raise DataError(
            f"{source} has neither 'arch' (strings) nor 'ops' (indices [N, 6]), which say what cell a row is"
            f"{_nearest('arch', arrays)}; it has {', '.join(list(arrays)[:8]) or 'nothing'}"
        )
    by_codes = _from_ops(arrays, source=source) if "ops" in arrays else None
    if "arch" not in arrays:
        assert by_codes is not None
        return by_codes
    array = arrays["arch"]
    if array.ndim != 1 or array.dtype.kind not in "SU":
        raise DataError(f"{source}: arch is {array.dtype} of shape {list(array.shape)}; give strings, shape [N]")
    cells: list[str] = []
    for row, given in enumerate(array.tolist()):
        try:
            cells.append(_text(given.decode("ascii") if isinstance(given, bytes) else given))
        except (ArchitectureError, UnicodeDecodeError) as error:
            raise DataError(f"{source}: arch in row {row}: {error}") from error
    if by_codes is not None and by_codes != cells:
        row = next((i for i, pair in enumerate(zip(cells, by_codes, strict=False)) if pair[0] != pair[1]), 0)
        raise DataError(f"{source}: arch and ops name different cells, first in row {row}; leave one of them out")
    return cells


def _from_ops(arrays: Mapping[str, Array], *, source: str) -> list[str]:
    ops, names, edges = arrays["ops"], arrays.get("op_names"), arrays.get("edges")
    if ops.ndim != 2 or ops.shape[1] != len(EDGES) or ops.dtype.kind not in "iu":
        raise DataError(f"{source}: ops is {ops.dtype} of shape {list(ops.shape)}; give whole numbers, shape [N, 6]")
    if names is not None and tuple(names.astype(str).tolist()) != OPERATIONS:
        raise DataError(f"{source}: op_names is {names.tolist()}; codes are read as indices of {list(OPERATIONS)}")
    order = [[int(source), int(target)] for target, source in (edge.split(".") for edge in EDGES)]
    if edges is not None and edges.tolist() != order:
        raise DataError(f"{source}: edges is {edges.tolist()}; ops are read in the order {order}, [from, to]")
    wrong = np.argwhere((ops < 0) | (ops >= len(OPERATIONS)))
    if wrong.size:
        row, edge = wrong[0].tolist()
        raise DataError(f"{source}: ops has {ops[row, edge]} in row {row}, edge {EDGES[edge]}; give 0 to 4")
    return [_string(codes) for codes in ops.tolist()]


def _check_cells(cells: list[str], *, complete: bool, source: str) -> None:
    first: dict[str, int] = {}
    for row, text in enumerate(cells):
        if first.setdefault(text, row) != row:
            raise DataError(f"{source}: rows {first[text]} and {row} are the same cell, {text}; leave one out")
    if not cells:
        raise DataError(f"{source} has no rows; give a table of NAS-Bench-201's {TOTAL:,} cells")
    if complete and len(cells) < TOTAL:
        missing = next(text for text in _every() if text not in first)
        raise DataError(
            f"{source} has {len(cells):,} of {TOTAL:,} cells; {missing} is not there. Give a complete table, "
            f"or complete=False: optimum, rank and regret are then those of the cells that are there"
        )


def _text(cell: object) -> str:
    """The published string of a cell, from any spelling of it."""
    if isinstance(cell, str):
        text = cell.strip()
        if not CELL.fullmatch(text):
            raise ArchitectureError(_problem(text))
        return text
    if not isinstance(cell, Mapping):
        raise ArchitectureError(
            f"a cell is given as a string {FORM}, or as a mapping from {', '.join(EDGES)} to operations' indices; "
            f"not as {type(cell).__name__}"
        )
    if set(cell) != set(EDGES):
        given = [str(name) for name in itertools.islice(cell, 8)]
        raise ArchitectureError(f"the architecture has the choices {given}; a NAS-Bench-201 cell has {list(EDGES)}")
    for name, pick in cell.items():
        if type(pick) is not int or not 0 <= pick < len(OPERATIONS):
            raise ArchitectureError(f"choice {name!r}: the pick is {pick!r}; allowed is an index from 0 to 4")
    return _string(cell[name] for name in EDGES)


def _problem(text: str) -> str:
    """Where a string stops being a cell, and what was expected there."""
    place, expected = 0, "the end"
    for number, between in enumerate(BETWEEN):
        shared = next(i for i in range(len(between), -1, -1) if text.startswith(between[:i], place))
        place += shared
        if shared < len(between):
            expected = repr(between[shared:])
            break
        label = re.split(r"[~|+]", text[place:], maxsplit=1)[0]
        if number < len(EDGES) and label not in OPERATIONS:
            expected = f"an operation{_nearest(label[:40], OPERATIONS)}"
            break
        place += len(label) if number < len(EDGES) else 0
    found = repr(text[place : place + 30]) if place < len(text) else "the end of the string"
    given = repr(text[:100]) + ("..." if len(text) > 100 else "")
    return (
        f"{given} is no NAS-Bench-201 cell: at character {place + 1}, {found}, expected {expected}. A cell is "
        f"written {FORM}, each op one of {', '.join(OPERATIONS)}"
    )

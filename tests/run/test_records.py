"""Records read back as they were put in, in little memory."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archgrad.run.records import Records

VALUES = st.none() | st.text(max_size=3) | st.booleans() | st.integers() | st.floats(allow_nan=False)
LISTS = st.lists(st.dictionaries(st.text(max_size=2), VALUES, max_size=4), max_size=12)


@given(LISTS, st.slices(12))
def test_they_are_the_list_that_was_put_in(rows: list[dict[str, object]], part: slice) -> None:
    records = Records(rows)
    assert records == rows
    assert [list(row) for row in records] == [list(row) for row in rows], "keys in their order"
    assert [[type(v) for v in row.values()] for row in records] == [[type(v) for v in row.values()] for row in rows]
    assert records[part] == rows[part]
    if rows:
        assert records[-1] == rows[-1]
    assert records != [*rows, {}]
    with pytest.raises(IndexError, match="record"):
        records[len(rows)]


def test_nan_and_infinity_stay() -> None:
    (record,) = Records([{"loss": math.nan, "top": math.inf}])
    assert math.isnan(record["loss"])
    assert record["top"] == math.inf


def test_twenty_thousand_take_little_over_a_megabyte() -> None:
    records = Records()
    tracemalloc.start()
    for step in range(20_000):
        records.append({"phase": "search", "step": step, "time": 0.1 * step, "loss": 0.3 * step, "lr": 0.1})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.5e6, "as dicts they take over 8e6"

"""A limit as it is written on the command line: macs=0.5, params=300k, onnx_ms=4.0."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field, field_validator

from archgrad.cli.schemas.options import Options
from archgrad.cli.suggestions import meant
from archgrad.errors import LimitError

LIMITS = (
    "macs=0.5 or macs=50% (half of what the network takes), macs=20M, macs=20e6, params=0.5, params=300k, "
    "latency_ms=4.0 (in the runtime that the run exports for), onnx_ms=4.0, openvino_ms, executorch_ms, eager_ms, "
    "compile_ms, or of the file in int8 onnx_int8_ms, openvino_int8_ms, executorch_int8_ms; the file's size onnx_kb, "
    "onnx_int8_kb, executorch_kb, executorch_int8_kb"
)
_FILES = ("onnx", "openvino", "executorch")
TIMES = (
    "latency_ms", *(f"{runtime}_ms" for runtime in (*_FILES, "eager", "compile")),
    *(f"{runtime}_int8_ms" for runtime in _FILES),
)  # fmt: skip
SIZES = ("onnx_kb", "onnx_int8_kb", "executorch_kb", "executorch_int8_kb")
_SAME_FILE = {"openvino_kb": "onnx_kb", "openvino_int8_kb": "onnx_int8_kb"}
COSTS = ("macs", "params", *TIMES, *SIZES)
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"


class LimitText(NamedTuple):
    """A limit as it was written: a fraction of what the network takes, or a bound."""

    cost: str
    bound: float | None
    fraction: float | None


class LimitOptions(Options):
    """Commands that find networks under a limit."""

    panel = "Search"

    limit: str | None = Field(None, description=f"{LIMITS}.")

    @field_validator("limit", mode="before")
    @classmethod
    def _check_limit(cls, given: object) -> object:
        if isinstance(given, Mapping) and len(given) == 1:  # limit: {macs: 0.5} in a YAML file
            ((name, value),) = given.items()
            given = f"{name}={value}"
        if isinstance(given, str):
            parse(given)
        return given


def parse_front(texts: Sequence[str]) -> tuple[str, tuple[float, ...]] | None:
    """Read the budgets of a front, such as macs=0.75,0.5,0.25: the cost and its fractions; None where there are none.

    Raises LimitError.
    """
    lists = [text for text in texts if "," in text]
    if not lists:
        return None
    if len(texts) > 1:
        raise LimitError(f"limit {lists[0]!r} asks for a front, which has one cost alone. Give that limit alone")
    name, _, values = lists[0].partition("=")
    fractions = []
    for value in values.split(","):
        limit = parse(f"{name}={value}")
        if limit.fraction is None:
            raise LimitError(
                f"limit {lists[0]!r}: a front has fractions of what the network takes, of macs or params; for "
                f"instance macs=0.75,0.5,0.25"
            )
        fractions.append(limit.fraction)
    if len(set(fractions)) < len(fractions):
        raise LimitError(f"limit {lists[0]!r} names a fraction twice. Give different ones")
    return name.strip(), tuple(fractions)


def parse(text: str) -> LimitText:
    """Read a limit such as macs=0.5. Raises LimitError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or name not in COSTS:
        near = (
            meant(name, COSTS) if name not in _SAME_FILE else f" Give {_SAME_FILE[name]}: OpenVINO reads that file."
        )
        if name in COSTS:
            near = f" Give a value too, {name}=..."
        raise LimitError(f"limit {text!r} is not understood.{near} Allowed are {LIMITS}")
    match = re.fullmatch(rf"(?P<number>{_NUMBER})\s*(?P<unit>%|[kmgt]?)", value, flags=re.IGNORECASE)
    if not match:
        raise LimitError(f"limit {text!r}: {value!r} is not a number above 0. Allowed are {LIMITS}")
    number, unit = float(match["number"]), match["unit"].lower()
    if name in (*TIMES, *SIZES):
        if unit or not 0 < number < math.inf:
            what = "milliseconds above 0, such as" if name in TIMES else "kB of 1,024 bytes above 0, such as"
            raise LimitError(f"limit {text!r}: give {what} {name}={'4.0' if name in TIMES else '100'}")
        return LimitText(name, number, None)
    if unit == "%" or (not unit and number <= 1):
        fraction = number / 100 if unit == "%" else number
        if not 0 < fraction <= 1:
            raise LimitError(
                f"limit {text!r}: a fraction is above 0 and at most 1 (or 100%); for instance {name}=0.5"
            )
        return LimitText(name, None, fraction)
    bound = number * _SCALES[unit]
    if not 0 < bound < math.inf or not bound.is_integer():
        raise LimitError(
            f"limit {text!r} is neither a fraction (above 0, at most 1) nor a whole number of {name}. "
            f"Allowed are {LIMITS}"
        )
    return LimitText(name, bound, None)

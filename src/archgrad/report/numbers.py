"""The numbers of a record written out: in their units, how they changed, and which way is better."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

_COSTS = ("params", "macs")
_UNITS = ("_ms", "_mj", "_bytes")


class ScoreOfRecord(NamedTuple):
    """What networks are judged by: its name, and which way is better."""

    name: str = "score"
    higher_is_better: bool = True

    @property
    def label(self) -> str:
        """Its name, with the direction where lower is better, as higher is the rule."""
        return label(self.name) if self.higher_is_better else f"{label(self.name)} (lower is better)"

    def best(self, values: Iterable[float]) -> float:
        """The best of some scores."""
        return max(values) if self.higher_is_better else min(values)

    def gain(self, before: float, after: float) -> float:
        """How much better the second score is; negative where it is worse."""
        return after - before if self.higher_is_better else before - after

    def measures(self, figure: str) -> bool:
        """Whether a figure is this score, or this score on a part of the data, such as "valid_mse"."""
        return figure == self.name or figure.endswith(f"_{self.name}")


def score(record: Mapping[str, Any]) -> ScoreOfRecord:
    """The score of a record, `{"name", "higher_is_better"}`; where it does not say, "score", and higher is better."""
    part = record.get("score") or {}
    return ScoreOfRecord(str(part.get("name") or "score"), part.get("higher_is_better") is not False)


def final_score(record: Mapping[str, Any]) -> ScoreOfRecord:
    """The score of the networks before and after: `score`, else the first of their figures that is no cost."""
    if record.get("score"):
        return score(record)
    figures = record.get("after") or record.get("before") or {}
    names = (name for name, value in figures.items() if is_figure(value) and not is_cost(name))
    return ScoreOfRecord(next(names, "score"))


def is_cost(key: str) -> bool:
    """Whether a figure is what a network takes, and not how well it does."""
    return key in _COSTS or key.endswith(_UNITS)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of figures, each once: the first, then scores as they are known, then costs."""
    first, *rest = dict.fromkeys(names)
    known = list(_FIGURES)
    rest.sort(key=lambda name: (is_cost(name), known.index(name) if name in known else len(known)))
    return [first, *rest]


def change(key: str, before: object, after: object, *, score: ScoreOfRecord) -> str:
    """How a figure changed: a cost as a factor, a share in points, another score in % or as a difference.

    A relative change says nothing where a score is negative or near zero; there it is the difference. A score
    that is no share is followed by "better" or "worse".
    """
    if not (is_number(before) and is_number(after)) or not math.isfinite(after - before):
        return "-"
    if is_cost(key):
        return ratio(before, after)
    if _writer(key) is percent:
        return f"{100 * (after - before):+.2f} points"
    if before > 0 and 0.1 <= after / before <= 10:
        relative = 100 * (after / before - 1)
        text = f"{relative:+.0f} %" if abs(relative) >= 10 else f"{relative:+.2g} %"
    else:
        text = f"{after - before:+.4g}"
    if key != score.name or after == before:
        return text
    return f"{text} ({'better' if score.gain(before, after) > 0 else 'worse'})"


def ratio(before: object, after: object) -> str:
    """A cost's change as a factor: x 0.5."""
    if not (is_number(before) and is_number(after)) or before <= 0 or not math.isfinite(after / before):
        return "-"
    return f"x {after / before:.3g}"


def label(key: str) -> str:
    """What a figure is called in a table: without its unit, which its value is written in."""
    if key in _FIGURES:
        return _FIGURES[key][0]
    name, unit = _unit(key)
    words = name.replace("_", " ")
    return f"{words} memory" if unit == "_bytes" and words.endswith("peak") else words


def figure(key: str, value: object) -> str:
    """A figure written in its unit, or [mean, deviation] as mean ± deviation; "-" where it is neither."""
    if isinstance(value, list) and is_figure(value):
        return " ± ".join(figure(key, one) for one in value)
    if not is_number(value):
        return "-"
    return _writer(key)(value) if math.isfinite(value) else "not finite"


def is_figure(value: object) -> bool:
    """Whether this is a number, or a mean and a deviation."""
    return is_number(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_number, value)))


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is an int or a float; a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: float) -> str:
    """A figure, with a prefix from a hundred thousand on: 0.0123, 12,345, 123 k, 1.23 M."""
    if abs(value) >= 1e15:
        return f"{value:.4g}"
    if abs(value) >= 1e5:
        return _scaled(value, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1e4 else f"{value:.4g}"


def amount(value: float, unit: str = "") -> str:
    """A figure written in full, for sentences that compare two: 7,679,696 MACs, 0.004 ms, 12.3457 ms."""
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    text = f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.6g}"
    return f"{text} {unit}".rstrip()


def counted(count: int, noun: str) -> str:
    """So many of something: 1 layer, 1,200 layers."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(value: float) -> str:
    """Bytes with a decimal prefix: 1.23 MB."""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))) or f"{value:.0f} B"


def percent(value: float) -> str:
    """A share as a percentage: 98.25 %."""
    return f"{100 * value:.2f} %" if abs(value) < 1e5 else f"{value:.4g}"


def duration(value: float) -> str:
    """Milliseconds: 1.23 ms."""
    return f"{_three_digits(value)} ms"


def seconds(value: float) -> str:
    """Seconds as 12.3 s, 4:05 min or 1:02:03 h."""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    minutes = f"{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes} h" if whole >= 3600 else f"{minutes.removeprefix('0')} min"


def timing_text(low: float, high: float) -> str:
    """A range of milliseconds: 1.1 to 1.3."""
    return f"{_three_digits(low)} to {_three_digits(high)}"


def value_text(value: object) -> str:
    """Any value of a configuration: strings as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _three_digits(value: float) -> str:
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for step, prefix in steps:
        # What would be rounded up to the step belongs to it: 999,999 is 1 M.
        if abs(value) >= step * 0.9995:
            return f"{_three_digits(value / step)} {prefix}"
    return ""


def _writer(key: str) -> Callable[[float], str]:
    """How a figure is written; that of a part of the data, or of a limit, as the figure itself."""
    bare = _PARTS.sub("", key)
    if bare in _FIGURES:
        return _FIGURES[bare][1]
    return _BY_UNIT.get(_unit(key)[1], number)


def tick_writer(key: str) -> Callable[[float], str] | None:
    """How figures are written at an axis, shortly; None where they have no unit."""
    writer = _writer(key)
    if writer is percent:
        return lambda value: f"{100 * value:.4g} %"
    return None if writer is number else writer


def _unit(key: str) -> tuple[str, str]:
    """A figure's name and the unit at its end; empty where it has none."""
    unit = next((one for one in _BY_UNIT if key.endswith(one) and key != one), "")
    return key.removesuffix(unit), unit


# Each figure's label, and how it is written.
_FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", percent),
    "score": ("score", number),
    "top5": ("top-5 accuracy", percent),
    "loss": ("loss", number),
    "params": ("parameters", number),
    "macs": ("MACs", number),
    "size_bytes": ("size on disk", size),
}
_PARTS = re.compile(
    r"^(?:(?:best|derived|discretization|expected|given|source|teacher|test|train|trial|valid)_)+(?=.)"
)
_BY_UNIT: Mapping[str, Callable[[float], str]] = {
    "_bytes": size, "_ms": duration, "_mj": lambda value: f"{_three_digits(value)} mJ", "_seconds": seconds,
}  # fmt: skip

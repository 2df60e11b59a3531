"""A search by rounds under a bound on memory: what it took and was allowed, and how the space shrank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from archgrad.errors import RunError
from archgrad.report.charts.axes import BOUND, FAINT, INK, LINES, Chart, drawn, dress
from archgrad.report.charts.steps import is_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
_MOST_SITES, _MOST_ROUNDS = 40, 6


class Round(NamedTuple):
    """One round: bytes, and for each site the candidates that are left, and those that were searched in."""

    predicted: float
    measured: float
    bound: float
    left: dict[str, list[int]]
    support: dict[str, list[int]]


def rounds(record: Mapping[str, Any]) -> list[Round]:
    """What the record's "rounds" hold.

    Raises:
        RunError: a part is of another kind than it should be.
    """
    try:
        return [
            Round(
                float(row["predicted_peak_bytes"]), float(row["measured_peak_bytes"]), float(row["bound_bytes"]),
                _places(row["left"]), _places(row["support"]),
            )
            for row in record.get("rounds") or []
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(
            "the record is damaged at rounds: each has predicted_peak_bytes, measured_peak_bytes, bound_bytes, and "
            "the candidates of each site as left and support; run again to write it anew"
        ) from error


def charts(record: Mapping[str, Any]) -> list[Chart]:
    """Memory over the rounds, and the space at some of them, the first and the last among these."""
    rounds_run = rounds(record)
    if not rounds_run:
        return []
    many, few = len(rounds_run), min(len(rounds_run), _MOST_ROUNDS)
    shown = sorted({round(i * (many - 1) / max(few - 1, 1)) for i in range(few)})
    return [_memory(rounds_run), *(_space(rounds_run[0], rounds_run[place], place + 1) for place in shown)]


def _places(part: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {str(site): sorted(int(i) for i in some) for site, some in part.items()}


def _memory(rounds_run: list[Round]) -> Chart:
    def fill(axes: Axes) -> None:
        x = range(1, len(rounds_run) + 1)
        lines = {
            "predicted": [each.predicted for each in rounds_run],
            "measured": [each.measured for each in rounds_run],
        }
        for color, marker, (name, values) in zip(LINES, "so", lines.items(), strict=False):
            axes.plot(
                x, [v / MIB for v in values], color=color, linewidth=1.2, marker=marker, markersize=4, label=name
            )
        # Without a bound of the user's own it may be what the machine has, far above.
        bounds = [each.bound for each in rounds_run if is_finite(each.bound)]
        top = max(v for values in lines.values() for v in values)
        if bounds and max(bounds) <= 4 * top:
            axes.axhline(max(bounds) / MIB, color=BOUND, linewidth=1.2, linestyle="--", label="bound")
        dress(axes, x="round")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("peak of a step, MiB", color=INK)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="lower right")

    caption = f"A training step of each round's subspace; the bound is {rounds_run[0].bound / MIB:,.1f} MiB."
    return Chart("Memory of the search", caption, drawn("rounds memory", fill))


def _space(first: Round, one: Round, number: int) -> Chart:
    sites = list(one.left)[:_MOST_SITES]

    def fill(axes: Axes) -> None:
        for place, site in enumerate(sites):
            for some, color in ((one.left[site], FAINT), (one.support.get(site, []), LINES[0])):
                axes.broken_barh([(a - 0.45, b - a + 0.9) for a, b in _runs(some)], (-place - 0.4, 0.8), color=color)
        dress(axes, x="candidate")
        axes.grid(visible=False)
        axes.set_yticks([-place for place in range(len(sites))], [site[-24:] for site in sites])
        axes.tick_params(axis="y", labelsize=8 if len(sites) <= 12 else 5)
        # All rounds on the axis of the first, so that what is gone shows.
        most = max((some[-1] for some in first.left.values() if some), default=0)
        axes.set_xlim(-0.7, most + 0.7)

    sizes = [sum(len(some) for some in part.values()) for part in (one.left, one.support)]
    more = f"; {len(one.left) - len(sites)} further sites are not drawn" if len(one.left) > len(sites) else ""
    caption = f"{sizes[0]} candidates left, {sizes[1]} of them (dark) searched in this round{more}."
    return Chart(f"The space in round {number}", caption, drawn(f"rounds space {number}", fill))


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for i in places:
        if found and i == found[-1][1] + 1:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found

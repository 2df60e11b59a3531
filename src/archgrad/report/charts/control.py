"""Charts of control: the states, the actions between their bounds, and the cost over real rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from archgrad.errors import RunError
from archgrad.report.charts.axes import BOUND, INK, LINES, Chart, drawn, dress
from archgrad.report.charts.steps import is_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 3  # charts of states, and of actions


class _Control(NamedTuple):
    """A series over time for each state and action, the bounds of each action, and pairs (real rollouts, J)."""

    states: list[list[float]]
    actions: list[list[float]]
    low: list[float]
    high: list[float]
    costs: list[tuple[float, float]]


def charts(record: Mapping[str, Any]) -> list[Chart]:
    """The charts of the record's "control"; none where it has no such part.

    Raises:
        RunError: the part has another form.
    """
    if not record.get("control"):
        return []
    control = _read(record["control"])
    drawings = [_cost(control.costs)] if control.costs else []
    groups = [control.states[i : i + len(LINES)] for i in range(0, len(control.states), len(LINES))][:_MOST]
    drawings += [_states(group, first=place * len(LINES)) for place, group in enumerate(groups)]
    bounds = list(zip(control.low, control.high, strict=True))
    drawings += [_action(series, bounds[i], number=i) for i, series in enumerate(control.actions[:_MOST])]
    return drawings


def _read(part: Any) -> _Control:
    try:
        states, actions = (_series(part[name]) for name in ("states", "actions"))
        low, high = ([float(x) for x in part[name]] for name in ("low", "high"))
        costs = [(float(x), float(y)) for x, y in part["costs"]]
        if len(low) != len(actions) or len(high) != len(actions):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            "the record is damaged at control: states and actions have a row for each step, low and high a number "
            "for each action, and costs are pairs of real rollouts and cost. Run again to write it anew."
        ) from error
    return _Control(states, actions, low, high, [(rollouts, cost) for rollouts, cost in costs if is_finite(cost)])


def _series(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(x) for x in column] for column in zip(*rows, strict=True)]


def _cost(costs: list[tuple[float, float]]) -> Chart:
    def fill(axes: Axes) -> None:
        axes.step(*zip(*costs, strict=True), where="post", color=LINES[0], linewidth=1.5, marker="o", markersize=2.5)
        dress(axes, x="real rollouts")
        if min(y for _, y in costs) > 0.0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_ylabel("cost", color=INK)

    caption = f"The best so far: {costs[0][1]:.6g} at first, {costs[-1][1]:.6g} after {costs[-1][0]:.0f} rollouts."
    return Chart("Cost against real rollouts", caption, drawn("control cost", fill))


def _states(group: list[list[float]], *, first: int) -> Chart:
    def fill(axes: Axes) -> None:
        for place, series in enumerate(group):
            axes.plot(series, color=LINES[place], linewidth=1.5, label=f"state {first + place}")
        dress(axes)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    last = f" {first} to {first + len(group) - 1}" if first else ""
    return Chart(
        f"States{last} over the horizon", "As measured, in the last rollout accepted.", drawn("states", fill)
    )


def _action(series: list[float], bounds: tuple[float, float], *, number: int) -> Chart:
    def fill(axes: Axes) -> None:
        for bound in bounds:
            axes.axhline(bound, color=BOUND, linewidth=1.2, linestyle="--")
        axes.step(range(len(series)), series, where="post", color=LINES[0], linewidth=1.5)
        dress(axes)

    at = sum(x <= bounds[0] or x >= bounds[1] for x in series)
    caption = f"Dashed lines are its bounds; {at} of {len(series)} steps are at one of them."
    return Chart(f"Action {number} between its bounds", caption, drawn("action", fill))

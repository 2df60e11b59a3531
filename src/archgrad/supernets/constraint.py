"""A limit on the architectures of a supernet: their prices, and the best architecture under the limit."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.decide import decision_weights
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.policies import Uniform
from archgrad.choices.subsets import probabilities
from archgrad.costs.count import Macs, Params
from archgrad.costs.limits import Limit, Predicts
from archgrad.costs.surrogate import FEWEST, Surrogate
from archgrad.costs.table import CostTable
from archgrad.costs.table_column import TableColumn
from archgrad.errors import LimitError
from archgrad.extract.discretize import build
from archgrad.report.numbers import amount
from archgrad.run.nonfinite import term
from archgrad.run.run import Run

# Measurements vary: what is chosen lies under the first of these parts of the bound that a new measurement keeps.
MEASURED_ROOM = (1.0, 0.97, 0.92, 0.85, 0.75, 0.6, 0.4)
# Architectures that the first surrogate is fitted on: twice as many as it has coefficients, within these bounds.
SAMPLES = (100, 300)
READINGS, PATIENCE = 5, 10  # measurements of what is chosen or handed back; rounds of the latter, a second apart
LEAST = 1e-30  # smaller probabilities are raised to this before their logarithm is taken
Scores = Tensor | Mapping[tuple[int, ...], float]
BUSY = 1.05  # a median higher than this times the lowest measurement is a sign of other work on the machine
SWEEPS = 20  # of coordinate descent, which ends by itself long before


@dataclass(frozen=True)
class _Bounds:
    """The bound as an absolute number, and the cheapest architecture known with its price."""

    bound: float
    cheapest: Architecture
    lowest: float


class ArchitectureConstraint:
    """A limit on the architectures of one supernet, prepared for repeated use.

    Counted costs and tables are priced exactly and have a gradient. Any other cost is asked for each network, and
    a ridge surrogate on sampled architectures is used where a gradient or many prices are needed. Of such a cost
    nothing is known before `fit_surrogate`: `bound`, `lowest` and `cheapest` raise LimitError until then.

    Args:
        space: the supernet; priced as it is, choices restricted or not.
        limit: the bound; `fraction` is of the most expensive architecture.

    Attributes:
        surrogate: of a measured cost, after `fit_surrogate`.
        slower: how many times slower than at the beginning the machine was when last found busy.

    Raises:
        LimitError: nothing in the space is under the limit; the message says the lowest reachable.
    """

    def __init__(self, space: nn.Module, limit: Limit) -> None:
        self.space, self.cost, self._limit = space, limit.cost, limit
        self._choices = decisions(space)
        self._counter = self.cost.counter(space) if isinstance(self.cost, (Macs, Params)) else None
        self._linear = self.cost if isinstance(self.cost, (CostTable, Surrogate)) else None
        self.surrogate: Surrogate | None = None
        self._known: dict[Architecture, float] = {}
        self._bounds: _Bounds | None = None
        self.slower, self._clocked = 1.0, getattr(self.cost, "clocked", True)
        if not self.measured:
            self._find_bounds(Architecture({name: options(choice)[0] for name, choice in self._choices.items()}))

    def fit_surrogate(self, run: Run, *, key: str = "prices") -> None:
        """For a measured cost: measure what the surrogate and the bound need, once in the run's life.

        A run with several limits gives each a `key` of its own, under which the measurements are remembered.

        Raises:
            LimitError: nothing in the space is under the limit; the message says the lowest reachable.
        """
        if not self.measured or self._bounds is not None:
            return
        state = run.compute_once(key, lambda: self._measured(run.generator(key)))
        # Also where it was measured just now: the surrogate has to be the same as in a resumed run.
        cheapest = Architecture.from_json(state["lowest"])
        self._known = {Architecture.from_json(text): value for text, value in state["known"].items()}
        self._bounds = _Bounds(state["bound"], cheapest, self._known[cheapest])
        self._fit()

    def _measured(self, generator: torch.Generator) -> dict[str, Any]:
        wanted = min(max(2 * sum(choice.size for choice in self._choices.values()), SAMPLES[0]), SAMPLES[1])
        policy = Uniform(self.space)
        for _ in range(3 * wanted):  # a small space has fewer different ones
            if len(self._known) < wanted:
                self.price(policy.sample(generator))
        self._fit()
        bounds = self._find_bounds(min(self._known, key=self._known.__getitem__))
        known = {architecture.to_json(): value for architecture, value in self._known.items()}
        return {"known": known, "bound": bounds.bound, "lowest": bounds.cheapest.to_json()}

    def _fit(self) -> None:
        if len(self._known) >= FEWEST:
            self.surrogate = self._linear = Surrogate(self.space, self.cost)
            self.surrogate.fit(list(self._known), list(self._known.values()))

    def _find_bounds(self, first: Architecture) -> _Bounds:
        """The bound, and the cheapest architecture by coordinate descent from a first one."""
        cheapest = min(first, self._descended(first, self.predicted), key=self.price)
        dearest = math.nan
        if self._limit.fraction is not None:
            top = self._descended(first, lambda a: -self.predicted(a))
            dearest = max(self.price(top), *self._known.values(), self.price(first))
        bounds = self._bounds = _Bounds(self._limit.resolve(dearest), cheapest, self.price(cheapest))
        if bounds.lowest > bounds.bound:
            raise LimitError(
                f"no network of this space takes at most {amount(bounds.bound, self.cost.unit)}: the lowest "
                f"reachable is {amount(bounds.lowest, self.cost.unit)}; raise the limit, or search a space with "
                f"smaller networks (fewer cells or channels){self._limit.meant()}"
            )
        return bounds

    @property
    def _known_bounds(self) -> _Bounds:
        if self._bounds is None:
            raise LimitError(
                f"{self.cost.name} is measured, and nothing is known of it yet; call fit_surrogate(run) first"
            )
        return self._bounds

    @property
    def bound(self) -> float:
        """The limit as an absolute number."""
        return self._known_bounds.bound

    @property
    def lowest(self) -> float:
        """The price of the cheapest architecture known."""
        return self._known_bounds.lowest

    @property
    def cheapest(self) -> Architecture:
        """The cheapest architecture known; it is under the bound."""
        return self._known_bounds.cheapest

    @property
    def measured(self) -> bool:
        """Whether a network has to be asked for its price."""
        return self._counter is None and not isinstance(self.cost, (CostTable, Surrogate))

    def price(self, architecture: Architecture) -> float:
        """What the architecture takes: counted, or measured once on its plain network."""
        if not self.measured:
            return self.predicted(architecture)
        if architecture not in self._known:
            self._remember(architecture, self._measure(architecture))
        return self._known[architecture]

    def _remember(self, architecture: Architecture, value: float) -> None:
        self._known[architecture] = value
        if self.surrogate is not None:
            self.surrogate.add([architecture], [value])

    def _measure(self, architecture: Architecture) -> float:
        if isinstance(self.cost, Predicts):
            return self.cost.predict(architecture)
        return self.cost.of(build(self.space, architecture))

    def predicted(self, architecture: Architecture) -> float:
        """The price by count, by table or by surrogate."""
        masks = {name: choice.picked(architecture[name]).double() for name, choice in self._choices.items()}
        return float(self.expected(masks))

    def expected(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The price at mixing weights, [size] for each choice: a float64 scalar on the CPU, with gradient.

        Measured costs are the surrogate's; in a space too small for one, the mean of what was measured.
        """
        if self._counter is not None:
            return self._counter.at(torch.cat([weights[name] for name in self._choices]).cpu().double())
        if self._linear is not None:
            return self._linear.at({name: row.cpu() for name, row in weights.items()})
        return torch.tensor(statistics.fmean(self._known.values()), dtype=torch.float64)

    def excess(self, weights: Mapping[str, Tensor]) -> Tensor:
        """max(0, price / bound - 1) at mixing weights; see `expected`."""
        return term("limit", torch.relu(self.expected(weights) / self.bound - 1.0))

    def verify(self, architecture: Architecture, network: nn.Module) -> float:
        """What the network handed back takes, by a new count, or a new measurement at the machine's first speed.

        Raises:
            LimitError: it is over the bound.
        """
        if isinstance(self.cost, (CostTable, TableColumn)):
            return self.price(architecture)
        if not self.measured:
            return self.cost.of(network)
        for _ in range(PATIENCE if self._clocked else 1):
            value = self._read(network)
            if value <= self.bound:
                return value
            time.sleep(1.0)  # what keeps the machine busy may be over by then
        raise LimitError(
            f"the network found takes {amount(value, self.cost.unit)} when measured again, over its limit of "
            f"{amount(self.bound)}: run again on an idle machine (a run with a folder goes on), or raise the limit"
        )

    def _read(self, network: nn.Module) -> float:
        """A new price, from several measurements, at the speed that the machine had in `fit_surrogate`.

        Other work on the machine makes a measurement longer, never shorter: a median far above the lowest says more
        of the machine than of the network. Work that lasts makes all of them longer: a network over the bound is
        measured in turns with the cheapest known one, and divided by how much slower that one has become.
        """
        readings = [self.cost.of(network) for _ in range(READINGS if self._clocked else 1)]
        value = min(statistics.median(readings), BUSY * min(readings))
        if not self._clocked or value <= self.bound:
            return value
        before, known = self.lowest, build(self.space, self.cheapest)
        pairs = [(self.cost.of(known), self.cost.of(network)) for _ in range(READINGS)]
        then = min(first for first, _ in pairs)
        self.slower = max(1.0, then / before) if before > 0.0 else 1.0
        return min(second for _, second in pairs) / self.slower

    def refit(self) -> None:
        """Fit the surrogate, if there is one, to everything measured so far."""
        if self.surrogate is not None:
            self.surrogate.fit()

    def decide(self, scores: Mapping[str, Scores], run: Run, *, name: str = "architecture") -> Architecture:
        """`best_feasible`, found once in a run's life: a measured price may come out otherwise when it is resumed."""
        if not self.cost.measured:
            return self.best_feasible(scores)
        return Architecture.from_json(run.compute_once(name, lambda: self.best_feasible(scores).to_json()))

    def verify_once(self, architecture: Architecture, network: nn.Module, run: Run) -> float:
        """`verify`, measured once in a run's life; `slower` is remembered with it."""
        value, self.slower = run.compute_once("reached", lambda: [self.verify(architecture, network), self.slower])
        return float(value)

    def best_feasible(self, scores: Mapping[str, Scores]) -> Architecture:
        """The architecture of the highest total score under the limit, found greedily.

        From the best of all, the picks that lose least for what they save are changed until the price is under
        the bound; then picks that gain are changed back while it stays there. A measured price is measured again on
        what is returned.

        Args:
            scores: for each choice [size], such as log-probabilities, of which an InputChoice scores the sum of its
                picks; or the score of each pick.

        Raises:
            LimitError: measurements vary too much for a limit this tight.
        """
        for room in MEASURED_ROOM if self.measured else (1.0,):
            best = self._greedy(scores, room * self.bound)
            if self.is_feasible(best):
                return best
        if self.is_feasible(self.cheapest):
            return self.cheapest
        raise LimitError(
            f"no network stayed under {amount(self.bound, self.cost.unit)} when measured again: timings on this "
            f"machine vary too much for a limit this tight; raise it, or measure on a machine without other work"
        )

    def is_feasible(self, architecture: Architecture) -> bool:
        """Whether the price is under the bound, by fresh readings where it is measured."""
        if not self.measured or isinstance(self.cost, Predicts):
            return self.price(architecture) <= self.bound
        value = self._read(build(self.space, architecture))
        self._remember(architecture, value)
        return value <= self.bound

    def _guess(self, architecture: Architecture) -> float:
        """The price: the measured one where there is one, else the predicted one."""
        return self._known[architecture] if architecture in self._known else self.predicted(architecture)

    def _greedy(self, scores: Mapping[str, Scores], bound: float) -> Architecture:
        value = TotalScores(scores)
        now = Architecture({name: value.best(choice) for name, choice in self._choices.items()})
        price = self._guess(now)
        while price > bound:
            steps = []
            for name, pick in self._changes(now):
                other = Architecture({**now, name: pick})
                saved = price - (cost := self._guess(other))
                if saved > 1e-9 * abs(price):
                    lost = value.of(name, now[name]) - value.of(name, pick)
                    steps.append((max(lost, 0.0) / saved, other, cost))
            if not steps:
                return self.cheapest
            _, now, price = min(steps, key=lambda step: step[0])
        return self._improved(now, value, bound)

    def _improved(self, now: Architecture, value: TotalScores, bound: float) -> Architecture:
        for _ in range(SWEEPS):
            losses = [(value.of(n, now[n]) - value.of(n, pick), n, pick) for n, pick in self._changes(now)]
            gains = sorted((loss for loss in losses if loss[0] < 0), key=lambda loss: loss[0])
            better = next((o for _, n, p in gains if self._guess(o := Architecture({**now, n: p})) <= bound), None)
            if better is None:
                break
            now = better
        return now

    def _descended(self, now: Architecture, price: Callable[[Architecture], float]) -> Architecture:
        """Coordinate descent on the price."""
        lowest = price(now)
        for _ in range(SWEEPS):
            before = lowest
            for name, pick in self._changes(now):
                other = Architecture({**now, name: pick})
                if (cost := price(other)) < lowest:
                    now, lowest = other, cost
            if lowest == before:
                break
        return now

    def _changes(self, architecture: Architecture) -> Iterator[tuple[str, Pick]]:
        """Every change to another pick of one choice."""
        for name, choice in self._choices.items():
            for pick in options(choice):
                if pick != architecture[name]:
                    yield name, pick

    def record(self) -> dict[str, Any] | None:
        """What the surrogate says of everything that was measured, beside the measurements; for the report."""
        if self.surrogate is None:
            return None
        self.refit()
        error = self.surrogate.error
        return {
            "predicted": [self.predicted(architecture) for architecture in self._known],
            "measured": list(self._known.values()),
            "rmse": error.rms,
            "rank_correlation": error.rank,
            "unit": self.cost.unit,
        }

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far."""
        known = {architecture.to_json(): value for architecture, value in self._known.items()}
        return {"known": known, "surrogate": self.surrogate.state_dict() if self.surrogate else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._known = {Architecture.from_json(text): value for text, value in state["known"].items()}
        if self.surrogate is not None:
            self.surrogate.load_state_dict(state["surrogate"])


def scores(space: nn.Module, *, logarithms: bool = False) -> dict[str, Scores]:
    """What `best_feasible` weighs: `decision_weights`, and each subset's probability where inputs have one."""
    rows: dict[str, Scores] = {**decision_weights(space), **probabilities(space)}
    if not logarithms:
        return rows
    return {
        name: row.clamp_min(LEAST).log()
        if isinstance(row, Tensor)
        else {p: math.log(max(v, LEAST)) for p, v in row.items()}
        for name, row in rows.items()
    }


class TotalScores:
    """Total scores of picks, of what `scores` returns."""

    def __init__(self, scores: Mapping[str, Scores]) -> None:
        self.scores = {n: s.detach().double().cpu() if isinstance(s, Tensor) else s for n, s in scores.items()}

    def of(self, name: str, pick: Pick) -> float:
        """The score of a pick."""
        scores = self.scores[name]
        if not isinstance(scores, Tensor):
            return scores[pick]  # type: ignore[index]
        return float(scores[[pick] if isinstance(pick, int) else list(pick)].sum())

    def best(self, choice: Choice) -> Pick:
        """The pick of the highest score."""
        return max(options(choice), key=lambda pick: self.of(choice.name, pick))


def options(choice: Choice) -> list[Pick]:
    """Every pick that a choice of a supernet allows."""
    alive = choice.pickable_places()
    if isinstance(choice, OpChoice):
        return list(alive)
    assert isinstance(choice, InputChoice)
    return [pick for n in range(choice.fewest, choice.keep + 1) for pick in itertools.combinations(alive, n)]

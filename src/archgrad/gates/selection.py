"""The largest architecture under a limit, in the order that scores give to a space's gate entries."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.choices.channels import require_whole
from archgrad.choices.gate import Gate
from archgrad.costs.count import Counter, Macs, Params
from archgrad.costs.file_size import FileSize, largest_file
from archgrad.costs.limits import Limit
from archgrad.errors import ChoiceError, LimitError
from archgrad.extract.discretize import build
from archgrad.gates.width_rounding import WidthRounding
from archgrad.report.numbers import amount

# Shares of a measured bound to aim at in turn, since the clock is read again on what is handed back.
_MEASURED_ROOM = (0.95, 0.85, 0.7, 0.5)
_USED = 0.95  # of a counted bound: with less, blocks of rounded widths are exchanged
_MEASURED_USED = 0.5  # of a measured bound: each further try takes measurements
_TRIES, _MEASURED_TRIES = 24, 6  # to keep branches that left together

Found = TypeVar("Found")


def gates(space: nn.Module) -> dict[str, Gate]:
    """The space's gates, one for each name.

    Raises:
        ChoiceError: the space has a choice that is not a gate, or no gate, or is a part of a slimmed network.
    """
    by_name = {name: same[0] for name, same in choices(space).items()}
    gates_alone = {name: choice for name, choice in by_name.items() if isinstance(choice, Gate)}
    others = [name for name in by_name if name not in gates_alone]
    if others or not by_name:
        raise ChoiceError(
            f"{type(space).__name__} has {f'choices that are no gates: {others[:3]}' if others else 'no choice'}. "
            f"Give a space of gates alone, as archgrad.slim(network, example=x) makes it."
        )
    require_whole(space)
    return gates_alone


def above_threshold(
    space: nn.Module, scores: Mapping[str, Tensor], threshold: float, rounding: WidthRounding, *,
    floor: float = 0.0, kept: Collection[str] = (),
) -> Architecture:  # fmt: skip
    """For each gate its best entries: as many as score above the threshold, rounded, never none.

    No gate keeps less than the share `floor` of its entries. A branch whose inner gates would all close is removed,
    unless `kept` names it.
    """
    by_name = gates(space)
    counts = {
        name: max(int((scores[name] > threshold).sum()), math.floor(floor * gate.size))
        for name, gate in by_name.items()
    }  # fmt: skip
    for name, inner in _inner(by_name).items():
        if inner and not any(counts[n] for n in inner):
            counts[name] = 0
    counts |= {name: by_name[name].size for name in kept}
    return Architecture({
        name: tuple(scores[name].topk(rounding.count(gate, counts[name])).indices.tolist())
        for name, gate in by_name.items()
    })  # fmt: skip


def _inner(by_name: Mapping[str, Gate]) -> dict[str, list[str]]:
    """For each gate over a branch the gates that stand in that branch alone."""
    inner: dict[str, list[str]] = {}
    for name, gate in by_name.items():
        if gate.vanishing is not None:
            inside = {c.module for c in gate.couplings}
            inner[name] = [
                n for n, g in by_name.items() if n != name and all(c.module in inside for c in g.couplings)
            ]
    return inner


def uniform(
    space: nn.Module, width: float, rounding: WidthRounding, scores: Mapping[str, Tensor] | None = None
) -> Architecture:
    """The same share of every gate, its first entries or those of the highest scores; branches stay."""
    picks = {}
    for name, gate in gates(space).items():
        count = gate.size if gate.vanishing else rounding.count(gate, round(width * gate.size))
        ranks = (scores[name] if scores else torch.zeros(gate.size)).argsort(descending=True, stable=True)
        picks[name] = tuple(ranks[:count].sort().values.tolist())
    return Architecture(picks)


def full(space: nn.Module) -> Architecture:
    """The architecture that closes nothing.

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.gates import full
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> dict(full(ag.slim(net, torch.randn(2, 4))))
        {'0': (0, 1, 2)}
    """
    return Architecture({name: tuple(range(gate.size)) for name, gate in gates(space).items()})


def _smallest(space: nn.Module, rounding: WidthRounding) -> Architecture:
    """The architecture that closes all that can close."""
    scores = {name: torch.zeros(gate.size) for name, gate in gates(space).items()}
    return above_threshold(space, scores, 1.0, rounding)


# Under a limit no layer keeps less than this part of the width that uniform scaling would leave it.
FLOOR = 0.5


class GateConstraint:
    """A limit on one space of gates, or several at once, made ready for repeated use.

    Several are one on the largest of cost_i / bound_i, which has to be at most 1.

    Attributes:
        name: of the cost; "limits" where there are several.
        unit: of the bound.
        reference: what the space takes with every gate open.
        bound: the limit as an absolute number.
        counted: whether the cost is counted, so that it has a gradient (`expected`); all of several.

    Raises:
        LimitError: no network of the space keeps the limits; the message says the lowest reachable.
    """

    def __init__(self, space: nn.Module, limit: Limit | Sequence[Limit], rounding: WidthRounding) -> None:
        self.space, self.rounding = space, rounding
        self.parts: tuple[GateConstraint, ...] = ()
        self.counted: bool
        self.counter: Counter | None
        if isinstance(limit, list | tuple) and len(limit) > 1:
            self.parts = tuple(GateConstraint(space, one, rounding) for one in limit)
            self.name, self.unit, self.bound = "limits", "of the limits", 1.0
            self.counted = all(part.counted for part in self.parts)
            for part in self.parts if not self.counted else ():
                part.counter = None  # beside what is measured, all of it is asked for each network
            self.reference = self.price(full(space))
            return
        if isinstance(limit, list | tuple) and not limit:
            raise LimitError("limit=[] was given. Allowed is a limit, a list of them, or None for no limit.")
        one = limit[0] if isinstance(limit, list | tuple) else limit
        assert isinstance(one, Limit)
        self.cost, self.name, self.unit = one.cost, one.cost.name, one.cost.unit
        # Other costs, measured or a user's own, are asked for each network.
        self.counter = self.cost.counter(space) if isinstance(self.cost, (Macs, Params)) else None
        self.counted = self.counter is not None
        self._weighed: dict[Architecture, float] = {}  # what files have, which no clock blurs
        self.reference = self.price(full(space))
        self.bound = self._promised = one.resolve(self.reference)
        self._refuse_the_impossible(one.meant())

    def __repr__(self) -> str:
        return f"<GateConstraint, {self.name} at most {amount(self.bound, self.unit)}>"

    def price(self, architecture: Architecture) -> float:
        """What an architecture takes: counted exactly, or measured on its network."""
        if self.parts:
            return max(part.price(architecture) / part.bound for part in self.parts)
        if isinstance(self.cost, FileSize):
            if architecture not in self._weighed:
                self._weighed[architecture] = self.cost.once_trained(build(self.space, architecture))
            return self._weighed[architecture]
        if self.counter is None:
            return self.cost.of(build(self.space, architecture))
        masks = [same[0].picked(architecture[name]) for name, same in choices(self.space).items()]
        # Sums of shares of whole numbers: what is exactly at a bound is not to be over it by its last bit.
        return round(float(self.counter.at(torch.cat(masks).double())), 6)

    def expected(self, mixing: Tensor) -> Tensor:
        """The counted cost at mixing weights [entries of all gates in order], float64: a scalar []."""
        if self.parts:
            return torch.stack([part.expected(mixing) / part.bound for part in self.parts]).max()
        assert self.counter is not None
        return self.counter.at(mixing)

    def is_feasible(self, architecture: Architecture) -> bool:
        """Whether an architecture keeps the limits."""
        return self.price(architecture) <= self.bound

    def record(self, network: nn.Module) -> dict[str, Any]:
        """The limit as JSON, with what a network reaches when it is counted or measured anew.

        Of several the one with the least room, and "others".
        """
        if self.parts:
            records = [part.record(network) for part in self.parts]
            tightest = max(records, key=lambda one: one["reached"] / one["bound"])
            return {**tightest, "others": [one for one in records if one is not tightest]}
        return {"cost": self.name, "unit": self.unit, "bound": self.bound, "reached": self.cost.of(network)}

    def unrounded(self) -> GateConstraint:
        """The same constraint for widths of any number."""
        other = copy.copy(self)
        other.rounding, other.parts = WidthRounding(1), tuple(part.unrounded() for part in self.parts)
        return other

    def uniform_width(self) -> float:
        """The largest share of every gate's entries that keeps the limit, by bisection; 1 where all of them do."""
        if self.is_feasible(full(self.space)):
            return 1.0
        if width := self._by_params(GateConstraint.uniform_width, lambda w: uniform(self.space, w, self.rounding)):
            return width
        low, high = 0.0, 1.0
        for _ in range(12 if self.counted else 5):
            middle = (low + high) / 2
            keeps = self.is_feasible(uniform(self.space, middle, self.rounding))
            low, high = (middle, high) if keeps else (low, middle)
        return low

    def best_feasible(self, scores: Mapping[str, Tensor], *, floor: float = 0.0) -> Architecture:
        """The architecture with the lowest threshold on the scores that keeps the limit.

        Where several branches leave at one threshold and little of the limit is used without them, the best of them
        stay. What rounding left of a counted limit is filled with the next-best entries. Under a limit on the file's
        size parameters are counted, as many as leave it. A measured limit is measured again on what is returned.

        Args:
            scores: for each gate a score for each entry; the higher stays, and -inf never does.
            floor: no gate keeps less than this share of its entries, if the limit allows that.

        Raises:
            LimitError: a measured limit is kept by nothing, not even with room to spare.
        """
        if not self.counted and self.is_feasible(full(self.space)):
            return full(self.space)
        if found := self._by_params(lambda counted: counted.best_feasible(scores, floor=floor), lambda each: each):
            return found
        for room in (1.0,) if self.counted else _MEASURED_ROOM:
            architecture = self._lowest_threshold(scores, floor, room * self.bound)
            if self.is_feasible(architecture):
                return self._recounted(scores, floor, architecture) if self.counted else architecture
        if floor > 0.0:
            return self.best_feasible(scores)
        why = "what is built counts as more" if self.counted else "the clock is too noisy: use a quieter machine"
        raise LimitError(f"nothing stayed under {amount(self.bound, self.unit)} measured again; {why}, or raise it")

    def _recounted(self, scores: Mapping[str, Tensor], floor: float, architecture: Architecture) -> Architecture:
        """The limit used up, and less of it where the network that was built counts as more than was expected."""
        architecture = self._used_up(architecture, scores, floor)
        macs = [part for part in self.parts or (self,) if isinstance(part.cost, Macs)]
        network = build(self.space, architecture) if macs else self.space
        over = max((part.cost.of(network) / part._promised for part in macs), default=0.0)
        if over <= 1.0 + 1e-9:
            return architecture
        tighter = copy.copy(self)  # of several limits the largest share has to be at most 1
        tighter.bound /= max(over, 1.01)
        return tighter.best_feasible(scores, floor=floor)

    def _by_params(
        self, find: Callable[[GateConstraint], Found], built: Callable[[Found], Architecture]
    ) -> Found | None:
        """What is found under the limit on parameters that uses up one on the file's size; None for other limits."""
        if self.parts or not isinstance(self.cost, FileSize):
            return None
        counted = GateConstraint(self.space, Params().at_most(fraction=1.0), self.rounding)

        def under(parameters: float) -> tuple[Found, tuple[float, float]]:
            counted.bound = parameters
            found = find(counted)
            return found, at(built(found))

        def at(architecture: Architecture) -> tuple[float, float]:
            return counted.price(architecture), self.price(architecture)

        return largest_file(self.bound, under, at(_smallest(self.space, self.rounding)), at(full(self.space)))

    def _used_up(self, architecture: Architecture, scores: Mapping[str, Tensor], floor: float) -> Architecture:
        """The limit used up: what fits is added; where rounded widths leave much of it, blocks are exchanged.

        An exchange takes a step of rounding from one gate and fills up with others, or with a removed branch at its
        narrowest. The one that uses most of the limit is made, until `_USED` of it is used or none uses more.
        """
        by_name, architecture = gates(self.space), self._filled(architecture, scores)
        steps = {n: self.rounding.step(g) for n, g in by_name.items()}
        if max(steps.values()) == 1:
            return architecture
        least = {
            n: 0 if g.vanishing is not None else max(steps[n], self.rounding.count(g, math.floor(floor * g.size)))
            for n, g in by_name.items()
        }  # fmt: skip

        def with_count(count: int, name: str) -> Architecture:
            return Architecture({**architecture, name: tuple(scores[name].topk(count).indices.tolist())})

        while (price := self.price(architecture)) < _USED * self.bound:
            for name, inner in _inner(by_name).items():
                for inside in inner if not architecture[name] else ():
                    architecture = with_count(least[inside], inside)
            counts = {n: len(architecture[n]) for n in by_name}  # type: ignore[arg-type]
            fewer = {n: steps[n] * (math.ceil(count / steps[n]) - 1) for n, count in counts.items()}
            others = [
                self._filled(with_count(count, name), scores, without=name)
                for name, count in fewer.items() if count >= least[name]
            ]  # fmt: skip
            best = max([self._filled(architecture, scores, without=""), *others], key=self.price)
            if self.price(best) <= price:
                break
            architecture = best
        return architecture

    def _filled(
        self, architecture: Architecture, scores: Mapping[str, Tensor], *, without: str | None = None
    ) -> Architecture:
        """Entries added, a step of rounding at a time and the best scores first, while the limit holds.

        A removed branch stays removed, unless `without` names a gate that others are to grow instead of.
        """
        by_name = gates(self.space)
        ranks = {n: scores[n].argsort(descending=True, stable=True).tolist() for n in by_name}
        counts = {name: len(architecture[name]) for name in by_name}  # type: ignore[arg-type]
        inner = _inner(by_name)
        full = {n for n, gate in by_name.items() if counts[n] == gate.size} | {without}

        def score(name: str) -> float:
            """Of the next entry; of a branch no more than of the best entry in it."""
            inside = [float(scores[n].max()) for n in inner.get(name, ()) if without is not None]
            return min([float(scores[name][ranks[name][counts[name]]]), max(inside, default=math.inf)])

        while True:
            removed = {n for n in inner if not counts[n]}
            gone = {n for name in removed for n in inner[name]} | (removed if without is None else set())
            open_to_more = [n for n in by_name if n not in full | gone and score(n) > -math.inf]
            if not open_to_more:
                return architecture
            name = max(open_to_more, key=score)
            more = min(counts[name] + self.rounding.step(by_name[name]), by_name[name].size)
            larger = Architecture({**architecture, name: tuple(ranks[name][:more])})
            if self.is_feasible(larger):
                architecture, counts[name] = larger, more
            if architecture is not larger or more == by_name[name].size:
                full.add(name)

    def _lowest_threshold(self, scores: Mapping[str, Tensor], floor: float, bound: float) -> Architecture:
        """The lowest threshold under a bound; where branches leave together, and too much with them, some stay.

        As many of the best of them at once as fit are kept, by halving; one that does not fit alone is passed over.
        """
        architecture, kept = self._at_lowest(scores, floor, bound, ()), list[str]()
        used = self.price(architecture)
        enough, tries = (_USED * bound, _TRIES) if self.counted else (_MEASURED_USED * bound, _MEASURED_TRIES)
        branches = [name for name, gate in gates(self.space).items() if gate.vanishing and not architecture[name]]
        branches.sort(key=lambda name: float(scores[name].max()), reverse=True)
        together = len(branches)
        while branches and used < enough and tries:
            together, tries = min(together, len(branches)), tries - 1
            other = self._at_lowest(scores, floor, bound, [*kept, *branches[:together]])
            if used < (price := self.price(other)) <= bound:
                architecture, used = other, price
                kept += branches[:together]
                branches = [name for name in branches if not architecture[name]]
            elif together > 1:
                together //= 2
            else:
                del branches[0]
        return architecture

    def _at_lowest(
        self, scores: Mapping[str, Tensor], floor: float, bound: float, kept: Collection[str]
    ) -> Architecture:
        found = torch.cat([s.flatten() for s in scores.values()]).double()
        thresholds = [-math.inf, *found.unique().tolist()]  # type: ignore[no-untyped-call]

        def at(index: int) -> Architecture:
            return above_threshold(self.space, scores, thresholds[index], self.rounding, floor=floor, kept=kept)

        low, high = 0, len(thresholds) - 1  # the highest threshold closes all that can close
        while low < high:
            middle = (low + high) // 2
            if self.price(at(middle)) <= bound:
                high = middle
            else:
                low = middle + 1
        return at(high)

    def _refuse_the_impossible(self, meant: str) -> None:
        lowest = self.price(_smallest(self.space, self.rounding))
        if lowest > self.bound:
            own = gates(self.space).values()
            todo = ", or allow narrower layers with round_to=1" if any(self.rounding.step(g) > 1 for g in own) else ""
            if not any(gate.couplings or gate.vanishing for gate in own):
                todo = "; no gate is coupled to layers, so that none removes anything: archgrad.slim couples gates"
            raise LimitError(
                f"no network of this space takes at most {amount(self.bound, self.unit)}: the lowest reachable is "
                f"{amount(lowest, self.unit)} ({lowest / self.reference:.1%} of {amount(self.reference)}); raise the "
                f"limit{todo}{meant}"
            )

"""Look-up table: what each candidate of a space adds to a cost, measured once, perhaps elsewhere, saved as JSON.

    price(architecture) = base + sum over choices of the prices of what is picked

A table is exact where the cost is additive: a candidate's cost does not depend on the other picks. Sums of latencies
are inexact, since runtimes fuse and overlap operations; `CostTable.error` says by how much.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from archgrad import files
from archgrad.argument_types import checked
from archgrad.choices.access import decisions, matched, sample, using
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.gate import Gate
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.costs.limits import Cost, Limitable
from archgrad.costs.prediction_error import PredictionError, prediction_error
from archgrad.errors import ArchitectureError, ChoiceError, DataError, ModelError

FORMAT = "archgrad.table"
VERSION = 1
_TEXTS = ("name", "unit", "device", "torch_version")


@dataclass(frozen=True)
class CostTable(Limitable):
    """A cost as base + one price for each candidate; linear in the mixing weights.

    Attributes:
        name: of the cost: "latency".
        unit: of all prices: "ms".
        base: the price of what every architecture has.
        prices: {choice: [size]}.
        labels: {choice: [size] labels of its candidates}, empty for an `InputChoice` or a `Gate`.
        device: where it was measured, in words.
        torch_version: what it was measured with.
        error: on architectures that the table was not made from, or None.
    """

    name: str
    unit: str
    base: float
    prices: Mapping[str, tuple[float, ...]] = field(hash=False, repr=False)
    labels: Mapping[str, tuple[str, ...]] = field(hash=False, repr=False)
    device: str = ""
    torch_version: str = torch.__version__
    error: PredictionError | None = None
    measured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.prices.keys() != self.labels.keys():
            raise DataError("a table has prices and labels for the same choices; measure it again")
        for name, prices in {"base": (self.base,), **self.prices}.items():
            if not prices or not all(_is_number(price) for price in prices):
                raise DataError(f"{name!r}: a price is a finite number, one for each candidate; given {prices}")
        for name, labels in self.labels.items():
            if labels and len(labels) != len(self.prices[name]):
                raise DataError(
                    f"{name!r} has {len(self.prices[name])} prices and {len(labels)} labels; give one each"
                )

    def at(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The price at given mixing weights, differentiable: [], or [B] where weights have a row an example.

            price = base + sum over choices d and candidates k of  w_dk * price_dk

        Args:
            weights: for each choice [size] or [B, size], one-hot or not.

        Returns:
            float64, on the weights' device.

        Raises:
            ChoiceError: a choice is missing, unknown or of another size, or batches differ.
        """
        wrong = list(self.prices.keys() ^ weights.keys())
        wrong += [
            n for n, w in weights.items() if w.dim() not in (1, 2) or w.shape[-1] != len(self.prices.get(n, ()))
        ]
        rows = {w.shape[0] for w in weights.values() if w.dim() == 2}
        if wrong or len(rows) > 1:
            given = {name: tuple(w.shape) for name, w in weights.items()}
            raise ChoiceError(
                f"weights do not fit this table of {self.name} (at {sorted(set(wrong))[:5] or 'the batch'}): given "
                f"are {given}; allowed is for each choice [size] or [B, size], with sizes {self._sizes()}"
            )
        terms = [
            w.double() @ torch.tensor(self.prices[name], dtype=torch.float64, device=w.device)
            for name, w in weights.items()
        ]
        return functools.reduce(operator.add, terms, torch.tensor(self.base, dtype=torch.float64))

    def expected(self, space: nn.Module) -> Tensor:
        """The price at the space's present mixing weights, differentiable; see `at`.

        Raises:
            ChoiceError: the space's choices are not those of the table, or are undecided.
        """
        return self.at(self._weights(space))

    def predict(self, architecture: Architecture) -> float:
        """The price of an architecture.

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        if architecture.keys() != self.prices.keys():
            foreign = sorted(architecture.keys() ^ self.prices.keys())
            raise ArchitectureError(
                f"the architecture is for another space than this table of {self.name}: they differ at {foreign[:5]} "
                f"({len(foreign)} in all); use the space that the table was measured on"
            )
        return self.base + sum(price for name, pick in architecture.items() for price in self._picked(name, pick))

    @checked
    def of(self, network: nn.Module) -> float:
        """The price of a space held at an architecture: `hold(space, architecture)`.

        Raises:
            ModelError: a plain network, which the table cannot price, or a space that is not held.
            ChoiceError: choices that are not those of the table, or undecided.
        """
        by_name = decisions(network)
        if not by_name:
            raise ModelError(
                f"a table of {self.name} prices picks, and {type(network).__name__} is a plain network with none; "
                f"give table.predict(architecture), or table.of(hold(space, architecture))"
            )
        weights = self._weights(network)
        for name, choice in by_name.items():
            w = weights[name].detach().double()
            picks = {OpChoice: 1, InputChoice: getattr(choice, "keep", 0)}.get(type(choice), int(w.sum()))
            if not bool(((w == 0) | (w == 1)).all()) or int(w.sum()) != picks:
                raise ModelError(
                    f"choice {name!r} is mixed, not held; hold the space at one architecture (archgrad.hold), "
                    f"or ask for table.expected(space)"
                )
        return float(self.at({name: w.detach() for name, w in weights.items()}))

    def to_json(self) -> str:
        """The table as JSON text, one choice a line."""
        head = {"format": FORMAT, "version": VERSION, **{name: getattr(self, name) for name in _TEXTS}}
        head |= {"base": self.base, "error": self.error and asdict(self.error)}
        rows = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps({'labels': self.labels[name], 'prices': prices})}"
            for name, prices in self.prices.items()
        )
        return f'{json.dumps(head)[:-1]}, "choices": {{\n{rows}\n}}}}\n'

    @staticmethod
    def from_json(text: str, *, source: str = "the text") -> CostTable:
        """Read `to_json` back.

        Raises:
            DataError: damaged text, another format or version, or prices that are not finite numbers.
        """
        # `_parsed` names the price that is not finite.
        body = files.parse_document(text, _refused, source=source, form=FORMAT, version=VERSION, finite=False)
        try:
            return _parsed(body)
        except (DataError, TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise DataError(f"{source} is damaged: {error}. Measure and save the table again") from None

    def save(self, path: str | Path) -> None:
        """Write the JSON file, all or nothing.

        Raises:
            DataError: the folder is missing, or may not be written in.
        """
        files.write_text(Path(path), self.to_json(), DataError)

    @staticmethod
    def load(path: str | Path) -> CostTable:
        """Read a file that `save` wrote.

        Raises:
            DataError: no such file, or what `from_json` raises.
        """
        text = files.read_text(Path(path), _refused, most=64 * files.MIB, refuse_absent=True)
        return CostTable.from_json(text, source=str(path))

    def _sizes(self) -> dict[str, int]:
        return {name: len(prices) for name, prices in self.prices.items()}

    def _weights(self, space: nn.Module) -> dict[str, Tensor]:
        by_name = decisions(space)
        theirs = {name: (choice.size, labels_of(choice)) for name, choice in by_name.items()}
        ours = {name: (len(prices), tuple(self.labels[name])) for name, prices in self.prices.items()}
        if wrong := sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n)):
            raise ChoiceError(
                f"this table of {self.name} is for another space: choice {wrong[0]!r} has (size, labels) "
                f"{ours.get(wrong[0])} in the table and {theirs.get(wrong[0])} in the space ({len(wrong)} such); "
                f"measure a table of this space"
            )
        weights = {}
        for name, choice in by_name.items():
            is_open = isinstance(choice, Gate) and choice.mixing() is None
            weights[name] = choice.live if is_open else choice.ready()
        return weights

    def _picked(self, name: str, pick: Pick) -> Sequence[float]:
        prices = self.prices[name]
        entries = (pick,) if isinstance(pick, int) else pick
        if isinstance(pick, int) != bool(self.labels[name]) or max(entries, default=0) >= len(prices):
            allowed = "an index" if self.labels[name] else "a tuple of indices"
            raise ArchitectureError(
                f"choice {name!r}: the pick is {pick!r}; allowed is {allowed} from 0 to {len(prices) - 1}"
            )
        return [prices[i] for i in entries]


def measure_table(
    space: nn.Module,
    cost: Cost,
    *,
    build: Callable[[nn.Module, Architecture], nn.Module] | None = None,
    reference: Architecture | None = None,
    device: str | None = None,
    checks: int = 10,
) -> CostTable:
    """A table by differences: one candidate after another is swapped into a reference architecture.

    The reference is priced again for each choice, so that a slow drift of the machine cancels. Prices are shifted so
    that the cheapest candidate of each choice costs 0.

    Args:
        space: a network of `OpChoice`s and `InputChoice`s, none inside another and none narrowed.
        cost: what is measured: `latency(x)`, `macs(x)`, a `black_box`.
        build: from (space, architecture) to the network that is priced: `archgrad.build`. None: the space itself,
            running only what is picked; right for MACs, fast for latency, wrong for parameters, which are all there.
        reference: default: the first candidates.
        device: where this is measured, in words; default: the processor's name.
        checks: random architectures that the table is compared on, for `CostTable.error`.

    Raises:
        ChoiceError: a space without choices, with gates, narrowed, or with a choice inside a candidate.
        ArchitectureError: the reference is for another space.
        ModelError: the cost is the same for all candidates, or not finite.
    """
    by_name = decisions(space)
    _refuse_not_additive(space, by_name)
    start = reference or Architecture({name: _first(choice) for name, choice in by_name.items()})
    price = functools.partial(_price, space, cost, build)
    prices, bases = {}, []
    for name, choice in by_name.items():
        bases.append(price(start))
        # The function is called before the loop goes on.
        raw = _raw(choice, start[name], lambda pick: price(Architecture({**start, name: pick})) - bases[-1])  # noqa: B023
        prices[name] = tuple(p - min(raw) for p in raw)
    if not any(map(any, prices.values())) and any(len(p) > 1 for p in prices.values()):
        raise ModelError(
            f"{cost.name} is the same whatever is picked in {type(space).__name__}; to price the network that is "
            f"handed back, where what is not picked is gone, give build=archgrad.build"
        )
    kept = sum(prices[n][i] for n, c in by_name.items() for i in c.picked(start[n]).nonzero().flatten().tolist())
    table = CostTable(
        name=cost.name, unit=cost.unit, base=statistics.median(bases) - kept, prices=prices,
        labels={name: labels_of(choice) for name, choice in by_name.items()}, device=device or device_name(cost),
    )  # fmt: skip
    if checks < 1:
        return table
    generator = torch.Generator().manual_seed(0)
    drawn = [sample(space, generator=generator) for _ in range(checks)]
    true = [price(architecture) for architecture in drawn]
    error = prediction_error([table.predict(a) for a in drawn], true, fitted_on=sum(map(len, prices.values())))
    return replace(table, error=error)


def labels_of(choice: Choice) -> tuple[str, ...]:
    """The labels of an `OpChoice`'s candidates; of other choices none."""
    return choice.labels if isinstance(choice, OpChoice) else ()


def _refuse_not_additive(space: nn.Module, by_name: Mapping[str, Choice]) -> None:
    gates = [name for name, choice in by_name.items() if isinstance(choice, Gate)]
    inner = {
        part.name
        for choice in space.modules()
        for part in (choice.modules() if isinstance(choice, Choice) else ())
        if isinstance(part, Choice) and part is not choice
    }
    narrowed = [name for name, choice in by_name.items() if not bool(choice.live.all())]
    if not by_name:
        raise ChoiceError(f"{type(space).__name__} has no choice, so that there is nothing to make a table of")
    if gates or inner:
        raise ChoiceError(
            f"a table by differences needs choices whose prices add up; "
            f"{f'gates such as {gates[0]!r} multiply' if gates else f'{min(inner)!r} lies inside a candidate'}. "
            f"Count (archgrad.macs), or fit a Surrogate on sampled architectures"
        )
    if narrowed:
        raise ChoiceError(
            f"choice {narrowed[0]!r} has dead candidates; measure the table before the space is narrowed"
        )


def _first(choice: Choice) -> Pick:
    if isinstance(choice, InputChoice):
        return tuple(range(choice.keep))
    return int(choice.pickable.nonzero()[0])


def _raw(choice: Choice, pick: Pick, difference: Callable[[Pick], float]) -> list[float]:
    """The price of each entry, up to one constant for all, from what swapping one for another adds."""
    if isinstance(pick, int):
        return [0.0 if k == pick else difference(k) for k in range(choice.size)]
    prices, outside = [0.0] * choice.size, [k for k in range(choice.size) if k not in pick]
    for k in outside:
        prices[k] = difference((*pick[1:], k))
    for k in pick[1:] if outside else ():
        prices[k] = prices[outside[0]] - difference((*(i for i in pick if i != k), outside[0]))
    return prices


def _price(
    space: nn.Module,
    cost: Cost,
    build: Callable[[nn.Module, Architecture], nn.Module] | None,
    architecture: Architecture,
) -> float:
    by_name = matched(space, architecture)
    if build is not None:
        value = cost.of(build(space, architecture))
    else:
        kind = torch.get_default_dtype()
        with using(space, {n: c.picked(architecture[n]).to(c.live.device, kind) for n, (c, *_) in by_name.items()}):
            value = cost.of(space)
    if not math.isfinite(value):
        raise ModelError(f"{cost.name} of {architecture!r} is {value}; a price is a finite number")
    return value


def device_name(cost: Cost) -> str:
    """Where a cost is measured, in words: the model of the GPU or the kind of the processor."""
    device = torch.device(getattr(cost, "device", None) or "cpu")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _refused(reason: str) -> DataError:
    return DataError(f"{reason}; a table is a file that CostTable.save wrote")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parsed(body: Mapping[str, Any]) -> CostTable:
    error, rows = body["error"], body["choices"]
    damaged = [name for name in _TEXTS if not isinstance(body[name], str)]
    labels = {name: tuple(row["labels"]) for name, row in rows.items()}
    damaged += [name for name, row in labels.items() if not all(isinstance(label, str) for label in row)]
    if error is not None and not all(value is None or _is_number(value) for value in error.values()):
        damaged.append("error")
    if damaged:
        raise DataError(f"{damaged[0]!r} is not what it should be")
    return CostTable(
        **{name: body[name] for name in _TEXTS},
        base=body["base"],
        prices={name: tuple(row["prices"]) for name, row in rows.items()},
        labels=labels,
        error=error and PredictionError(**error),
    )

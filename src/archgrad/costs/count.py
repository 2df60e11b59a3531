"""Counted costs: multiply-accumulates and parameters.

One multiply-add is one MAC. Counted are the operations of `torch.utils.flop_counter` (convolutions, matrix products,
attention), halved, and products with vectors, bilinear forms and distances; normalization, activations and pooling
are left out, as in the published tables. Other operations that multiply, such as Fourier transforms and those of
other libraries, are named by `uncounted`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from archgrad.argument_types import checked
from archgrad.choices.access import decisions, using, weights
from archgrad.choices.channels import Coupling
from archgrad.choices.gate import Gate
from archgrad.choices.weight_norms import lengths
from archgrad.copy_and_run import evaluating, run_on_example, shapes
from archgrad.costs.counting_mode import Call, Counting
from archgrad.costs.limits import Limitable
from archgrad.costs.mixing import Product, Term, enclosing_shared, in_any, products
from archgrad.costs.work_by_weight import attended, by_weight, concerns
from archgrad.errors import ModelError
from archgrad.tasks.task import Inputs, arguments, tensors

Example = Inputs | Sequence[Tensor]
log = logging.getLogger(__name__)


def macs_by_module(network: nn.Module, example: Example) -> dict[str, float]:
    """MACs that each module runs itself (its children's not included), by path, for one example.

    Args:
        network: any network; it is left as it is.
        example: inputs [B, ...], or a tuple or dict of such; the count is divided by B.

    Raises:
        ModelError: the network fails on the example, or the example is empty.
    """
    own: dict[str, float] = {}
    for call, value in macs_by_call(network, example).items():
        own[call.path] = own.get(call.path, 0.0) + value
    return own


def macs_by_call(network: nn.Module, example: Example) -> dict[Call, float]:
    """MACs that each module runs itself, by path and callers, for one example."""
    counter, batch = _counted(network, example)
    return {call: flops / 2 / batch for call, flops in counter.own.items() if flops}


def uncounted(network: nn.Module, example: Example) -> list[str]:
    """What a network runs that multiplies and that `macs` does not count, a sentence a module.

    Example:
        >>> import torch
        >>> class Spectrum(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.fft.rfft(x).abs()
        >>> uncounted(torch.nn.Sequential(Spectrum()), torch.zeros(1, 8))
        ['MACs leave out aten._fft_r2c in 0 (Spectrum)']
    """
    counter, _ = _counted(network, example)
    return counter.left_out()


@functools.lru_cache(maxsize=256)
def _warn(text: str) -> None:
    log.warning("%s", text)


def _counted(network: nn.Module, example: Example) -> tuple[Counting, int]:
    """A counter that has seen the network run on the example, and the number of examples."""
    inputs = tree_map_only(Tensor, torch.detach, arguments(example))
    batch = examples_of(inputs)
    with evaluating(network), _countable(network), Counting(network) as counter, counter.following():
        run_on_example(network, inputs)
    for text in counter.left_out():
        _warn(text)
    return counter, batch


def examples_of(inputs: object) -> int:
    """The number of examples in a network's inputs: the length of the first tensor that has one, or 1.

    Raises:
        ModelError: it is 0.
    """
    batch = next((len(x) for x in tensors(inputs) if x.dim()), 1)
    if not batch:
        raise ModelError(f"the example of {shapes(inputs)} is empty; give inputs of one example or more, [B, ...]")
    return batch


@contextlib.contextmanager
def _countable(network: nn.Module) -> Iterator[None]:
    """What torch's counter needs to see every operation, with all settings put back."""
    # The fused attention kernels are not in the counter's table; the plain form of the same sum is.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The counter hooks every argument of a module that requires a gradient, and fails on parameters among them.
    trained = [p for p in network.parameters() if p.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    fused_layers = mkldnn.enabled  # recurrent layers whose matrix products are hidden from the counter too
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        mkldnn.enabled = False  # type: ignore[assignment]
        with sdpa_kernel(SDPBackend.MATH), cudnn.flags(enabled=False):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        mkldnn.enabled = fused_layers


class Counter:
    """A counted cost as a differentiable function of a space's mixing weights.

        cost = sum over terms t of  amount_t * prod over sides s of t of  open_s,
        open_s = mean over the channels c of side s of  w[entry that c belongs to]

    A convolution is one term with two sides (its inputs and its outputs), a depthwise one has one side, an
    attention product has its heads; what is inside a candidate has the candidate's weight as a side: see
    `archgrad.costs.mixing`. The sum is exact when every weight is 0 or 1, and equals the mean over independent draws
    where no two sides of a term share a choice.

    Args:
        space: where the choices are; the same space, or a copy of it, is given to the call.
        terms: what is summed.
    """

    def __init__(self, space: nn.Module, terms: Sequence[Term]) -> None:
        self.offsets: dict[str, int] = {}
        total = 0
        for name, choice in decisions(space).items():
            self.offsets[name] = total
            total += choice.size
        self.rows: dict[tuple[str, ...], int] = {}
        self._entries: list[tuple[int, int, float]] = []
        self._known: set[tuple[str, ...]] = set()
        self._places: dict[tuple[str, ...], list[Tensor]] = {}
        sides = self._sides(space)
        found = list[tuple[float, list[int], list[list[int]]]]()
        for term in terms:
            reached = self._rows_of(space, term.path, term.tensor, sides, term.callers)
            places = term.places or (term.path,)
            inside = in_any(space, places) if len(places) > 1 else products(space, places[0])
            if len(places) > 1 and len(inside) > 1:
                found.append((term.amount, reached, [self._rows_inside(part) for part in inside]))
            else:
                found += [(term.amount, reached + self._rows_inside(part), []) for part in inside]
        self.amounts = torch.tensor([amount for amount, _, _ in found], dtype=torch.float64)
        # Row 0 of the extended vector of fractions is the constant 1 that shorter terms are padded with; its last row
        # is 0, for places that others have more of.
        self.index = _padded([rows for _, rows, _ in found])
        union = [parts for _, _, parts in found if parts]
        most = max(map(len, union), default=0)
        padded = [part for parts in union for part in [*parts, *[[len(self.rows)]] * (most - len(parts))]]
        self.several = torch.tensor([i for i, (_, _, parts) in enumerate(found) if parts]).long()
        self.union = _padded(padded).reshape(len(union), most, -1) if union else self.several
        index = torch.tensor([[r, e] for r, e, _ in self._entries]).long().reshape(-1, 2).T
        values = torch.tensor([v for _, _, v in self._entries], dtype=torch.float64)
        self.matrix = torch.sparse_coo_tensor(
            index, values, (len(self.rows), total), check_invariants=True
        ).coalesce()
        # Channels of a side that no gate reaches are open; a candidate that is not picked is not there.
        open_always = 1.0 - torch.sparse.sum(self.matrix, dim=1).to_dense() if self._entries else torch.zeros(0)
        candidates = torch.tensor([key[0] == "candidates" for key in self.rows], dtype=torch.bool)
        self.constant = open_always.masked_fill(candidates, 0.0)
        # Of candidates that share a part no more than all is counted where their weights do not sum to 1.
        sums = torch.tensor([key[0] == "candidates" and len(key) > 3 for key in self.rows], dtype=torch.bool)
        self.most = torch.ones(len(self.rows)).masked_fill(~sums, math.inf)

    def __repr__(self) -> str:
        return f"<Counter, {len(self.amounts):,} terms over {len(self.offsets):,} choices>"

    def __call__(self, space: nn.Module) -> Tensor:
        """The cost at the space's present mixing weights, a float64 scalar on the CPU."""
        weights = []
        for choice in decisions(space).values():
            mixing = choice.mixing()
            weights.append((choice.live if mixing is None else mixing).to("cpu", torch.float64))
        if not weights or not self.rows:
            return self.amounts.sum()
        return self.at(torch.cat(weights))

    def at(self, weights: Tensor) -> Tensor:
        """The cost at given mixing weights, [entries of all choices in order], float64."""
        fractions = self.constant + torch.sparse.mm(self.matrix, weights[:, None])[:, 0]
        fractions = torch.minimum(fractions, self.most.to(fractions))
        extended = torch.cat([fractions.new_ones(1), fractions, fractions.new_zeros(1)])
        terms = self.amounts * extended[self.index].prod(dim=1)
        if len(self.several):
            there = 1.0 - (1.0 - extended[self.union].prod(dim=2)).prod(dim=1)
            terms = terms * torch.ones_like(terms).index_put((self.several,), there)
        return terms.sum()

    def _sides(self, space: nn.Module) -> dict[str, list[tuple[str, Coupling]]]:
        """For each module path the gates that reach it."""
        by_path: dict[str, list[tuple[str, Coupling]]] = {}
        for name, choice in decisions(space).items():
            for member in choice.couplings if isinstance(choice, Gate) else ():
                by_path.setdefault(member.module, []).append((name, member))
        return by_path

    def _rows_of(
        self, space: nn.Module, path: str, tensor: str, sides: dict[str, list[tuple[str, Coupling]]],
        callers: Sequence[str],
    ) -> list[int]:  # fmt: skip
        rows: dict[int, None] = {}
        grouped = getattr(space.get_submodule(path), "groups", 1) > 1
        reaching = [(n, m) for n, m in sides.get(path, []) if not callers or m.side != "branch"]
        reaching += [(n, m) for caller in callers for n, m in sides.get(caller, []) if m.side == "branch"]
        for name, member in reaching:
            if not concerns(member, tensor, grouped=grouped):
                continue
            key: tuple[str, ...] = ("branch", name) if member.side == "branch" else (path, member.side)
            who = name if member.side == "branch" else f"{name} {id(member)}"
            while (*key, who) not in self._known and self._reached(key, member.places):
                key = (*key, "again")  # a head and a place within heads share them, or both factors of a row
            row = self.rows.setdefault(key, len(self.rows))
            if (*key, who) not in self._known:
                self._known.add((*key, who))
                self._enter(row, name, member.places)
                self._places.setdefault(key, []).append(member.places)
            rows[row] = None
        return list(rows)

    def _reached(self, key: tuple[str, ...], places: Tensor) -> bool:
        others = self._places.get(key, [])
        return key[0] != "branch" and any(bool(((other >= 0) & (places >= 0)).any()) for other in others)

    def _rows_inside(self, product: Product) -> list[int]:
        rows = []
        for (choice, _), entries in product.items():
            key = ("candidates", choice.name, *map(str, sorted(entries)))
            if key not in self.rows:
                self.rows[key] = len(self.rows)
                self._entries += [(self.rows[key], self.offsets[choice.name] + e, 1.0) for e in sorted(entries)]
            rows.append(self.rows[key])
        return rows

    def _enter(self, row: int, name: str, places: Tensor) -> None:
        members, counts = torch.unique(places[places >= 0], return_counts=True)
        for entry, count in zip(members.tolist(), counts.tolist(), strict=True):
            self._entries.append((row, self.offsets[name] + entry, count / len(places)))


def _padded(terms: Sequence[Sequence[int]]) -> Tensor:
    """[terms, longest]: the rows of each, counted from 1."""
    longest = max(map(len, terms), default=0)
    return torch.tensor([[r + 1 for r in rows] + [0] * (longest - len(rows)) for rows in terms]).long()


@checked
@dataclass(frozen=True)
class Macs(Limitable):
    """Multiply-accumulates of one forward pass on one example, as a cost.

    A closed gate counts as open until its channels are removed: `of` counts what the network runs, `expected` what
    it would run at the present mixing weights.

    Args:
        example: inputs [B, ...], or a tuple or dict of such, that fix the resolution; the count is for one of the B.

    Example:
        >>> import torch, archgrad as ag
        >>> cost = ag.macs(torch.zeros(1, 3, 8, 8))
        >>> cost.of(torch.nn.Conv2d(3, 16, 3, padding=1))  # 3 * 16 * 3 * 3 * 8 * 8
        27648.0
        >>> cost.at_most(fraction=0.5)
        Limit(macs at most 50 %)
    """

    example: Example
    name: ClassVar[str] = "macs"
    unit: ClassVar[str] = "MACs"
    measured: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"macs(example {shapes(self.example)})"

    @checked
    def of(self, network: nn.Module) -> float:
        """MACs of the network as it stands."""
        return sum(macs_by_module(network, self.example).values())

    def expected(self, space: nn.Module) -> Tensor:
        """MACs at the present mixing weights, a scalar []; see `Counter`."""
        return self.counter(space)(space)

    def counter(self, space: nn.Module) -> Counter:
        """`expected` with the counting done once, for a loop."""
        everything = {n: torch.ones(c.size) for n, c in decisions(space).items() if not isinstance(c, Gate)}
        with using(space, everything), attended(space) as places:
            amounts = macs_by_call(space, self.example)
        examples = examples_of(arguments(self.example))
        parts: dict[str, dict[str, float]] = {}
        for gate in decisions(space).values():
            for side in gate.couplings if isinstance(gate, Gate) else ():
                if side.work[0]:
                    parts.setdefault(side.module, {})[side.work[0]] = side.work[1]
        terms = [
            Term(*term, callers=call.callers, places=(call.place,)) for call, value in amounts.items()
            for term in by_weight(
                space, call.path, value, places=[n / examples for n in places.get(call.path, ())],
                parts=parts.get(call.path, {}),
            )
        ]  # fmt: skip
        return Counter(space, terms)


@dataclass(frozen=True)
class Params(Limitable):
    """Number of parameters, as a cost; those of the architecture are not counted.

    Example:
        >>> import torch, archgrad as ag
        >>> ag.params().of(torch.nn.Linear(10, 5))
        55.0
        >>> ag.params().at_most(20)
        Limit(params at most 20 parameters)
    """

    name: ClassVar[str] = "params"
    unit: ClassVar[str] = "parameters"
    measured: ClassVar[bool] = False

    def __repr__(self) -> str:
        return "params()"

    @checked
    def of(self, network: nn.Module) -> float:
        """Parameters of the network as it stands, shared ones once."""
        return float(sum(p.numel() for p in weights(network)))

    def expected(self, space: nn.Module) -> Tensor:
        """Parameters at the present mixing weights, a scalar []; see `Counter`."""
        return self.counter(space)(space)

    def counter(self, space: nn.Module) -> Counter:
        """`expected` with the counting done once, for a loop."""
        own, stands = set(weights(space)), dict[nn.Parameter, list[tuple[str, str]]]()
        for path, parameter in space.named_parameters(remove_duplicate=False):
            if parameter in own:
                # A parametrized tensor is kept at <module>.parametrizations.<tensor>.original, or original0, ...
                module, _, tensor = re.sub(r"parametrizations\.(.*)\.original\d*$", r"\1", path).rpartition(".")
                stands.setdefault(parameter, []).append((module, tensor))
        shared, terms = enclosing_shared(space), list[Term]()
        for parameter, ((module, tensor), *others) in stands.items():
            places = (module, *(place for place, _ in others))
            callers = (*shared.get(module, ()),)
            terms.append(Term(module, tensor, float(parameter.numel()), callers=callers, places=places))
        return Counter(space, [*terms, *(Term(*length) for length in lengths(space))])


macs = Macs
params = Params

"""Subspaces under a bound on memory: the price of each candidate, and which candidates fit together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archgrad.costs.memory import GIB, Footprint, OptimizerFactory, measured_peak, predict_memory
from archgrad.errors import LimitError
from archgrad.methods.radars.offload import OffloadedSupernet, Support
from archgrad.run.run import Run
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.tasks.task import Batch, Task, batch_size
from archgrad.training.step import autocast


@dataclass(frozen=True)
class MemoryPrices:
    """The memory of a supernet as a sum: M(S) = fixed + sum over l, sum over o in S_l of m[l, o], in bytes.

    Attributes:
        fixed_bytes: of everything outside the candidates, at its peak.
        candidate_bytes: {site: m[l, o] of each}: what a candidate saves for the backward pass, its parameters, their
            gradients, the optimizer's state and its buffers. One storage that several candidates of a site save,
            their input, is in `fixed_bytes` where the first two save it.
    """

    fixed_bytes: int
    candidate_bytes: Mapping[str, list[int]]

    def of(self, support: Support) -> int:
        """M(S)."""
        return self.fixed_bytes + sum(self.candidate_bytes[site][i] for site, some in support.items() for i in some)

    def extreme(self, which: Callable[[Sequence[int]], int]) -> dict[str, list[int]]:
        """The single path of the candidates of the lowest (`min`) or highest (`max`) price at their site."""
        return {site: [row.index(which(row))] for site, row in self.candidate_bytes.items()}


class Priced:
    """Prices of a supernet's candidates, of which two at most are built at a time, and the exact peak of a subspace.

    Args:
        supernet: with all candidates offloaded.
        task: of the batches that the weights are trained on.
        run: whose device and precision they are trained in.
        optimizer: of the weights.
        passes: forward passes whose activations are held at once.
    """

    def __init__(
        self, supernet: OffloadedSupernet, task: Task, run: Run, *, optimizer: OptimizerFactory, passes: int
    ) -> None:
        def loss(network: nn.Module, batch: Batch) -> Tensor:
            with autocast(run):
                return torch.stack([task.loss(network, batch) for _ in range(passes)]).sum()

        self._supernet, self._loss, self._optimizer = supernet, loss, optimizer
        self._batch = run.to_device(task.stream(seed=run.seed, rank=run.rank, world=run.world)(0))

    def __repr__(self) -> str:
        return f"<Priced: {self._supernet!r}>"

    def footprint(self, support: Support, *, traced: bool = True) -> Footprint:
        """The memory of a step of the mixture of these candidates, predicted without running it at full size."""
        space = self._supernet.taken(support)
        relax_as_mixture(space)
        predicted = predict_memory(space, self._batch, loss=self._loss, optimizer=self._optimizer, traced=traced)
        return predicted.at(batch_size(self._batch))

    def peak_bytes(self, support: Support) -> int:
        """The peak of such a step."""
        return self.footprint(support).peak_bytes

    def measured_bytes(self, support: Support) -> int:
        """The measured peak of one step of the mixture at full size; nothing is trained by it."""
        space = self._supernet.taken(support)
        relax_as_mixture(space)
        return measured_peak(space, self._batch, loss=self._loss, optimizer=self._optimizer)

    def table(self) -> MemoryPrices:
        """The price of every candidate: how much more a site takes with it than without it, next to another one."""
        first = {site: [0] for site in self._supernet.sites}
        single = self._sum(first)
        rows: dict[str, list[int]] = {}
        for site, size in self._supernet.sites.items():
            more = [self._sum(first | {site: [0, i]}) - single for i in range(1, size)]
            other = [self._sum(first | {site: [1]})] if more else []
            rows[site] = [more[0] + single - other[0] if more else 0, *more]
        return MemoryPrices(self.peak_bytes(first) - sum(row[0] for row in rows.values()), rows)

    def _sum(self, support: Support) -> int:
        """The part of the memory that adds up over candidates."""
        part = self.footprint(support, traced=False)
        fixed = part.parameter_bytes + part.buffer_bytes + part.gradient_bytes + part.optimizer_bytes
        return fixed + part.saved_bytes


def refuse_below_a_path(priced: Priced, prices: MemoryPrices, bound_bytes: float, *, slack: float) -> None:
    """Raise LimitError, with the least bound that works, where a single path takes over `slack` of the bound."""
    needed = priced.peak_bytes(prices.extreme(max))
    if needed > slack * bound_bytes:
        least = math.ceil(needed / slack)
        raise LimitError(
            f"the largest single path of this space takes {needed:,} bytes to train, and the bound of "
            f"{bound_bytes:,.0f} leaves {slack * bound_bytes:,.0f} for it: the least bound that works is {least:,} "
            f"bytes ({least / GIB:.4g} GiB); raise it, or give smaller batches or candidates"
        )


def knapsack(
    values: Mapping[str, Sequence[float]],
    prices: MemoryPrices,
    *,
    bound_bytes: float,
    allowed: Support,
    first: Mapping[str, int],
) -> dict[str, list[int]]:
    """The subspace by the greedy rule: one candidate a site, then pairs by falling value / price while they fit.

        maximize  sum over l, o in S_l of values[l][o]   under   M(S) <= bound,  |S_l| >= 1

    Args:
        values: pi_l(o).
        prices: m[l, o].
        bound_bytes: B.
        allowed: A_l.
        first: the candidate of each site that is always taken.

    Returns:
        S: for each site the candidates, sorted. Of equal pairs the cheaper goes first.
    """
    chosen = {site: [i] for site, i in first.items()}
    rest = [
        (-values[site][i] / max(prices.candidate_bytes[site][i], 1), prices.candidate_bytes[site][i], site, i)
        for site, some in allowed.items()
        for i in some
        if i != first[site]
    ]
    used = prices.of(chosen)
    for _, price, site, i in sorted(rest):
        if used + price <= bound_bytes:
            chosen[site].append(i)
            used += price
    return {site: sorted(some) for site, some in chosen.items()}


def fitting(
    priced: Priced,
    prices: MemoryPrices,
    values: Mapping[str, Sequence[float]],
    *,
    bound_bytes: float,
    allowed: Support,
    first: Mapping[str, int],
) -> dict[str, list[int]]:
    """The subspace of `knapsack` whose predicted peak is under the bound.

    Raises:
        LimitError: one candidate a site is over the bound.
    """
    target = bound_bytes
    while True:
        chosen = knapsack(values, prices, bound_bytes=target, allowed=allowed, first=first)
        peak = priced.peak_bytes(chosen)
        if peak <= bound_bytes:
            return chosen
        if all(len(some) == 1 for some in chosen.values()):
            raise LimitError(f"a single path takes {peak:,} bytes, over the bound of {bound_bytes:,.0f}: raise it")
        # The next attempt is for a bound lower by what the sum of the prices did not predict.
        target = prices.of(chosen) - (peak - bound_bytes)

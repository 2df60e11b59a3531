"""The likeliest architectures of a searched supernet, and what is done where the first does not read its input.

In a space with a candidate such as `none` the likeliest operations can cut every path from the input to the output.
The network of such an architecture puts out the same whatever it is given; the likeliest that reads its input takes
its place.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import Choice, InputChoice
from archgrad.copy_and_run import evaluating
from archgrad.errors import ChoiceError
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint, TotalScores, options, scores
from archgrad.tasks.task import Batch, Task, tensors
from archgrad.training.step import load_batch

_TRIED = 300  # architectures that are run, at most, to find one that reads its input
_ORDERED = 10_000  # that are ordered, and subsets of one node's inputs that are listed
_OVER = 30  # that are measured and found to be over a measured limit
_Ranks = tuple[int, ...]


def likeliest(
    space: nn.Module, architecture: Architecture, count: int, constraint: ArchitectureConstraint | None = None, *,
    reads: Callable[[Architecture], bool] = lambda other: True,
) -> list[Architecture]:  # fmt: skip
    """An architecture, and those that differ from it in one pick and lose least; at most `count`.

    Without a limit these are the likeliest of a product distribution, exactly up to three. What differs only in
    operations on inputs that are not kept is the same network, and is left out, and so is what `reads` is False for.
    """
    choice_of, value, seen = decisions(space), TotalScores(scores(space, logarithms=True)), [architecture]
    losses = list[tuple[float, int, Architecture]]()
    for name, choice in choice_of.items():
        for pick in options(choice):
            if pick != architecture[name]:
                lost = value.of(name, architecture[name]) - value.of(name, pick)
                losses.append((lost, len(losses), Architecture({**architecture, name: pick})))
    shown = {_live(choice_of, architecture)}
    for _, _, other in sorted(losses, key=lambda row: row[:2]):
        if len(seen) == count:
            break
        live = _live(choice_of, other)
        if live not in shown and (constraint is None or constraint.is_feasible(other)) and reads(other):
            seen.append(other)
            shown.add(live)
    return seen


def that_reads_its_input(
    space: nn.Module, architecture: Architecture, task: Task, run: Run,
    constraint: ArchitectureConstraint | None = None,
) -> Architecture:  # fmt: skip
    """An architecture, or, where its network does not read its input, the likeliest whose network does.

    It is run on two training batches, with the supernet's weights. Of the others at most 300 are tried, in the order
    of `by_likelihood`; where none of them reads its input either, the architecture stays. A note says what was done.

    Args:
        space: after its search.
        architecture: the search's own choice.
        task: gives batches, and runs networks on them.
        run: begun.
        constraint: that all others keep.
    """
    reads = reading(space, task, run)

    def find() -> str:
        others = itertools.islice(by_likelihood(space, architecture, constraint), 1, _TRIED + 1)
        try:
            return next(filter(reads, others), architecture).to_json()
        except ChoiceError:  # a node has too many subsets of inputs to list
            return architecture.to_json()

    if run.compute_once("own choice reads its input", lambda: reads(architecture)):
        return architecture
    found = Architecture.from_json(run.compute_once("own choice", find))
    told = "The likeliest architecture puts out the same whatever its input is"
    if found == architecture:
        run.note(
            f"{told}, and no other that was tried reads its own: look at the supernet's loss, and at the candidates."
        )
    else:
        run.note(f"{told}: the likeliest that reads its input takes its place.")
    return found


def reading(space: nn.Module, task: Task, run: Run) -> Callable[[Architecture], bool]:
    """Whether an architecture's network reads its input, with the supernet's weights, on two training batches."""
    stream = task.stream(seed=run.seed)

    def reads(architecture: Architecture) -> bool:
        with run.isolated_rng("reads its input"):
            batches = [load_batch(stream, step, run) for step in range(2)]
            return not ignores_input(build(space, architecture, weights="inherit").to(run.device), task, batches)

    return reads


def by_likelihood(
    space: nn.Module, architecture: Architecture, constraint: ArchitectureConstraint | None = None
) -> Iterator[Architecture]:
    """An architecture, then those that lose least against it, in order, as far as 10,000 tell.

        loss of a = sum over choices of score(picked by `architecture`) - score(picked by a)

    The scores are log-probabilities, or the logarithms of mixing weights. Without a limit, and from the likeliest,
    these are the likeliest of the product distribution, exactly; under one, no pick is exchanged for a likelier one,
    which the limit has ruled out, and a measured one ends the order after 30 that are over it. What differs only in
    operations on inputs that are not kept comes once.

    Raises:
        ChoiceError: a node has more than 10,000 subsets of inputs.
    """
    yield architecture
    choice_of, value = decisions(space), TotalScores(scores(space, logarithms=True))
    picks, losses = list[list[Any]](), list[list[float]]()
    for name, choice in choice_of.items():
        own, lost = architecture[name], dict[Any, float]()
        for pick in _few_options(choice):
            loss = value.of(name, own) - value.of(name, pick)
            if pick != own and (constraint is None or loss >= 0.0):
                lost[pick] = loss
        picks.append([own, *sorted(lost, key=lost.__getitem__)])
        losses.append([0.0, *sorted(lost.values())])

    def of_ranks(ranks: _Ranks) -> Architecture:
        return Architecture({name: pick[rank] for name, pick, rank in zip(choice_of, picks, ranks, strict=True)})

    first = (0,) * len(picks)
    waiting, met, over = [(0.0, 0, first)], {first}, 0
    for _ in range(_ORDERED):
        if not waiting or over == _OVER:
            return
        _, _, ranks = heapq.heappop(waiting)
        found = of_ranks(ranks)
        if ranks != first:
            if constraint is None or constraint.is_feasible(found):
                yield found
            elif constraint.measured:
                over += 1
        dropped = _dropped(choice_of, found)
        for place, name in enumerate(choice_of):
            if name in dropped or ranks[place] + 1 == len(picks[place]):
                continue
            other = (*ranks[:place], ranks[place] + 1, *ranks[place + 1 :])
            if isinstance(choice_of[name], InputChoice):
                then = _dropped(choice_of, of_ranks(other))
                other = tuple(0 if n in then else rank for n, rank in zip(choice_of, other, strict=True))
            if other not in met:
                met.add(other)
                heapq.heappush(waiting, (sum(row[r] for row, r in zip(losses, other, strict=True)), len(met), other))


def _few_options(choice: Choice) -> list[Any]:
    if isinstance(choice, InputChoice):
        n = len(choice.pickable_places())
        if sum(math.comb(n, k) for k in range(choice.fewest, choice.keep + 1)) > _ORDERED:
            raise ChoiceError(f"{choice.name} has more than {_ORDERED:,} subsets of inputs, too many to list")
    return options(choice)


def ignores_input(network: nn.Module, task: Task, batches: Sequence[Batch]) -> bool:
    """Whether a network puts out the same on two batches of different samples; False where that cannot be told.

    Args:
        network: run in eval mode by the task's loss, and put back into its mode.
        task: runs it.
        batches: two.
    """
    put_out = list[list[Tensor]]()
    try:
        with evaluating(network):
            for batch in batches:
                kept = list[Any]()
                hook = network.register_forward_hook(lambda *seen, kept=kept: kept.append(seen[-1]))
                try:
                    task.loss(network, batch)
                finally:
                    hook.remove()
                put_out.append([tensor for tensor in tensors(kept) if tensor.numel()])
        first, second = put_out
        samples = [tensors(batch) for batch in batches]
        if not first or len(first) != len(second) or all(map(_same, *samples)):
            return False
        return all(map(_same, first, second))
    except Exception:  # noqa: BLE001 - code of the user's may raise anything, and the search has its result
        return False


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal, as far as the shorter of two goes along its first dimension."""
    rows = min(len(one), len(other)) if one.ndim and other.ndim else None
    return torch.equal(one[:rows], other[:rows]) if rows is not None else torch.equal(one, other)


def _dropped(choice_of: Mapping[str, Choice], architecture: Architecture) -> set[str]:
    """The choices on inputs that are not kept, which change nothing: those that no kept input has too."""
    dropped, kept = set[str](), set[str]()
    for name, choice in choice_of.items():
        if isinstance(choice, InputChoice) and choice.edges is not None:
            for i, edge in enumerate(choice.edges):
                if isinstance(edge, Choice):
                    (kept if i in architecture[name] else dropped).add(edge.name)  # type: ignore[operator]
    return dropped - kept


def _live(choice_of: dict[str, Choice], architecture: Architecture) -> frozenset[tuple[str, Any]]:
    """The picks that the network depends on: not those on inputs that are not kept."""
    dropped = _dropped(choice_of, architecture)
    return frozenset((name, pick) for name, pick in architecture.items() if name not in dropped)

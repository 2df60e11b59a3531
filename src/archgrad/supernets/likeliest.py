"""The likeliest architectures of a searched supernet, in order, and whether a network reads its input at all.

In a space with a candidate such as `none` the likeliest operations can cut every path from the input to the output.
The network of such an architecture puts out the same whatever it is given, so no search hands it back while the
supernet has another.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import Choice, InputChoice
from archgrad.copy_and_run import evaluating
from archgrad.errors import ModelError
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint, TotalScores, options, scores
from archgrad.tasks.batch_checks import FAILURES
from archgrad.tasks.task import Inputs, call, mapped, tensors

_MOST = 1000  # architectures that are looked at, and a tenth of them with a limit or to be run
_Ranks = tuple[int, ...]


def by_likelihood(
    space: nn.Module, architecture: Architecture, constraint: ArchitectureConstraint | None = None
) -> Iterator[Architecture]:
    """An architecture, then those that lose least against it, in order.

        loss of a = sum over choices of score(picked by `architecture`) - score(picked by a)

    The scores are log-probabilities, or the logarithms of mixing weights. Without a limit, and from the likeliest,
    these are the likeliest of the product distribution, exactly. What differs only in operations on inputs that are
    not kept is the same network, and comes once. Ends after 1,000 architectures.

    Args:
        space: relaxed.
        architecture: to begin with; it comes first, whether it keeps the limit or not.
        constraint: that all others keep.
    """
    choice_of, value = decisions(space), TotalScores(scores(space, logarithms=True))
    picks, losses = list[list[Any]](), list[list[float]]()
    for name, choice in choice_of.items():
        own = architecture[name]
        lost = {pick: value.of(name, own) - value.of(name, pick) for pick in options(choice) if pick != own}
        picks.append([own, *sorted(lost, key=lost.__getitem__)])
        losses.append([0.0, *sorted(lost.values())])

    def of_ranks(ranks: _Ranks) -> Architecture:
        return Architecture({name: pick[rank] for name, pick, rank in zip(choice_of, picks, ranks, strict=True)})

    first = (0,) * len(picks)
    waiting, met, tried = [(0.0, 0, first)], {first}, 0
    for _ in range(_MOST):
        if not waiting:
            return
        _, _, ranks = heapq.heappop(waiting)
        found = of_ranks(ranks)
        within = constraint is None or ranks == first or constraint.is_feasible(found)
        tried += constraint is not None
        if within:
            yield found
        if tried > _MOST // 10:
            return
        dropped = _dropped(choice_of, found)
        for place, name in enumerate(choice_of):
            if name in dropped or ranks[place] + 1 == len(picks[place]):
                continue
            other = (*ranks[:place], ranks[place] + 1, *ranks[place + 1 :])
            dropped_then = _dropped(choice_of, of_ranks(other))
            other = tuple(0 if n in dropped_then else rank for n, rank in zip(choice_of, other, strict=True))
            if other not in met:
                met.add(other)
                heapq.heappush(waiting, (sum(row[r] for row, r in zip(losses, other, strict=True)), len(met), other))


def reads_input(network: nn.Module, inputs: Inputs) -> bool:
    """Whether the output of a network changes with its input; True where that cannot be tried.

    Args:
        network: in any mode; it is run in eval mode, and left as it was.
        inputs: an example.
    """
    changed = mapped(_changed, inputs)
    if all(torch.equal(a, b) for a, b in zip(tensors(inputs), tensors(changed), strict=True)):
        return True
    try:
        with evaluating(network):
            before, after = (tensors(call(network, given)) for given in (inputs, changed))
    except (*FAILURES, ModelError):  # the changed input is none that the network takes
        return True
    return [x.shape for x in before] != [x.shape for x in after] or not all(map(torch.equal, before, after))


def _changed(tensor: Tensor) -> Tensor:
    """Other values of the same kind: of numbers in the same range, of truth values the opposite."""
    flipped = tensor.flip(tuple(range(tensor.ndim)))
    if tensor.dtype == torch.bool:
        return ~flipped
    if tensor.is_floating_point() or tensor.is_complex():
        ramp = torch.linspace(0.1, 1.0, tensor.numel(), device=tensor.device).view(tensor.shape)
        return (ramp - 1.3 * flipped).to(tensor.dtype)
    return tensor.min() + tensor.max() - flipped if tensor.numel() else tensor


def likeliest(
    space: nn.Module, architecture: Architecture, inputs: Inputs, run: Run,
    constraint: ArchitectureConstraint | None = None,
) -> Iterator[Architecture]:  # fmt: skip
    """`by_likelihood`, without architectures whose networks do not read their input; all where none of 100 does.

    Args:
        space: after its search, whose weights the networks have.
        architecture: the search's own choice.
        inputs: an example of what the networks take.
        run: begun.
        constraint: as for `by_likelihood`.
    """
    inputs = run.to_device(inputs)

    def reads(found: Architecture) -> bool:
        with run.isolated_rng("reads its input"):
            return reads_input(build(space, found, weights="inherit").to(run.device), inputs)

    ordered = by_likelihood(space, architecture, constraint)
    reading = filter(reads, itertools.islice(ordered, _MOST // 10))
    first = next(reading, None)
    if first is None:
        return by_likelihood(space, architecture, constraint)
    if first != architecture:
        run.note(
            "The likeliest architecture puts out the same whatever its input is, since its operations cut every path "
            "between them: the likeliest that reads its input takes its place."
        )
    return itertools.chain([first], reading)


def _dropped(choice_of: Mapping[str, Choice], architecture: Architecture) -> set[str]:
    """The operations on inputs that are not kept, which change nothing."""
    return {
        edge.name
        for name, choice in choice_of.items()
        if isinstance(choice, InputChoice) and choice.edges is not None
        for i, edge in enumerate(choice.edges)
        if isinstance(edge, Choice) and i not in architecture[name]  # type: ignore[operator]
    }

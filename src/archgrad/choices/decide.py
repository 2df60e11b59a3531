"""From a relaxed space to an architecture: which pick of each choice the mixing weights point at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.gate import Gate
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.relaxations import Open
from archgrad.choices.subsets import Subsets
from archgrad.errors import ChoiceError


def decide(space: nn.Module, *, threshold: float = 0.5, weights: Mapping[str, Tensor] | None = None) -> Architecture:
    """The architecture of the largest mixing weights.

    An `OpChoice` takes its heaviest live candidate that is not barred, an `InputChoice` its `keep` heaviest
    inputs, or the likeliest subset of a distribution over subsets, a `Gate` all entries above `threshold`, at least
    the heaviest unless the gate's branch may vanish. Inputs that are all mixed at full strength (relaxation `Open`)
    weigh as much as the heaviest candidate on their edge that is not barred: the rule of DARTS. The first of equals
    is taken.

    Args:
        space: relaxed.
        threshold: of gates.
        weights: for some choices, [size], decided by in place of their mixing weights.

    Raises:
        ChoiceError: a choice has no relaxation yet.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.relax(ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer"), ag.softmax)
        >>> space.relaxation.logits.data = torch.tensor([-1.0, 2.0])
        >>> ag.decide(space)
        Architecture({'layer': 1})
    """
    if not isinstance(weights, Mapping | None) or not isinstance(threshold, int | float):
        raise ChoiceError(
            f"decide(threshold={threshold!r}, weights={weights!r}) was given. Allowed are a number, and a dict of "
            f"mixing weights [size] by the names of choices."
        )
    return Architecture(_picks(space, threshold, weights))


def nearest_discrete(space: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The mixing weights, [size] of 0 and 1, of the architecture that `decide(space, weights=weights)` gives."""
    return discretized(space, _picks(space, 0.5, weights))


def _picks(space: nn.Module, threshold: float, weights: Mapping[str, Tensor] | None) -> dict[str, Pick]:
    picks: dict[str, Pick] = {}
    scores = decision_weights(space, weights)
    for name, choice in decisions(space).items():
        row = scores[name].masked_fill(~choice.pickable, float("-inf"))
        if isinstance(choice, OpChoice):
            picks[name] = int(row.argmax())
        elif isinstance(choice.relaxation, Subsets):
            picks[name] = choice.relaxation.likeliest(choice.live)
        elif isinstance(choice, InputChoice):
            picks[name] = tuple(row.argsort(descending=True, stable=True)[: choice.keep].sort().values.tolist())
        else:
            assert isinstance(choice, Gate)
            kept = (row > threshold).nonzero().flatten().tolist()
            picks[name] = tuple(kept) or (() if choice.vanishing else (int(row.argmax()),))
    return picks


def discretized(space: nn.Module, architecture: Mapping[str, Pick]) -> dict[str, Tensor]:
    """The mixing weights of an architecture, [size] of 0 and 1: 1 on its picks.

    Where the inputs of a node are all mixed at full strength (`Open`), operations on inputs that are not kept are 0.
    """
    by_name = decisions(space)
    rows = {n: choice.picked(architecture[n]).to(choice.live.device).float() for n, choice in by_name.items()}
    for name, choice in by_name.items():
        if isinstance(choice, InputChoice) and choice.edges is not None and isinstance(choice.relaxation, Open):
            for edge, kept in zip(choice.edges, rows[name].tolist(), strict=True):
                if isinstance(edge, OpChoice):
                    rows[edge.name] = rows[edge.name] * kept
    return rows


def decision_weights(space: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What each choice is decided by: its mixing weights, [size], without noise, or those of `weights`; see `decide`.

    Raises:
        ChoiceError: a choice has no relaxation yet.
    """
    return {name: _decision_weight(choice, weights or {}) for name, choice in decisions(space).items()}


def _decision_weight(choice: Choice, weights: Mapping[str, Tensor]) -> Tensor:
    if choice.name in weights:
        return weights[choice.name].detach().double()
    relaxation = choice.relaxation
    if relaxation is None:
        raise ChoiceError(
            f"choice {choice.name!r} has no relaxation to decide by; call archgrad.relax(space, ...) first"
        )
    mode = relaxation.training
    relaxation.eval()  # without the noise of a draw
    with torch.no_grad():
        row: Tensor = relaxation(choice.live).double()
    relaxation.train(mode)
    if isinstance(relaxation, Open) and isinstance(choice, InputChoice) and choice.edges is not None:
        for i, edge in enumerate(choice.edges):
            if isinstance(edge, OpChoice):
                row[i] *= _decision_weight(edge, weights).masked_fill(~edge.pickable, float("-inf")).amax()
    return row

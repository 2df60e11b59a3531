"""How much each candidate of an untrained supernet contributes to its output, without data.

Source: FreeNAS and FreeDARTS (arXiv 2106.11542 v1 and v2), after the score of SynFlow. What of it is reconstructed is
said in `archgrad.methods.freenas.freenas`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.choices.access import choices, decisions, restrict, using
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.copy_and_run import Intercepted
from archgrad.errors import ArchgradError, ModelError, NonFiniteError
from archgrad.extract.discretize import draw_anew
from archgrad.proxies.temporary_state import probe
from archgrad.results.result import Example
from archgrad.spaces.cells import NONE
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS

Norm = Literal["off", "eval", "train"]
Scores = dict[str, Tensor]


def inputs_of(example: Example, device: torch.device) -> tuple[Tensor, ...]:
    """The example's inputs [B, ...] on a device.

    Raises:
        ModelError: the example is no tensor, and no tuple of them, or holds nothing.
    """
    parts = (example,) if isinstance(example, Tensor) else tuple(example) if isinstance(example, tuple | list) else ()
    if any(isinstance(x, Tensor) and x.is_meta for x in parts):
        raise ModelError("the example is on the device meta, which holds no values; give it on a device")
    if not parts or not all(isinstance(x, Tensor) and x.dim() and len(x) for x in parts):
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in parts or (example,)]
        raise ModelError(
            f"the example is {shapes}; give the inputs of the space, such as torch.ones(1, 3, 32, 32), or a tuple of "
            f"tensors where it takes several"
        )
    return tuple(x.to(device) for x in parts)


def sensitivity(
    space: nn.Module, alpha: Mapping[str, Tensor], example: Example, *, norm: Norm = "off"
) -> tuple[Tensor, Scores]:
    """The value of a supernet and what each candidate contributes; the space is left bit for bit as it was.

        value = sum of f(ones; |theta|, alpha),   S = | alpha d value / d alpha |

    Biases and the shifts of norms are 0. Without norms ReLU6 is not clipped: all would be at 6, where slopes are 0.

    Args:
        space: any network with choices.
        alpha: raw weights, [size] for each choice, used as they are.
        example: inputs [B, ...], for its shapes alone: floating ones are replaced by one of ones.
        norm: normalization layers left out, in evaluation mode, or on the statistics of the batch.

    Returns:
        The value, a float64 scalar, and for each choice S, [size], both on the CPU.

    Raises:
        ModelError: the space does not run on the example.
    """
    parts = inputs_of(example, next(iter(choices(space).values()))[0].live.device)
    ones = [torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1] for x in parts]
    mode: Literal["identity", "eval", "train"] = "identity" if norm == "off" else norm
    with probe(space, weights="absolute", biases="zero", norm=mode, dtype=torch.float64):
        leaves = {n: a.detach().to(ones[0].device, torch.float64).requires_grad_() for n, a in alpha.items()}
        try:
            with using(space, leaves), Intercepted(_unclipped) if norm == "off" else contextlib.nullcontext():
                value = torch.as_tensor(_total(space(*ones)))
        except ArchgradError:
            raise
        except NETWORK_ERRORS as error:
            raise ModelError(
                f"{type(space).__name__} fails on inputs of shape {[tuple(x.shape) for x in ones]}, ones in float64, "
                f"with norm={norm!r}: {error}; give an example that it runs on (norm='train' "
                f"needs more than one value a channel: larger inputs, and no auxiliary head)"
            ) from error
        rows = list(leaves.values())
        grads = torch.autograd.grad(value, rows, allow_unused=True) if value.requires_grad else [None] * len(rows)
    slopes = [torch.zeros_like(a) if g is None else g for a, g in zip(rows, grads, strict=True)]
    return value.detach().cpu(), {
        n: (a * g).detach().abs().cpu() for (n, a), g in zip(leaves.items(), slopes, strict=True)
    }


def _unclipped(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """ReLU6 and hardtanh have no upper bound, whoever calls them."""
    if function is F.relu6 or function is F.hardtanh:
        return args[0].clamp(min=0.0 if function is F.relu6 else kwargs["min_val"])
    return function(*args, **kwargs)


def _total(outputs: object) -> Tensor | float:
    if isinstance(outputs, Tensor):
        return outputs.sum() if outputs.is_floating_point() else 0.0
    inner = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else ()
    return sum((_total(output) for output in inner), start=0.0)


def shares(space: nn.Module, example: Example, *, norm: Norm, draw: int | None) -> tuple[float | None, Scores]:
    """All live candidates at alpha = 1: log10 of the value, None where that is 0, and S divided by its sum.

    Args:
        space: the supernet; it is left as it was.
        example: see `sensitivity`.
        norm: see `sensitivity`.
        draw: seed of the weights, which every module's `reset_parameters` draws; None for the space's own.

    Raises:
        ModelError: the space does not run on the example, or no candidate reaches its outputs.
        NonFiniteError: a weight is NaN, or the space is too deep for float64.
    """
    with probe(space):
        if draw is not None:
            torch.manual_seed(draw)
            draw_anew(space)
        alpha = {name: choice.live.double() for name, choice in decisions(space).items()}
        value, scores = sensitivity(space, alpha, example, norm=norm)
    total = sum(float(row.sum()) for row in scores.values())
    if not math.isfinite(float(value) + total):
        raise NonFiniteError(
            "the scores are NaN or infinite: a weight of the space is, or the space is so deep that its sum leaves "
            "float64 (10^308); check the weights, or give a space of fewer cells with the same choices"
        )
    if not total:
        raise ModelError(
            "all scores are 0: no candidate changes the sum of the outputs; give a space whose choices reach its "
            "outputs, or another norm ('off', 'eval' or 'train')"
        )
    return math.log10(abs(float(value))) if value else None, {name: row / total for name, row in scores.items()}


def counts(space: nn.Module) -> tuple[int, int]:
    """How many candidates may be picked, and how many an architecture picks."""
    each = decisions(space).values()
    return sum(int(_allowed(choice).sum()) for choice in each), sum(_least(choice) for choice in each)


def narrowed(space: nn.Module, scores: Scores, count: int) -> dict[str, Tensor]:
    """The `count` best of all candidates, [size] bool for each choice, and never fewer than it has to pick."""
    rows = ranked(space, scores)
    alive = {name: row >= 0.0 for name, row in rows.items()}
    over = sum(int(mask.sum()) for mask in alive.values()) - count
    for _, back, name in sorted((s, -i, name) for name, row in rows.items() for i, s in enumerate(row.tolist())):
        if over > 0 and alive[name][-back] and int(alive[name].sum()) > _least(decisions(space)[name]):
            alive[name][-back], over = False, over - 1
    return alive


def decoded(space: nn.Module, scores: Scores, dropped: Scores | None = None) -> Architecture:
    """The best of each choice, "none" and what is barred left out; of equal ones the first.

    An input whose edge is a choice of operations scores what its best operation does: the rule of DARTS. Where edges
    share one choice, or have none, inputs have scores of their own.
    """
    picks: dict[str, Pick] = {}
    for name, row in ranked(space, scores, dropped).items():
        choice = decisions(space)[name]
        order = torch.sort(row, descending=True, stable=True).indices.tolist()
        picks[name] = order[0] if isinstance(choice, OpChoice) else tuple(order[: _least(choice)])
    return Architecture(picks)


def ranked(space: nn.Module, scores: Scores, dropped: Scores | None = None) -> Scores:
    """The scores that each choice is decided by; candidates that were dropped lie in [-1, 0], barred ones at -2."""
    by_name = decisions(space)
    rows = {n: scores[n].masked_fill(~_allowed(c), -2.0) for n, c in by_name.items()}
    for name, choice in by_name.items():
        edges = list(choice.edges or ()) if isinstance(choice, InputChoice) else []
        names = [edge.name for edge in edges if isinstance(edge, OpChoice)]
        if edges and len(set(names)) == len(edges):
            rows[name] = torch.stack([rows[n].amax() for n in names]).masked_fill(~_allowed(choice), -2.0)
    return {n: row - dropped[n] if dropped else row for n, row in rows.items()}


def _allowed(choice: Choice) -> Tensor:
    alive = choice.pickable.cpu()
    real = alive & torch.tensor([label != NONE for label in getattr(choice, "labels", [""] * choice.size)])
    return real if bool(real.any()) else alive


def _least(choice: Choice) -> int:
    return choice.keep if isinstance(choice, InputChoice) else 1


def labels(space: nn.Module) -> dict[str, list[str]]:
    """What the candidates of each choice are called; inputs by their numbers."""
    return {
        name: list(c.labels) if isinstance(c, OpChoice) else [str(i) for i in range(c.size)]
        for name, c in decisions(space).items()
    }


def mean(draws: Sequence[Scores]) -> Scores:
    """The scores averaged over draws of the weights."""
    return {name: torch.stack([draw[name] for draw in draws]).mean(dim=0) for name in draws[0]}


def logarithms(ranks: Scores) -> Scores:
    """Finite, and in the order of `ranked`: what was dropped below what was not, what may not be picked below all."""
    tiny = torch.finfo(torch.float64).tiny
    return {name: row.clamp(min=tiny).log() + 1e3 * row.clamp(max=0.0) for name, row in ranks.items()}


def scored(
    space: nn.Module, example: Example, *, rounds: int, norm: Norm, draws: Sequence[int | None]
) -> tuple[list[Scores], Scores, list[float | None]]:
    """The scores of all rounds for each candidate; the space is left as it was.

    Args:
        space, example, norm: see `sensitivity`.
        rounds: after each but the last the worst candidates are dropped.
        draws: seeds of the weights; None for the space's own.

    Returns:
        For each draw S divided by its sum, [size] for each choice, of the last round in which a candidate was alive.
        For each choice 1 for candidates that were dropped, else 0. For each draw log10 of the first value, None where
        that is 0.
    """
    scores: list[Scores] = [{} for _ in draws]
    dropped = {name: torch.zeros(choice.size, dtype=torch.float64) for name, choice in decisions(space).items()}
    values: list[float | None] = []
    first, last = counts(space)
    with probe(space):  # gives the support back
        for r in range(rounds):
            for latest, draw in zip(scores, draws, strict=True):
                value, latest_shares = shares(space, example, norm=norm, draw=draw)
                values += [value] if r == 0 else []
                for name, row in latest_shares.items():
                    latest[name] = torch.where(row > 0.0, row, latest.get(name, row))
            if r < rounds - 1:
                count = round(first * (last / first) ** ((r + 1) / rounds))
                alive = narrowed(space, mean(scores), count)
                restrict(space, alive)
                dropped = {name: 1.0 - mask.double() for name, mask in alive.items()}
    return scores, dropped, values

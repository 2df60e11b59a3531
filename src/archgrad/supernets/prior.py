"""Logits to begin a search with, from the scores of untrained networks or of candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices import access
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Prior, check_prior
from archgrad.choices.subsets import SubsetTable
from archgrad.errors import ConfigError
from archgrad.files import shown


@checked
def prior(
    space: nn.Module,
    score: Callable[[Sequence[Architecture]], Sequence[float]],
    *,
    samples: int = 500,
    strength: float = 2.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Logits for every choice from the scores of a sample of architectures.

    The scores' ranks, standardized, are fitted by a sum of main effects of the picks,

        rank(score(a)) ~ sum over choices c of sum over entries i in a_c of beta_c,i      (ridge regression)

    and the logits are strength * beta_c, [size] for each choice, with mean 0. Sampling each choice from the softmax
    of its logits weighs the uniform distribution by exp(strength * predicted rank), so that the predicted rank rises
    by about `strength` times its variance. Barred candidates have logits too, but are never sampled. Ours.

    Args:
        space: any network with choices.
        score: of each architecture, higher is better, for instance
            `lambda some: synflow_each(space, some, x)`; NaN and infinite scores are lowest.
        samples: architectures drawn uniformly.
        strength: how much the scores count; 0 gives a uniform prior.
        generator: of the sample.

    Raises:
        ChoiceError: the space has no choice.
        ConfigError: fewer than 2 samples, a negative strength, or not one score for each architecture.

    Example:
        >>> import archgrad as ag
        >>> space = ag.nasbench201_cells(channels=2, cells=1)
        >>> logits = ag.prior(space, lambda some: [float(a["1.0"] == 3) for a in some], samples=50)
        >>> int(logits["1.0"].argmax())
        3
    """
    if samples < 2 or not 0.0 <= strength < math.inf:
        raise ConfigError(
            f"prior with samples={samples}, strength={strength}: give 2 or more, and a number from 0 up"
        )
    drawn = [access.sample(space, generator=generator) for _ in range(samples)]
    scores = score(drawn)
    try:
        values = np.asarray([float(value) for value in scores])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"score gave {shown(scores, most=80)}; return a number for each architecture") from error
    if values.shape != (samples,):
        raise ConfigError(f"score gave {len(values)} scores for {samples} architectures; return one for each")
    choice_of = access.decisions(space)
    columns = [
        torch.stack([choice.picked(architecture[name]) for architecture in drawn])
        for name, choice in choice_of.items()
    ]
    design = torch.cat(columns, dim=1).double()
    design = design - design.mean(0)
    # A ridge of one sample: an entry that was never drawn, or always, gets 0.
    ridge = torch.eye(design.shape[1], dtype=torch.float64)
    effects = torch.linalg.solve(design.T @ design + ridge, design.T @ _standard_ranks(values))
    sizes = [choice.size for choice in choice_of.values()]
    return {
        name: (strength * (part - part.mean())).float()
        for name, part in zip(choice_of, effects.split(sizes), strict=True)
    }


def prior_of_candidates(
    scores: Mapping[str, Sequence[float]], *, strength: float = 1.0, least: float = 0.01
) -> dict[str, Tensor]:
    """Logits from scores of the candidates themselves, such as `found.record["scores"]` of `archgrad.freenas`.

        logits_c,i = strength * log max(share_i, least),   share_i = score_i / sum of the scores of choice c

    With strength 1 each candidate is sampled with a probability of its share. Ours.

    Args:
        scores: for each choice one score an entry, not negative.
        strength: how much they count.
        least: smaller shares are raised to this one, so that no candidate is ruled out.

    Raises:
        ConfigError: a negative or undefined score, a negative strength, or `least` outside of (0, 1).
    """
    if not 0.0 <= strength < math.inf or not 0.0 < least < 1.0:
        raise ConfigError(
            f"prior_of_candidates with strength={strength}, least={least}: give 0 or more, and a share in (0, 1)"
        )
    rows = {}
    for name, row in scores.items():
        values = torch.as_tensor(row, dtype=torch.float64)
        if not bool((values >= 0).all() & torch.isfinite(values).all()):
            raise ConfigError(f"choice {name!r} has the scores {values.tolist()}: give finite ones, not negative")
        share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        logits = strength * share.clamp_min(least).log()
        rows[name] = (logits - logits.mean()).float()
    return rows


@checked
def warm_start(space: nn.Module, given: Prior | None) -> None:
    """Add a prior, if there is one, to the logits of a relaxed space, in place.

        logits_c <- logits_c + prior_c,   [size] for each choice c

    To the logit of a subset of inputs the sum over its inputs is added. Choices without logits (the inputs that DARTS
    mixes at full strength) stay as they are, and so do choices that the prior does not name.

    Raises:
        ChoiceError: the prior names a choice that the space does not have, or has logits of another size, or NaN.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.relax(ag.OpChoice({"a": torch.nn.ReLU(), "b": torch.nn.Tanh()}, name="op"), ag.softmax)
        >>> ag.warm_start(space, {"op": torch.tensor([1.0, -1.0])})
        >>> ag.logits(space)[0].tolist()
        [1.0, -1.0]
    """
    if given is None:
        return
    by_name = access.decisions(space)
    check_prior(given, by_name)
    with torch.no_grad():
        for name, values in given.items():
            relaxation = by_name[name].relaxation
            logits = getattr(relaxation, "logits", None)
            if isinstance(relaxation, SubsetTable):
                relaxation.logits.add_(relaxation.subsets.to(relaxation.logits) @ values.to(relaxation.logits))
            elif isinstance(logits, nn.Parameter) and logits.shape == values.shape:
                logits.add_(values.to(logits))


def _standard_ranks(values: NDArray[np.float64]) -> Tensor:
    """Ranks of the scores, ties averaged, with mean 0 and variance 1; all 0 where all scores are equal."""
    ranks = torch.from_numpy(rankdata(np.where(np.isfinite(values), values, -np.inf)))
    ranks = ranks - ranks.mean()
    return ranks / ranks.std(correction=0).clamp_min(1e-12)

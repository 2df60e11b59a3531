"""Scores of untrained networks as a warm start: what they say of each candidate, as logits to begin with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from archgrad.choices import access
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Prior, check_prior
from archgrad.choices.subsets import SubsetTable
from archgrad.errors import ConfigError


def prior(
    space: nn.Module,
    score: Callable[[Sequence[Architecture]], Sequence[float]],
    *,
    samples: int = 500,
    strength: float = 2.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Logits for every choice from the scores of a sample of architectures.

    The scores' ranks, brought to mean 0 and variance 1, are fitted by a sum of main effects of the picks,

        rank(score(a)) ~ sum over choices c of sum over entries i in a_c of beta_c,i      (ridge regression)

    and the logits are strength * beta_c, each choice's with mean 0. Sampling each choice from the softmax of its
    logits then tilts the uniform distribution by exp(strength * predicted rank): the predicted rank rises by about
    `strength` times its variance. Barred candidates have logits too, but nothing samples them. Ours.

    Args:
        space: any network with choices.
        score: of each architecture, higher is better, for instance
            `lambda some: synflow_each(space, some, x)`; NaN and infinite scores are lowest.
        samples: architectures drawn uniformly.
        strength: how much the scores are believed; 0 gives a prior that says nothing.
        generator: of the sample.

    Raises:
        ChoiceError: the space has no choice.
        ConfigError: fewer than 2 samples, a negative strength, or not one score for each architecture.
    """
    if samples < 2 or not 0.0 <= strength < math.inf:
        raise ConfigError(
            f"prior with samples={samples}, strength={strength}: give 2 or more, and a number from 0 up"
        )
    drawn = [access.sample(space, generator=generator) for _ in range(samples)]
    scores = list(score(drawn))
    if len(scores) != samples:
        raise ConfigError(f"score gave {len(scores)} scores for {samples} architectures; return one for each")
    found = {name: same[0] for name, same in access.choices(space).items()}
    columns = [
        torch.stack([choice.picked(architecture[name]) for architecture in drawn]) for name, choice in found.items()
    ]
    design = torch.cat(columns, dim=1).double()
    design = design - design.mean(0)
    # A ridge of one sample: an entry that was never drawn, or always, gets 0.
    ridge = torch.eye(design.shape[1], dtype=torch.float64)
    effects = torch.linalg.solve(design.T @ design + ridge, design.T @ _standing(scores))
    sizes = [choice.size for choice in found.values()]
    return {
        name: (strength * (part - part.mean())).float()
        for name, part in zip(found, effects.split(sizes), strict=True)
    }


def shares(scores: Mapping[str, Sequence[float]], *, strength: float = 1.0, least: float = 0.01) -> dict[str, Tensor]:
    """Logits from scores of the candidates themselves, such as `found.record["scores"]` of `archgrad.freenas`.

        logits_c,i = strength * log max(share_i, least),   share_i = score_i / sum of the scores of choice c

    With strength 1 a choice is sampled by its shares. Ours.

    Args:
        scores: for each choice one score an entry, not negative.
        strength: how much they are believed.
        least: share that stands in for a smaller one, so that nothing is ruled out.

    Raises:
        ConfigError: a negative or undefined score, a negative strength, or `least` outside of (0, 1).
    """
    if not 0.0 <= strength < math.inf or not 0.0 < least < 1.0:
        raise ConfigError(f"shares with strength={strength}, least={least}: give 0 or more, and a share in (0, 1)")
    found = {}
    for name, row in scores.items():
        values = torch.as_tensor(row, dtype=torch.float64)
        if not bool((values >= 0).all() & torch.isfinite(values).all()):
            raise ConfigError(f"choice {name!r} has the scores {values.tolist()}: give finite ones, not negative")
        share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        logits = strength * share.clamp_min(least).log()
        found[name] = (logits - logits.mean()).float()
    return found


def warm_start(space: nn.Module, given: Prior | None) -> None:
    """Add a prior, if there is one, to the logits of a relaxed space, in place.

        logits_c <- logits_c + prior_c

    A table of subsets adds the sum over the inputs of each. Choices whose relaxation has no logits for its entries
    (the inputs that DARTS mixes at full strength) stay as they are; so do choices that the prior does not name.

    Raises:
        ChoiceError: the prior names a choice that the space does not have, or has logits of another size, or NaN.
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


def _standing(scores: Sequence[float]) -> Tensor:
    """Ranks of the scores, ties averaged, with mean 0 and variance 1; all 0 where the scores are one."""
    given = np.asarray(scores, dtype=np.float64)
    ranks = torch.from_numpy(rankdata(np.where(np.isfinite(given), given, -np.inf)))
    ranks = ranks - ranks.mean()
    return ranks / ranks.std(correction=0).clamp_min(1e-12)

"""How well scores of networks rank them by their accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

# Below this many networks a rank correlation says nothing.
_FEWEST = 5


def rank_agreement(scores: Sequence[float], accuracies: Sequence[float]) -> dict[str, Any]:
    """How well scores, of which a higher one is better, rank networks by their accuracies in %.

    Returns:
        `networks`: their number. `spearman` and `kendall` over all networks. `top_tenth`: Spearman among the tenth of
        the highest accuracies. `regret`: how many points the network of the highest score is below the best. NaN
        ranks last; None where there are fewer than 5 networks, or all figures are equal.

    Example:
        >>> from archgrad.proxies import rank_agreement
        >>> rank_agreement([1.0, 2.0, 3.0, 4.0, 5.0], [90.0, 91.0, 92.0, 94.0, 93.0])["regret"]
        1.0
    """
    x = np.nan_to_num(np.asarray(scores, dtype=float), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    y = np.asarray(accuracies, dtype=float)
    best = np.argsort(-y, kind="stable")[: math.ceil(len(y) / 10)]
    # Equal scores count alike.
    chosen = float(y[x == x.max()].mean())
    return {
        "networks": len(y),
        "spearman": _correlation(spearmanr, x, y),
        "kendall": _correlation(kendalltau, x, y),
        "top_tenth": _correlation(spearmanr, x[best], y[best]),
        "regret": float(y.max()) - chosen,
    }


def _correlation(measure: Any, x: Any, y: Any) -> float | None:
    if len(x) < _FEWEST or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None
    return float(measure(rankdata(x), rankdata(y)).statistic)

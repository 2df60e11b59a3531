"""A table of accuracies that scores are held against: how far the two rank alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from archgrad.errors import DataError
from archgrad.tasks.tabular import EDGES, OPERATIONS, Tabular

Record = dict[str, Any]

# Below this many networks a rank correlation says nothing.
_FEWEST = 5


def load(path: str, *, data: str, epochs: int = 200, partial: bool = False) -> Tabular:
    """The table. Raises DataError where it is damaged, lacks columns, or, unless `partial`, cells."""
    try:
        return Tabular.load(path, data=data, epochs=epochs, complete=not partial)
    except DataError as error:
        way = " (archgrad score: --partial)" if "complete=False" in str(error) else ""
        raise DataError(f"{error}{way}") from None


def agreement(scores: Sequence[float], accuracies: Sequence[float]) -> Record:
    """How far scores, of which a higher one is better, rank networks as their accuracies (in %) do.

    `spearman` and `kendall` over all networks; `top_tenth`, Spearman among the tenth of the highest accuracies;
    `regret`, the points by which the network of the highest score is below the best. NaN ranks last; None stands for
    what too few networks or equal figures leave open.
    """
    x = np.nan_to_num(np.asarray(scores, dtype=float), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    y = np.asarray(accuracies, dtype=float)
    best = np.argsort(-y, kind="stable")[: math.ceil(len(y) / 10)]
    # Of equal scores none is preferred.
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


def compare(record: Mapping[str, Any], cell: Mapping[str, Any], table: Tabular) -> Record:
    """What a FreeNAS record gains from a table, which had no part in its decision.

    A cell's score is the sum of the scores of its six operations; the cells of the conventions stand beside it.
    """
    shares = np.array([record["scores"][edge] for edge in EDGES])
    codes = {operation: code for code, operation in enumerate(OPERATIONS)}
    cells = [[codes[word.partition("~")[0]] for word in text.replace("+", "").split("|") if word] for text in table]
    scores = shares[np.arange(len(EDGES)), np.array(cells)].sum(axis=1)
    accuracies = [table.score(text) for text in table]
    found = [float(sum(shares[k, cell[edge]] for k, edge in enumerate(EDGES))), table.score(cell)]
    measured = agreement(scores.tolist(), accuracies)
    rivals = {f"norm={norm}": table.score(text) for norm, text in record["conventions"].items()}
    rivals |= {"mean of all cells": float(np.mean(accuracies)), "best of all cells": table.optimum}
    said = "unknown" if measured["spearman"] is None else f"{measured['spearman']:.2f}"
    note = (
        f"The table had no part in the decision. By {table.column} this cell has {found[1]:.2f} %, rank "
        f"{table.rank(cell):,} of {len(table):,}; over all cells the scores' rank correlation is {said}."
    )
    kept = np.linspace(0, len(cells) - 1, min(len(cells), 1000)).round().astype(int)
    points = {"score": scores[kept].tolist(), "accuracy": [accuracies[k] for k in kept], "found": found}
    return {
        "against": {**points, **measured, "column": table.column},
        "baselines": [{"name": name, _ACCURACY: value} for name, value in rivals.items()],
        "after": {**record["after"], _ACCURACY: found[1]},
        "notes": [*record["notes"], note, *table.notes],
    }


_ACCURACY = "accuracy by the table, %"

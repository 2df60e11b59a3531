"""A table of accuracies that scores are compared with: how far the two rank alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from archgrad.errors import DataError
from archgrad.proxies.agreement import rank_agreement
from archgrad.tasks.tabular_benchmark import EDGES, OPERATIONS, Tabular

Record = dict[str, Any]


def load(path: str, *, data: str, epochs: int = 200, partial: bool = False) -> Tabular:
    """The table. Raises DataError where it is damaged, lacks columns, or, unless `partial`, cells."""
    try:
        return Tabular.load(path, data=data, epochs=epochs, complete=not partial)
    except DataError as error:
        way = " (archgrad score: --partial)" if "complete=False" in str(error) else ""
        raise DataError(f"{error}{way}") from None


def compare(record: Mapping[str, Any], cell: Mapping[str, Any], table: Tabular) -> Record:
    """What a FreeNAS record gains from a table, which had no part in its decision.

    A cell's score is the sum of the scores of its six operations; cells of other conventions are compared.
    """
    operation_scores = np.array([record["scores"][edge] for edge in EDGES])
    codes = {operation: code for code, operation in enumerate(OPERATIONS)}
    cells = [[codes[word.partition("~")[0]] for word in text.replace("+", "").split("|") if word] for text in table]
    scores = operation_scores[np.arange(len(EDGES)), np.array(cells)].sum(axis=1)
    accuracies = [table.score(text) for text in table]
    score, accuracy = float(sum(operation_scores[k, cell[edge]] for k, edge in enumerate(EDGES))), table.score(cell)
    measured = rank_agreement(scores.tolist(), accuracies)
    rivals = {f"norm={norm}": table.score(text) for norm, text in record["conventions"].items()}
    rivals |= {"mean of all cells": float(np.mean(accuracies)), "best of all cells": table.optimum}
    correlation = "unknown" if measured["spearman"] is None else f"{measured['spearman']:.2f}"
    note = (
        f"The table had no part in the decision. By {table.column} this cell has {accuracy:.2f} %, rank "
        f"{table.rank(cell):,} of {len(table):,}; over all cells the scores' rank correlation is {correlation}."
    )
    shown = np.linspace(0, len(cells) - 1, min(len(cells), 1000)).round().astype(int)
    points = {"score": scores[shown].tolist(), "accuracy": [accuracies[k] for k in shown], "found": [score, accuracy]}
    return {
        "against": {**points, **measured, "column": table.column},
        "baselines": [{"name": name, _ACCURACY: value} for name, value in rivals.items()],
        "after": {**record["after"], _ACCURACY: accuracy},
        "notes": [*record["notes"], note, *table.notes],
    }


_ACCURACY = "accuracy by the table, %"

"""The searches that benchmarks compare. A method added to `SEARCHES` is a row of cells.py and collapse.py.

Every row has the same labelled images. A search that needs a validation part (finalists are chosen by it, single path
ranks by it) keeps it; the others train on it too. `NAME, no finalists` is the form that hands back its own choice.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student
from torch import nn

import archgrad as ag
from archgrad.methods import DartsPrimeTerms, UnasTerms, adam_of_unas

BARE = ", no finalists"


@dataclass(frozen=True)
class Search:
    """A method with its options.

    Attributes:
        method: `(space, task, run, *, search_fraction, ...) -> Found`.
        validates: it cannot do without a validation part, even where it has no finalists.
        trials: of the run, where they cannot be as many as the space has architectures; None where they can.
        finalists: it has a form with finalists and one without.
        recipe: it takes the recipe that the benchmark trains all supernets with.
    """

    method: Callable[..., ag.Found]
    validates: bool = False
    trials: int | None = None
    finalists: bool = True
    recipe: bool = True


# As the authors' code has it for CIFAR: rates 2e-3 to 3e-4 and 6e-4 to 1e-4, schedules that begin after the warm-up.
_PUBLISHED_UNAS = functools.partial(
    ag.unas, finalists=None,
    terms=UnasTerms(
        gap="pairwise", per_image=True, softening=0.0, warm_up=0.15, weights_at="policy", rate=2e-3, floor=0.15,
        restart=True,
    ),
    search_recipe=ag.Recipe(optimizer_factory=adam_of_unas, schedule=ag.warm_up_cosine(0, last=1 / 3)),
)  # fmt: skip
_PUBLISHED_PRIME = functools.partial(ag.darts_prime, finalists=None, terms=DartsPrimeTerms(schedule="static"))

SEARCHES: dict[str, Search] = {
    "random": Search(ag.random_search, validates=True, trials=8, finalists=False, recipe=False),
    "random, 32 draws": Search(ag.random_search, validates=True, trials=32, finalists=False, recipe=False),
    "single path": Search(functools.partial(ag.random_search, shared=True), validates=True),
    "darts": Search(ag.darts),
    "darts_prime": Search(ag.darts_prime),
    "darts_prime, static": Search(_PUBLISHED_PRIME, finalists=False, recipe=False),
    "unas": Search(ag.unas),
    "unas, score function": Search(functools.partial(ag.unas, terms=UnasTerms(estimator="score_function"))),
    "unas, weights by the policy": Search(
        functools.partial(ag.unas, terms=UnasTerms(warm_up=0.5, weights_at="policy"))
    ),
    "unas, no gap": Search(functools.partial(ag.unas, terms=UnasTerms(gap="none"))),
    "unas, published": Search(_PUBLISHED_UNAS, finalists=False, recipe=False),
}

# Searches of spaces whose nodes choose their inputs, which cells.py and collapse.py have none of; see
# topology_photos.py.
OF_INPUTS: dict[str, Search] = {"toponas": Search(ag.toponas)}

# Every row that a benchmark can print, each search as it is and without finalists.
ROWS: tuple[str, ...] = tuple(
    name for key, each in SEARCHES.items() for name in ((key, key + BARE) if each.finalists else (key,))
)


def search(
    row: str, space: nn.Module, task: ag.Classification, *, steps: int, seed: int, trials: int,
    recipe: ag.Recipe | None = None,
) -> ag.Found:  # fmt: skip
    """One row, searched and not trained afterwards; `trials` of those that draw architectures."""
    chosen, bare = (SEARCHES | OF_INPUTS)[row.removesuffix(BARE)], row.endswith(BARE)
    options: dict[str, Any] = {"finalists": None} if bare else {}
    if recipe is not None and chosen.recipe:
        options["search_recipe"] = recipe
    decides = chosen.validates or (chosen.finalists and not bare)
    run = ag.Run(steps=steps, seed=seed, trials=chosen.trials or trials, device="cpu", progress=False)
    return chosen.method(space, task if decides else task.with_validation(), run, search_fraction=1.0, **options)


def by_row(rows: Sequence[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    """Rows of results in the order of `ROWS`, those of one search together, by (row, the value of `key`)."""
    known = dict.fromkeys((*ROWS, *(row["method"] for row in rows)))
    names = [name for name in known if any(row["method"] == name for row in rows)]
    values = sorted({row[key] for row in rows})
    groups = {(n, v): [r for r in rows if r["method"] == n and r[key] == v] for n in names for v in values}
    return {name: same for name, same in groups.items() if same}


def paired(rows: Iterable[dict[str, Any]], base: Iterable[dict[str, Any]], key: str, *, scale: float = 1.0) -> str:
    """A figure less that of `base`, seed by seed: mean and 95 % interval by Student's t."""
    other = {row["seed"]: row[key] for row in base}
    less = [scale * (row[key] - other[row["seed"]]) for row in rows if row["seed"] in other]
    if len(less) < 2:
        return "–"
    half = float(student.ppf(0.975, len(less) - 1)) * statistics.stdev(less) / len(less) ** 0.5
    return f"{statistics.fmean(less):+.1f} ± {half:.1f}"

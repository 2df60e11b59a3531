"""How a search of a supernet ends: few architectures are trained apart, and the validation loss decides.

    the likeliest, those that differ from it in one pick and lose least, and the best of some random draws,
    each from fresh weights for an equal part of `fraction` of the search's budget

Shared weights rank the draws by their validation loss with the statistics of each batch, which follows the truth more
closely than accuracy does; so does the loss of finalists, whose trainings are short. So a search hands back a random
draw where its own choice is worse: it can lose to random search by its cost alone. The published form of a method
ends with its likeliest architecture: `finalists=None`.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Uniform
from archgrad.errors import ConfigError, LimitError, ModelError
from archgrad.extract.discretize import build
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import train_and_report
from archgrad.supernets.likeliest import likeliest, reading, that_reads_its_input
from archgrad.tasks.task import Scored, Task, evaluate, higher_is_better
from archgrad.training.finalists import finalists
from archgrad.training.fit import recalibrate
from archgrad.training.recipe import Recipe
from archgrad.trials.random_sampling import draw_architectures

FEWEST = 30  # steps of a finalist; with fewer the validation part cannot tell them apart, and the search decides


@dataclass(frozen=True)
class Finalists:
    """The last part of a search; None in its place is the published form, which hands back the likeliest.

    In both, a likeliest whose network does not read its input makes place for the next likeliest that does.

    Attributes:
        likely: how many of the likeliest architectures are trained apart.
        drawn: random draws, of which the best by the supernet's weights is trained apart too; 0 for none.
        fraction: part of the search's budget for the finalists, below 1.

    Raises:
        ConfigError: a number out of its range.

    Example:
        >>> import archgrad as ag
        >>> ag.Finalists(likely=3, drawn=50).count
        4
    """

    likely: int = 2
    drawn: int = 20
    fraction: float = 0.3

    def __post_init__(self) -> None:
        numbers = [(self.likely, int), (self.drawn, int), (self.fraction, float)]
        typed = all(type(value) is kind for value, kind in numbers)
        if not typed or self.likely < 1 or self.drawn < 0 or not 0.0 < self.fraction < 1.0:
            raise ConfigError(
                f"{self} was given; allowed are whole numbers, likely from 1 and drawn from 0, and a fraction of the "
                f"search above 0 and below 1"
            )

    @property
    def count(self) -> int:
        """How many are trained apart."""
        return self.likely + (self.drawn > 0)


class Chosen(NamedTuple):
    """What a search hands back.

    Attributes:
        architecture: the best finalist, or the likeliest.
        network: trained as a finalist; None where there were none.
        record: what the report shows.
    """

    architecture: Architecture
    network: nn.Module | None
    record: dict[str, Any]


class Ending:
    """The division of a search's budget, and its end.

    Args:
        finalists: None: the whole budget is searched in, and the likeliest architecture is the result.
        steps: of the search.
        time_fraction: of the search, in a budget of seconds.

    Attributes:
        search_steps: left for the search itself.
        search_time: likewise.
    """

    def __init__(self, finalists: Finalists | None, steps: int, time_fraction: float) -> None:
        each = int(finalists.fraction * steps) // finalists.count if finalists else 0
        self.finalists = finalists if each >= FEWEST else None
        self.each, self.each_time = (each, 0.0) if self.finalists else (0, 0.0)
        self.search_steps, self.search_time = steps, time_fraction
        if self.finalists:
            self.search_steps -= each * self.finalists.count
            self.each_time = time_fraction * self.finalists.fraction / self.finalists.count
            self.search_time = time_fraction * (1.0 - self.finalists.fraction)

    def choose(
        self, space: nn.Module, architecture: Architecture, task: Task | Scored, run: Run, *, recipe: Recipe,
        constraint: ArchitectureConstraint | None = None, fresh: nn.Module | None = None,
        draws: Sequence[Architecture] | None = None,
    ) -> Chosen:  # fmt: skip
        """Train the finalists apart, a phase each; the lowest validation loss wins.

        Args:
            space: the supernet after its search.
            architecture: the search's own choice.
            task: its validation part decides, by its loss, or by its score where it has none.
            run: begun.
            recipe: of each training.
            constraint: that all of them keep.
            fresh: the space that they are built from, where the supernet has modules that they must not have.
            draws: of a search that draws, all of which the supernet's weights rank; there are no others.
        """
        if isinstance(task, Scored):
            return Chosen(architecture, None, {})
        if draws is None:
            architecture = that_reads_its_input(space, architecture, task, run, constraint)
        if self.finalists is None:
            return Chosen(architecture, None, {})
        entered = run.compute_once(
            "finalists", lambda: self._entered(space, architecture, task, run, constraint=constraint, draws=draws)
        )
        named = {name: Architecture.from_json(text) for name, text in entered.items()}
        make = functools.partial(build, fresh or space, weights="fresh")
        return self.train_apart(named, make, task, run, recipe=recipe)

    def train_apart(
        self, named: Mapping[str, Architecture], make: Callable[[Architecture], nn.Module], task: Task, run: Run, *,
        recipe: Recipe,
    ) -> Chosen:  # fmt: skip
        """Train architectures from fresh weights, a phase each; the lowest validation loss wins.

        Args:
            named: the finalists, the search's own choice first.
            make: from an architecture to its network with fresh weights.
            task: its validation part decides, by its loss, or by its score where it has none.
            run: begun.
            recipe: of each training.
        """
        networks = {}
        for name, each in named.items():
            with run.isolated_rng(f"finalist-{name}"):
                networks[name] = make(each).to(run.device)
        found = finalists(
            networks, task, run, recipe, steps=self.each, time_fraction=self.each_time, fresh=True
        )  # fmt: skip
        losses = {name: _loss_of(figures, task) for name, figures in found.items()}
        winner = min(losses, key=losses.__getitem__)
        if winner.startswith("drawn") and "likely1" in found:
            run.note(
                f"A random draw has a validation loss of {losses[winner]:.4g} when it is trained apart, and the "
                f"search's own choice {losses['likely1']:.4g}: the draw is handed back."
            )
        rows = [
            {
                "from": name, "architecture": dict(named[name]), "score": next(iter(figures.values())),
                "loss": losses[name],
            }
            for name, figures in found.items()
        ]  # fmt: skip
        return Chosen(named[winner], networks[winner], {"finalists": rows})

    def report(
        self, space: nn.Module, architecture: Architecture, task: Task | Scored, run: Run, *, steps: int,
        recipe: Recipe,
        record: Mapping[str, Any], constraint: ArchitectureConstraint | None = None, fresh: nn.Module | None = None,
        draws: Sequence[Architecture] | None = None,
    ) -> Found:  # fmt: skip
        """`choose`, then `train_and_report`; where no steps are left, the finalist itself is handed back."""
        chosen = self.choose(
            space, architecture, task, run, recipe=recipe, constraint=constraint, fresh=fresh, draws=draws
        )  # fmt: skip
        return train_and_report(
            space, chosen.architecture, task, run, steps=steps, recipe=recipe, constraint=constraint, fresh=fresh,
            record={**record, **chosen.record}, trained=None if steps else chosen.network,
        )  # fmt: skip

    def _entered(
        self, space: nn.Module, architecture: Architecture, task: Task, run: Run, *,
        constraint: ArchitectureConstraint | None, draws: Sequence[Architecture] | None,
    ) -> dict[str, str]:  # fmt: skip
        """The finalists by name; found once, since a measured limit may decide otherwise later."""
        assert self.finalists is not None
        if draws is not None:
            ranked = by_shared_loss(space, task, run, draws)
            kept = itertools.islice(_feasible(ranked, constraint), self.finalists.count)
            return {f"drawn{place}": each.to_json() for place, each in enumerate(kept, 1)}
        likely = likeliest(space, architecture, self.finalists.likely, constraint, reads=reading(space, task, run))
        named = {f"likely{place}": each.to_json() for place, each in enumerate(likely, 1)}
        ranked = by_shared_loss(space, task, run, random_draws(space, run, constraint, self.finalists.drawn))
        drawn = next(_feasible((each for each in ranked if each not in likely), constraint), None)
        return named if drawn is None else named | {"drawn": drawn.to_json()}


def _feasible(
    architectures: Iterable[Architecture], constraint: ArchitectureConstraint | None
) -> Iterator[Architecture]:
    return (each for each in architectures if constraint is None or constraint.is_feasible(each))


def shared_loss(space: nn.Module, architecture: Architecture, task: Task, run: Run) -> float:
    """The validation loss of an architecture with the supernet's weights; else its score, lower being better.

    BatchNorm takes the statistics of each validation batch, since those of the supernet are of no architecture. Where
    a batch is too small for that, statistics are estimated on training batches.
    """
    network = build(space, architecture, weights="inherit").to(run.device)
    kept = copy.deepcopy(network.state_dict())
    for norm in (m for m in network.modules() if isinstance(m, _BatchNorm)):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    try:
        figures = evaluate(task, network, "valid")
    except (ModelError, ValueError):
        network = build(space, architecture, weights="inherit").to(run.device)
        network.load_state_dict(kept)
        recalibrate(network, task, run, batches=8)
        figures = evaluate(task, network, "valid")
    return _loss_of(figures, task)


def _loss_of(figures: Mapping[str, float], task: Task) -> float:
    """The loss, or the score where a task gives none; lower is better."""
    score = next(iter(figures.values()))
    return figures.get("loss", -score if higher_is_better(task) else score)


def by_shared_loss(
    space: nn.Module, task: Task, run: Run, architectures: Iterable[Architecture]
) -> dict[Architecture, float]:
    """`shared_loss` of architectures, the best first, of equals the first given."""
    with run.isolated_rng("shared losses"):
        losses = {each: shared_loss(space, each, task, run) for each in architectures}
    return dict(sorted(losses.items(), key=lambda row: row[1]))


def random_draws(
    space: nn.Module, run: Run, constraint: ArchitectureConstraint | None, count: int
) -> list[Architecture]:
    """At most so many architectures, drawn uniformly, that keep the limit."""
    try:
        return draw_architectures(Uniform(space), run, count, constraint) if count else []
    except LimitError:  # so tight a limit that no draw is under it
        return []

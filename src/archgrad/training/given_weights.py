"""Trained weights that a user gives: what they score as they stand, before anything is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from archgrad.errors import ModelError
from archgrad.fingerprint import of_weights
from archgrad.report import text
from archgrad.run.run import Run
from archgrad.tasks import chance_level
from archgrad.tasks.task import Task, description, evaluate, higher_is_better, require_finite


def weights_record(network: nn.Module, *, given: bool) -> dict[str, str]:
    """What a run that begins with given weights is compared by beside its settings."""
    return {"given_weights": of_weights(network)} if given else {}


def score_given(network: nn.Module, task: Task, run: Run, *, check: bool = True) -> dict[str, Any]:
    """Score given weights on the validation part, show the figure, and stop where they seem to know nothing.

    Args:
        network: with the weights, on the run's device.
        task: what it is judged on.
        run: begun, and nothing was trained in it.
        check: whether to stop; a task that cannot be asked is a note of the run.

    Returns:
        `given` of a record: {"part", "figures", "normalization"}.

    Raises:
        ModelError: the score is near chance; the message says the likely reasons.
        ConfigError: a figure is not finite.
    """

    def scored() -> dict[str, Any]:
        figures = evaluate(task, network)
        require_finite(figures, task, "valid")
        verdict = chance_level.judged(task, network, figures) if check else chance_level.Verdict()
        return {"figures": figures, **verdict._asdict()}

    computed = run.compute_once("given", scored)
    figures: dict[str, float] = computed["figures"]
    given = {"part": "valid", "figures": figures, "normalization": description(task).get("normalization")}
    score = {"name": next(iter(figures)), "higher_is_better": higher_is_better(task)}
    run.note(text.given_line({"given": given, "score": score}), kept=False)
    run.log({f"given_{name}": value for name, value in figures.items()})
    if check and computed["unjudged"]:
        run.note(f"Whether the given weights know anything of this data is not checked: {computed['unjudged']}.")
    if check and computed["doubts"]:
        run.withdraw()
        raise ModelError(
            f"The given weights were scored before anything was trained: {computed['doubts']}. Give what they were "
            f"trained with, or train on all the same: check_weights=False (--no-check-weights)."
        )
    return given


def note_loss(network: nn.Module, task: Task, run: Run, given: dict[str, Any] | None) -> None:
    """Note where what given weights knew is lost after a run: then the training failed, whatever was cut.

    Args:
        network: as it is handed back.
        task: what it is judged on.
        run: that trained it.
        given: of `score_given`; None where no weights were given.
    """
    if given is None:
        return
    figures = evaluate(task, network)
    name, reached = next(iter(figures.items()))
    if chance_level.judged(task, network, figures).doubts:
        run.note(
            f"What the given weights knew is lost: {name} on the validation part was {given['figures'][name]:.4g}, "
            f"and is {reached:.4g} after the run, near chance. The learning rate is too high for them, or the steps "
            f"are too few: give a lower rate (--learning-rate 0.01, archgrad.Recipe), or more epochs"
        )

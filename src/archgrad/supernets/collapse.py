"""Signs at the end of a relaxed search that it went wrong: collapse, and the discretization gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import discretized
from archgrad.choices.modules import OpChoice
from archgrad.copy_and_run import copied
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.tasks.task import Task, evaluate, higher_is_better
from archgrad.training.fit import recalibrate

SKIP = "skip_connect"  # what the field calls them; where channels or sizes change it has weights
SKIPS = (SKIP, "skip", "identity")
_AGAINST_SKIPS = {
    "darts": "Search for fewer steps, or with darts_prime, whose regularizers work against it",
    "darts_prime": "Search for fewer steps, or give its regularizer more weight (DartsPrimeTerms(rho=))",
    "unas": "Search for longer, or with a lower rate of the logits (UnasTerms(rate=))",
}  # what helps in methods that have more than fewer steps to offer
FEWEST = 3  # operations that can be called a collapse
EARLY = 0.2  # of the search
GONE = 0.1  # of the entropy at the beginning
MOVED = 0.01  # of a mixing weight
WEIGHT = "weight/"


def discretization(space: nn.Module, architecture: Architecture, task: Task, run: Run) -> dict[str, Any] | None:
    """What the supernet scores on the validation part, what the network found scores with its weights, and the gap.

        gap = score of the supernet - score of the network, with the sign turned where a lower score is better

    So a positive gap is a loss. BatchNorm statistics of both are estimated again first, on copies. None for a space
    that is not relaxed.
    """
    if any(choice.relaxation is None for choice in decisions(space).values()):
        return None
    scores = []
    for network in (copied(space), build(space, architecture, weights="inherit")):
        recalibrate(network, task, run)
        scores.append(evaluate(task, network, "valid"))
    name = next(iter(scores[0]))
    relaxed, derived = (score[name] for score in scores)
    gap = relaxed - derived if higher_is_better(task) else derived - relaxed
    return {"score": name, "supernet": relaxed, "derived": derived, "gap": gap}


def alarms(
    space: nn.Module, architecture: Architecture, history: Sequence[Mapping[str, Any]], *, method: str
) -> list[str]:
    """A sentence for each sign that a relaxed search has collapsed or has not begun; none for other searches.

    Signs are: most operations are skip connections; all operations are the same; the entropy is gone at once; the
    architecture never took a step; its mixing weights did not move.

    Args:
        space: the supernet.
        architecture: what was found in it.
        history: the records of the run.
        method: the name of the method that ran; what is advised is within its means.
    """
    # The last record of a search is logged when its phase has ended, so it names none.
    shown = [r for r in history if "entropy" in r and (r.get("phase") == "search" or "architecture_steps" in r)]
    if not shown:
        return []
    operations = _of_operations(space, architecture, method)
    return operations + _of_entropy(shown) + _of_movement(shown, history, method)


def _of_operations(space: nn.Module, architecture: Architecture, method: str) -> list[str]:
    rows = discretized(space, architecture)
    used = {name: choice for name, choice in decisions(space).items() if bool(rows[name].any())}
    found = [(c, int(rows[n].argmax())) for n, c in used.items() if isinstance(c, OpChoice) and c.size > 1]
    if len(found) < FEWEST:
        return []
    labels = [choice.labels[pick] for choice, pick in found]
    (most, count), *_ = Counter(labels).most_common(1)
    warnings = []
    skips = [choice.labels[pick] for choice, pick in found if _skips(choice, pick)]
    if len(skips) > len(found) / 2:
        names = ", ".join(dict.fromkeys(skips))
        advice = _AGAINST_SKIPS.get(method, "Search for fewer steps")
        warnings.append(
            f"the search has collapsed to skip connections: {len(skips)} of the {len(found)} operations found are "
            f"{names}. {advice}, and compare with random_search"
        )
    if count == len(labels):
        warnings.append(f"one operation everywhere: all {count} operations found are {most}")
    return warnings


def _skips(choice: OpChoice, pick: int) -> bool:
    """Whether a candidate hands on its input; one that is only called so, and has weights, does not."""
    label, own = choice.labels[pick].lower(), choice.candidates[pick] if len(choice.candidates) else None
    weights = own is not None and any(True for _ in own.parameters())
    return isinstance(own, nn.Identity) or label == SKIP or (label in SKIPS and not weights)


def _of_entropy(shown: Sequence[Mapping[str, Any]]) -> list[str]:
    first, last = shown[0]["entropy"], shown[-1]["step"]
    for row in shown[1:-1]:
        if row["step"] <= EARLY * last and row["entropy"] < GONE * first:
            return [
                f"the entropy of the choices was gone at once: {row['entropy']:.3g} of {first:.3g} nats were left "
                f"after {row['step']} of {last} steps. Lower the rate of the logits"
            ]
    return []


def _of_movement(shown: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], method: str) -> list[str]:
    counted = sum(row.get("phase") == "search" and "architecture_loss" in row for row in history)
    steps = int(shown[-1].get("architecture_steps", counted))
    if not steps:
        of_schedule = ", raise the threshold of the dynamic schedule, or take the static one"
        return [
            f"the architecture never took a step in {shown[-1]['step']} steps of the weights: what was found is what "
            f"the logits began with. Search longer{of_schedule if method == 'darts_prime' else ''}"
        ]
    names = [name for name in shown[0] if name.startswith(WEIGHT)]
    moved = max((abs(shown[-1].get(name, 0.0) - shown[0][name]) for name in names), default=1.0)
    if moved < MOVED:
        return [
            f"the mixing weights have not moved: none by more than {moved:.2g} in {steps} steps of the architecture. "
            f"Search longer, or raise the rate of the logits"
        ]
    return []

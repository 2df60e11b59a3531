"""What every search of a supernet begins and ends with: the space made ready, the network trained and judged."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.subsets import without_topology
from archgrad.costs.latency import Runtime
from archgrad.derive.discretise import build, strengths
from archgrad.errors import ChoiceError, ConfigError
from archgrad.search.fit import MakeOptimiser, descend, recalibrate
from archgrad.search.found import Found, figures, latencies
from archgrad.search.run import Run
from archgrad.search.schedules import cosine
from archgrad.search.within import Within
from archgrad.tasks.classification import Classification

LOAD = """import torch
network = torch.export.load("network.pt2").module()   # needs torch alone
# or, with archgrad, to train a larger one of the same architecture (`space` is the one that was searched):
#   architecture = archgrad.Architecture.load("architecture.json")
#   network = archgrad.build(space, architecture, cells=20, channels=36)
"""


@runtime_checkable
class Described(Protocol):
    """A space that can say what an architecture of it looks like."""

    def describe(self, architecture: Architecture) -> Mapping[str, Any]:
        """`architecture_text`, and `graphs` as the report draws them."""
        ...


def supernet(space: nn.Module, run: Run, *, needs: str, single: bool = False) -> nn.Module:
    """A copy of a space on the run's device, once it is sure that a method for supernets can search it.

    Args:
        space: any network whose choices are OpChoice and InputChoice; it is not changed.
        run: whose device it is moved to.
        needs: the method's name, for messages.
        single: whether every InputChoice has to keep one input, or carry a distribution over subsets.

    Raises:
        ChoiceError: a space without choices, with gates, or with an InputChoice of several inputs if `single`.
    """
    found = {name: same[0] for name, same in choices(space).items()}
    if not found:
        raise ChoiceError(
            f"{type(space).__name__} has no choice to search; put OpChoice or InputChoice modules in it, or take a "
            f"ready space such as archgrad.darts_cells"
        )
    gates = [name for name, choice in found.items() if not isinstance(choice, (OpChoice, InputChoice))]
    if gates:
        raise ChoiceError(
            f"{needs} decides operations and inputs; {gates[:3]} are gates, which archgrad.dnal decides"
        )
    inputs = {name: choice for name, choice in found.items() if isinstance(choice, InputChoice)}
    several = [name for name, choice in inputs.items() if choice.keep > 1 and without_topology(choice)]
    if single and several:
        raise ChoiceError(
            f"{needs} samples one candidate for each choice; {several[:3]} keep several inputs: give each input "
            f"a choice of its own, as archgrad.darts_cells(factorised=True) does, or give the choice a distribution "
            f"over subsets by archgrad.choices.subsets.topology"
        )
    return copy.deepcopy(space).to(run.device)


def divided(run: Run, task: Classification, search: float) -> tuple[int, int]:
    """Steps of the search and of the training of what it found; together they are the run's budget."""
    if not 0.0 < search <= 1.0:
        raise ConfigError(f"search={search}: the share of the steps that is searched in is above 0 and at most 1")
    total = run.total_steps(task.steps_per_epoch, default_epochs=60)
    steps = max(1, round(search * total))
    return steps, total - steps


def conclude(
    space: nn.Module,
    architecture: Architecture,
    task: Classification,
    run: Run,
    *,
    steps: int,
    optimiser: MakeOptimiser,
    within: Within | None,
    record: Mapping[str, Any],
) -> Found:
    """Train what was found from fresh weights, or recalibrate the supernet's for no steps; judge and record it.

    Args:
        space: the supernet.
        architecture: what was found in it.
        task: its test part is read here, once.
        run: whose folder, if any, gets the result.
        steps: of training.
        optimiser: from weights to their optimiser.
        within: the limit; it is checked on the network that is handed back.
        record: what the method adds to the report.

    Raises:
        LimitError: the network is over its limit when measured again.
    """
    network = build(space, architecture, weights="fresh" if steps else "inherit")
    if steps:
        made = optimiser(network.parameters())
        run.keep(network=network, optimiser=made)
        descend(network, task, run, optimiser=made, steps=steps, phase="train", schedule=cosine)
    recalibrate(network, task, run)
    example = run.to_device(task.example)
    after = run.remember("figures", lambda: figures(network, task, example))
    runtimes: tuple[Runtime, ...] = ("eager", "onnx") if run.folder else ("eager",)
    times = run.remember("latency", lambda: latencies({"after": network}, example, runtimes=runtimes))
    limit = None
    if within:
        reached = run.remember("reached", lambda: within.reached(architecture, network))
        if within.slower > 1.0:
            run.note(
                f"The machine was {within.slower:.2f} times slower at the end than when the limit was settled: the "
                f"price under the limit is given at the earlier speed."
            )
        limit = {"cost": within.cost.name, "unit": within.cost.unit, "bound": within.bound, "reached": reached}
    described = dict(space.describe(architecture)) if isinstance(space, Described) else {}
    if within and (surrogate := run.remember("surrogate", within.record)):
        described["surrogate"] = surrogate
    full = {
        "after": {**after, "latency_ms": times["after"]},
        "picks": _picks(space, architecture),
        **described,
        "limit": limit,
        "run": {"seed": run.seed, "epochs": run.epochs, "steps": run.max_steps, "seconds": run.seconds},
        "versions": {"torch": torch.__version__},
        "device": str(run.device),
        "data": task.splits,
        "notes": list(run.notes),
        "load": LOAD,
        **record,
    }
    costs = {name: after[name] for name in ("params", "macs")}
    if limit:
        costs[limit["cost"]] = limit["reached"]
    found = Found(architecture, network.eval(), next(iter(after.values())), costs, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    run.finish()
    return found


def _picks(space: nn.Module, architecture: Architecture) -> list[dict[str, Any]]:
    """For each choice what was picked, by label where there is one, and with its weight where there are some."""
    rows: list[dict[str, Any]] = []
    for name, (choice, *_) in choices(space).items():
        pick = architecture[name]
        row: dict[str, Any] = {"choice": name}
        if isinstance(choice, OpChoice) and isinstance(pick, int):
            row["pick"] = choice.labels[pick]
        else:
            row["pick"] = [str(i) for i in (pick if isinstance(pick, tuple) else (pick,))]
        if choice.relaxation is not None:
            weights = strengths(choice)[name]
            row["weight"] = [float(weights[i]) for i in pick] if isinstance(pick, tuple) else float(weights[pick])
        rows.append(row)
    return rows

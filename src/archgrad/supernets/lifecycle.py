"""What every search of a supernet begins and ends with: the space made ready, the network trained and judged."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.lazy import built
from archgrad.choices.modules import Gate, InputChoice, OpChoice
from archgrad.choices.subsets import without_topology
from archgrad.costs.count import params
from archgrad.costs.latency import Runtime
from archgrad.costs.memory import GIB, available_bytes, predict
from archgrad.errors import ChoiceError, ConfigError, LimitError, ModelError
from archgrad.extract.discretize import build, decision_weights
from archgrad.results.record import conditions
from archgrad.results.result import Example, Found, figures, latencies
from archgrad.run.run import Run
from archgrad.supernets import collapse
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch, Scored, Task, batch_size
from archgrad.training.fit import optimize, recalibrate
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.training.schedules import cosine
from archgrad.training.step import autocast

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


def prepare_supernet(space: nn.Module, run: Run, *, needs: str, single: bool = False) -> nn.Module:
    """A copy of a space on the run's device, once it is sure that a method for supernets can search it.

    Args:
        space: any network whose choices are OpChoice and InputChoice; it is not changed.
        run: whose device it is moved to.
        needs: the method's name, for messages.
        single: whether every InputChoice has to keep one input, or carry a distribution over subsets.

    Raises:
        ChoiceError: a space without choices, with gates, or with an InputChoice of several inputs if `single`.
        ModelError: parameters on the meta device.
    """
    refuse_unfit(space, needs=needs, single=single)
    if any(tensor.is_meta for tensor in (*space.parameters(), *space.buffers())):
        raise ModelError(f"{type(space).__name__} is on the meta device and has no values; make it on the CPU")
    return built(copy.deepcopy(space)).to(run.device)


def refuse_unfit(space: nn.Module, *, needs: str, single: bool = False) -> None:
    """Raise the ChoiceError that `prepare_supernet` raises for a space that it does not take."""
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
            f"a choice of its own, as archgrad.darts_cells(factorized=True) does, or give the choice a distribution "
            f"over subsets by archgrad.choices.subsets.topology"
        )


def predict_peak_memory(
    space: nn.Module, task: Task, run: Run, *, optimizer: OptimizerFactory, passes: int = 1, drawn: int = 0
) -> int | None:
    """The peak memory of a step of the search, in bytes, predicted before anything is trained; in the history too.

    Args:
        space: mixed as it will be while it is trained, or with gates; nothing of it, and no random state, is changed.
        task: of the batches that the weights are trained on.
        run: begun.
        optimizer: of the weights.
        passes: forward passes whose activations the method holds at once.
        drawn: where networks are trained apart: so many are drawn, and the dearest of them counts.

    Returns:
        `predicted_peak_bytes`, or None where the network does not run on two or three examples; the notes say why.

    Raises:
        LimitError: the device has less memory available; the message says what would fit.
    """
    batch = run.to_device(task.stream(seed=run.seed, rank=run.rank, world=run.world)(0))

    def loss(network: nn.Module, part: Batch) -> Tensor:
        with autocast(run):
            return torch.stack([task.loss(network, part) for _ in range(passes)]).sum()

    generator = torch.Generator().manual_seed(run.seed)
    apart = (build(space, sample(space, generator=generator), weights="inherit") for _ in range(drawn))
    try:
        every = [predict(one, batch, loss=loss, optimizer=optimizer) for one in (apart if drawn else [space])]
    except ModelError as error:
        run.note(f"How much memory the search takes cannot be foreseen: {error}")
        return None
    prediction = max(every, key=lambda one: one.at(batch_size(batch)).peak_bytes)
    needed = prediction.at(batch_size(batch)).peak_bytes
    free, here = available_bytes(run.device), prediction.fixed.parameter_bytes + prediction.fixed.buffer_bytes
    if free is not None and needed > free + here:
        fits = prediction.largest_batch(free + here)
        run.close()  # nothing has begun: the folder is free for another try
        mixture = not drawn and not any(isinstance(same[0], Gate) for same in choices(space).values())
        what = f"the dearest of {drawn} networks drawn" if drawn else "this supernet" if mixture else "this network"
        less = (
            f"a batch of at most {fits} (given: {batch_size(batch)})" if fits else "a smaller network, or candidates"
        )
        radars = (
            ", or archgrad.radars, which searches the same space part by part under a bound "
            "(memory=archgrad.peak_memory(x).at_most(gib=...))"
        )
        raise LimitError(
            f"training {what} would take {needed / GIB:,.2f} GiB at its peak, and {(free + here) / GIB:,.2f} GiB are "
            f"available on {run.device}. What fits: {less}{radars if mixture else ''}"
        )
    run.log({"predicted_peak_bytes": needed})
    return needed


def split_steps(run: Run, task: Classification | Scored, search_fraction: float) -> tuple[int, int]:
    """Steps of the search and of the training of what it found; together they are the run's budget.

    A task that scores architectures itself takes none.
    """
    if not 0.0 < search_fraction <= 1.0:
        raise ConfigError(
            f"search_fraction={search_fraction}: the share of the steps that is searched in is above 0 and at most 1"
        )
    if isinstance(task, Scored):
        return 0, 0
    total = run.total_steps(task.steps_per_epoch, default_epochs=60)
    steps = max(1, round(search_fraction * total))
    return steps, total - steps


def train_and_report(
    space: nn.Module,
    architecture: Architecture,
    task: Classification | Scored,
    run: Run,
    *,
    steps: int,
    optimizer: OptimizerFactory,
    constraint: ArchitectureConstraint | None,
    record: Mapping[str, Any],
    fresh: nn.Module | None = None,
    trained: nn.Module | None = None,
    costs: Mapping[str, float] = MappingProxyType({}),
) -> Found:
    """Train what was found from fresh weights, or recalibrate the supernet's for no steps; judge and record it.

    Of a relaxed supernet the collapse and the gap to the network found are looked for (`collapse.py`). Where the
    task scores architectures itself nothing is trained: the network has fresh weights.

    Args:
        space: the supernet.
        architecture: what was found in it.
        task: its test part is read here, once.
        run: whose folder, if any, gets the result.
        steps: of training.
        optimizer: from weights to their optimizer.
        constraint: the limit; it is checked on the network that is handed back.
        record: what the method adds to the report: method, title, settings.
        fresh: the space that the trained network is built from, where the supernet has parts of its own.
        trained: the architecture's network, where it is trained already.
        costs: what the architecture takes by further costs of the search.

    Raises:
        LimitError: the network is over its limit when measured again.
    """
    signs: dict[str, Any] = {}
    example: Example | None = None
    if isinstance(task, Scored):
        network = build(fresh or space, architecture, weights="fresh")
        after: dict[str, Any] = {"score": task.score(architecture), "params": params().of(network)}
    else:
        signs = _signs(space, architecture, task, run)
        source, example = (fresh or space) if steps else space, run.to_device(task.example)
        if trained is None:
            trained = _trained(source, architecture, task, run, steps=steps, optimizer=optimizer)
        network = trained
        after = _figures(network, task, run, example)
    limit = _reached(constraint, architecture, network, run) if constraint else None
    described = dict(space.describe(architecture)) if isinstance(space, Described) else {}
    if constraint and (surrogate := run.compute_once("surrogate", constraint.record)):
        described["surrogate"] = surrogate
    full = {
        "after": {**costs, **after},
        "picks": picks(space, architecture),
        "labels": {name: list(one.labels) for name, (one, *_) in choices(space).items() if isinstance(one, OpChoice)},
        **described,
        "limit": limit,
        **conditions(run, task, score=next(iter(after))),
        **signs,
        "notes": [note for note in run.notes if note not in signs.get("alarms", ())],
        "load": LOAD,
        **record,
    }
    taken = dict(costs) | {name: after[name] for name in ("params", "macs") if name in after}
    if limit:
        taken[limit["cost"]] = limit["reached"]
    found = Found(architecture, network.eval(), next(iter(after.values())), taken, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    run.finish()
    return found


def _reached(
    constraint: ArchitectureConstraint, architecture: Architecture, network: nn.Module, run: Run
) -> dict[str, Any]:
    """The limit, and what the network that is handed back takes."""
    reached = run.compute_once("reached", lambda: constraint.verify(architecture, network))
    if constraint.slower > 1.0:
        run.note(
            f"The machine was {constraint.slower:.2f} times slower at the end than when the limit was settled: the "
            f"price under the limit is given at the earlier speed."
        )
    return {"cost": constraint.cost.name, "unit": constraint.cost.unit, "bound": constraint.bound, "reached": reached}


def _signs(space: nn.Module, architecture: Architecture, task: Classification, run: Run) -> dict[str, Any]:
    """The alarms of a relaxed search, and its discretization gap; in the notes and the history too."""
    alarms = collapse.alarms(space, architecture, run.history)
    for alarm in alarms:
        run.note(alarm)
    jump = run.compute_once("discretization", lambda: collapse.discretization(space, architecture, task, run))
    if jump:
        run.log({f"discretization_{name}": jump[name] for name in ("supernet", "derived", "gap")})
    return {"discretization": jump, "alarms": alarms}


def _trained(
    space: nn.Module, architecture: Architecture, task: Classification, run: Run, *, steps: int,
    optimizer: OptimizerFactory,
) -> nn.Module:  # fmt: skip
    network = build(space, architecture, weights="fresh" if steps else "inherit").to(run.device)
    if steps:
        made = Recipe(optimizer_factory=optimizer).optimizer(network)
        run.register_state(network=network, optimizer=made)
        optimize(network, task, run, optimizer=made, steps=steps, phase="train", schedule=cosine)
    recalibrate(network, task, run)
    return network


def _figures(network: nn.Module, task: Classification, run: Run, example: Example) -> dict[str, Any]:
    after: dict[str, Any] = run.compute_once("figures", lambda: figures(network, task, example))
    runtimes: tuple[Runtime, ...] = ("eager", "onnx") if run.folder else ("eager",)
    times = run.compute_once("latency", lambda: latencies({"after": network}, example, runtimes=runtimes))
    return {**after, "latency_ms": times["after"]}


def picks(space: nn.Module, architecture: Architecture) -> list[dict[str, Any]]:
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
            weights = decision_weights(choice)[name]
            row["weight"] = [float(weights[i]) for i in pick] if isinstance(pick, tuple) else float(weights[pick])
        rows.append(row)
    return rows

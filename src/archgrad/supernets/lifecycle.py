"""How every search of a supernet begins and ends: the space prepared, the network trained, scored and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions, sample, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decision_weights
from archgrad.choices.gate import Gate
from archgrad.choices.lazy_candidates import built
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.subsets import without_topology
from archgrad.copy_and_run import copied, in_mode
from archgrad.costs.count import params
from archgrad.costs.limits import Limit
from archgrad.costs.memory import GIB, available_bytes, predict_memory
from archgrad.errors import ChoiceError, ConfigError, LimitError, ModelError
from archgrad.extract.discretize import build
from archgrad.results.record import conditions
from archgrad.results.result import Example, Found, keep, measured, note_remarks
from archgrad.run.run import Run
from archgrad.supernets import collapse
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.tasks.batch_checks import check_losses
from archgrad.tasks.task import Batch, Checkable, Scored, Task, batch_size, require
from archgrad.training.fit import check_recipe, recalibrate, seconds_per_step, steps_per_epoch, train
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.training.step import autocast

LOAD_SEARCHED = """import torch
network = torch.export.load("network.pt2").module()   # needs torch alone
# or, with archgrad, to train a larger one of the same architecture (`space` is the one that was searched):
#   architecture = archgrad.Architecture.load("architecture.json")
#   network = archgrad.build(space, architecture, cells=20, channels=36)
"""


@runtime_checkable
class Described(Protocol):
    """A space that describes its architectures for a report."""

    def describe(self, architecture: Architecture) -> Mapping[str, Any]:
        """`architecture_text`, and `graphs` as the report draws them."""
        ...


def prepare_supernet(space: nn.Module, run: Run, *, needs: str, single: bool = False) -> nn.Module:
    """A copy of a space on the run's device, after verifying that a method for supernets can search it.

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
    return built(copied(space)).to(run.device)


def refuse_unfit(space: nn.Module, *, needs: str, single: bool = False) -> None:
    """Raise the ChoiceError that `prepare_supernet` raises for a space that it does not take."""
    choice_of = decisions(space)
    if not choice_of:
        raise ChoiceError(
            f"{type(space).__name__} has no choice to search; put OpChoice or InputChoice modules in it, or take a "
            f"ready space such as archgrad.darts_cells. A network of your own is slimmed: archgrad.slim and "
            f"archgrad.dnal"
        )
    gates = [name for name, choice in choice_of.items() if not isinstance(choice, (OpChoice, InputChoice))]
    if gates:
        raise ChoiceError(
            f"{needs} decides operations and inputs; {gates[:3]} are gates, which archgrad.dnal decides"
        )
    inputs = {name: choice for name, choice in choice_of.items() if isinstance(choice, InputChoice)}
    several = [name for name, choice in inputs.items() if choice.keep > 1 and without_topology(choice)]
    if single and several:
        raise ChoiceError(
            f"{needs} samples one candidate for each choice; {several[:3]} keep several inputs: give each input "
            f"a choice of its own, as archgrad.darts_cells(factorized=True) does, or give the choice a distribution "
            f"over subsets by archgrad.choices.subsets.topology"
        )


def check_candidates(space: nn.Module, task: Task, recipe: Recipe, *, per_sample: bool = False) -> None:
    """Verify before a run begins that candidates run on the data, and that the recipe can train what is found.

    Args:
        space: relaxed choices mix their candidates as they are; of others all candidates are summed.
        task: asked where it is `Checkable`.
        recipe: of the network that is handed back.
        per_sample: whether the method asks for the loss of each sample.

    Raises:
        ArchgradError: what the task's `check` raises.
        ModelError: the task gives no loss for each sample.
        ConfigError: the recipe drops paths, and networks of the space have no place for it.
    """
    if recipe.drop_path:
        check_recipe(recipe, build(space, sample(space, generator=torch.Generator().manual_seed(0))))
    ones = {name: torch.ones(choice.size) for name, choice in decisions(space).items() if not choice.relaxation}
    with using(space, ones):
        if isinstance(task, Checkable):
            task.check(space)
        if per_sample:
            check_losses(task, space)


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
        drawn: where networks are trained one by one: so many are drawn, and the largest peak of them counts.

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
    sampled = (build(space, sample(space, generator=generator), weights="inherit") for _ in range(drawn))
    try:
        footprints = [
            predict_memory(network, batch, loss=loss, optimizer=optimizer)
            for network in (sampled if drawn else [space])
        ]
    except ModelError as error:
        run.note(f"The peak memory of the search cannot be predicted: {error}")
        return None
    prediction = max(footprints, key=lambda footprint: footprint.at(batch_size(batch)).peak_bytes)
    needed = prediction.at(batch_size(batch)).peak_bytes
    free, here = available_bytes(run.device), prediction.fixed.parameter_bytes + prediction.fixed.buffer_bytes
    if free is not None and needed > free + here:
        fits = prediction.largest_batch(free + here)
        run.withdraw()
        mixture = not drawn and not any(isinstance(choice, Gate) for choice in decisions(space).values())
        what = f"the largest of {drawn} networks drawn" if drawn else "this supernet" if mixture else "this network"
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


def check_search(
    task: object,
    *abilities: type[Any],
    method: str,
    search_fraction: float,
    search_recipe: Recipe,
    differentiable: Limit | None = None,
) -> None:
    """What every search by gradient verifies first; `differentiable` is a limit whose cost needs a gradient.

    Raises:
        ConfigError: the task lacks an ability, `search_fraction` is not in (0, 1], or the recipe does not fit.
        LimitError: the cost of the limit is measured.
    """
    require(task, *abilities, method=method)
    if differentiable is not None and differentiable.cost.measured:
        raise LimitError(
            f"{differentiable.cost.name} is measured and has no gradient, and {method} trains a mixture of all "
            f"networks, none of which could be measured: use archgrad.unas, which measures sampled networks, or a "
            f"limit on archgrad.macs, archgrad.params or a table of prices"
        )
    if not 0.0 < search_fraction <= 1.0:
        raise ConfigError(
            f"search_fraction={search_fraction}: give the part of the budget to search in, above 0 and at most 1"
        )
    search_recipe.check_plain("search_recipe")


def split_steps(
    run: Run,
    task: Task | Scored,
    search_fraction: float,
    *,
    search_recipe: Recipe = Recipe(),
    recipe: Recipe = Recipe(),
    network: nn.Module | None = None,
    passes: int = 1,
) -> tuple[int, int]:
    """Steps of the search, and of the training of what it finds; together they are the run's budget.

    Where seconds are the only budget the steps are a forecast, and phases end by time. A task that scores
    architectures itself takes none.

    Args:
        run: begun.
        task: what is trained on.
        search_fraction: part of the budget that is searched in.
        search_recipe: of the weights that are trained in the search.
        recipe: of the network found.
        network: what the search trains, such as the relaxed supernet; the forecast times a step of a copy of it.
        passes: forward and backward passes in a step of the search.
    """
    if isinstance(task, Scored):
        return 0, 0

    def measure() -> float:
        assert network is not None
        return passes * seconds_per_step(network, task, run, search_recipe)

    searching, training = (
        run.total_steps(
            steps_per_epoch(task, each.accumulate),
            default_epochs=60,
            measure_step=measure if network is not None else None,
        )
        for each in (search_recipe, recipe)
    )
    return max(1, round(search_fraction * searching)), training - max(1, round(search_fraction * training))


def train_and_report(
    space: nn.Module,
    architecture: Architecture,
    task: Task | Scored,
    run: Run,
    *,
    steps: int,
    recipe: Recipe,
    constraint: ArchitectureConstraint | None,
    record: Mapping[str, Any],
    fresh: nn.Module | None = None,
    trained: nn.Module | None = None,
    costs: Mapping[str, float] = MappingProxyType({}),
) -> Found:
    """Train the network found from fresh weights, or with 0 steps recalibrate the supernet's; score and record it.

    A relaxed supernet is examined for collapse and for its gap to the network found (`collapse.py`). Where the task
    scores architectures itself nothing is trained: the network has fresh weights.

    Args:
        space: the supernet.
        architecture: what was found in it.
        task: its test part is read here, once.
        run: whose folder, if any, gets the result.
        steps: of training.
        recipe: how.
        constraint: the limit; it is verified on the network that is handed back.
        record: what the method adds to the report: method, title, settings.
        fresh: the space that the trained network is built from, where the supernet has modules that it must not have.
        trained: the architecture's network, where it is trained already.
        costs: of the architecture, by the search's further costs.

    Raises:
        LimitError: the network is over its limit when measured again.
    """
    signs: dict[str, Any] = {}
    score: str | None = "score"
    example: Example | None = None
    if isinstance(task, Scored):
        network = build(fresh or space, architecture, weights="fresh")
        after: dict[str, Any] = {"score": task.score(architecture), "params": params().of(network)}
    else:
        signs = _signs(space, architecture, task, run, method=str(record.get("method", "")))
        source, example = (fresh or space) if steps else space, run.to_device(task.example)
        if trained is None:
            trained = _trained(source, architecture, task, run, steps=steps, recipe=recipe)
        network = trained
    limit = _reached(constraint, architecture, network, run) if constraint else None
    keep(architecture, network, run)
    if example is not None and not isinstance(task, Scored):
        columns, score = measured({"after": network}, task, run, example)
        after = columns["after"]
        note_remarks(network, task, run, example)
    described = dict(space.describe(architecture)) if isinstance(space, Described) else {}
    if constraint and (surrogate := run.compute_once("surrogate", constraint.record)):
        described["surrogate"] = surrogate
    full = {
        "after": {**costs, **after},
        "picks": picks(space, architecture),
        "labels": {name: list(c.labels) for name, c in decisions(space).items() if isinstance(c, OpChoice)},
        **described,
        "limit": limit,
        **conditions(run, task, score=score),
        **signs,
        "notes": [note for note in run.notes if note not in signs.get("alarms", ())],
        "load": LOAD_SEARCHED,
        **record,
    }
    taken = dict(costs) | {name: after[name] for name in ("params", "macs") if name in after}
    if limit:
        taken[limit["cost"]] = limit["reached"]
    found = Found(architecture, in_mode(network), after.get(score or ""), taken, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    run.finish()
    return found


def _reached(
    constraint: ArchitectureConstraint, architecture: Architecture, network: nn.Module, run: Run
) -> dict[str, Any]:
    """The limit, and what the network that is handed back takes."""
    reached = constraint.verify_once(architecture, network, run)
    if constraint.slower > 1.0:
        run.note(
            f"The machine was {constraint.slower:.2f} times slower at the end than when the limit was settled: the "
            f"price under the limit is given at the earlier speed."
        )
    return {"cost": constraint.cost.name, "unit": constraint.cost.unit, "bound": constraint.bound, "reached": reached}


def _signs(space: nn.Module, architecture: Architecture, task: Task, run: Run, *, method: str) -> dict[str, Any]:
    """The alarms of a relaxed search, and its discretization gap; in the notes and the history too."""
    alarms = collapse.alarms(space, architecture, run.history, method=method)
    for alarm in alarms:
        run.note(alarm)
    jump = run.compute_once("discretization", lambda: collapse.discretization(space, architecture, task, run))
    if jump:
        run.log({f"discretization_{name}": jump[name] for name in ("supernet", "derived", "gap")})
    return {"discretization": jump, "alarms": alarms}


def _trained(
    space: nn.Module, architecture: Architecture, task: Task, run: Run, *, steps: int, recipe: Recipe
) -> nn.Module:
    network = build(space, architecture, weights="fresh" if steps else "inherit").to(run.device)
    if steps:
        train(network, task, run, recipe, steps=steps, phase="train")
    recalibrate(network, task, run)
    return network


def picks(space: nn.Module, architecture: Architecture) -> list[dict[str, Any]]:
    """For each choice what was picked, by label where there is one, and with its weight where there are some."""
    rows: list[dict[str, Any]] = []
    for name, choice in decisions(space).items():
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

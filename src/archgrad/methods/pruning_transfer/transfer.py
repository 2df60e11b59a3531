"""Does a structure found on much data help where data are few? Measured beside what could be done without it.

Source: the setting of DAP (arXiv 2107.03375), reconstructed from its abstract: a sub-network chosen on a large source
task is trained again on a few samples of a target task. The rivals and the protocol are ours.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from archgrad.argument_types import checked
from archgrad.choices.architecture import Architecture
from archgrad.copy_and_run import copied, in_mode
from archgrad.costs.count import Macs, Params, macs, params
from archgrad.errors import ConfigError, DataError, ModelError
from archgrad.extract.discretize import build
from archgrad.gates.selection import FLOOR, GateConstraint, full, gates
from archgrad.gates.width_rounding import WidthRounding
from archgrad.methods.pruning_transfer.gate_pruning import adopt, magnitudes
from archgrad.results.record import conditions, heading, settings_record, widths
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.tasks.task import Checkable, Task, evaluate, higher_is_better, identity, require, stable_seed
from archgrad.training.fit import check_recipe, optimize, recalibrate, seconds_per_step, steps_per_epoch, train
from archgrad.training.given_weights import weights_record
from archgrad.training.recipe import Recipe, adam
from archgrad.training.schedules import constant

Norm = Literal["shots", "source"]


@runtime_checkable
class FewShot(Task, Protocol):
    """classes: their number; shots(count, seed=) -> this task on so many training samples of each class.

    Attributes:
        classes: the number of classes, which is that of the network's outputs.
    """

    classes: int

    def shots(self, count: int, *, seed: int = 0) -> Task:
        """This task on so many training samples of each class, in one batch; DataError where a class has fewer."""
        ...


RIVALS = (
    "this run", "whole network, from scratch", "whole network, fine-tuned", "random mask", "magnitude mask",
    "magnitude mask, its weights", "this run, source weights",
)  # fmt: skip


@dataclass(frozen=True)
class TransferProtocol:
    """How networks are trained on the target, and over what their scores are averaged.

    Attributes:
        shots: samples of each class; the last number is that of the network handed back.
        draws: of the shots (and of random masks), the same for all rivals.
        restarts: trainings of each network on each draw, whose scores are averaged.
        steps: of a training, each on all shots at once.
        norm: what BatchNorm goes by in networks that keep source weights: "shots", the statistics of the batch while
            training and those of all shots afterwards, as where weights are fresh; "source", the source's throughout.
        recipe: of a training: its optimizer, schedule and clip. Of several, every rival takes the one with the best
            mean score on the target's validation part, apart for each number of shots.

    Raises:
        ConfigError: a value out of its range.
    """

    shots: Sequence[int] = (5,)
    draws: int = 5
    restarts: int = 3
    steps: int = 100
    norm: Norm = "shots"
    recipe: Recipe | Sequence[Recipe] = Recipe(optimizer_factory=adam, schedule=constant)

    @property
    def recipes(self) -> Sequence[Recipe]:
        """Those that every rival chooses among."""
        return [self.recipe] if isinstance(self.recipe, Recipe) else self.recipe

    def __post_init__(self) -> None:
        numbers = {"draws": self.draws, "restarts": self.restarts, "steps": self.steps}
        numbers |= {f"shots[{i}]": count for i, count in enumerate(self.shots)}
        wrong = [f"{name}={value!r}" for name, value in numbers.items() if not (type(value) is int and value > 0)]
        if wrong or not self.shots or self.norm not in get_args(Norm):
            raise ConfigError(
                f"{', '.join(wrong) or f'shots={self.shots!r}, norm={self.norm!r}'}: shots, at least one of them, "
                f"draws, restarts and steps are whole numbers above 0, norm is one of {get_args(Norm)}"
            )
        if not self.recipes or not all(isinstance(one, Recipe) for one in self.recipes):
            raise ConfigError(f"recipe={self.recipe!r}: give a Recipe, or several of which each rival takes its best")
        for recipe in self.recipes:
            recipe.check_plain("TransferProtocol(recipe=...)", "a training on few shots")


@dataclass(frozen=True)
class TransferSettings:
    """The options of `transfer`: what a run is begun with, and what its record shows."""

    protocol: TransferProtocol
    cost: str | None
    pretrained: bool
    recipe: Recipe


@dataclass(frozen=True)
class Rival:
    """One way to a network for the target: a structure, by the number of the draw, and whether it keeps weights."""

    structures: Sequence[Architecture]
    kept: bool = False

    def at(self, draw: int) -> Architecture:
        """The structure on a draw."""
        return self.structures[draw % len(self.structures)]


@checked
def transfer(
    space: nn.Module,
    structure: Architecture,
    run: Run,
    *,
    source: FewShot,
    target: FewShot,
    cost: Macs | Params | None = None,
    others: Mapping[str, Architecture] | None = None,
    protocol: TransferProtocol = TransferProtocol(),
    pretrained: bool = False,
    recipe: Recipe = Recipe(optimizer_factory=adam),
) -> Found:
    """Train a structure that was found on the source on few samples of the target, beside its rivals.

    The rivals: the whole network from scratch; the whole network trained on the source and fine-tuned; random masks
    of equal cost; the mask of the largest weights of the source network at equal cost, without and with them; the
    structure with weights of the source network; and `others`. Every network gets a fresh last layer, as many steps,
    the same shots. Scores are those of the target's test part, their mean and deviation over the draws.

    Args:
        space: the space of gates that the structure was found in; it is not changed.
        structure: for instance `archgrad.pruning_transfer(space, source, ...).architecture`.
        run: epochs of the source network (default 60), whose weights are fine-tuned and compared; seed, folder.
        source: the large task.
        target: the small one: shots are drawn from its training part.
        cost: what is equal in the masks, to within one part; default: MACs.
        others: further structures, which start from fresh weights.
        protocol: of the trainings on the target.
        pretrained: the space holds weights trained on the source: none are trained.
        recipe: of the source network.

    Returns:
        The structure, and its network trained on the first draw of the last number of shots; `score` is the mean
        score there, and `record["baselines"]` has all rivals.

    Raises:
        DataError: the target has inputs of another shape than the source, or fewer samples of a class than shots.
        ConfigError: others have names of the rivals, or a task lacks something.
        ModelError: the network's last layer is no Linear with an output for each class of the source.

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.methods.pruning_transfer.transfer import TransferProtocol
        >>> task = ag.Classification.load("digits")
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
        >>> space, short = ag.slim(net, task.example), TransferProtocol(draws=1, restarts=1, steps=2)
        >>> half, run = ag.sample(space), ag.Run(steps=4, progress=False)
        >>> found = ag.transfer(space, half, run, source=task, target=task, protocol=short)
    """
    others = dict(others or {})
    if taken := sorted(set(RIVALS) & set(others)):
        raise ConfigError(f"others={taken}: rivals of these names are there already; give yours other names")
    check(space, source, target, protocol)
    check_recipe(recipe, space)
    settings = TransferSettings(protocol, cost.name if cost else None, pretrained, recipe)
    cost = cost or macs(source.example)
    structures = {name: one.to_json() for name, one in {"this run": structure, **others}.items()}
    begun_with = settings_record(settings) | {"structures": structures, "target": identity(target, seed=run.seed)}
    begun_with |= weights_record(space, given=pretrained)
    run.begin("transfer", begun_with, task=source, network=space)
    space = copied(space).to(run.device)
    if not pretrained:
        _train_source(space, source, run, recipe)
    rivals = _rivals(space, structure, others, cost=cost, run=run, draws=protocol.draws)
    lab = _Lab(space, _head(space, source), target, protocol, run)
    rows = [{"name": name, **lab.row(name, rival, cost=cost)} for name, rival in rivals.items()]
    chosen = lab.chosen["this run", protocol.shots[-1]]
    network = lab.trained(rivals["this run"], chosen, shots=protocol.shots[-1], draw=0, restart=0)
    title = f"{type(space).__name__} transferred: score on the target, mean ± deviation over the draws"
    record = heading(transfer, settings_record(settings), title) | {"layers": widths(space, structure)}
    if len(protocol.recipes) > 1:
        best = {f"{name}, {count} shots": protocol.recipes.index(one) for (name, count), one in lab.chosen.items()}
        record["recipes"] = {"given": [one.record() for one in protocol.recipes], "taken": best}
    found = _report(network, structure, rows, run=run, target=target, record=record, protocol=protocol)
    run.finish()
    return found


def check(space: nn.Module, source: FewShot, target: FewShot, protocol: TransferProtocol) -> None:
    """Raise ConfigError, DataError or ModelError, as `transfer` does, before anything long starts."""
    for task in (source, target):
        require(task, FewShot, method="transfer")
    shapes = [tree_map(lambda x: list(x.shape[1:]), task.example) for task in (source, target)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"the source has inputs of shape {shapes[0]}, the target of {shapes[1]}: a structure fits one shape; "
            f"bring the target's inputs to {shapes[0]}, for instance by resizing its images"
        )
    if isinstance(source, Checkable):
        source.check(space)
    for count in protocol.shots:
        target.shots(count)
    _head(space, source)


def _train_source(space: nn.Module, source: Task, run: Run, recipe: Recipe) -> None:
    """Give the space the weights of a full network trained on the source."""
    network = build(space, full(space), weights="fresh")
    steps = run.total_steps(
        steps_per_epoch(source, recipe.accumulate), default_epochs=60,
        measure_step=lambda: seconds_per_step(network, source, run, recipe),
    )  # fmt: skip
    train(network, source, run, recipe, steps=steps, phase="source")
    run.log({f"source_{name}": value for name, value in evaluate(source, network).items()})
    adopt(space, network)


def _rivals(
    space: nn.Module,
    structure: Architecture,
    others: Mapping[str, Architecture],
    *,
    cost: Macs | Params,
    run: Run,
    draws: int,
) -> dict[str, Rival]:
    """All rivals by name, this run's structure first."""
    price = GateConstraint(space, cost.at_most(fraction=1.0), WidthRounding(1)).price(structure)
    constraint = GateConstraint(space, cost.at_most(price), WidthRounding(1))

    # No rival is to lose by a layer that has died.
    def largest(scores: Mapping[str, torch.Tensor]) -> Architecture:
        return constraint.best_feasible(scores, floor=FLOOR * constraint.uniform_width())

    def random(draw: int) -> Architecture:
        generator = torch.Generator().manual_seed(stable_seed("random mask", run.seed, draw))
        return largest({name: torch.rand(gate.size, generator=generator) for name, gate in gates(space).items()})

    everything, heavy = [full(space)], [largest(magnitudes(space))]
    fixed = (
        Rival([structure]), Rival(everything), Rival(everything, kept=True),
        Rival([random(draw) for draw in range(draws)]), Rival(heavy), Rival(heavy, kept=True),
        Rival([structure], kept=True),
    )  # fmt: skip
    return dict(zip(RIVALS, fixed, strict=True)) | {name: Rival([one]) for name, one in others.items()}


@dataclass(frozen=True)
class _Lab:
    """Where networks are trained on the target.

    Attributes:
        space: with the weights of the source network.
        head: the path of its last layer.
        chosen: the recipe of each rival for each number of shots.
    """

    space: nn.Module
    head: str
    target: FewShot
    protocol: TransferProtocol
    run: Run
    chosen: dict[tuple[str, int], Recipe] = field(default_factory=dict)

    def row(self, name: str, rival: Rival, *, cost: Macs | Params) -> dict[str, Any]:
        """Mean score and deviation over the draws for each number of shots, and what the network takes."""
        figures: dict[str, Any] = {}
        for count in self.protocol.shots:
            tried = [self._over_draws(name, rival, count, i) for i in range(len(self.protocol.recipes))]
            best = self._best([statistics.mean(scores[0] for scores in draws) for draws in tried])
            self.chosen[name, count] = self.protocol.recipes[best]
            means = [scores[-1] for scores in tried[best]]
            spread = statistics.stdev(means) if len(means) > 1 else 0.0
            figures[f"{count} shots"] = [round(statistics.mean(means), 4), round(spread, 4)]
        network = _with_head(build(self.space, rival.at(0)), self.head, self.target.classes)
        return figures | {cost.name: cost.of(network)}

    def _best(self, scores: Sequence[float]) -> int:
        sign = 1.0 if higher_is_better(self.target) else -1.0
        return max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else sign * scores[i])

    def _over_draws(self, name: str, rival: Rival, shots: int, number: int) -> list[list[float]]:
        """Of each draw the scores on the parts, the test last; validation only where recipes have to be chosen."""
        several = len(self.protocol.recipes) > 1
        parts, place = ("valid", "test") if several else ("test",), f", recipe {number}" if several else ""

        def over_restarts(draw: int) -> list[float]:
            scores = []
            for restart in range(self.protocol.restarts):
                recipe = self.protocol.recipes[number]
                network = self.trained(rival, recipe, shots=shots, draw=draw, restart=restart)
                scores.append([next(iter(evaluate(self.target, network, part).values())) for part in parts])
            return [statistics.mean(each) for each in zip(*scores, strict=True)]

        return [
            self.run.compute_once(
                f"{name}, {shots} shots, draw {draw}{place}", functools.partial(over_restarts, draw)
            )
            for draw in range(self.protocol.draws)
        ]

    def trained(self, rival: Rival, recipe: Recipe, *, shots: int, draw: int, restart: int) -> nn.Module:
        """A network of the rival after its training on one draw of the shots."""
        few = self.target.shots(shots, seed=stable_seed(self.run.seed, draw))
        torch.manual_seed(stable_seed("restart", self.run.seed, draw, restart))
        network = build(self.space, rival.at(draw), weights="inherit" if rival.kept else "fresh")
        network = _with_head(network, self.head, self.target.classes).to(self.run.device)
        keeps_statistics = rival.kept and self.protocol.norm == "source"

        def before_step(step: int, progress: float) -> None:
            for module in network.modules() if keeps_statistics else ():
                if isinstance(module, _BatchNorm):
                    module.eval()

        optimize(
            network, few, self.run, optimizer=recipe.optimizer(network), steps=self.protocol.steps, phase=None,
            schedule=recipe.schedule, seed=stable_seed(draw, restart), before_step=before_step,
        )  # fmt: skip
        if not keeps_statistics:
            recalibrate(network, few, self.run, batches=1)
        return in_mode(network)


def _head(space: nn.Module, source: FewShot) -> str:
    """The path of the whole network's last layer: the last Linear to run that has an output for each class."""
    network = in_mode(build(space, full(space)).cpu())
    ran: list[str] = []
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == source.classes:
            layer.register_forward_hook(lambda *_, path=path: ran.append(path))
    with torch.no_grad():
        network(source.example)
    if not ran:
        raise ModelError(
            f"{type(network).__name__} runs no Linear layer with {source.classes} outputs, one for each class of the "
            f"source, which a new one could be put in place of; let its last layer be one"
        )
    return ran[-1]


def _with_head(network: nn.Module, path: str, classes: int) -> nn.Module:
    """The network with a new last layer for so many classes, in place."""
    layer = network.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    head = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
    if not path:
        return head
    network.set_submodule(path, head.to(layer.weight.device))
    return network


def _report(
    network: nn.Module, structure: Architecture, rows: list[dict[str, Any]], *, run: Run, target: FewShot,
    record: dict[str, Any], protocol: TransferProtocol,
) -> Found:  # fmt: skip
    first, *rest = rows
    score, example = f"{protocol.shots[-1]} shots", run.to_device(target.example)
    costs = {"params": params().of(network), "macs": macs(example).of(network)}
    after = {key: value for key, value in first.items() if key != "name"} | costs
    record |= {"baselines": rest, **conditions(run, target, score=score), "after": after}
    found = Found(structure, network, first[score][0], costs, run.history, record, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    return found

"""`archgrad slim`: slim a network of the user's, by DNAL."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.inputs import data
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.costs.limits import Limit
from archgrad.methods.dnal.dnal import dnal
from archgrad.methods.dnal.front import slim_front
from archgrad.results.front import Front
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim
from archgrad.tasks.task import Task


def execute(options: SlimOptions) -> command_output.Outcome:
    """Slim a network; the outcome is the run's record."""
    out = Path(options.out)
    run = run_setup.begin("slim", options, out)
    task = data.load_task(options)
    limits = None if options.front else run_setup.limits_of(options.limit, task.example, onnx=options.onnx)
    run_setup.seed(options.seed)
    network = run_setup.load_network(options, task)
    run_setup.check_normalization(network, task, options)
    task = run_setup.with_teacher(task, options, network)
    space = slim(network, task.example, keep=options.keep)
    command_file.write(out, "slim", options)
    with command_file.resumable(out):
        found = slimmed(space, task, run, options, limits)
        if isinstance(found, Front):
            return _front(found, options)
        run_setup.write_onnx(found, out, options.onnx)
    return command_output.of_record(found.record, command_output.files_in(out))


def slimmed(
    space: nn.Module, task: Task, run: Run, options: SlimOptions, limits: list[Limit] | None
) -> Found | Front:
    """The network, or the front, that the options ask for."""
    pretrained = options.weights is not None if options.pretrained is None else options.pretrained
    recipe = run_setup.recipe_of(options)
    if options.front is not None:
        cost, fractions = options.front
        return slim_front(
            space, task, run, cost=run_setup.cost_of(cost, task.example), fractions=fractions, pretrained=pretrained,
            round_to=options.rounding, recipe=recipe, check_weights=options.check_weights,
        )  # fmt: skip
    return dnal(
        space, task, run, limit=limits, sparsity=options.sparsity, pretrained=pretrained,
        gate_epochs=options.gate_epochs, round_to=options.rounding, recipe=recipe,
        check_weights=options.check_weights,
    )  # fmt: skip


def _front(front: Front, options: SlimOptions) -> command_output.Outcome:
    """A front; with --within the chosen network stands in the run's folder itself."""
    assert options.front is not None
    out, cost = Path(options.out), options.front[0]
    if options.within is None:
        for point in front.points:
            run_setup.write_onnx(point.found, out / front.folder_of(point), options.onnx)
        places = ", ".join(front.folder_of(point) for point in front.points)
        return command_output.of_record(front.record, f"{out} holds report.html and a folder for each: {places}")
    chosen = front.smallest(options.within)
    chosen.found.record.update({name: front.record[name] for name in ("fronts", "baselines", "given")})
    chosen.found.save(out)
    run_setup.write_onnx(chosen.found, out, options.onnx)
    said = (
        f"within {options.within:g} points of the whole network: {cost}={chosen.fraction:g}"
        if chosen is not front.whole
        else f"no smaller network is within {options.within:g} points of the whole network, which is handed back"
    )
    return command_output.of_record(chosen.found.record, said, command_output.files_in(out))

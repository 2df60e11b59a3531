"""`archgrad slim`: slim a network of the user's, by DNAL."""

from __future__ import annotations

from pathlib import Path

from archgrad.cli import command_file, command_output
from archgrad.cli.commands import setup
from archgrad.cli.inputs import data
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.methods.dnal.dnal import dnal
from archgrad.spaces.slim.slimmable import slim


def execute(options: SlimOptions) -> command_output.Outcome:
    """Slim a network; the outcome is the run's record."""
    out = Path(options.out)
    run = setup.begin("slim", options, out)
    task = data.load_task(options)
    setup.seed(options.seed)
    network = setup.load_network(options, task)
    setup.check_normalization(network, task, options)
    task = setup.with_teacher(task, options, network)
    space = slim(network, task.example, keep=options.keep)
    command_file.write(out, "slim", options)
    limit = setup.limit_of(options.limit, task.example)
    pretrained = options.weights is not None if options.pretrained is None else options.pretrained
    with command_file.resumable(out):
        found = dnal(
            space,
            task,
            run,
            limit=limit,
            sparsity=options.sparsity,
            pretrained=pretrained,
            gate_epochs=options.gate_epochs,
            round_to=options.round_to,
            recipe=setup.recipe_of(options),
            check_weights=options.check_weights,
        )
        setup.write_onnx(found, out, options.onnx)
    return command_output.of_record(found.record, command_output.files_in(out))

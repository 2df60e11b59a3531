"""`archgrad transfer`: a structure searched on a source task, compared on few samples of a target task."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.inputs import data
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.errors import ConfigError
from archgrad.methods.pruning_transfer.pruning_transfer import pruning_transfer
from archgrad.methods.pruning_transfer.transfer import TransferProtocol, check, transfer
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim
from archgrad.tasks.task import Task


def execute(options: TransferOptions) -> command_output.Outcome:
    """Prune on the source, then compare on the target; the outcome is the run's record.

    The search has a run of its own in the folder `search`; both resume.
    """
    out = Path(options.out)
    protocol = protocol_of(options)
    run = run_setup.begin("transfer", options, out)
    source = data.load(options.data, options)
    target = data.load(options.target, options.model_copy(update={"augment": ""}))
    run_setup.seed(options.seed)
    network = run_setup.load_network(options, source)
    space = slim(network, source.example, keep=options.keep, inputs=options.inputs)
    check(space, source, target, protocol)
    run_setup.limit_of(options.limit, source.example, onnx=options.onnx)  # refused before anything is written
    command_file.write(out, "transfer", options)
    with command_file.resumable(out):
        search = Run(
            epochs=options.epochs, steps=options.steps, seconds=options.seconds, seed=options.seed,
            folder=out / "search", device=options.device, precision=options.precision,
        )  # fmt: skip
        architecture = pruned(space, source, search, options).architecture
        found = transfer(
            space, architecture, run, source=source, target=target, protocol=protocol,
            pretrained=options.weights is not None,
        )  # fmt: skip
        run_setup.write_onnx(found, out, options.onnx)
    return command_output.of_record(found.record, command_output.files_in(out))


def protocol_of(options: TransferOptions) -> TransferProtocol:
    """How networks are compared on the target. Raises ConfigError for a process without the weights that it needs."""
    if options.process == "frozen" and not options.weights:
        raise ConfigError("process='frozen' prunes trained weights: give --weights FILE, or another process")
    return TransferProtocol(
        options.shots, draws=options.draws, restarts=options.restarts, steps=options.shot_steps, norm=options.norm
    )


def pruned(space: nn.Module, source: Task, search: Run, options: TransferOptions) -> Found:
    """The structure that the source task finds."""
    limit = run_setup.limit_of(options.limit, source.example, onnx=options.onnx)
    # What the structure is worth is asked on the target: little of the budget goes into training it here.
    return pruning_transfer(
        space, source, search, limit=limit, gamma=options.gamma, process=options.process, search_fraction=0.9
    )

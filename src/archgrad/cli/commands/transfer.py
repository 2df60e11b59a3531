"""`archgrad transfer`: a structure searched on a source task, compared on few samples of a target task."""

from __future__ import annotations

from pathlib import Path

from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.inputs import data
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.errors import ConfigError
from archgrad.methods.pruning_transfer.pruning_transfer import pruning_transfer
from archgrad.methods.pruning_transfer.transfer import TransferProtocol, check, transfer
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim


def execute(options: TransferOptions) -> command_output.Outcome:
    """Prune on the source, then compare on the target; the outcome is the run's record.

    The search has a run of its own in the folder `search`; both resume.
    """
    out = Path(options.out)
    if options.process == "frozen" and not options.weights:
        raise ConfigError("process='frozen' prunes trained weights: give --weights FILE, or another process")
    protocol = TransferProtocol(
        options.shots, draws=options.draws, restarts=options.restarts, steps=options.shot_steps, norm=options.norm
    )
    run = run_setup.begin("transfer", options, out)
    source = data.load(options.data, options)
    target = data.load(options.target, options.model_copy(update={"augment": ""}))
    run_setup.seed(options.seed)
    network = run_setup.load_network(options, source)
    space = slim(network, source.example, keep=options.keep, inputs=options.inputs)
    check(space, source, target, protocol)
    limit = run_setup.limit_of(options.limit, source.example, onnx=options.onnx)
    command_file.write(out, "transfer", options)
    with command_file.resumable(out):
        search = Run(
            epochs=options.epochs, steps=options.steps, seconds=options.seconds, seed=options.seed,
            folder=out / "search", device=options.device, precision=options.precision,
        )  # fmt: skip
        # What the structure is worth is asked on the target: little of the budget goes into training it here.
        pruned = pruning_transfer(
            space, source, search, limit=limit, gamma=options.gamma, process=options.process, search_fraction=0.9
        )
        found = transfer(
            space, pruned.architecture, run, source=source, target=target, protocol=protocol,
            pretrained=options.weights is not None,
        )  # fmt: skip
        run_setup.write_onnx(found, out, options.onnx)
    return command_output.of_record(found.record, command_output.files_in(out))

"""`archgrad transfer`: a structure found on a source task, tried on few samples of a target task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archgrad.cli import command_file as folder
from archgrad.cli.commands.setup import check_paths, limit_of, prepare, write_onnx
from archgrad.cli.inputs import data, models
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.errors import ConfigError
from archgrad.methods.pruning_transfer.pruning_transfer import pruning_transfer
from archgrad.methods.pruning_transfer.transfer import TransferProtocol, check, transfer
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim


def transfer_command(options: TransferOptions) -> dict[str, Any]:
    """Prune on the source, then compare on the target; returns the run's record.

    The search has a run of its own in the folder `search`; both resume.
    """
    out = Path(options.out)
    if options.process == "frozen" and not options.weights:
        raise ConfigError("process='frozen' prunes trained weights: give --weights FILE, or another process")
    protocol = TransferProtocol(
        options.shots, draws=options.draws, restarts=options.restarts, steps=options.shot_steps, norm=options.norm
    )
    run, source, onnx = prepare("transfer", options, out)
    target = data.load(
        options.target, size=options.size, skip_corrupt=options.skip_corrupt, batch_size=options.batch_size
    )
    network = models.load(options.model, classes=source.classes, example=source.example)
    if options.weights:
        models.read_weights(network, options.weights)
    source.check(network)
    check_paths(network, options.keep)
    space = slim(network, source.example, keep=options.keep, inputs=options.inputs)
    check(space, source, target, protocol)
    limit = limit_of(options.limit, source.example)
    folder.write(out, "transfer", options)
    with folder.resumable(out):
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
        write_onnx(found, out, onnx)
    return found.record

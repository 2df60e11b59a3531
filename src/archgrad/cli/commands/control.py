"""`archgrad control`: one of the systems with known equations, controlled without them."""

from __future__ import annotations

import functools
from pathlib import Path

from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.schemas.control import ControlOptions
from archgrad.control.benchmark_systems import cart_pole, vehicle
from archgrad.control.dynamics_networks import dynamics_space
from archgrad.control.nnilqr import DYNAMICS_RECIPE, nnilqr
from archgrad.methods.darts import darts
from archgrad.run.run import Run

_SYSTEMS = {"vehicle": vehicle, "cart_pole": cart_pole}


def execute(options: ControlOptions) -> command_output.Outcome:
    """Control the system; the outcome is the run's record."""
    run_setup.set_threads(options)
    out = Path(options.out)
    run = Run(
        trials=options.trials, seconds=options.seconds, seed=options.seed, folder=out, device=options.device
    )  # fmt: skip
    command_file.check(out, "control", options)
    system = _SYSTEMS[options.system]()
    run_setup.seed(options.seed)
    space = dynamics_space(len(system.start), len(system.low)) if options.searched else None
    command_file.write(out, "control", options)
    with command_file.resumable(out):
        search = functools.partial(darts, search_recipe=DYNAMICS_RECIPE) if options.searched else None
        record = nnilqr(space, system, run, search=search).record
    return command_output.of_record(record, command_output.files_in(out))

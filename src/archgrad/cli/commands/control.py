"""`archgrad control`: one of the systems with known equations, controlled without them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from archgrad.cli import command_file as folder
from archgrad.cli.commands.setup import seed, set_threads
from archgrad.cli.schemas.control import ControlOptions
from archgrad.control.benchmark_systems import cart_pole, vehicle
from archgrad.control.dynamics_space import dynamics_space
from archgrad.control.nnilqr import ADAM, nnilqr
from archgrad.methods.darts import darts
from archgrad.run.run import Run
from archgrad.training.recipe import Recipe

_SYSTEMS = {"vehicle": vehicle, "cart_pole": cart_pole}


def control(options: ControlOptions) -> dict[str, Any]:
    """Control the system; returns the run's record."""
    set_threads(options)
    out = Path(options.out)
    run = Run(
        trials=options.trials, seconds=options.seconds, seed=options.seed, folder=out, device=options.device
    )  # fmt: skip
    folder.check(out, "control", options)
    system = _SYSTEMS[options.system]()
    seed(options.seed)
    space = dynamics_space(len(system.start), len(system.low)) if options.searched else None
    folder.write(out, "control", options)
    with folder.resumable(out):
        search = functools.partial(darts, search_recipe=Recipe(optimizer_factory=ADAM)) if options.searched else None
        return nnilqr(space, system, run, search=search).record

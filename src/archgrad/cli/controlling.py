"""`archgrad control`: one of the systems with known equations, controlled without them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from archgrad.cli import folder
from archgrad.cli.control_options import ControlOptions
from archgrad.cli.preparing import seed, set_threads
from archgrad.methods.darts import darts
from archgrad.methods.nnilqr import ADAM, nnilqr
from archgrad.search.run import Run
from archgrad.spaces.dynamics import dynamics_space
from archgrad.tasks.control import cart_pole, vehicle

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
        search = functools.partial(darts, optimiser=ADAM) if options.searched else None
        return nnilqr(space, system, run, search=search).record

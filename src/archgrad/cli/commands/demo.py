"""`archgrad demo`: a small CNN on real digits, slimmed, and compared with a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from archgrad import demo
from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.schemas.demo import DemoOptions

_NEXT = """Next, with a network and data of your own:
  archgrad slim mymodel.py:MyCNN images/ --size 64 --limit macs=0.5 --out runs/mine
  (any function or class that gives an nn.Module; a folder of images, one sub-folder a class, or a .npz file)
  --weights FILE starts from trained weights; --limit latency_ms=4.0 is measured on this machine.
"""


def execute(options: DemoOptions) -> command_output.Outcome:
    """Slim a small CNN on real digits; the outcome is the run's record."""
    run_setup.set_threads(options)
    out = Path(options.out)
    command_file.check(out, "demo", options)
    command_file.write(out, "demo", options)
    typer.echo(
        f"A small CNN learns real digits, and is slimmed to half its MACs beside a control, into {options.out} ...",
        err=True,
    )
    with command_file.resumable(out):
        found = demo.demo(out, seed=options.seed, epochs=options.epochs)
        run_setup.write_onnx(found, out, None)
    return command_output.of_record(found.record, _baseline(found.record), _NEXT, command_output.files_in(out))


def _baseline(record: Mapping[str, Any]) -> str:
    (baseline,) = record["baselines"]
    return (
        f"{baseline['name']}: accuracy {100 * baseline['accuracy']:.2f} %, {baseline['macs']:,.0f} MACs "
        f"(slimmed: {100 * record['after']['accuracy']:.2f} %, {record['after']['macs']:,.0f})\n"
    )

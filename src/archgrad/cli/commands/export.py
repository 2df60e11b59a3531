"""`archgrad export`: the network of a finished run as ONNX."""

from __future__ import annotations

from pathlib import Path

from archgrad.cli.command_output import Outcome
from archgrad.cli.inputs import exported_program
from archgrad.errors import RunError
from archgrad.extract.export import export_onnx


def export_run(run: Path, path: Path | None) -> Outcome:
    """Write the network of a run as ONNX, checked against PyTorch."""
    if not run.is_dir():
        raise RunError(f"There is no run folder {run}. Give the folder that was --out.")
    network, example = exported_program.load(run / "network.pt2")
    exported = export_onnx(network, example, path or run / "network.onnx")
    batch = "any batch size" if exported.dynamic_batch else "the batch size of its example alone"
    difference = exported.largest_difference
    return Outcome(
        {"path": str(exported.path), "dynamic_batch": exported.dynamic_batch, "largest_difference": difference},
        f"{exported.path}: takes {batch}; largest difference from PyTorch {difference:.2g}",
    )

"""`archgrad package`: a run's network as a folder that somebody without archgrad and torch can serve."""

from __future__ import annotations

from pathlib import Path

from archgrad.cli.command_output import Outcome
from archgrad.cli.inputs import exported_program
from archgrad.errors import RunError
from archgrad.extract.onnx_file import PACKAGES, require_packages
from archgrad.report.data.run_folder import ended
from archgrad.results.package import check_folder, write_package


def package_run(run: Path, out: Path | None, *, int8: bool, force: bool = False) -> Outcome:
    """Write the package of a finished run; `int8`: of RUN/network.int8.onnx; `force`: over edited files too."""
    if not run.is_dir():
        raise RunError(f"There is no run folder {run}. Give the folder that was --out.")
    require_packages(*PACKAGES)
    out = out or run / "package"
    check_folder(out)
    quantized = run / "network.int8.onnx" if int8 else None
    if quantized is not None and not quantized.is_file():
        raise RunError(f"{quantized} is missing: archgrad export {run} --int8 writes it.")
    network, example = exported_program.load(run / "network.pt2")
    body = write_package(network, example, out, record=ended(run)[0], int8=quantized, force=force)
    served = f"python {out / 'predict.py'} --test needs numpy and onnxruntime alone"
    return Outcome(body, f"{out} holds {', '.join(body['files'])}; {served}")

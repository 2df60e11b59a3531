"""Two processes hold the same weights and logits to the end, though each sees half of the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_two_processes_take_the_same_steps(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library, reason=f"comes with the extra {library}")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM), library,
        str(tmp_path),
    ]  # fmt: skip
    paths = (str(PROGRAM.parent.parent), os.environ.get("PYTHONPATH"))  # with tests/families
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["steps"] == second["steps"] == first["of"] == 12
    assert all(torch.equal(a, b) for a, b in zip(first["values"], second["values"], strict=True))

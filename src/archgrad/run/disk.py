"""Room on the disk, asked for before anything is written that would not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from archgrad.errors import RunError

# Two states of the running phase are kept while a third is written.
_GENERATIONS = 3
# network.safetensors, network.pt2, network.onnx and the end of an earlier phase, each no larger than a state.
_RESULTS = 4
_TEXTS = 2**20  # run.json, history.jsonl and the report, at the least


def check_disk_space(folder: Path, state: Any) -> str:
    """Whether the checkpoints of such a state fit on the disk: a warning where the result may not, else empty.

    Raises RunError when they do not.
    """
    size = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    needed = _GENERATIONS * size + _TEXTS
    what = (
        f"A state of this run takes {size / 1e6:,.1f} MB on the disk, and {free / 1e6:,.1f} MB are free at {folder}"
    )
    if free < needed:
        raise RunError(
            f"{what}; its checkpoints need {needed / 1e6:,.1f} MB ({_GENERATIONS} states). Nothing was begun. Make "
            f"room, or choose another folder."
        )
    if free < needed + _RESULTS * size:
        return f"{what}: the checkpoints fit, the networks written at the end may not. Make room meanwhile."
    return ""

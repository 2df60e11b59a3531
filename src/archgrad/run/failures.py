"""What happened where memory ran out, or a worker or another process died, and what to do."""

from __future__ import annotations

import re
import traceback
from datetime import timedelta

import torch
from torch.utils.data import dataloader

from archgrad.errors import text_of

PATIENCE = timedelta(minutes=30)  # for what another process of the run sends

LESS = (
    "a smaller batch (--batch-size, batch_size=), fewer cells or channels (--cells, --channels), or a search that is "
    "bounded by memory: archgrad.radars, or --method radars with --memory-gib"
)


def explain(error: BaseException) -> str:
    """What happened where memory ran out, or a worker or another process died; empty for any other error."""
    text = text_of(error)
    if asked := re.search(r"tried to allocate (\d+) bytes", text):
        text = f"torch tried to allocate {int(asked[1]) / 2**30:,.2f} GiB. {text}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"The memory of the GPU ran out ({_first(text)}). Try {LESS}."
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return f"Memory ran out ({_first(text) or type(error).__name__}). Try {LESS}."
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return (
            f"A worker process of the data loader gave no batch in time ({_first(text)}). Give it a longer timeout."
        )
    if (isinstance(error, RuntimeError) and "DataLoader worker" in text) or _broken_off(error):
        what = _first(text) or type(error).__name__
        return (
            f"A worker process of the data loader died ({what}): its memory may have run out, or code in the dataset "
            f"ended it. Try fewer workers, or num_workers=0 to see the error itself."
        )
    if _of_processes(error, text):
        return (
            f"Another process of this run died, or did not answer within {PATIENCE.total_seconds() / 60:g} minutes "
            f"({_first(text)}). See what it printed, end what is left of it, and start the program again."
        )
    return ""


def _of_processes(error: BaseException, text: str) -> bool:
    """Whether an exchange between the processes of one run failed."""
    told = isinstance(error, torch.distributed.DistBackendError | torch.distributed.DistNetworkError)  # of NCCL
    return told or (isinstance(error, RuntimeError) and "gloo/transport" in text)


def _broken_off(error: BaseException) -> bool:
    """Whether a batch was on its way from a worker that is gone: its memory cannot be opened any more."""
    # What the dataset itself raised in a worker is raised again here, and says so.
    if not isinstance(error, OSError | EOFError) or "in DataLoader worker process" in text_of(error):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == dataloader.__file__ for frame, _ in frames)


def _first(text: str) -> str:
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line.split(". ")[0].rstrip(".").strip()

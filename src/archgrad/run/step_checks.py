"""What every step is watched for: NaN and infinity, memory that runs out, a worker or process that is gone."""

from __future__ import annotations

import contextlib
import math
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import dataloader

from archgrad.errors import ArchgradError, ResourceError

PATIENCE = timedelta(minutes=30)  # for what another process of the run sends

LESS = (
    "a smaller batch (--batch-size, batch_size=), fewer cells or channels (--cells, --channels), or a search that is "
    "bounded by memory: archgrad.radars, or --method radars with --memory-gib"
)


def finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no element of these is NaN or infinite: one fused norm of all, and one wait for it."""
    given = [t for t in tensors if t is not None]
    if len({(t.dtype, t.device, t.layout) for t in given}) == 1 and measurable(given[0]):
        # What get_total_norm does, without the time that it takes to sort tensors by dtype and device.
        with torch.no_grad():
            total = torch.stack(torch._foreach_norm(given)).sum()
    elif given := [t.detach() for t in given if measurable(t)]:
        total = get_total_norm(given)
    else:
        return True
    # The sum of squares is quickest; where it overflows, the largest magnitude tells.
    return math.isfinite(total.item()) or largest(given) < math.inf


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest magnitude in these; NaN where one is."""
    given = [t.detach() for t in tensors if measurable(t)]
    return float(get_total_norm(given, norm_type=math.inf)) if given else 0.0


def measurable(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of which one could be NaN or infinite."""
    return (
        tensor.is_floating_point() and tensor.layout == torch.strided and bool(tensor.numel()) and not tensor.is_meta
    )


def wrong_figures(figures: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    """Those of the numbers and tensors [...] that hold NaN or infinity."""
    return {name: value for name, value in figures.items() if not _is_finite(value)}


def _is_finite(value: float | Tensor) -> bool:
    if isinstance(value, Tensor) and value.numel() != 1:
        return bool(value.isfinite().all())
    return math.isfinite(value.item() if isinstance(value, Tensor) else value)


class Located(Protocol):
    """A run, or its loop; `failed` becomes True where a step fails."""

    failed: bool

    @property
    def location(self) -> str:
        """Where it is, in words."""

    @property
    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""


@contextlib.contextmanager
def watched(run: Located) -> Iterator[None]:
    """Around a step: say where memory ran out or a worker died, what to reduce, and which state is the last good one.

    Any other error passes, with a note that says where the run was. Raises ResourceError.
    """
    try:
        yield
    except ArchgradError as error:
        run.failed = True
        _note_place(error, run)
        raise
    except Exception as error:  # a user's loss or metric may raise anything
        run.failed = True
        resources = isinstance(error, MemoryError | RuntimeError | OSError | EOFError)
        if resources and (explanation := _explain(error)):
            raise ResourceError(f"{explanation} It happened {run.location}. {run.good_state}".rstrip()) from error
        # The error stays as it was raised, with its own traceback.
        _note_place(error, run)
        raise


def _note_place(error: Exception, run: Located) -> None:
    """Note where the run was, where neither the error nor another note says so."""
    told = [str(error), *getattr(error, "__notes__", ())]
    if not any(run.location in text for text in told):
        error.add_note(f"archgrad was {run.location}. {run.good_state}".rstrip())


def _explain(error: BaseException) -> str:
    try:
        return explain(error)
    except RuntimeError as death:  # torch reports a worker that died wherever the program is, so here too
        return explain(death)


def explain(error: BaseException) -> str:
    """What happened where memory ran out, or a worker or another process died; empty for any other error."""
    text = str(error)
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
    if not isinstance(error, OSError | EOFError) or "in DataLoader worker process" in str(error):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == dataloader.__file__ for frame, _ in frames)


def _first(text: str) -> str:
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line.split(". ")[0].rstrip(".").strip()

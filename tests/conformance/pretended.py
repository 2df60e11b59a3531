"""A pretended CUDA device, which computes on the CPU and is as strict as a real one about where tensors lie.

A build of torch without CUDA cannot hold CUDA tensors. Here they are a subclass that says `device="cuda:0"` and holds
a tensor of the CPU. An operation raises where one operand lies on the device and another does not, as CUDA does; all
values are real, so whole runs can be made. Each wait of the program for the device is noted with the place it came
from.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
HOST = torch.device("cpu")
SOURCE = str(Path(torch.__file__).parent)
aten = torch.ops.aten
# What gives the host a value, or a shape that depends on values.
WAITS = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
# CUDA takes indices and conditions of the host for these, and sources of a copy.
ACROSS = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten.copy_.default}

# Functions that loop over steps, and what they call seldom.
LOOPS = {"optimize", "alternate", "explore", "take_step"}
SELDOM = {"evaluate", "_epoch_figures", "read", "save", "check", "log", "predict_memory", "collapse", "compute_once"}


class Waits(collections.Counter[str]):
    """How often the program waited for the device, by place; `in_steps`: what comes with each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.in_steps: collections.Counter[str] = collections.Counter()


waits = Waits()


class OnDevice(Tensor):
    """A tensor of the pretended device; `inner` has its values."""

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, value: OnDevice) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner})"

    def numpy(self, **ignored: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy

    def tolist(self) -> Any:
        note_wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = any(isinstance(t, OnDevice) for t in given)
    asked = kwargs.get("device")
    # Formulas in C++ ask for the device of their operand, which they take for the CPU.
    on_device = ours or (asked is not None and torch.device(asked).type == "cuda")
    if ours:
        _check_operands(func, args, given)
        by_mask = func is aten.index.Tensor and any(
            t.dtype == torch.bool for t in given[1:] if isinstance(t, OnDevice)
        )
        if by_mask or func in WAITS:
            note_wait(func)
    generator = kwargs.get("generator")
    if on_device and generator is not None:
        raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
    inside = kwargs if asked is None else kwargs | {"device": HOST}
    out = func(*tree_map(_inner, args), **tree_map(_inner, inside))
    if ours and func is aten.copy_.default and not isinstance(args[0], OnDevice):
        note_wait(func)
        return args[0]
    if not on_device:
        return out
    out = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if ours else out


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


def _check_operands(func: Any, args: Any, given: list[Tensor]) -> None:
    if torch._C._current_graph_task_id() != -1:
        return  # what went forward on one device goes back on it, but for numbers [], which autograd itself moves
    if func in ACROSS:
        strays = [] if func is aten.copy_.default or isinstance(args[0], OnDevice) else [args[0]]
    else:
        strays = [t for t in given if not isinstance(t, OnDevice) and t.ndim]
    if strays:
        shapes = [(list(t.shape), str(t.device)) for t in given]
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found {shapes}")


def note_wait(func: Any) -> None:
    """Count a wait for the device under the innermost places of the program outside of torch."""
    frames, frame = [], sys._getframe(1)
    while frame := frame.f_back:
        if not frame.f_code.co_filename.startswith((SOURCE, __file__)):
            frames.append((Path(frame.f_code.co_filename).name, frame.f_lineno, frame.f_code.co_name))
    place = f"{func} at " + " < ".join(f"{file}:{line} {name}" for file, line, name in frames[:3])
    names = {name for _, _, name in frames}
    waits[place] += 1
    if names & LOOPS and not names & SELDOM:
        waits.in_steps[place] += 1


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnDevice(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _inner(gradients[0])


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        note_wait("to host")
        return x.inner.detach().clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return OnDevice(gradients[0])


_to = Tensor.to


def _moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which knows the pretended device."""
    kwargs = dict(kwargs)
    if args and isinstance(args[0], Tensor):
        args, kwargs = (), {"device": args[0].device, "dtype": args[0].dtype, **kwargs}
    if args and isinstance(args[0], torch.dtype):
        args, kwargs = (), {"dtype": args[0], **kwargs}
    if args:
        kwargs["device"] = args[0]
    if len(args) > 1:
        kwargs["dtype"] = args[1]
    device = kwargs.pop("device", None)
    here = isinstance(self, OnDevice)
    there = here if device is None else torch.device(device).type == "cuda"
    if there and not here:
        self = _ToDevice.apply(self)  # type: ignore[no-untyped-call]
    elif here and not there:
        self = _ToHost.apply(self)  # type: ignore[no-untyped-call]
    rest = {name: value for name, value in kwargs.items() if name in ("dtype", "copy", "memory_format") and value}
    return _to(self, **rest) if rest else self


def _padded(rows: list[Tensor], batch_first: bool, value: float, side: str) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([torch.cat([row, row.new_full((longest - len(row),), value)]) for row in rows])


def _made(make: Any, data: Any, *, device: Any = None, **rest: Any) -> Tensor:
    there = device is not None and torch.device(device).type == "cuda"
    return _moved(make(data, **rest), device) if there else make(data, **rest)


def _one_hot(index: Tensor, size: int) -> Tensor:
    return index.unsqueeze(-1) == torch.arange(size, device=index.device)


def _grouped(nest: list[list[Tensor]]) -> dict[Any, Any]:
    found = torch.utils._foreach_utils._group_tensors_by_device_and_dtype(nest)
    return {(group[0][0].device, dtype): (group, places) for (_, dtype), (group, places) in found.items()}


@contextlib.contextmanager
def pretended_cuda(patch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Around a run: there is one CUDA device. Gives the waits for it, by place."""
    patch.setattr(Tensor, "to", _moved)
    patch.setattr(Tensor, "cpu", lambda self, **k: _moved(self, "cpu"))
    patch.setattr(Tensor, "cuda", lambda self, *a, **k: _moved(self, "cuda"))
    cuda: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True,
        "synchronize": None, "manual_seed_all": None, "manual_seed": None, "get_device_name": "pretended",
        "mem_get_info": (2**34, 2**34), "memory_allocated": 0, "max_memory_allocated": 0,
        "reset_peak_memory_stats": None, "get_rng_state_all": [], "set_rng_state_all": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None, "empty_cache": None,
        "_is_in_bad_fork": False,
    }  # fmt: skip
    for name, value in cuda.items():
        patch.setattr(torch.cuda, name, lambda *a, value=value, **k: value)
    # It sorts by the device that C++ knows.
    patch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", _grouped)
    patch.setattr(torch._C._nn, "pad_sequence", _padded)
    patch.setattr("archgrad.choices.estimators.indicator", _one_hot)
    for name in ("tensor", "as_tensor"):  # they make a tensor of the host first, unseen by modes
        patch.setattr(torch, name, functools.partial(_made, getattr(torch, name)))
    waits.clear()
    waits.in_steps.clear()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Factories():
            yield waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)

"""Which values are options in themselves: numbers, names, functions, arrays, and containers of these."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import os
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archgrad.digests import ROWS

DEPTH = 6  # of containers in each other
_PLAIN: tuple[type, ...] = (
    float, int, bool, str, type(None), torch.dtype, enum.Enum, type, Tensor, np.ndarray, FunctionType,
    BuiltinFunctionType, functools.partial,
)  # fmt: skip


def is_plain(value: Any, *, depth: int = 0) -> bool:
    """Whether a value is an option, or holds nothing else; of the environment, code says itself what it reads."""
    if value is os.environ:
        return False
    if isinstance(value, tuple | list | set | frozenset | Mapping):
        entries = [*value, *value.values()] if isinstance(value, Mapping) else value
        return len(value) <= ROWS and depth < DEPTH and all(is_plain(entry, depth=depth + 1) for entry in entries)
    return isinstance(value, _PLAIN) or is_record(value)


def is_record(value: Any) -> bool:
    """Whether an object does no more than hold options."""
    return isinstance(value, argparse.Namespace | SimpleNamespace) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type | nn.Module)
    )


def is_mutable(value: Any) -> bool:
    """Whether code may change it in place."""
    return isinstance(value, list | set | Mapping | Tensor | np.ndarray)


def is_path(value: Any) -> bool:
    """Whether it may name a place, which moves."""
    return isinstance(value, str) and ("/" in value or "\\" in value)

"""Checks of the settings of a run: each returns the value in its one form, or raises ConfigError."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archgrad.errors import ConfigError, MissingExtra, RunError
from archgrad.fingerprint import of_network
from archgrad.tasks.task import identity as task_identity

_PRECISIONS = ("32-true", "bf16-mixed")


def count(name: str, value: int | None, *, zero: bool = False) -> int | None:
    """A positive whole number (or zero where allowed), or None."""
    least = 0 if zero else 1
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return value
    raise ConfigError(f"{name}={value!r} was given. Allowed is a whole number of at least {least}.")


def seconds(name: str, value: float | None, *, zero: bool = False) -> float | None:
    """A positive finite time in seconds (or zero where allowed), or None."""
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and (value > 0 or (zero and value == 0)):
        return float(value)
    bound = "at least 0" if zero else "greater than 0"
    raise ConfigError(f"{name}={value!r} was given. Allowed is a number of seconds {bound}.")


def seed(value: int) -> int:
    """A seed that torch, numpy and `random` all take."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32:
        return value
    raise ConfigError(f"seed={value!r} was given. Allowed is a whole number from 0 to {2**32 - 1}.")


def device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda", "cuda:N" or "mps"."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    available = [
        "cpu",
        *(["cuda"] if cuda else []),
        *(f"cuda:{i}" for i in range(cuda)),
        *(["mps"] if mps else []),
    ]
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name in available:
        return torch.device(name)
    fix = ' PyTorch finds no CUDA device here: use device="cpu".' if name.startswith("cuda") and not cuda else ""
    raise ConfigError(f"device={name!r} was given. Available are auto, {', '.join(available)}.{fix}")


def precision(name: str, where: torch.device) -> str:
    """A precision by Lightning Fabric's name."""
    if name not in _PRECISIONS:
        # The gradients of "16-mixed" vanish without a scaled loss; training/step.py takes those of the loss itself.
        raise ConfigError(f"precision={name!r} was given. Allowed are {' and '.join(_PRECISIONS)}.")
    return name


def devices(given: int, where: torch.device) -> int:
    """A number of devices, a process each, that the kind of device and torchrun allow."""
    number = count("devices", given) or 1
    if where.index is not None and number > 1:
        raise ConfigError(
            f'devices={number} was given with the one device {where}. Use device="{where.type}", or devices=1.'
        )
    world = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and number > 1 and str(number) != world:
        raise ConfigError(
            f"devices={number} was given, but torchrun started {world}. Leave devices out under torchrun."
        )
    return number


def layout(number: int) -> tuple[int, int]:
    """Processes on this machine, and machines: torchrun's where it started us, else `number` on one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return number, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def workers(given: int | str | None) -> int | str | None:
    """How many worker processes, or where a Ray cluster is."""
    if isinstance(given, str):
        if given == "ray" or re.fullmatch(r"ray://[\w.\[\]:-]+", given):
            return given
        raise ConfigError(f'workers={given!r} was given. Allowed are a whole number, "ray" and "ray://host:port".')
    return count("workers", given)


def folder(given: str | Path | None) -> Path | None:
    """The run's folder; the present one has to be meant."""
    if given == "":
        raise ConfigError('folder="" was given. Give a path ("." for the present folder), or None for no folder.')
    if given is None:
        return None
    if "\0" in str(given):
        raise ConfigError(f"folder={str(given)!r} was given. No file can be named so: leave the zero byte out.")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # there is no such user: the name is meant
        return Path(given).absolute()


def tensorboard(wanted: bool, folder: Path | None) -> bool:
    """Whether to write for TensorBoard. Raises MissingExtra when it is not installed."""
    if wanted and folder is None:
        raise ConfigError("tensorboard=True was given without a folder. Give folder=... as well.")
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "tensorboard")
    return wanted


ACCEPTABLE = ("data", "network", "settings")


def accepted(names: Sequence[str]) -> frozenset[str]:
    """Parts of a run's identity that may differ when it is resumed."""
    if wrong := [name for name in names if name not in ACCEPTABLE]:
        raise ConfigError(f"accept {wrong[0]!r} was given. Allowed are {', '.join(ACCEPTABLE)}.")
    return frozenset(names)


def phase(name: str, time_fraction: float) -> None:
    """Check a phase's name, which becomes part of file names, and its part of the seconds."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"phase={name!r} was given. Allowed are letters, digits, '_', '.' and '-'.")
    if not 0 < time_fraction <= 1:
        raise ConfigError(f"time_fraction={time_fraction!r} was given. Allowed is more than 0 and at most 1.")


def identity(
    method: str, given: Mapping[str, Any], budgets: Mapping[str, Any], *, task: object = None,
    network: nn.Module | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What makes two runs the same run, as it will read after a round through JSON."""
    content = {"method": method, "settings": dict(given), **budgets}
    if task is not None:
        content["data"] = task_identity(task, seed=budgets["seed"])
    if network is not None:
        content["network"] = f"{type(network).__name__} #{of_network(network)}"
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The settings of {method} cannot be written as JSON ({error}). Allowed are dict, list, str, "
            "bool, None and finite numbers: give names in place of objects."
        ) from error
    normal: dict[str, Any] = json.loads(text)
    return normal


def plain(key: str, value: Any) -> Any:
    """A value as it will read after a round through JSON."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"run.compute_once({key!r}) computed {value!r}, which is not JSON ({error}). "
            "Allowed are dict, list, str, bool, None and numbers."
        ) from error

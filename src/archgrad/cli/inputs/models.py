"""The network that MODEL names, and its weights."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from archgrad import files
from archgrad.cli.inputs import user_code
from archgrad.errors import ConfigError, ModelError
from archgrad.tasks.task import Inputs

FORMS = f"{user_code.FORMS}, or timm:NAME"


def load(name: str, *, classes: int | None, example: Inputs) -> nn.Module:
    """The network of a MODEL.

    A callable is called without arguments, or with those of these that it takes: the number of classes as `classes`
    or `num_classes`, the channels of `example`, [B, C, H, W], as `in_channels` or `in_chans`.

    Raises:
        ConfigError: no such module, file, attribute or timm model.
        ModelError: the user's code fails, or what it makes is no network.
    """
    place, attribute = user_code.split_name(name, forms=FORMS)
    if place == "timm":
        return _from_timm(attribute, classes=classes, example=example)
    network = user_code.load(name, forms=FORMS)
    if not isinstance(network, nn.Module):
        network = user_code.call(network, name, known_of(classes, example))
    if not isinstance(network, nn.Module):
        raise ModelError(f"MODEL {name!r} gives a {type(network).__name__}. Allowed is a torch.nn.Module.")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise ModelError(f"MODEL {name!r} is on the meta device and has no values. Make it on the CPU.")
    return network


def known_of(classes: int | None, example: Inputs) -> dict[str, int]:
    """What the data say that a callable may take: the number of classes, and of an image's channels."""
    known = {} if classes is None else {"classes": classes}
    if isinstance(example, Tensor) and example.ndim == 4:
        known["in_channels"] = example.shape[1]
    return known


def as_source(name: str, known: Mapping[str, int]) -> str:
    """Source code that makes the network, where the callable of a MODEL is imported: MyCNN(classes=10)."""
    place, attribute = user_code.split_name(name, forms=FORMS)
    if place == "timm":
        return f"timm.create_model({attribute!r}, num_classes={known['classes']}, in_chans={known['in_channels']})"
    value = user_code.load(name, forms=FORMS)
    if isinstance(value, nn.Module):
        return attribute
    given = ", ".join(f"{word}={number}" for word, number in user_code.arguments(value, known).items())
    return f"{attribute}({given})"


def read_weights(network: nn.Module, path: str | Path) -> None:
    """Load trained weights into a network, all of them.

    Raises ModelError when the file cannot be read, or holds other tensors than the network has.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights {path}: there is no such file. Give a .safetensors file or a state dict.")
    try:
        if path.suffix == ".safetensors":
            missing, unexpected = safetensors.torch.load_model(network, path, strict=False)
        else:
            missing, unexpected = network.load_state_dict(_state(path), strict=False)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4]) or str(error)
        raise ModelError(f"weights {path} do not fit {type(network).__name__}: {reason}") from None
    except (SafetensorError, *files.UNREADABLE) as error:
        raise ModelError(f"weights {path} are damaged, or no safetensors file ({error}).") from None
    if missing or unexpected:
        raise ModelError(
            f"weights {path} do not fit {type(network).__name__}: {_listed('missing', missing)}"
            f"{_listed('unexpected', unexpected)}"
            "give the weights of this very network, or leave --weights out."
        )


def _listed(word: str, names: Any) -> str:
    some = sorted(names)
    return f"{word} {', '.join(some[:5])}{', ...' if len(some) > 5 else ''} ({len(some)}); " if some else ""


def _state(path: Path) -> dict[str, Tensor]:
    """A state dict, also where it lies under "state_dict" or "model", as training scripts save it."""
    try:
        with warnings.catch_warnings():
            # On protocols that it may not know: it then fails, and the message says so.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (*files.UNREADABLE, NotImplementedError, AssertionError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"weights {path} cannot be read ({reason[:200]}). Allowed are a .safetensors file and what "
            "torch.save(network.state_dict(), file) writes; other pickles, whole networks among them, can execute "
            "code and are not read. Where you trust the file, convert it: "
            "torch.save(torch.load(file, weights_only=False).state_dict(), new_file)."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"weights {path} hold no state dict. Save torch.save(network.state_dict(), file).")
    return state


def _from_timm(name: str, *, classes: int | None, example: Inputs) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"MODEL 'timm:{name}' needs timm, which is not installed: pip install timm")
    if not isinstance(example, Tensor) or example.ndim != 4:
        raise ModelError(f"MODEL 'timm:{name}' takes images [B, C, H, W], and the data holds something else.")
    if classes is None:
        raise ConfigError(
            f"MODEL 'timm:{name}' needs the number of classes, which the task does not say. Give the task an "
            "attribute classes, or name a function of your own that calls timm.create_model."
        )
    timm: Any = importlib.import_module("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none; timm.list_models() shows all"
        raise ConfigError(f"MODEL 'timm:{name}': timm has no model of this name. Near it are {near}.")
    with user_code.errors_in(f"timm:{name}"):
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=example.shape[1])
    return network

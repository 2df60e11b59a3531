"""The network that MODEL names, and its weights."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import typer
from safetensors import SafetensorError
from torch import Tensor, nn

from archgrad import files
from archgrad.cli.inputs import user_code
from archgrad.errors import ArchgradError, ConfigError, ModelError
from archgrad.tasks.batch_checks import nonfinite_tensors
from archgrad.tasks.task import Inputs

_AVERAGE = re.compile(r"ema|avg|average|swa")
# What torch.compile, sharding and checkpointing put around modules, anywhere in a network.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What parametrizations, weight norm and pruning make of a tensor, by the ends of the names.
_PARAMETRIZED = (("_g", "_v"), ("_orig", "_mask"), ("_orig", "_u"))
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

    Of a file that a training script saved, the state dict that has the network's names is taken: wherever it lies,
    with or without a prefix such as "module.", beside optimizers and averages.

    Raises ModelError when the file cannot be read, or holds other tensors than the network has, whole or complex
    numbers where it has real ones, NaN, infinite numbers or negative variances.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights {path}: there is no such file. Give a .safetensors file or a state dict.")
    try:
        missing, unexpected = _loaded(network, path)
    except ArchgradError:
        raise
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4]) or str(error)
        raise ModelError(f"weights {path} do not fit {type(network).__name__}: {reason}") from None
    except (SafetensorError, *files.UNREADABLE) as error:
        raise ModelError(f"weights {path} are damaged, or no safetensors file ({error}).") from None
    if missing or unexpected:
        raise ModelError(
            f"weights {path} do not fit {type(network).__name__}: {_listed('missing', missing)}"
            f"{_listed('unexpected', unexpected)}{_about_parametrizations(unexpected)}"
            "give the weights of this very network, or leave --weights out."
        )
    if wrong := nonfinite_tensors(network):
        raise ModelError(
            f"weights {path} hold NaN or infinite numbers, or a negative variance, in {len(wrong)} tensors "
            f"({', '.join(wrong[:5])}). Give weights of a training that went well, or leave --weights out."
        )


def _loaded(network: nn.Module, path: Path) -> Any:
    """Load a file; the names that it lacks, and those that the network lacks."""
    expected = set(network.state_dict())
    if path.suffix == ".safetensors":
        known = _without_wrappers(safetensors.torch.load_file(path), expected)
        if _prefix(known, expected) is not None:
            return _load(network, _without_prefix(known, expected), path)
        _check_kinds(network, known, path)
        return safetensors.torch.load_model(network, path, strict=False)
    states = {w: _without_wrappers(state, expected) for w, state in _states(_unpickled(path)).items()}
    if not states:
        raise ModelError(f"weights {path} hold no state dict. Save torch.save(network.state_dict(), file).")
    fitting = {where: state for where, state in states.items() if _prefix(state, expected) is not None}
    # What was trained comes before its averages, and what is large before counters.
    where, *others = sorted(fitting or states, key=lambda n: (bool(_AVERAGE.search(n.lower())), -len(states[n])))
    if fitting and others:
        typer.echo(
            f"weights {path} hold {', '.join([where, *others])}, which all fit; {where} is taken. Save one alone to "
            "choose another.", err=True,
        )  # fmt: skip
    return _load(network, _without_prefix(states[where], expected), path)


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> Any:
    _check_kinds(network, state, path)
    return network.load_state_dict(state, strict=False)


def _check_kinds(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that torch would cast in silence: eight bits of a quantized weight to a float."""
    own = network.state_dict()
    kinds = [(name, (own[name], tensor)) for name, tensor in state.items() if isinstance(own.get(name), Tensor)]
    if wrong := [n for n, (a, b) in kinds if a.is_floating_point() and not (b.is_floating_point() or b.is_quantized)]:
        raise ModelError(
            f"weights {path} hold {str(state[wrong[0]].dtype).removeprefix('torch.')} numbers in {wrong[0]}"
            f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}, where the network has real ones. Give the "
            f"weights as they were before they were quantized or cast, or leave --weights out."
        )


def _without_wrappers(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """A state dict without the names of what was put around modules to compile or shard them, if it fits only so."""
    if _prefix(state, expected) is not None:
        return state
    return {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}


def _about_parametrizations(unexpected: Iterable[str]) -> str:
    names = {*unexpected}
    pairs = [{f"{n.removesuffix(a)}{b}" for a, b in _PARAMETRIZED if n.endswith(a)} & names for n in names]
    if not any(pairs) and not any(".parametrizations." in f".{name}" for name in names):
        return ""
    return (
        "they were saved with weight norm, pruning or another parametrization on them: "
        "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove, then save again; or "
    )


def _states(content: Any, where: str = "", depth: int = 3) -> dict[str, dict[str, Tensor]]:
    """The state dicts in what was saved, by where they lie; those of optimizers have numbers for names."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return {}
    tensors = {name: entry for name, entry in content.items() if isinstance(entry, Tensor)}
    states = {where or "the file": tensors} if tensors else {}
    for name, entry in content.items() if depth else ():
        states |= _states(entry, f"{where}.{name}" if where else name, depth - 1)
    return states


def _prefix(state: Mapping[str, Tensor], expected: set[str]) -> str | None:
    """What stands before the network's names in a state dict, such as "" or "module."; None where they do not fit.

    Behind a prefix lie all the network's tensors and no others; what lies elsewhere is of a loss or a metric.
    """
    last = min(expected, default="")
    for prefix in {name.removesuffix(last) for name in state if name == last or name.endswith(f".{last}")}:
        inside = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        if inside == expected:
            return prefix
    return None


def _without_prefix(state: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    prefix = _prefix(state, expected) or ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _listed(word: str, names: Any) -> str:
    some = sorted(names)
    return f"{word} {', '.join(some[:5])}{', ...' if len(some) > 5 else ''} ({len(some)}); " if some else ""


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # On protocols that it may not know: it then fails, and the message says so.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*files.UNREADABLE, NotImplementedError, AssertionError, pickle.UnpicklingError) as error:
        # torch's own text advises to load what can execute code.
        barred = re.search(r"(?:GLOBAL|global:?(?! GLOBAL)|class) ([\w.]+)", str(error))
        reason = f"it holds objects, {barred[1]} among them" if barred else "it is damaged, or of another format"
        raise ModelError(
            f"weights {path} cannot be read: {reason}. Allowed are a .safetensors file and what "
            "torch.save(network.state_dict(), file) writes; other pickles, whole networks among them, can execute "
            "code and are not read. Where you trust the file, convert it: "
            "torch.save(torch.load(file, weights_only=False).state_dict(), new_file)."
        ) from None


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
    with user_code.errors_in("import timm"):
        timm: Any = importlib.import_module("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "none; timm.list_models() shows all"
        raise ConfigError(f"MODEL 'timm:{name}': timm has no model of this name. Near it are {near}.")
    with user_code.errors_in(f"timm:{name}"):
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=example.shape[1])
    return network

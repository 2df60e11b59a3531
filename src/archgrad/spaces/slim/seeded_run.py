"""Run a network of the user's: seeded, without fused kernels, whatever its outputs and tensors are."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from archgrad.copy_and_run import call, copied, in_mode

# What tracing or running a network of the user's may raise; nothing here is ours.
NETWORK_ERRORS = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError,
)  # fmt: skip
DEEPEST = 6  # levels of containers in a network's output
# Entries of Hugging Face's output objects that nobody reads who has the others.
_CACHES = ("past_key_values", "cache", "cache_params", "mems")
_BEFORE_A_HEAD = ("last_hidden_state", "_model_output")


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What sees every operator that a network runs, without importing the compiler, which takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Run layers one by one: without the fused kernels of attention, and without compilation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        compiler = sys.modules.get("torch._dynamo")  # nothing is compiled where it was never imported
        with torch.compiler.set_stance("force_eager") if compiler else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def quiet_graphs() -> Iterator[None]:
    """Inside, modules of `torch.fx` raise what fails in them, and do not print it as well."""
    kind = fx.graph_module._WrappedCall
    printing = kind.__call__

    def way(self: Any, obj: nn.Module) -> Any:
        return super(self.cls, obj).__call__ if self.cls_call is None else functools.partial(self.cls_call, obj)

    kind.__call__ = lambda self, obj, *args, **kwargs: way(self, obj)(*args, **kwargs)  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__call__ = printing  # type: ignore[method-assign]


def run(network: nn.Module, inputs: tuple[Any, ...], *, seed: int = 0, grad: bool = False) -> Any:
    """The network's outputs on its inputs, which it cannot change; whatever it draws at random is seeded."""
    given = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else copy.copy(x), inputs)
    python, numeric = random.getstate(), np.random.get_state()
    devices = sorted({x.device.index or 0 for x in network.parameters() if x.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(grad):
            reseed(seed)
            random.seed(seed)
            np.random.seed(seed)
            return call(network, given)
    finally:
        random.setstate(python)
        np.random.set_state(numeric)


def runs(network: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a copy of the network runs on the inputs, in eval mode."""
    try:
        run(in_mode(copied(network)), inputs)
    except NETWORK_ERRORS:
        return False
    return True


def parameters_read(network: nn.Module, inputs: tuple[Any, ...], names: Mapping[int, str]) -> list[str]:
    """Which of some parameters, by their ids, operators read while the network runs, or as far as it does."""
    found: dict[str, None] = {}

    class Noting(OperatorMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            found.update({names[id(x)]: None for x in tensors_in((args, kwargs or {})) if id(x) in names})
            return func(*args, **(kwargs or {}))

    with contextlib.suppress(*NETWORK_ERRORS), plain_kernels(), Noting():  # type: ignore[no-untyped-call]
        run(network, inputs)  # one that fails is told so by those who run it for more
    return list(found)


def reseed(seed: int) -> None:
    """Seed torch's generators; `torch.manual_seed` takes milliseconds where CUDA was never used."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def tensors_of(outputs: object) -> list[Tensor]:
    """All tensors in a network's output, in order: inside lists, mappings, data classes and other objects.

    Of an output object of Hugging Face's, caches are left out, and so are the states in front of a head where it
    has what the head puts out: `encoder_last_hidden_state` beside `logits`.
    """
    return [x for _, x in named_tensors_of(outputs)]


def tensors_in(nest: object) -> list[Tensor]:
    """The tensors in an operator's arguments or outputs."""
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, (list, tuple)):
        return [x for part in nest for x in tensors_in(part)]
    if isinstance(nest, dict):
        return tensors_in(list(nest.values()))
    return []


def named_tensors_of(outputs: object, name: str = "", depth: int = 0) -> list[tuple[str, Tensor]]:
    """The same with the name of the part of the output that each is in; "" where parts have no names."""
    if isinstance(outputs, Tensor):
        return [(name, outputs)]
    if depth > DEEPEST or isinstance(outputs, (str, bytes, nn.Module, type)):
        return []
    if isinstance(outputs, Mapping):
        parts: list[tuple[object, object]] = list(outputs.items())
        if any(kind.__name__ == "ModelOutput" for kind in type(outputs).__mro__):
            parts = [(key, part) for key, part in parts if key not in _CACHES]
            if any(str(key).startswith("logits") or str(key).endswith("embeds") for key, _ in parts):
                parts = [(key, part) for key, part in parts if not str(key).endswith(_BEFORE_A_HEAD)]
    elif isinstance(outputs, (list, tuple, set, frozenset)):
        parts = [("", part) for part in outputs]
    elif dataclasses.is_dataclass(outputs):
        parts = [(f.name, getattr(outputs, f.name, None)) for f in dataclasses.fields(outputs)]
    else:
        parts = list(getattr(outputs, "__dict__", {}).items())
    return [
        found for key, part in parts
        for found in named_tensors_of(part, name or (key if isinstance(key, str) else ""), depth + 1)
    ]  # fmt: skip


class TorchScript(nn.Module):
    """Stands for a scripted or traced module, which takes no hooks, while a network is followed and tried.

    Args:
        script: what is called. What is inside of it is seen from outside as parameters of this module.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        vars(self)["script"] = script
        self.training = getattr(script, "training", False)  # a frozen one has no modes
        self._show()

    def _show(self) -> None:
        named = vars(self)["script"].named_parameters()
        self._parameters.update({name.replace(".", "_"): parameter for name, parameter in named})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the script computes."""
        return vars(self)["script"](*args, **kwargs)

    def train(self, mode: bool = True) -> TorchScript:
        """Set the mode of what is inside too."""
        vars(self)["script"].train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> TorchScript:
        vars(self)["script"]._apply(fn, recurse)
        self._show()
        return self

    def __getattr__(self, name: str) -> Any:
        """Whatever else of the script the network reads or calls."""
        return getattr(vars(self)["script"], name)


def without_scripts(network: nn.Module) -> nn.Module:
    """The network, with a module that takes hooks in the place of each that is TorchScript."""
    for parent in list(network.modules()):
        for name, child in () if isinstance(parent, torch.jit.ScriptModule) else parent._modules.items():
            if isinstance(child, torch.jit.ScriptModule):
                parent._modules[name] = TorchScript(child)
    return network


def computed_weights(path: str, module: nn.Module) -> str:
    """Why the weights of a module are no parameters that could be cut; "" if they are."""
    if isinstance(module, TorchScript):
        return f"{path} is TorchScript, which cannot be changed; the Python module that it was made from could be cut"
    if parametrize.is_parametrized(module):
        steps: Any = module.parametrizations
        kinds = {type(step).__name__.strip("_") for own in steps.values() for step in own}
        return (
            f"the weights of {path} are parametrized already ({', '.join(sorted(kinds))}); "
            f"torch.nn.utils.parametrize.remove_parametrizations makes plain parameters of them"
        )
    names = [
        n.removesuffix("_g") for n in module._parameters if n.endswith("_g") and f"{n[:-2]}_v" in module._parameters
    ]
    masked = [n.removesuffix("_orig") for n in module._parameters if n.endswith("_orig")]
    if names:
        return (
            f"the {names[0]} of {path} is computed by weight_norm; torch.nn.utils.remove_weight_norm makes a plain "
            f"parameter of it"
        )
    if masked and f"{masked[0]}_mask" in module._buffers:
        return (
            f"the {masked[0]} of {path} has a pruning mask; torch.nn.utils.prune.remove makes a plain parameter of it"
        )
    if masked and not isinstance(getattr(module, masked[0], None), nn.Parameter):
        return f"the {masked[0]} of {path} is computed from {masked[0]}_orig before each call, as spectral_norm does"
    return ""

"""A state in which a network can be scored, and after which nothing about it has changed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from archgrad.choices import access
from archgrad.copy_and_run import Intercepted
from archgrad.errors import ConfigError, ModelError
from archgrad.run.rng import Randomness

Weights = Literal["as they are", "absolute", "normal", "kaiming"]
Biases = Literal["as they are", "zero"]
Norm = Literal["as it is", "identity", "eval", "train"]

_NORMS = {F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm, F.rms_norm, torch.batch_norm}
_TENSOR = re.compile(r"(?:.*\.)?(?:parametrizations\.(?P<gated>\w+)\.original\d*|(?P<plain>\w+))")


@contextlib.contextmanager
def probe(
    network: nn.Module,
    *,
    weights: Weights = "as they are",
    biases: Biases = "as they are",
    norm: Norm = "as it is",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Score a network inside the block; afterwards it is bit for bit what it was, also where the block raises.

    Parameters and buffers are copies inside the block, and the tensors themselves come back after it: values,
    `.grad`, `requires_grad`, dtype, what is shared, the attributes of every module (so `training`) and the random
    states of torch (CPU, and CUDA where in use), numpy and `random`. Whatever the block writes into the network,
    the support of its choices too, is gone after it: take results out as tensors of your own. Inside, every
    `.grad` is None, gradients are enabled and autocast is off.

    Args:
        network: any network; its architecture parameters keep their values inside the block.
        weights: "absolute" takes each parameter's absolute value; "normal" draws tensors of two or more
            dimensions from N(0, 1), "kaiming" from N(0, 2 / fan_in), and both make other parameters 1.
        biases: "zero" makes biases and the shifts of norms 0, whatever `weights` says.
        norm: what normalization layers do: "identity" passes their input on, also where a network calls
            `torch.nn.functional`; "eval" uses BatchNorm's running statistics, "train" the batch's. With any of
            the three every other module is in eval mode, so that dropout is off.
        dtype: of floating-point parameters and buffers inside the block; None for their own.
        seed: of "normal" and "kaiming".

    Raises:
        ConfigError: a word that is not listed here, or a dtype that is no floating-point one.
        ModelError: the network has parameters that are not initialized yet, or a part made by `torch.jit`.
    """
    for name, value, kind in (("weights", weights, Weights), ("biases", biases, Biases), ("norm", norm, Norm)):
        if value not in get_args(kind):
            raise ConfigError(f"probe: {name}={value!r}; allowed is one of {list(get_args(kind))}")
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"probe: dtype={dtype}; give a floating-point one, such as torch.float64")
    state = _State(network)
    try:
        # Clones made in inference mode could not take part in a backward pass.
        with torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as stack:
            state.put_copies(dtype)
            with torch.no_grad():
                _fill(network, weights=weights, biases=biases, seed=seed)
            if norm != "as it is":
                network.eval()
                for module in network.modules():
                    module.training = norm == "train" and isinstance(module, _NormBase)
            if norm == "identity":
                stack.enter_context(Intercepted(_bypassed))
            for device in {p.device.type for p in network.parameters()} - {"meta"}:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        state.restore()


class _State:
    """All that `probe` gives back: tensors by reference, so that no arithmetic touches them."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors = [*network.parameters(), *network.buffers()]
        if any(is_lazy(t) for t in self.tensors):
            raise ModelError(
                f"{type(network).__name__} has lazy parameters without a shape; run it on a batch before it is scored"
            )
        if any("_parameters" not in vars(m) for m in network.modules()):
            raise ModelError(
                f"{type(network).__name__} is, or holds, a scripted module, which cannot be scored; give the module "
                f"that it was scripted from"
            )
        self.kept = [(t, t.data, t.grad, t.requires_grad) for t in self.tensors]
        # Modules may keep state in plain attributes (a counter, the product of an old-style weight_norm).
        self.attributes = [(m, dict(vars(m)), [dict(d) for d in _registered(m)]) for m in network.modules()]
        self.randomness = Randomness(0)
        self.random = self.randomness.state()

    def put_copies(self, dtype: torch.dtype | None) -> None:
        for tensor, data, _, _ in self.kept:
            tensor.grad = None
            wanted = dtype if dtype is not None and data.is_floating_point() else data.dtype
            tensor.data = data.to(wanted, copy=True)

    def restore(self) -> None:
        for module, attributes, registered in self.attributes:
            vars(module).clear()
            vars(module).update(attributes)
            for now, before in zip(_registered(module), registered, strict=True):
                now.clear()
                now.update(before)
        for tensor, data, grad, requires_grad in self.kept:
            tensor.grad = None
            tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            tensor.grad = grad
        self.randomness.set_state(self.random)


def _registered(module: nn.Module) -> list[dict[str, Any]]:
    """The dictionaries that hold a module's parameters, buffers and children."""
    return [vars(module)[name] for name in ("_parameters", "_buffers", "_modules")]


def _bypassed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalization functions return their input, whoever calls them; nothing is put on a module."""
    if function in _NORMS:
        return args[0] if args else kwargs["input"]
    return function(*args, **kwargs)


def _fill(network: nn.Module, *, weights: Weights, biases: Biases, seed: int) -> None:
    """New values for the copies of all parameters that are not architecture parameters."""
    generator = torch.Generator().manual_seed(seed)
    own = set(access.weights(network))
    for path, parameter in network.named_parameters():
        if parameter not in own or not parameter.is_floating_point():
            continue
        match = _TENSOR.fullmatch(path)
        if biases == "zero" and match and "bias" in (match["gated"] or match["plain"]):
            parameter.data.zero_()
        elif weights == "absolute":
            parameter.data.abs_()
        elif weights in ("normal", "kaiming"):
            parameter.data.copy_(_drawn(parameter, weights, generator))


def _drawn(parameter: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Values of a parameter's shape, drawn on the CPU so that they are the same on every device."""
    values = torch.ones(parameter.shape)
    if parameter.dim() >= 2:
        if weights == "normal":
            nn.init.normal_(values, generator=generator)
        else:
            nn.init.kaiming_normal_(values, nonlinearity="relu", generator=generator)
    return values

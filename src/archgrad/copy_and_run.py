"""Copy a user's network, run it on an example, and restore its modes."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from archgrad.errors import ArchgradError, ModelError, one_line
from archgrad.functions_with_parts import bind, functions_of

Network = TypeVar("Network", bound=nn.Module)
_ATOMS = frozenset({
    int, float, str, bool, bytes, complex, type(None), type, types.FunctionType, types.BuiltinFunctionType,
    torch.dtype, torch.device, torch.jit.ScriptFunction,
})  # fmt: skip
_OWN = set(vars(nn.Module())) - {"_buffers"}  # attributes of every module, where no such tensors are


class Intercepted(TorchFunctionMode):
    """Inside, `handle(function, args, kwargs)` gives the result of every function of torch that a network calls."""

    def __init__(self, handle: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._handle = handle

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the handle returns."""
        return self._handle(func, args, kwargs or {})


@contextlib.contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Put every submodule back into the mode (train or eval) that it was in before the block."""
    modes = {module: getattr(module, "training", False) for module in network.modules()}  # frozen scripts have none
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; every submodule's mode is put back."""
    with modes_kept(network), torch.no_grad():
        network.eval()
        yield


def by_name(network: nn.Module, inputs: Sequence[Any]) -> dict[str, Any] | None:
    """The inputs as keywords: a lone dict whose names `forward` takes; None where they are given in order.

    `forward(self, input_ids, attention_mask=None)` takes the names of `{"input_ids": ...}`, as networks of Hugging
    Face do; `forward(self, batch)` takes the dict itself.
    """
    if len(inputs) != 1 or not isinstance(inputs[0], Mapping):
        return None
    try:
        inspect.signature(network.forward).bind(**inputs[0])
    except (TypeError, ValueError):
        return None
    return dict(inputs[0])


def call(network: nn.Module, inputs: Sequence[Any]) -> Any:
    """The network's output on its inputs, in order or by name."""
    named = by_name(network, inputs)
    return network(*inputs) if named is None else network(**named)


def run_on_example(network: nn.Module, inputs: Sequence[Any]) -> Any:
    """The network's output on inputs that are moved to where it lies; a failure becomes an error with the shapes.

    Raises:
        ModelError: the network fails on these inputs.
    """
    try:
        return call(network, beside(network, inputs))
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"{type(network).__name__} does not run on the example of {shapes(inputs)}: {one_line(error)}. Give the "
            f"tensors that its forward takes, as one tensor, a tuple in order, or a dict by name"
        ) from error


def beside(network: nn.Module, inputs: Sequence[Any]) -> Sequence[Any]:
    """The inputs, their tensors on the network's device; as they are where it has none, or several."""
    devices = {tensor.device for tensor in (*network.parameters(), *network.buffers())}
    if len(devices) != 1 or (device := devices.pop()).type == "meta":
        return inputs
    moved: Sequence[Any] = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
    return moved


def require_values(network: nn.Module) -> None:
    """Raise ModelError where a parameter or buffer is on the device meta, and so holds no values."""
    if absent := [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]:
        raise ModelError(
            f"{type(network).__name__} has tensors on the device meta, which hold no values: {', '.join(absent[:3])}"
            f". Make it on a device, or load its weights (load_state_dict(..., assign=True))"
        )


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state, without what its modules add by `get_extra_state` that is none."""
    return {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}


def is_plain(tensor: Tensor) -> bool:
    """Whether a file can hold it as it is, and its bytes say what it holds."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def put(module: nn.Module, path: str, value: Tensor) -> None:
    """Write into the parameter or buffer at a path; a buffer of another shape or type is replaced."""
    owner, _, name = path.rpartition(".")
    within = module.get_submodule(owner)
    there = within._buffers.get(name)
    if there is None and name in within._buffers:
        within._buffers[name] = value
    elif there is not None and (there.shape, there.dtype) != (value.shape, value.dtype):
        within._buffers[name] = value.to(there.device)
    else:
        with torch.no_grad():
            (within._parameters[name] if there is None else there).copy_(value)  # type: ignore[union-attr]


def shapes(nest: object) -> str:
    """The shapes of all tensors in a nest: "[2, 3, 8, 8], [2, 5]"."""
    return ", ".join(str(list(leaf.shape)) for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))


def in_mode(network: Network, *, training: bool = False) -> Network:
    """The network itself, in evaluation or training mode; a `train` of the user's may return nothing."""
    network.train(training)
    return network


def copied(network: Network, *, share: bool = False) -> Network:
    """A deep copy. Tensors with a gradient history, which torch does not copy, are copied without it.

    Such are the weights that `weight_norm` and `torch.nn.utils.prune` compute before each forward pass, and
    activations that a forward pass keeps as an attribute.

    Args:
        network: any network; it is left as it is.
        share: the copy has the same parameters, and copies of everything else.

    Raises:
        ModelError: something in the network cannot be copied.
    """
    attributes = [
        value for module in network.modules() for name, value in vars(module).items()
        if name not in _OWN and type(value) not in _ATOMS
    ]  # fmt: skip
    memo: dict[int, Any] = {
        id(leaf): leaf.detach().clone()
        for leaf in tree_leaves(attributes)
        if isinstance(leaf, Tensor) and leaf.requires_grad and not leaf.is_leaf
    }
    if share:
        memo |= {id(parameter): parameter for parameter in network.parameters()}
    twins, leading = functions_of(network)
    memo |= {id(function): twin for function, twin in twins.items()}
    try:
        made = _deep_copy(network, memo)
        for function, twin in twins.items():
            bind(function, twin, memo, leading)
        for mine, given in zip(made.modules(), network.modules(), strict=True):
            if isinstance(mine, torch.jit.ScriptModule):  # torch copies tensors in it with a gradient history
                for name, parameter in given.named_parameters(recurse=False):
                    value = getattr(mine, name).detach()
                    setattr(mine, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        return made
    except ArchgradError:
        raise
    except Exception as error:  # a user's __deepcopy__ may raise anything
        raise ModelError(
            f"{type(network).__name__} cannot be copied: {one_line(error)}. Take it (an open file, a lock, a "
            f"generator, a cached tensor) off the modules' attributes, or give their class a __deepcopy__"
        ) from error


def _deep_copy(network: Network, memo: dict[int, Any]) -> Network:
    """What `copy.deepcopy` makes, faster: most of what modules hold needs no copying."""
    modules = list(network.modules())
    kinds = {kind for kind in set(map(type, modules)) if _copies_plainly(kind)}
    plain = [m for m in modules if type(m) in kinds]
    for module in plain:  # all of them first, since they may refer to each other
        memo[id(module)] = type(module).__new__(type(module))
    order = {id(m): number for number, m in enumerate(plain)}
    mixed = {id(m) for m in plain if any(type(inner) not in kinds for inner in m.modules())}
    # Those inside come first, and before all others those that hold no module with a way of its own: such a way may
    # look into modules that stand elsewhere too.
    for module in sorted(plain, key=lambda m: (id(m) in mixed, -order[id(m)])):
        memo[id(module)].__setstate__({
            name: type(value)() if name in _OWN and not value and type(value) in (dict, OrderedDict)
            else memo.get(id(value), value) if type(value) in _ATOMS else _copy_value(value, memo)
            for name, value in vars(module).items() if name != "_compiled_call_impl"  # which calls the original
        })  # fmt: skip
    result: Network = copy.deepcopy(network, memo)
    for module in modules:
        if isinstance(module, fx.GraphModule) and isinstance(made := memo.get(id(module)), fx.GraphModule):
            # Its own way leaves out what its graph does not use, and keeps neither order nor which buffers are saved.
            for own in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
                vars(made)[own] = copy.deepcopy(vars(module)[own], memo)
            left_out = {n: v for n, v in vars(module).items() if n not in vars(made)}
            vars(made).update(copy.deepcopy(left_out, memo))
    return result


def _copies_plainly(kind: type) -> bool:
    """Whether copying a module is copying its attributes: its class has no other way, and no slots."""
    others = [vars(base) for base in kind.__mro__ if base not in (nn.Module, object)]
    ways = {name for own in others for name, value in own.items() if name != "__slots__" or value}
    return kind not in copyreg.dispatch_table and not ways & {
        "__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__",
        "__new__", "__slots__",
    }  # fmt: skip


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if id(value) in memo:
        return memo[id(value)]
    if kind in _ATOMS or (
        kind is tuple and _ATOMS.issuperset(map(type, value)) and memo.keys().isdisjoint(map(id, value))
    ):
        return value
    if kind is types.MethodType:
        return types.MethodType(memo.get(id(value.__func__), value.__func__), _copy_value(value.__self__, memo))
    if kind in (dict, OrderedDict):
        pairs = memo[id(value)] = kind()
        pairs.update((_copy_value(k, memo), _copy_value(v, memo)) for k, v in value.items())
        return pairs
    if kind is list:
        parts: list[Any] = []
        memo[id(value)] = parts
        parts.extend(_copy_value(v, memo) for v in value)
        return parts
    plain = kind is Tensor and value.is_leaf and value.layout is torch.strided and not vars(value)
    if plain and not (value.is_conj() or value.is_neg() or value.is_quantized or value.is_meta):
        storage = copy.deepcopy(value.untyped_storage(), memo)  # tensors that share memory share that of the copy
        tensor = torch.empty(0, dtype=value.dtype, device=value.device)
        tensor.set_(storage, value.storage_offset(), value.shape, value.stride())
        memo[id(value)] = tensor.requires_grad_(value.requires_grad)
        return tensor
    return copy.deepcopy(value, memo)

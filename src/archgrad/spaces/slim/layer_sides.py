"""The sides of a layer along which channels can be cut, and what of the layer is cut along each."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from archgrad.spaces.slim.recurrent import is_recurrent, recurrent_sides

# Names of attributes that count heads of attention, those of queries and those of keys and values.
_NUMBER = "_|n|nb|num|number|no|of|total|local|self|cross|attn|attention|encoder|decoder"
_OF_QUERIES = re.compile(rf"({_NUMBER}|q|query)*(n?heads?(_(num|count|q|query))?|h)")
_OF_KEYS = re.compile(rf"({_NUMBER}|k|v|kv|key|value)*(n?heads?(_(k|v|kv))?|(query|kv)_groups)")
LAYERS = (_ConvNd, nn.Linear)
NORMS = (_NormBase, nn.GroupNorm)
# Layers whose channels can be cut out with their integer attributes.
TABLES = (nn.Embedding, nn.EmbeddingBag)
CUTTABLE = (_ConvNd, nn.Linear, nn.Bilinear, _NormBase, nn.GroupNorm, nn.PReLU, *TABLES)
# Its inputs: (side, dimension of the weight, attribute).
BILINEAR = (("in first", 1, "in1_features"), ("in second", 2, "in2_features"))


def counting_heads(module: object) -> tuple[str, ...]:
    """Names of a module's own integers that count heads, of queries first; beside a `w`, an `h` is a height."""
    own = vars(module)
    names = [n for n, v in own.items() if isinstance(v, int) and not isinstance(v, bool)]
    of_queries = [n for n in names if _OF_QUERIES.fullmatch(n) and not (n == "h" and "w" in own)]
    return (*of_queries, *(n for n in names if _OF_KEYS.fullmatch(n) and n not in of_queries))


def has_sides(module: nn.Module) -> bool:
    """Whether the channels of this layer can be cut out with its integer attributes."""
    return isinstance(module, CUTTABLE) or is_recurrent(module) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """A linear layer with a weight [in, out], as Hugging Face's GPT-2 has."""
    if type(module).__name__ != "Conv1D":
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.shape[1:] == (getattr(module, "nf", 0),)


def is_layer(module: nn.Module) -> bool:
    """A linear layer or convolution."""
    return isinstance(module, LAYERS) or is_conv1d(module)


def reads_each(module: nn.Module) -> bool:
    """Whether it is a layer whose weight has a column for each channel that it reads."""
    return is_layer(module) and getattr(module, "groups", 1) == 1


def is_depthwise(module: nn.Module) -> bool:
    """A convolution with one filter for each channel."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels == module.out_channels > 1


def sides_of(module: nn.Module) -> tuple[str, ...]:
    """The sides of a layer: "out", and "in" where its weight has a column for each channel that it reads."""
    if is_recurrent(module):
        return tuple(recurrent_sides(module))
    if is_layer(module):
        return ("out",) if is_depthwise(module) else ("out", "in")
    if isinstance(module, nn.Bilinear):
        return ("out", *(side for side, _, _ in BILINEAR))
    return ("out",) if not isinstance(module, nn.PReLU) or module.num_parameters > 1 else ()


def cuts(module: nn.Module, side: str) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Which dimensions of which tensors, and which integer attributes, one side of a layer stands for."""
    if is_recurrent(module):
        return recurrent_sides(module)[side][1:]
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)
        if module.groups > 1:
            if side == "in":
                return ((("weight", 0),) if transposed else ()), ("in_channels",)
            depthwise = is_depthwise(module)
            counts = ("in_channels", "out_channels", "groups") if depthwise else ("out_channels", "groups")
            own = (("bias", 0),) if transposed and not depthwise else (("weight", 0), ("bias", 0))
            return own, counts
        if side == "in":
            return (("weight", 0 if transposed else 1),), ("in_channels",)
        return (("weight", 1 if transposed else 0), ("bias", 0)), ("out_channels",)
    if is_conv1d(module):
        columns = (("weight", 0),), tuple(n for n in ("nx",) if hasattr(module, n))
        return columns if side == "in" else ((("weight", 1), ("bias", 0)), ("nf",))
    if isinstance(module, nn.Bilinear) and side != "out":
        return next(((("weight", dim),), (count,)) for name, dim, count in BILINEAR if name == side)
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return (
            ((("weight", 1),), ("in_features",))
            if side == "in"
            else ((("weight", 0), ("bias", 0)), ("out_features",))
        )
    if isinstance(module, _NormBase):
        return tuple((n, 0) for n in ("weight", "bias", "running_mean", "running_var")), ("num_features",)
    if isinstance(module, nn.GroupNorm):
        return (("weight", 0), ("bias", 0)), ("num_channels", "num_groups")
    if isinstance(module, nn.PReLU):
        return (("weight", 0),), ("num_parameters",)
    assert isinstance(module, TABLES)
    return (("weight", 1),), ("embedding_dim",)


def width_of(module: nn.Module, side: str) -> int:
    """Channels of one side."""
    if is_recurrent(module):
        return recurrent_sides(module)[side][0]
    if is_conv1d(module):
        return int(module.weight.shape[side == "out"])  # type: ignore[index]
    names = tuple(count for name, _, count in BILINEAR if name == side)
    names = names or ("in_channels", "in_features") if side != "out" else (
        "out_channels", "out_features", "num_features", "num_channels", "num_parameters", "embedding_dim",
    )  # fmt: skip
    return next(int(getattr(module, name)) for name in names if hasattr(module, name))


def shapes_of(module: nn.Module, width: int) -> tuple[str, ...]:
    """Attributes of a module that are shapes for its own parameter of so many channels, as (64, 1, 1)."""
    return tuple(
        n for n, value in vars(module).items()
        if type(value) is tuple and all(isinstance(size, int) for size in value)
        and sorted(value) == [1] * (len(value) - 1) + [width]
    )  # fmt: skip

"""The multiply-adds of a module that has several weights, divided among them: recurrent layers, torch's attention."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from archgrad.choices.channels import Coupling
from archgrad.choices.spectral_norms import SpectralWeight


@contextlib.contextmanager
def attended(network: nn.Module) -> Iterator[dict[str, list[int]]]:
    """By path of torch's attention modules that run inside the block: places of queries, keys and values."""
    places: dict[str, list[int]] = {}
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):

            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                given = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs).arguments
                counts = [given[name].numel() // given[name].shape[-1] for name in ("query", "key", "value")]
                places[path] = [a + b for a, b in zip(counts, places.get(path, [0, 0, 0]), strict=True)]

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def by_weight(
    space: nn.Module, path: str, value: float, *, places: Sequence[float], parts: Mapping[str, float]
) -> Iterator[tuple[str, str, float]]:
    """The work of one module, in parts where each of its weights, or of the products that it computes, has own sides.

    Args:
        space: where it stands.
        path: of the module.
        value: its work.
        places: of queries, keys and values, if it is torch's attention module.
        parts: the shares of the products that it computes itself.
    """
    module = space.get_submodule(path)
    if isinstance(module, nn.MultiheadAttention) and places:
        fused = module._qkv_same_embed_dim
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        names = names if not fused else ("in_proj_weight queries", "in_proj_weight keys", "in_proj_weight values")
        inner = module.num_heads * module.head_dim
        weighted = [
            (path, n, k * inner * getattr(module, n.partition(" ")[0]).shape[1])
            for n, k in zip(names, places, strict=True)
        ]  # fmt: skip
        weighted.append((f"{path}.out_proj".lstrip("."), "weight", places[0] * module.out_proj.weight.numel()))
        yield from weighted
        products = {part: share for part, share in parts.items() if part.startswith("product ")}
        left = value - sum(part for _, _, part in weighted)
        yield from ((path, part, left * share) for part, share in products.items())
        yield path, "", left * (1.0 - sum(products.values()))
        return
    if isinstance(module, nn.Bilinear):
        yield path, "weight", value
        return
    if isinstance(module, SpectralWeight):  # u^T (W v)
        layer = path.rpartition("parametrizations.")[0].removesuffix(".")
        weight = space.get_parameter(f"{layer}.parametrizations.weight.original".lstrip("."))
        row = weight.numel() / weight.shape[module.how.dim]
        yield layer, "weight", value * row / (row + 1)
        yield layer, f"weight along {module.how.dim}", value / (row + 1)
        return
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        yield from ((path, part, value * share) for part, share in parts.items())
        yield path, "", value * max(1.0 - sum(parts.values()), 0.0)
        return
    weights = module._flat_weights_names if isinstance(module, nn.RNNBase) else ["weight_ih", "weight_hh"]
    sizes = {name: getattr(module, name).numel() for name in weights if name.startswith("weight")}
    for name, size in sizes.items():  # each is used once a step
        yield path, name, value * size / sum(sizes.values())


def concerns(member: Coupling, tensor: str, *, grouped: bool) -> bool:
    """Whether a side scales this tensor of its module, or (tensor "") the module's work.

    The work of a grouped convolution goes with its outputs alone: each reads the inputs of its own block.
    """
    if member.side == "branch":
        return True
    if member.work[0]:
        return tensor == member.work[0]
    if tensor and not tensor.startswith("product "):  # a product is in the module's work, which heads scale whole
        weight, _, part = tensor.partition(" ")  # of torch's attention: queries, keys or values of one weight
        if part.startswith("along "):
            return (weight, int(part.removeprefix("along "))) in member.tensors
        own = not part or member.side != "param channels"
        return own and any(attribute == weight for attribute, _ in member.tensors)
    # Of one weight, whose work is a term of its own, or where zeros are put back.
    elsewhere = member.side.startswith(("in ", "along "))
    return not (member.side.startswith("param") or elsewhere or (grouped and member.side == "in"))

"""The multiply-adds of a module that has several weights, divided among them: recurrent layers, torch's attention."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn


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
        names = ("in_proj_weight",) * 3 if fused else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        inner = module.num_heads * module.head_dim
        weighted = [(path, n, k * inner * getattr(module, n).shape[1]) for n, k in zip(names, places, strict=True)]
        weighted.append((f"{path}.out_proj".lstrip("."), "weight", places[0] * module.out_proj.weight.numel()))
        yield from weighted
        yield path, "", value - sum(part for _, _, part in weighted)
        return
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        yield from ((path, part, value * share) for part, share in parts.items())
        yield path, "", value * max(1.0 - sum(parts.values()), 0.0)
        return
    weights = module._flat_weights_names if isinstance(module, nn.RNNBase) else ["weight_ih", "weight_hh"]
    sizes = {name: getattr(module, name).numel() for name in weights if name.startswith("weight")}
    for name, size in sizes.items():  # each is used once a step
        yield path, name, value * size / sum(sizes.values())

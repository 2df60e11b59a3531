"""Caches of functions, to which numbers that know where they are from are what equals them."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from archgrad.spaces.slim.kept_sizes import AxisSize, KeptSize


@contextlib.contextmanager
def without_caches(network: nn.Module) -> Iterator[None]:
    """Inside, what `functools.lru_cache` wraps in the code of a network, and in einops, computes such numbers anew.

    To a cache a number is what equals it: it would give back those of another module, of another network even, as
    einops does with the sizes of `rearrange(x, "b n (h d) -> b h n d", h=self.heads)`.
    """
    rooms = {type(module).__module__.partition(".")[0] for module in network.modules()} - {"torch"} | {"einops"}
    owners: list[Any] = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in rooms and m]
    owners += [kind for room in owners for kind in vars(room).values() if isinstance(kind, type)]
    caches = [
        (owner, name, value) for owner in owners if not str(vars(owner).get("__module__")).startswith("torch.")
        for name, value in vars(owner).items() if isinstance(value, functools._lru_cache_wrapper)
    ]  # fmt: skip
    for owner, name, value in caches:
        setattr(owner, name, _past_numbers(value))
    try:
        yield
    finally:
        for owner, name, value in caches:
            setattr(owner, name, value)


def _past_numbers(cached: Any) -> Any:
    """The cached function, which computes anew where it is given numbers that know where they are from."""

    call: Any = functools.update_wrapper(
        lambda *args, **kwargs: (cached.__wrapped__ if _knows((args, kwargs)) else cached)(*args, **kwargs), cached
    )
    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(call, name, getattr(cached, name))
    return call


def _knows(value: object) -> bool:
    if isinstance(value, (tuple, list, frozenset)):
        return any(map(_knows, value))
    return any(map(_knows, value.values())) if isinstance(value, dict) else isinstance(value, (KeptSize, AxisSize))

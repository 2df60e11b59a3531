"""Candidates that are built when they are needed, for spaces with more candidates than fit into memory."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from archgrad.choices.modules import OpChoice
from archgrad.copy_and_run import copied
from archgrad.errors import ChoiceError

Space = TypeVar("Space", bound=nn.Module)


class Lazy(nn.Module):
    """A candidate that is built from its factory when a method needs it.

    Every method takes spaces with such candidates. `archgrad.radars` builds few of them at a time; the others build
    all of them at the start.

    Args:
        factory: makes the module, with fresh weights, each time it is called.

    Raises:
        ChoiceError: the factory cannot be called.

    Example:
        >>> import torch, archgrad as ag
        >>> conv = lambda kernel: torch.nn.Conv2d(8, 8, kernel, padding=kernel // 2)
        >>> space = ag.OpChoice({f"k{k}": ag.Lazy(lambda k=k: conv(k)) for k in range(1, 257, 2)}, name="layer")
        >>> ag.build(space, ag.Architecture({"layer": 1}))
        Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(self, factory: Callable[[], nn.Module]) -> None:
        super().__init__()
        if not callable(factory) or isinstance(factory, nn.Module):
            raise ChoiceError(
                f"Lazy was given a {type(factory).__name__}; give a function without arguments that makes the module"
            )
        self.factory = factory

    def build(self, *, seed: int | None = None) -> nn.Module:
        """The module, its weights drawn from a seed (the global random state stays as it is) or the global state.

        Raises:
            ChoiceError: the factory returned no module.
        """
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            module: object = self.factory()
        if not isinstance(module, nn.Module):
            raise ChoiceError(f"the factory of a Lazy returned a {type(module).__name__}; it has to return a module")
        return module

    def forward(self, *inputs: object) -> NoReturn:
        """Raises ChoiceError: the candidate is not built yet."""
        raise ChoiceError(
            "a Lazy candidate was run before it was built; call archgrad.choices.lazy_candidates.built(space)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Lazy:
        # What the factory refers to is shared by the copies.
        return Lazy(self.factory)


def built(space: Space) -> Space:
    """Replace every live `Lazy` candidate by its module. In place; returns the space."""
    for module in list(space.modules()):
        if isinstance(module, OpChoice):
            for i in module.live.nonzero().flatten().tolist()[: len(module.candidates)]:
                candidate = module.candidates[i]
                if isinstance(candidate, Lazy):
                    module.candidates[i] = candidate.build().to(module.live.device)
    return space


def emptied(space: Space) -> Space:
    """A copy of a space in which every candidate is a `Lazy` one that copies the original; nothing else is copied."""
    memo: dict[int, Any] = {}
    for module in space.modules():
        for candidate in module.candidates if isinstance(module, OpChoice) else ():
            if not isinstance(candidate, Lazy):
                memo[id(candidate)] = Lazy(functools.partial(copied, candidate))
    return copy.deepcopy(space, memo)

"""Candidates that are built when they are needed: for spaces with more of them than fit into memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from archgrad.choices.modules import OpChoice
from archgrad.errors import ChoiceError

Space = TypeVar("Space", bound=nn.Module)


class Lazy(nn.Module):
    """A candidate that is only a recipe until it is built.

        OpChoice({f"k{k}": Lazy(lambda k=k: conv(k)) for k in range(1, 257, 2)}, name="layer 1")

    Args:
        factory: makes the module, with fresh weights, each time it is called.

    Every method takes such spaces; `archgrad.radars` alone builds few of the candidates at a time.

    Raises:
        ChoiceError: the factory cannot be called.
    """

    def __init__(self, factory: Callable[[], nn.Module]) -> None:
        super().__init__()
        if not callable(factory) or isinstance(factory, nn.Module):
            raise ChoiceError(
                f"Lazy was given a {type(factory).__name__}; give a function without arguments that makes the module"
            )
        self.factory = factory

    def build(self, *, seed: int | None = None) -> nn.Module:
        """The module: with weights drawn by the seed, the global random state left alone, or else by that state.

        Raises:
            ChoiceError: the factory returned no module.
        """
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            made: object = self.factory()
        if not isinstance(made, nn.Module):
            raise ChoiceError(f"the factory of a Lazy returned a {type(made).__name__}; it has to return a module")
        return made

    def forward(self, *inputs: object) -> NoReturn:
        """Raises ChoiceError: there is nothing to run yet."""
        raise ChoiceError("a Lazy candidate was run before it was built; call archgrad.choices.lazy.built(space)")

    def __deepcopy__(self, memo: dict[int, Any]) -> Lazy:
        # What a recipe holds on to is not copied with it.
        return Lazy(self.factory)


def built(space: Space) -> Space:
    """Put the module in the place of every `Lazy` candidate that is alive. In place; returns the space."""
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
                memo[id(candidate)] = Lazy(_copier(candidate))
    return copy.deepcopy(space, memo)


def _copier(candidate: nn.Module) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(candidate)

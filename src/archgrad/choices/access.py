"""Reach the choices of any `nn.Module`: relax, hold, restrict, sample; its logits and its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import Choice
from archgrad.choices.relaxations import GumbelSoftmax, Held
from archgrad.errors import ArchitectureError, ChoiceError
from archgrad.networks import copied

Space = TypeVar("Space", bound=nn.Module)


def choices(space: nn.Module) -> dict[str, list[Choice]]:
    """All choices by name, in the order they stand in the network; one name is one decision.

    Raises:
        ChoiceError: two choices of one name differ in kind, size or candidates.
    """
    found: dict[str, list[Choice]] = {}
    for module in space.modules():
        if isinstance(module, Choice):
            found.setdefault(module.name, []).append(module)
    for name, same in found.items():
        kinds = dict.fromkeys((type(c).__name__, c.size, *getattr(c, "labels", ())) for c in same)
        if len(kinds) > 1:
            listed = "; ".join(f"{kind} of {size} {list(labels) or ''}".strip() for kind, size, *labels in kinds)
            raise ChoiceError(
                f"choices named {name!r} are one decision, but differ: {listed}; give them different names, or the "
                f"same candidates (where these differ in class alone, label them: OpChoice({{label: module}}))"
            )
    return found


def relax(
    space: Space, relaxation: Callable[[int], nn.Module], *, where: Callable[[Choice], bool] | None = None
) -> Space:
    """Give every choice a relaxation; choices of one name share one. In place; returns the space.

    Args:
        space: any network that contains choices.
        relaxation: from a choice's size to its relaxation module, for instance `archgrad.softmax`.
        where: which choices; default: all.

    Raises:
        ChoiceError: the network has no choice.
    """
    found = choices(space)
    if not found:
        raise ChoiceError(
            f"{type(space).__name__} has no choice to relax; put OpChoice, InputChoice or Gate modules in it, "
            f"or gate an ordinary network with archgrad.slim"
        )
    for same in found.values():
        if where is not None and not where(same[0]):
            continue
        shared = relaxation(same[0].size).to(same[0].live.device)
        for choice in same:
            choice.relaxation = shared
    return space


def draw(space: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """New noise for every relaxation that has some (`archgrad.gumbel_softmax`): call it once a step."""
    drawn: set[nn.Module] = set()
    for choice, *_ in choices(space).values():
        relaxation = choice.relaxation
        if isinstance(relaxation, GumbelSoftmax) and relaxation not in drawn:
            drawn.add(relaxation)
            relaxation.draw(generator)


@contextlib.contextmanager
def using(space: nn.Module, given: Mapping[str, Tensor]) -> Iterator[None]:
    """Mix by these weights inside the block, in place of the relaxations'.

    Args:
        space: any network that contains choices.
        given: for each choice, [size], or [B, size]: a row for each example of the batch. Candidates of weight 0
            are not run where the weights have no gradient.

    Raises:
        ChoiceError: no such choice, or weights of another size.
    """
    found = choices(space)
    _refuse_absent(found, given)
    for name, weights in given.items():
        if weights.shape[-1:] != (found[name][0].size,) or weights.dim() > 2:
            raise ChoiceError(
                f"choice {name!r} has {found[name][0].size} entries, the weights given have shape "
                f"{tuple(weights.shape)}; allowed are [size] and [B, size]"
            )
    reached = [(choice, weights) for name, weights in given.items() for choice in found[name]]
    before = [choice.override for choice, _ in reached]
    try:
        for choice, weights in reached:
            choice.override = weights
        yield
    finally:
        for (choice, _), earlier in zip(reached, before, strict=True):
            choice.override = earlier


def hold(space: Space, architecture: Architecture) -> Space:
    """A copy of the space that computes this architecture alone; the space itself is not changed.

    Raises:
        ArchitectureError: the architecture names other choices than the space has, or picks what is not there.
    """
    held = copied(space)
    for name, same in matched(held, architecture).items():
        kept = same[0].picked(architecture[name]).to(same[0].live.device)
        for choice in same:
            choice.relaxation, choice.override = Held(kept), None
            choice.live = choice.live & kept
    return held


def matched(space: nn.Module, architecture: Architecture) -> dict[str, list[Choice]]:
    """`choices(space)`, once it is sure that the architecture has a pick for each and for no other.

    Raises:
        ArchitectureError: names are missing, or belong to another space.
    """
    found = choices(space)
    missing = [name for name in found if name not in architecture]
    foreign = [name for name in architecture if name not in found]
    if missing or foreign:
        raise ArchitectureError(
            f"the architecture is for another space: it lacks {missing[:5]} ({len(missing)} in all) and has "
            f"{foreign[:5]} ({len(foreign)}) that the space does not know; use the space that it was found in"
        )
    for name, (choice, *_) in found.items():
        dead = choice.picked(architecture[name]).to(choice.live.device) & ~choice.live
        if bool(dead.any()):
            raise ArchitectureError(
                f"choice {name!r}: the pick {architecture[name]!r} names {dead.nonzero().flatten().tolist()[:5]}, "
                f"which the space no longer has; alive are {choice.live.nonzero().flatten().tolist()[:10]}"
            )
    return found


def restrict(space: nn.Module, support: Mapping[str, Sequence[int] | Tensor]) -> None:
    """Narrow choices to part of their live candidates, in place; what is dead stays dead.

    Args:
        space: any network that contains choices.
        support: for each choice the indices that may live on, or a [size] bool mask.

    Raises:
        ChoiceError: no such choice, an index out of range, or nothing left alive.
    """
    found = choices(space)
    _refuse_absent(found, support)
    alive = {name: found[name][0].live & _mask(found[name][0], allowed) for name, allowed in support.items()}
    for name, mask in alive.items():  # all are looked at before any is narrowed
        if not bool(mask.any()):
            raise ChoiceError(f"choice {name!r}: nothing would be left alive; leave at least one candidate")
    for name, mask in alive.items():
        for choice in found[name]:
            choice.live.copy_(mask)


def _refuse_absent(found: Mapping[str, object], named: Iterable[str]) -> None:
    absent = [name for name in named if name not in found]
    if absent:
        raise ChoiceError(f"no choice is named {absent[0]!r}; there are {sorted(found)[:10]}")


def _mask(choice: Choice, allowed: Sequence[int] | Tensor) -> Tensor:
    """[size] bool on the choice's device."""
    if isinstance(allowed, Tensor) and allowed.dtype == torch.bool:
        if allowed.shape != (choice.size,):
            raise ChoiceError(
                f"choice {choice.name!r}: the mask has shape {tuple(allowed.shape)}, not ({choice.size},)"
            )
        return allowed.to(choice.live.device)
    indices = [int(i) for i in allowed]
    if any(not 0 <= i < choice.size for i in indices):
        raise ChoiceError(f"choice {choice.name!r} has candidates 0 to {choice.size - 1}; given {indices}")
    mask = torch.zeros(choice.size, dtype=torch.bool, device=choice.live.device)
    mask[indices] = True
    return mask


def sample(space: nn.Module, *, generator: torch.Generator | None = None) -> Architecture:
    """A random architecture of the space, each choice drawn on its own from its live candidates.

    Raises:
        ChoiceError: the network has no choice.
    """
    found = choices(space)
    if not found:
        raise ChoiceError(f"{type(space).__name__} has no choice to sample")
    return Architecture({name: same[0].sampled(generator) for name, same in found.items()})


def logits(network: nn.Module) -> list[nn.Parameter]:
    """The architecture parameters of any network that contains a space, each once."""
    found = (c.relaxation for same in choices(network).values() for c in same if c.relaxation is not None)
    return list(dict.fromkeys(p for relaxation in found for p in relaxation.parameters()))


def weights(network: nn.Module) -> list[nn.Parameter]:
    """All parameters that are not architecture parameters, each once."""
    architecture = set(logits(network))
    return [p for p in network.parameters() if p not in architecture]


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Of the `weights` those that are not frozen, that is, that require a gradient."""
    return [p for p in weights(network) if p.requires_grad]

"""Reach the choices of any `nn.Module`: relax, hold, restrict, sample; its logits and its weights."""

from __future__ import annotations

import contextlib
import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked, noted
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import Choice
from archgrad.choices.relaxations import GumbelSoftmax, Held, read_together
from archgrad.copy_and_run import copied
from archgrad.errors import ArchitectureError, ChoiceError, ModelError

Space = TypeVar("Space", bound=nn.Module)


def choices(space: nn.Module) -> dict[str, list[Choice]]:
    """All choices by name, in the order they stand in the network; one name is one decision.

    Raises:
        ModelError: this is no network.
        ChoiceError: two choices of one name differ in kind, size or candidates.
    """
    if not isinstance(space, nn.Module):
        raise ModelError(f"a network with choices is a torch.nn.Module; given was a {type(space).__name__}")
    by_name: dict[str, list[Choice]] = {}
    for module in space.modules():
        if isinstance(module, Choice):
            by_name.setdefault(module.name, []).append(module)
    for name, namesakes in by_name.items():
        kinds = dict.fromkeys((type(c).__name__, c.size, *getattr(c, "labels", ())) for c in namesakes)
        if len(kinds) > 1:
            listed = "; ".join(f"{kind} of {size} {list(labels) or ''}".strip() for kind, size, *labels in kinds)
            raise ChoiceError(
                f"choices named {name!r} are one decision, but differ: {listed}; give them different names, or the "
                f"same candidates (where these differ in class alone, label them: OpChoice({{label: module}}))"
            )
    return by_name


def decisions(space: nn.Module) -> dict[str, Choice]:
    """The first choice of each name, in the order they stand in the network; raises as `choices`."""
    return {name: namesakes[0] for name, namesakes in choices(space).items()}


@checked
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

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer")
        >>> ag.relax(space, ag.softmax)(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """
    by_name = choices(space)
    if not by_name:
        raise ChoiceError(
            f"{type(space).__name__} has no choice to relax; put OpChoice, InputChoice or Gate modules in it, "
            f"or gate an ordinary network with archgrad.slim"
        )
    for first, *others in by_name.values():
        if where is None or where(first):
            with noted(f"relaxation({first.size}), from a choice's size to its relaxation"):
                shared = relaxation(first.size)
            if not isinstance(shared, nn.Module):
                raise ChoiceError(
                    f"relaxation({first.size}) gave a {type(shared).__name__}. Allowed is a function from a choice's "
                    f"size to a module, such as archgrad.softmax"
                )
            shared = shared.to(first.live.device)
            for choice in (first, *others):
                choice.relaxation = shared
    return space


@checked
def draw(space: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """New noise for every relaxation that has some (`archgrad.gumbel_softmax`): call it once a step.

    Args:
        space: relaxed.
        generator: on the CPU; default: torch's own.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer")
        >>> space = ag.relax(space, ag.gumbel_softmax)
        >>> ag.draw(space, generator=torch.Generator().manual_seed(0))
        >>> bool(space.relaxation.noise.any())
        True
    """
    for relaxation in dict.fromkeys(choice.relaxation for choice in decisions(space).values()):
        if isinstance(relaxation, GumbelSoftmax):
            relaxation.draw(generator)


@contextlib.contextmanager
def using(space: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Mix by these weights inside the block, in place of the relaxations'.

    Args:
        space: any network that contains choices.
        weights: for each choice, [size], or [B, size]: a row for each example of the batch. Candidates of weight 0
            are not run where the weights have no gradient.

    Raises:
        ChoiceError: no such choice, or weights of another size.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer")
        >>> with ag.using(space, {"layer": torch.tensor([0.0, 1.0])}):
        ...     print(space(torch.ones(1, 4)))
        tensor([[1., 1., 1., 1.]])
    """
    by_name = choices(space)
    _refuse_absent(by_name, weights)
    for name, row in weights.items():
        size = by_name[name][0].size
        if not isinstance(row, Tensor):
            raise ChoiceError(f"choice {name!r} is given a {type(row).__name__}; weights are a tensor [{size}]")
        if row.shape[-1:] != (size,) or row.dim() > 2:
            raise ChoiceError(
                f"choice {name!r} has {size} entries, the weights given have shape {tuple(row.shape)}; allowed are "
                f"[size] and [B, size]"
            )
    read_together([row for row in weights.values() if not row.requires_grad])
    overridden = [(choice, choice.override, row) for name, row in weights.items() for choice in by_name[name]]
    try:
        for choice, _, row in overridden:
            choice.override = row
        yield
    finally:
        for choice, before, _ in overridden:
            choice.override = before


@checked
def hold(space: Space, architecture: Architecture) -> Space:
    """A copy of the space that computes this architecture alone; the space itself is not changed.

    Args:
        space: any network that contains choices.
        architecture: a pick for each of them.

    Raises:
        ArchitectureError: the architecture names other choices than the space has, or picks what is not there.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer")
        >>> ag.hold(space, ag.Architecture({"layer": 1}))(torch.ones(1, 4))
        tensor([[1., 1., 1., 1.]])
    """
    held = copied(space)
    for name, namesakes in matched(held, architecture).items():
        kept = namesakes[0].picked(architecture[name]).to(namesakes[0].live.device)
        for choice in namesakes:
            choice.relaxation, choice.override = Held(kept), None
            choice.live = choice.live & kept
    return held


def matched(space: nn.Module, architecture: Architecture) -> dict[str, list[Choice]]:
    """`choices(space)`, where the architecture has a live pick for each and for no other.

    Raises:
        ArchitectureError: names are missing, or belong to another space, or a pick is dead.
    """
    by_name = choices(space)
    missing = [name for name in by_name if name not in architecture]
    foreign = [name for name in architecture if name not in by_name]
    if missing or foreign:
        near = {name: _near(name, missing) for name in foreign[:5]}
        meant = "".join(f"; did you mean {right!r} by {name!r}?" for name, right in near.items() if right)
        raise ArchitectureError(
            f"the architecture is for another space: it lacks {missing[:5]} ({len(missing)} in all) and has "
            f"{foreign[:5]} ({len(foreign)}) that the space does not know"
            + (meant or "; use the space that it was found in")
        )
    for name, (choice, *_) in by_name.items():
        dead = choice.picked(architecture[name]).to(choice.live.device) & ~choice.live
        if bool(dead.any()):
            raise ArchitectureError(
                f"choice {name!r}: the pick {architecture[name]!r} names {dead.nonzero().flatten().tolist()[:5]}, "
                f"which the space no longer has; alive are {choice.live.nonzero().flatten().tolist()[:10]}"
            )
    return by_name


@checked
def restrict(space: nn.Module, support: Mapping[str, Sequence[int] | Tensor]) -> None:
    """Narrow choices to some of their live candidates, in place; dead candidates stay dead.

    Args:
        space: any network that contains choices.
        support: for some choices the indices that stay alive, or a mask [size] bool.

    Raises:
        ChoiceError: no such choice, an index out of range, or nothing left alive; no choice is narrowed then.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Identity()], name="layer")
        >>> ag.restrict(space, {"layer": [0, 2]})
        >>> space.live
        tensor([ True, False,  True])
    """
    by_name = choices(space)
    _refuse_absent(by_name, support)
    alive = {name: by_name[name][0].live & _mask(by_name[name][0], allowed) for name, allowed in support.items()}
    for name, mask in alive.items():
        if not bool(mask.any()):
            raise ChoiceError(f"choice {name!r}: nothing would be left alive; leave at least one candidate")
        least = getattr(by_name[name][0], "fewest", 0)
        if int(mask.sum()) < least:
            raise ChoiceError(
                f"choice {name!r} keeps {least} inputs, and {int(mask.sum())} would be left alive; leave {least}"
            )
    for name, mask in alive.items():
        for choice in by_name[name]:
            choice.live.copy_(mask)


def _near(name: str, names: Iterable[str]) -> str:
    """The name that is most like one that is not there; empty where none is."""
    return next(iter(difflib.get_close_matches(name, [*names], n=1)), "")


def _refuse_absent(by_name: Mapping[str, object], named: Mapping[str, object]) -> None:
    if not isinstance(named, Mapping):
        raise ChoiceError(f"a dict by the names of choices is needed; given was a {type(named).__name__}")
    absent = [name for name in named if name not in by_name]
    if absent:
        near = _near(str(absent[0]), by_name)
        meant = f". Did you mean {near!r}?" if near else ""
        raise ChoiceError(f"no choice is named {absent[0]!r}; there are {sorted(by_name)[:10]}{meant}")


def _mask(choice: Choice, allowed: Sequence[int] | Tensor) -> Tensor:
    """[size] bool on the choice's device."""
    if isinstance(allowed, Tensor) and allowed.dtype == torch.bool:
        if allowed.shape != (choice.size,):
            raise ChoiceError(
                f"choice {choice.name!r}: the mask has shape {tuple(allowed.shape)}, not ({choice.size},)"
            )
        return allowed.to(choice.live.device)
    given = allowed.reshape(-1).tolist() if isinstance(allowed, Tensor) else list(allowed)
    if given and all(type(i).__name__ in ("bool", "bool_") for i in given):
        return _mask(choice, torch.tensor([bool(i) for i in given]))
    indices = [operator.index(i) for i in given if hasattr(i, "__index__") and 0 <= i < choice.size]
    if len(indices) < len(given):
        raise ChoiceError(f"choice {choice.name!r} has candidates 0 to {choice.size - 1}, by index; given {given}")
    mask = torch.zeros(choice.size, dtype=torch.bool, device=choice.live.device)
    mask[indices] = True
    return mask


@checked
def sample(space: nn.Module, *, generator: torch.Generator | None = None) -> Architecture:
    """A random architecture of the space, each choice drawn on its own from its live candidates.

    Args:
        space: any network that contains choices.
        generator: on the CPU; default: torch's own.

    Raises:
        ChoiceError: the network has no choice.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer")
        >>> ag.sample(space, generator=torch.Generator().manual_seed(0))
        Architecture({'layer': 0})
    """
    one_by_name = decisions(space)
    if not one_by_name:
        raise ChoiceError(f"{type(space).__name__} has no choice to sample")
    return Architecture({name: choice.sampled(generator) for name, choice in one_by_name.items()})


def logits(network: nn.Module) -> list[nn.Parameter]:
    """The architecture parameters of any network that contains a space, each once.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.relax(ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer"), ag.softmax)
        >>> ag.logits(space)
        [Parameter containing:
        tensor([0., 0.], requires_grad=True)]
    """
    relaxations = (
        c.relaxation for namesakes in choices(network).values() for c in namesakes if c.relaxation is not None
    )
    return list(dict.fromkeys(p for relaxation in relaxations for p in relaxation.parameters()))


def weights(network: nn.Module) -> list[nn.Parameter]:
    """All parameters that are not architecture parameters, each once.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.relax(ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer"), ag.softmax)
        >>> [tuple(p.shape) for p in ag.weights(space)]
        [(4, 4), (4,)]
    """
    architecture = set(logits(network))
    return [p for p in network.parameters() if p not in architecture]


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Those of the `weights` that require a gradient."""
    return [p for p in weights(network) if p.requires_grad]

"""What the work and the weights of a module are multiplied by where it stands inside candidates.

in one place       a product of mixing weights, one of each choice around it; a sum of such where the module that
                   runs it says so (`mixing_terms`)
in several places  its work runs on each of them by itself. Its weights are there where any of them is:
                   1 - prod over places of (1 - product), where places that differ in the candidate of one choice
                   alone are summed first. Exact at whole weights, and in the mean over independent draws where
                   no two of the products left name a choice in common
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from archgrad.choices.modules import Choice, InputChoice

# The entries of which one has to be picked: by choice, and by entry too where a choice picks several.
Product = dict[tuple[Choice, int | None], frozenset[int]]


class Term(NamedTuple):
    """A part of a cost at full width.

    Attributes:
        path: the first of the module that it belongs to.
        tensor: of that module, or "" for the module's work.
        amount: at full width.
        callers: paths of modules that run it where it is shared.
        places: all paths on which it is this part; () for its first.
    """

    path: str
    tensor: str
    amount: float
    callers: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


def products(space: nn.Module, path: str) -> list[Product]:
    """A sum of products of mixing weights: what the work of the module at `path` is multiplied by."""
    found: list[Product] = [{}]
    parts = path.split(".") if path else []
    for i in range(len(parts)):
        terms = getattr(space.get_submodule(".".join(parts[:i])), "mixing_terms", None)
        if callable(terms):
            found = [
                product for a, b in itertools.product(found, terms(".".join(parts[i:]))) for product in _and(a, b)
            ]
    return found


def _and(product: Product, term: Iterable[tuple[Choice, int]]) -> list[Product]:
    """Both at once; none where they need different candidates of one choice."""
    both = dict(product)
    for choice, entry in term:
        key = choice, entry if isinstance(choice, InputChoice) and choice.keep > 1 else None
        both[key] = both.get(key, frozenset([entry])) & {entry}
    return [both] if all(both.values()) else []


def is_alive(space: nn.Module, path: str) -> bool:
    """Whether all that the module at `path` needs to be picked can still be picked."""
    found = products(space, path)
    return any(all(bool(choice.live[[*entries]].any()) for (choice, _), entries in p.items()) for p in found)


def in_any(space: nn.Module, paths: Iterable[str]) -> list[Product]:
    """Products of which one or more are 1 where what stands at several paths is there; [{}] where it always is."""
    found: list[Product] = []
    for product in (p for path in paths for p in products(space, path)):
        if not product:
            return [{}]
        while (merged := next((m for m in (_merged(product, other) for other in found) if m), None)) is not None:
            other, product = merged
            found.remove(other)
        found.append(product)
    return found


def _merged(product: Product, other: Product) -> tuple[Product, Product] | None:
    """The other, and both in one: one needs no more than the other, or they differ in one choice of one pick."""
    if product.keys() == other.keys():
        differ = [key for key in product if product[key] != other[key]]
        if len(differ) < 2:
            return other, {key: entries | other[key] for key, entries in product.items()}
    for few, many in ((product, other), (other, product)):
        if few.keys() < many.keys() and all(many[key] <= few[key] for key in few):
            return other, few
    return None


def enclosing_shared(space: nn.Module) -> dict[str, list[str]]:
    """By the first path of each module that stands in several places: what all of these are in, "" among others."""
    places: dict[nn.Module, list[str]] = {}
    for path, module in space.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(path)
    enclosing = {}
    for path, *others in places.values():
        parts = path.split(".")
        around = ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))] if others else []
        enclosing[path] = [a for a in around if not a or all(f"{other}.".startswith(f"{a}.") for other in others)]
    return {path: around for path, around in enclosing.items() if around}

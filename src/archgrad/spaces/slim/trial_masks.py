"""What a trial leaves of each gate: some channels, the extremes, and networks without some of their branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch

from archgrad.choices.channels import Vanishing

MASKS = ("random", "one", "every second", "all but one", "smallest")
# Random entries of the gates whose number among those of their size has this bit, 1 or 0, and all of the rest.
HALVES = {"odd gates": (0, 1), "even gates": (0, 0), "every other two": (1, 1), "every other four": (2, 1)}

# No branch. Of the gates of one size each keeps another number, so that what stands in for a branch is as wide as its
# output by no chance; or random entries of the gates whose number has this bit, 0 or 1, and all of the rest.
BRANCHLESS = {"no branches": None, "no branches, other ones": (0, 0), "no branches, other two": (1, 0)}


class Removable(Protocol):
    """What a gate can remove: so many entries, or a branch."""

    @property
    def name(self) -> str:
        """Of the gate."""

    @property
    def size(self) -> int:
        """Number of entries."""

    @property
    def vanishing(self) -> Vanishing | None:
        """For a branch, what stays without it."""


def kept_entries(removals: Sequence[Removable], mask: str) -> dict[str, list[int]]:
    """The entries of each gate that stay.

    Branches all stay at first, then go by halves, and all at once. Where they go, no two gates of one size
    keep as many channels as far as that is possible, so that what stands in for a branch shows its width. Where half
    of the gates are open, what one gate removes is seen past others that would hide it: a norm of the one channel
    that is left puts out the same whatever it reads. Of two gates of one size, some half closes one alone, so that
    numbers that have to be equal are found.

    Args:
        removals: one gate each.
        mask: "random" entries, "one", "every second", "all but one", of everything the "smallest" network, one of the
            halves, or one of those without branches.
    """
    generator = torch.Generator().manual_seed((*MASKS, *HALVES, *BRANCHLESS).index(mask))
    fewer = any(r.vanishing for r in removals) and mask in ("every second", "all but one")
    alike: Counter[int] = Counter()  # gates so far, by size
    kept: dict[str, list[int]] = {}
    branches = 0
    for removal in removals:
        size, name = removal.size, removal.name
        if removal.vanishing:
            branches += 1
            goes = {"every second": branches % 2 == 0, "all but one": branches % 2 == 1, "smallest": True}
            kept[name] = [] if goes.get(mask, mask in BRANCHLESS) else [0]
            continue
        order = torch.randperm(size, generator=generator)
        fewest = min(2, max(size - 1, 1))
        some = int(torch.randint(fewest, max(size, fewest + 1), (), generator=generator))
        count = {"random": some, "all but one": max(size - 1, 1)}.get(mask, 1)
        if mask in HALVES:
            bit, value = HALVES[mask]
            count = some if alike[size] >> bit & 1 == value else size
        if mask in BRANCHLESS:
            bits = BRANCHLESS[mask]
            count = size - alike[size] % size
            count = count if bits is None else some if alike.total() >> bits[0] & 1 == bits[1] else size
        entries = list(range(0, size, 2)) if mask == "every second" else sorted(order[:count].tolist())
        less = alike[size] % -(-len(entries) // 2) if fewer else 0
        alike[size] += 1
        kept[name] = entries[: len(entries) - less]
    return kept

"""What to write where a network does not run without channels, since its forward has a number of them written in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

NUMBERS = "where forward takes sizes, or groups=, from numbers, take them from tensors (x.shape[1])"
RESHAPED = (
    "where a reshape takes a width from another tensor or a number, as (B, N, C) behind attention, write -1, and "
    "x.size(0) for a batch that was -1"
)
_VIEW = re.compile(r"shape '\[-?\d+, ([\d, ]+)\]' is invalid for input of size")
_UNFLATTEN = re.compile(r"unflatten: Provided sizes \[([\d, ]+)\] don't multiply up")


def advice_on(error: BaseException) -> str:
    """What would help a network that raised this without some of its channels."""
    text = str(error)
    view, unflatten = _VIEW.search(text), _UNFLATTEN.search(text)
    if found := view or unflatten:
        channels, *places = map(int, found[1].split(", "))
        # Maps of each channel, [C, h, h]: in [N, heads, channels] or [h, h, C] the first is no number of channels.
        if len(places) > 1 and {*places} != {channels} and len({*places}) == 1:
            return _open(channels, places)
    return RESHAPED if view or "is invalid for input of size" in text else NUMBERS


def _open(channels: int, places: Sequence[int]) -> str:
    rest = ", ".join(map(str, places))
    return (
        f"forward has their number, {channels}, written into a reshape, where nothing can change it: write "
        f"x.view(x.size(0), -1, {rest}) or x.unflatten(1, (-1, {rest})), which leave it open, or keep it as an "
        f"attribute, x.view(-1, self.channels, {rest}), or in a module torch.nn.Unflatten(1, ({channels}, {rest})), "
        f"where it shrinks along"
    )


def of_outputs(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> str:
    """Why outputs without some channels have other shapes."""
    if any(a.dim() and b.dim() and len(a) != len(b) for a, b in zip(expected, actual, strict=False)):
        return (
            "without some of its channels the network puts out another number of examples: a reshape in forward has "
            f"the number of channels written into it, and leaves the batch open; {RESHAPED}"
        )
    return "its channels reach the network's output"

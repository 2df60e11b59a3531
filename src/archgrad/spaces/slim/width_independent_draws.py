"""Random draws that do not depend on how many channels there are, so that two widths can be compared in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from archgrad.spaces.slim.seeded_run import OperatorMode, reseed


class AlignedDraws(OperatorMode):  # type: ignore[no-untyped-call]
    """Replace what a network draws at random.

    Whatever is dropped with a probability stays; other draws are one number for each example of the batch, the same
    in every run and for every draw, however many others were made before it. So a random layer computes the same on
    the channels that two networks have in common, and behind a module that one of them does without.
    """

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; if it draws, from a fresh stream, and even its draws out."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        reseed(1)
        name = func._schema.name.partition("::")[2]
        outputs = func(*args, **kwargs)
        if name == "native_dropout":
            x, mask = args[0], outputs[1]
            return x.clone(), torch.ones_like(mask)
        if isinstance(outputs, Tensor):
            if name.startswith(("bernoulli", "dropout")):
                outputs.fill_(1) if name.startswith("bernoulli") else outputs.copy_(args[0])
            elif outputs.is_floating_point() and outputs.dim() and outputs.numel():
                first = outputs.reshape(outputs.shape[0], -1)[:, :1] if outputs.dim() > 1 else outputs.reshape(-1)[:1]
                outputs.copy_(first.reshape(-1, *[1] * (outputs.dim() - 1)).expand_as(outputs).clone())
        return outputs

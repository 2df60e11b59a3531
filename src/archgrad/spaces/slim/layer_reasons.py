"""Why a layer has no gate that has to stay, that nothing reads, or that does not run at all on the example."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping

from torch import Tensor

from archgrad.spaces.slim.numbering import Numbering

KEPT = "kept at your wish (keep=)"
UNREAD = "no layer whose inputs can be gated reads its channels"


def say_what_does_not_run(frozen: MutableMapping[str, str], numbering: Numbering, visited: Collection[str]) -> None:
    """Put that reason in `frozen` for layers that were not `visited`."""
    for path in frozen.keys() - set(visited):
        used = any(True for _ in numbering.modules[path].children())
        if not used and frozen[path] == UNREAD:
            frozen[path] = f"it does not run on the example; {_kept_tensors(numbering)}"


def _kept_tensors(numbering: Numbering) -> str:
    """What may keep a layer from running: activations that the network remembers."""
    kept = [
        f"{path}.{name}".strip(".") for path, module in numbering.modules.items()
        for name, value in vars(module).items() if isinstance(value, Tensor)
    ]  # fmt: skip
    if kept:
        return f"the network keeps tensors of earlier runs ({', '.join(kept[:3])}): set them to None before slimming"
    return "give an example that reaches it"

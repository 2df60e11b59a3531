"""Clipped mixing weights, in which candidates do not compete, and the norms behind nodes that they need.

    w = clip(logits, 0, 1) on the live candidates;    a node's output is normalized without scale and shift

A candidate whose logit falls to 0 leaves the support for good (`prune`) and is never run again.

Source: Maile, Lecarpentier, Luga, Wilson, arXiv 2106.11655 v1 ("CRB"), and the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions, restrict
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.relaxations import read_together, read_values
from archgrad.copy_and_run import evaluating

FLOOR = 0.01  # least weight of a choice's last survivors; behind a norm a small weight acts like a large one
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Clipped(nn.Module):
    """w = clip(logits, 0, 1): the weight of a candidate depends on its own logit alone.

    Outside [0, 1] the gradient is 0, so a logit below 0 does not come back: call `prune` after each step.

    Args:
        size: number of candidates; the logits start at 1 / size.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((size,), 1.0 / size))

    def forward(self, live: Tensor) -> Tensor:
        """[size] weights in [0, 1], 0 where not live."""
        return self.logits.clamp(0.0, 1.0) * live


def prune(space: nn.Module) -> None:
    """Take candidates whose logit is 0 or below out of the support of clipped choices, for good; in place.

    A choice keeps its heaviest pickable candidate, an `InputChoice` as many as it keeps, at a weight of at least
    0.01. Choices with other relaxations stay as they are.
    """
    clipped = {
        name: (choice, choice.relaxation.logits)
        for name, choice in decisions(space).items()
        if isinstance(choice.relaxation, Clipped)
    }
    with torch.no_grad():
        dead = {name: _dead(choice, logits) for name, (choice, logits) in clipped.items()}
        read_together(list(dead.values()))
        for name, (choice, logits) in clipped.items():
            if any(read_values(dead[name])):
                restrict(space, {name: choice.live & ~dead[name]})
            logits.masked_fill_(~choice.live, 0.0)


def _dead(choice: Choice, logits: Tensor) -> Tensor:
    """[size] bool: the live candidates whose logit is 0 or below, once those that are kept have been raised."""
    order = logits.masked_fill(~choice.pickable, float("-inf")).argsort(descending=True, stable=True)
    kept = min(choice.keep if isinstance(choice, InputChoice) else 1, len(choice.pickable_places()))
    last = order[:kept]
    logits[last] = logits[last].clamp_min(FLOOR)
    return choice.live & (logits <= 0.0)


def normalize_nodes(space: nn.Module, *example: Tensor) -> None:
    """Put a BatchNorm without scale and shift behind every node, in place.

    A node is a choice that stands on no edge of another, or a module that runs the operations of choices of labels.
    Its output is [B, C, ...]. It becomes an `nn.Sequential` of the node and the norm.

    Args:
        space: relaxed, so that it runs.
        example: its inputs, from which shapes are taken.
    """
    nodes = list(_nodes(space))
    outputs: dict[nn.Module, Tensor] = {}

    def note(node: nn.Module, inputs: object, output: Tensor) -> None:
        outputs[node] = output

    hooks = [node.register_forward_hook(note) for node in {node for _, _, node in nodes}]
    try:
        with evaluating(space):
            space(*example)
    finally:
        for hook in hooks:
            hook.remove()
    normalized = {node: nn.Sequential(node, _norm(output)) for node, output in outputs.items()}
    for parent, name, node in nodes:
        if node in normalized:
            setattr(parent, name, normalized[node])


def _norm(output: Tensor) -> nn.Module:
    return _NORMS[output.dim()](output.shape[1], affine=False).to(output.device)


def _nodes(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name in it, node) for every place at which a node stands."""
    for name, child in module.named_children():
        runs_labels = any(isinstance(inner, OpChoice) and not len(inner.candidates) for inner in child.children())
        if isinstance(child, Choice) or runs_labels:
            yield module, name, child
        else:
            yield from _nodes(child)

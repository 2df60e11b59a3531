"""From a relaxed space to its most likely network, for a loop of one's own."""

from __future__ import annotations

from torch import nn

from archgrad.choices.decide import decide
from archgrad.copy_and_run import in_mode
from archgrad.costs.count import params
from archgrad.extract.discretize import build
from archgrad.results.result import Found


def derive(space: nn.Module, *, threshold: float = 0.5) -> Found:
    """The architecture with the largest mixing weights of a relaxed space, and its plain network with their weights.

    For a loop of your own. Nothing is scored, and BatchNorm statistics are the space's; see `recalibrate`.

    Args:
        space: relaxed, for instance by `archgrad.relax(space, archgrad.scaled_sigmoid)`.
        threshold: a gate keeps the entries whose mixing weight is above it.

    Raises:
        ChoiceError: a choice has no relaxation yet.

    Example:
        >>> import torch, archgrad as ag
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> space = ag.relax(ag.slim(network, torch.zeros(1, 4)), ag.scaled_sigmoid)
        >>> ag.logits(space)[0].data[2:] = -1.0
        >>> ag.derive(space, threshold=0.4).network[0].out_features
        2
    """
    architecture = decide(space, threshold=threshold)
    network = in_mode(build(space, architecture))
    return Found(architecture, network, costs={"params": params().of(network)})

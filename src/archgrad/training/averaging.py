"""The exponential moving average of a network's weights along its training."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network: call its `update_parameters(network)` after each step, and register it in the run.

        a_0 = w_0,   a_{t+1} = decay * a_t + (1 - decay) * w_{t+1}

    Parameters are averaged. Buffers are copies of the network's: an average of whole numbers, such as indices into a
    table, would be rounded away from what they are.
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


@torch.no_grad()
def take_average(network: nn.Module, averaged: AveragedModel) -> None:
    """Put the averaged parameters into the network; BatchNorm's statistics are then those of other weights."""
    for parameter, average in zip(network.parameters(), averaged.module.parameters(), strict=True):
        parameter.copy_(average)

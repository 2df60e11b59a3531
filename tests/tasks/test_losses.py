"""The loss of each sample, beside their mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from archgrad.errors import ModelError
from archgrad.tasks.classification import Classification

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_of_each_sample_and_loss_is_their_mean(smoothing: float) -> None:
    task, network = (
        Classification((X, Y), batch_size=12, loss=nn.CrossEntropyLoss(label_smoothing=smoothing)),
        nn.Linear(4, 3),
    )
    x, y = task.stream(seed=0)(0)
    losses = task.losses(network, (x, y))
    assert losses.shape == (12,) and losses.requires_grad
    log = functional.log_softmax(network(x), 1)  # type: ignore[arg-type]
    expected = -(1 - smoothing) * log[torch.arange(12), y] - smoothing * log.mean(1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(losses.mean(), task.loss(network, (x, y)))
    assert float(losses.detach().std()) > 0.01
    assert torch.equal(
        task.loss(network, (x, y)),
        functional.cross_entropy(network(x), y, label_smoothing=smoothing),  # type: ignore[arg-type]
    )


def test_losses_of_a_wrong_output_are_refused() -> None:
    task = Classification((X, Y), batch_size=12)
    with pytest.raises(ModelError, match=r"must be \[B, 3\]"):
        task.losses(nn.Linear(4, 2), task.stream(seed=0)(0))

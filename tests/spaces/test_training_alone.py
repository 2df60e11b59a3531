"""What a network does in training alone: auxiliary heads, masks, and layers that are left out at random."""

from __future__ import annotations

import pytest
import torch
from families.checks import difference, extremes, outputs, stir
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build
from archgrad.spaces.slim import trial
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64
KINDS = {
    "auxiliary head": {"first": 8, "middle": 7},
    "masked places": {"first": 8, "middle": 7},
    "left out at random": {"first": 8, "middle": 7},
    "loss over channels": {"middle": 7},
}


class Trained(nn.Module):
    """first -> middle -> last, and something more in training."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.shape = kind, shape
        self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 7), nn.Linear(7, 2)
        self.head = nn.Linear(8, 3) if kind == "auxiliary head" else None
        self.mask = nn.Parameter(torch.randn(8)) if kind == "masked places" else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.first(x)
        if self.training:
            drawn = torch.rand(self.shape)
            y = y if drawn.numel() != 1 or float(drawn) >= 0 else y * 0
            if self.mask is not None:
                masked = torch.zeros(y.shape[:2], dtype=torch.bool)
                masked[:, ::2] = True
                y[masked] = self.mask
            if self.kind == "loss over channels":
                y = y - y.mean(-1, keepdim=True)
        made = self.last(self.middle(y.tanh()).relu())
        return (made, self.head(y.tanh())) if self.head is not None and self.training else made


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_in_training_alone_goes_with_its_channels(kind: str, shape: tuple[int, ...]) -> None:
    """A number that is drawn alone, of no axis, is no obstacle to trying removals in training."""
    x = torch.randn(2, 6, 4, dtype=DOUBLE)
    space = slim(Trained(kind, shape).double(), x)
    assert {name: same[0].size for name, same in choices(space).items()} == KINDS[kind], dict(frozen(space))
    stir(space)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for architecture in (extremes(space)[1], *draws):
        pair = hold(space, architecture), build(space, architecture)
        assert difference(*(outputs(one, (x,)) for one in pair)) < 1e-9
        torch.manual_seed(0)
        first = outputs(pair[0], (x,), training=True)
        torch.manual_seed(0)
        other = outputs(pair[1], (x,), training=True)
        assert [a.shape for a in first] == [a.shape for a in other]
        assert difference(first, other) < 1e-9


def test_layers_of_training_alone_cost_nothing_in_what_is_out_of_reach() -> None:
    x = torch.randn(2, 6, 4, dtype=DOUBLE)
    space = slim(Trained("auxiliary head", ()).double(), x)
    plain = slim(Trained("left out at random", ()).double(), x)
    assert frozen(space).macs_fraction == pytest.approx(frozen(plain).macs_fraction)
    assert "output" in frozen(space)["head"]


@pytest.mark.parametrize("batch", [2, 7])
def test_a_large_network_that_does_not_train_on_a_single_example_is_slimmed(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LARGE", 100)
    net = nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )
    with pytest.raises(ValueError, match="more than 1 value"):
        net.train()(torch.randn(1, 6))
    assert {name: gates[0].size for name, gates in choices(slim(net, torch.randn(batch, 6))).items()} == {
        "0": 9,
        "3": 8,
    }

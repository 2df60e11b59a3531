"""A task with a planted best answer: of eight hidden units four carry the label and four carry noise."""

from __future__ import annotations

import torch
from torch import nn

import archgrad as ag

GOOD = (0, 2, 5, 7)


def task() -> ag.Classification:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    y = (x[:, list(GOOD)].sum(dim=1) > 0).long()
    return ag.Classification((x, y), batch_size=50)


def network() -> nn.Sequential:
    """Hidden unit j passes on x_j; the units outside GOOD disturb the output."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 2))
    out = torch.tensor([1.0 if j in GOOD else (-1.0) ** j * 0.8 for j in range(8)])
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.stack([-out, out]))
        shift = sum(float(w) for w in out) * 0.8
        net[2].bias.copy_(torch.tensor([shift, -shift]))
    return net


def space() -> nn.Module:
    return ag.slim(network(), torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))


def limit(fraction: float = 0.5) -> object:
    return ag.macs(torch.zeros(1, 8)).at_most(fraction=fraction)

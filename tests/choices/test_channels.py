"""Couplings: which channels stay, and what a cut leaves of a layer."""

from __future__ import annotations

import torch
from torch import nn

from archgrad.choices.channels import Coupling, Vanishing, open_channels, remove_branch, remove_channels


def test_open_channels_keep_the_kept_and_the_strangers() -> None:
    coupling = Coupling("", "out", torch.tensor([0, 0, 1, -1, 2]))
    assert open_channels(coupling, [1]).tolist() == [False, False, True, True, False]
    assert open_channels(coupling, []).tolist() == [False, False, False, True, False]
    assert open_channels(coupling, [0, 1, 2]).tolist() == [True] * 5


def test_a_cut_layer_is_a_smaller_layer() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    places = torch.arange(4)
    statistics = tuple((n, 0) for n in ("weight", "bias", "running_mean", "running_var"))
    couplings = [
        Coupling("0", "out", places, (("weight", 0), ("bias", 0)), ("out_channels",)),
        Coupling("1", "out", places, statistics, ("num_features",)),
        Coupling("2", "in", places, (("weight", 1),), ("in_channels",)),
    ]
    remove_channels(net, {"gate": couplings}, {"gate": [1, 3]})
    assert (net[0].out_channels, net[1].num_features, net[2].in_channels) == (2, 2, 2)
    assert torch.equal(net[0].weight, before["0.weight"][[1, 3]])
    assert torch.equal(net[1].running_mean, before["1.running_mean"][[1, 3]])
    assert torch.equal(net[2].weight, before["2.weight"][:, [1, 3]])
    assert not net[0].weight.requires_grad and net[0].bias.requires_grad
    assert isinstance(net[1].running_mean, torch.Tensor) and "running_mean" in dict(net[1].named_buffers())
    assert net(torch.randn(2, 2, 5, 5)).shape == (2, 3, 3, 3)


def test_nothing_is_touched_where_everything_stays() -> None:
    net = nn.Sequential(nn.Linear(2, 4))
    weight = net[0].weight
    coupling = Coupling("0", "out", torch.arange(4), (("weight", 0), ("bias", 0)), ("out_features",))
    remove_channels(net, {"gate": [coupling]}, {"gate": range(4)})
    assert net[0].weight is weight


def test_a_block_without_its_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.short, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()

    for parts, kind in [((), nn.Identity), (("short",), nn.Linear), (("short", "act"), nn.Sequential)]:
        net = nn.Sequential(nn.Sequential(Block().eval()))
        short = net[0][0].short
        remove_branch(net, Vanishing("0.0", parts))
        assert type(net[0][0]) is kind
        assert not net[0][0].training
        if parts:
            assert short in list(net.modules())

"""Layers with spectral_norm, in both forms: channels go on both sides, and the norm is that of what is left."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families.checks import agree, difference, outputs, swapped
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.spectral_norms import SpectralWeight, spectral, without_spectral_norms
from archgrad.extract.discretize import build, write_back
from archgrad.gates import full
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64
Norm = Callable[..., nn.Module]
FORMS: dict[str, Norm] = {"hooked": nn.utils.spectral_norm, "parametrized": parametrizations.spectral_norm}


class Block(nn.Module):
    """A residual branch with filters for each channel."""

    def __init__(self, width: int, norm: Norm, *, bias: bool) -> None:
        super().__init__()
        self.first = norm(nn.Conv2d(width, width + 2, 3, padding=1))
        self.depth = norm(nn.Conv2d(width + 2, width + 2, 3, padding=1, groups=width + 2))
        self.last = norm(nn.Conv2d(width + 2, width, 1, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.relu(self.depth(F.relu(self.first(F.relu(x))))))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.num_heads, self.scale = 2, (width // 2) ** -0.5
        self.q, self.k, self.v, self.out = (norm(nn.Linear(width, width)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = *x.shape[:2], self.num_heads, -1
        q, k, v = (f(x).reshape(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Critic(nn.Module):
    """[B, 3, H, W] -> [B, 1]: grouped and transposed filters, attention, and outputs projected on a table."""

    def __init__(self, norm: Norm, *, groups: int, bias: bool) -> None:
        super().__init__()
        self.stem = norm(nn.Conv2d(3, 4, 3, padding=1, bias=bias))
        self.block = Block(4, norm, bias=bias)
        self.down = norm(nn.Conv2d(4, 6, 4, stride=2, padding=1, groups=groups), n_power_iterations=2)
        self.up = norm(nn.ConvTranspose2d(6, 6, 2, stride=2, groups=groups))
        self.wide = norm(nn.Linear(6, 8), dim=1)
        self.attention, self.table, self.head = Attention(8, norm), norm(nn.Embedding(5, 8)), norm(nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.up(F.leaky_relu(self.down(self.block(self.stem(x))), 0.1)), 0.1)
        y = self.attention(self.wide(y.flatten(2).transpose(1, 2))).mean(1).tanh()
        return self.head(y) + (self.table(torch.arange(len(x)) % 5) * y).sum(1, keepdim=True)  # type: ignore[no-any-return]


def trained(network: nn.Module, *, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.03)
    network.train()
    for step in range(steps):
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step), dtype=DOUBLE)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
        optimizer.step()


@pytest.mark.parametrize(("form", "groups", "bias"), [*itertools.product(FORMS, (1, 2), (True, False))])
def test_channels_go_on_both_sides(form: str, groups: int, bias: bool) -> None:
    torch.manual_seed(groups)
    net, x = Critic(FORMS[form], groups=groups, bias=bias).to(DOUBLE), torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    trained(net)
    names = dict(net.named_parameters()).keys()
    space = slim(net, x)
    for training in (False, True):
        assert difference(outputs(net, (x,), training=training), outputs(space, (x,), training=training)) == 0.0
    assert set(frozen(space)) == {"head"}
    gates = {"stem", "block.first", "block.branch", "wide", "attention.heads", "attention.v.channels"}
    assert gates <= set(choices(space))
    trained(space)  # with all channels open
    relaxed = ag.relax(copy.deepcopy(space), ag.scaled_sigmoid)
    trained(relaxed)
    agree(space, x, torch.randn(5, 3, 8, 6, dtype=DOUBLE), plain=False)
    for seed in range(2):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        built = build(space, architecture)
        assert dict(built.named_parameters()).keys() <= names
        held = hold(space, architecture)
        trained(built)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) > 1e-6
        write_back(space, architecture, built)
        assert difference(outputs(hold(space, architecture), (x,)), outputs(built, (x,))) < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_training_a_built_network_is_training_what_is_held(form: str) -> None:
    torch.manual_seed(0)
    space = slim(Critic(FORMS[form], groups=1, bias=True).to(DOUBLE), torch.randn(2, 3, 6, 6, dtype=DOUBLE))
    architecture = Architecture({**full(space), "stem": (0, 3), "wide": (1, 2, 5, 6), "attention.heads": (1,)})
    held, built = hold(space, architecture), build(space, architecture)
    x = torch.randn(3, 3, 6, 6, dtype=DOUBLE)
    for network in (held, built):
        trained(network)
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-9
    other = build(space, swapped(architecture, {n: c[0].size for n, c in choices(space).items()}))
    trained(other)
    assert difference(outputs(held, (x,)), outputs(other, (x,))) > 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_the_norm_is_torchs_and_of_what_is_open(form: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(FORMS[form](nn.Linear(5, 6)), nn.ReLU(), FORMS[form](nn.Linear(6, 2))).to(DOUBLE)
    space = slim(net, torch.randn(2, 5, dtype=DOUBLE))
    built = build(space, Architecture({"0": (1, 2, 4)}))
    built.train()
    for _ in range(200):
        built(torch.randn(1, 5, dtype=DOUBLE))
    for layer, shape in ((built[0], (3, 5)), (built[2], (2, 3))):
        assert layer.weight.shape == shape
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0)
    assert any(isinstance(module, SpectralWeight) for module in space.modules())
    assert not any(isinstance(module, SpectralWeight) for module in built.modules())
    fresh = build(space, Architecture({"0": (1, 2, 4)}), weights="fresh")
    assert fresh(torch.zeros(1, 5, dtype=DOUBLE)).isfinite().all()
    assert net.state_dict().keys() == built.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_branch_closes_behind_the_norm(form: str) -> None:
    """Zeros in front of it would be divided by their length, and a factor would be undone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Block(4, FORMS[form], bias=True), nn.Flatten(), nn.Linear(64, 2)).to(
        DOUBLE
    )
    x = torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    space = slim(net, x)
    closed = Architecture({**full(space), "1.branch": ()})
    assert difference(outputs(hold(space, closed), (x,)), outputs(build(space, closed), (x,))) < 1e-12
    ones = x.new_ones(1, 4, 4, 4)
    half = ag.relax(space, ag.scaled_sigmoid)  # sigmoid(0) = 1/2, of the weight and of the bias
    assert torch.allclose(half[1](ones) - ones, (net[1](ones) - ones) / 2)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        parametrizations.spectral_norm(self.first)
        self.second.weight = self.first.parametrizations.weight.original  # type: ignore[union-attr, assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x)))))  # type: ignore[no-any-return]


def test_what_shares_its_weight_or_has_another_step_stays() -> None:
    shared = without_spectral_norms(nn.Sequential(Shared()))
    assert spectral(shared[0].first) is None and parametrize.is_parametrized(shared[0].first)
    twice = parametrizations.spectral_norm(nn.Linear(4, 4))
    parametrize.register_parametrization(twice, "weight", nn.Tanh())
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), twice, nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert "parametrized already" in frozen(slim(net, torch.randn(2, 3)))["2"]


class Scaled(Attention):
    """Attention that takes its scale from the size of the heads."""

    def forward(self, x: Tensor) -> Tensor:
        shape = *x.shape[:2], self.num_heads, -1
        q, k, v = (f(x).reshape(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_a_scale_that_a_norm_would_undo_is_left_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=DOUBLE)
    for norm, goes in ((nn.Identity(), True), (parametrizations.spectral_norm, False)):
        net = nn.Sequential(nn.Linear(4, 8), Scaled(8, norm), nn.Linear(8, 2)).to(DOUBLE)
        space = slim(net, x)
        assert ("1.q.channels" in choices(space)) == goes
        agree(space, x, torch.randn(3, 5, 4, dtype=DOUBLE), plain=goes)

"""What is searched from fresh weights: a narrower network, whose weights and logits come back to the whole one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import relax
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import entry_logits
from archgrad.gates.selection import GateConstraint, full, gates, uniform
from archgrad.gates.width_rounding import WidthRounding
from archgrad.methods.dnal import narrowed as module
from archgrad.methods.dnal.narrowed import Narrowed, carry_back, narrowed, widths_to_search

torch.set_num_threads(1)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 1)
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.norm(self.first(x))))


def _plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 40), nn.GELU(), nn.Linear(40, 10),
    )  # fmt: skip


def _residual() -> nn.Module:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(nn.Conv2d(3, 16, 3), Residual(16), Residual(16), *head)


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 1), nn.ReLU6(), nn.Conv2d(24, 24, 3, groups=24), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def _normed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 24, 3)), nn.ReLU(), norm(nn.Conv2d(24, 32, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers = nn.Conv2d(3, 32, 4, stride=4), nn.Sequential(*layers)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def _tokens() -> nn.Module:
    perceptron = nn.LayerNorm(32), nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32)
    return Tokens(nn.LayerNorm(32), Attention(), *perceptron)


def _encoder() -> nn.Module:
    return Tokens(*(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True) for _ in range(2)))


def _weights_at_rest() -> nn.Module:
    network = _plain()
    network[0].requires_grad_(False)
    return network


NETWORKS = [_plain, _residual, _depthwise, _normed, _tokens, _encoder]


def _searched(network: nn.Module, fraction: float, *, keep: tuple[str, ...] = ()) -> tuple[nn.Module, Narrowed]:
    x = torch.randn(2, 3, 16, 16)
    space = ag.slim(network, x, keep=keep)
    constraint = GateConstraint(space, ag.macs(x).at_most(fraction=fraction), WidthRounding(1))
    searched = narrowed(space, widths_to_search(constraint), x)
    assert searched is not None
    ratio = ag.macs(x).of(build(searched.space, full(searched.space))) / constraint.bound
    assert 1.999 < ratio < 2.9
    return space, searched


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("fraction", [0.3, 0.1])
def test_weights_and_logits_come_back_to_their_places(network: Callable[[], nn.Module], fraction: float) -> None:
    torch.manual_seed(3)
    space, searched = _searched(network().eval(), fraction)
    relax(searched.space, ag.scaled_sigmoid)
    with torch.no_grad():
        for parameter in searched.space.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inner = build(searched.space, full(searched.space)).eval()
    carry_back(space, searched)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(build(space, searched.architecture).eval()(x), inner(x))
    logits, own = entry_logits(space), entry_logits(searched.space)
    for name, gate in gates(space).items():
        picks = searched.architecture[name]
        left = [entry for entry in range(gate.size) if entry not in picks]
        assert all(float(logits[name][entry]) == -math.inf for entry in left)
        if name in own:
            assert torch.equal(logits[name][list(picks)], own[name])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("step", [None, 1, 4, 8])
@pytest.mark.parametrize("fraction", [0.3, 0.1])
def test_nothing_that_was_left_out_is_chosen(
    network: Callable[[], nn.Module], step: int | None, fraction: float
) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 3, 16, 16)
    space = ag.slim(network(), x)
    try:
        constraint = GateConstraint(space, ag.macs(x).at_most(fraction=fraction), WidthRounding(step))
    except ag.errors.LimitError:
        pytest.skip(f"multiples of {step} leave nothing under the limit")
    widths = widths_to_search(constraint)
    assert constraint.price(widths) >= 2 * constraint.bound, "however coarse, widths leave something to choose"
    searched = narrowed(space, widths, x)
    assert (searched is None) == (widths == full(space))
    if searched is None:
        return
    relax(searched.space, ag.scaled_sigmoid)
    with torch.no_grad():
        for gate in gates(searched.space).values():
            gate.relaxation.logits.copy_(torch.randn(gate.size))
    carry_back(space, searched)
    chosen = constraint.best_feasible(entry_logits(space))
    assert constraint.is_feasible(chosen)
    assert all(set(chosen[name]) <= set(searched.architecture[name]) for name in chosen)


class Recurrent(nn.Module):
    """Without norms, with a table of places that no module draws."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, 48))
        self.first, self.gru = nn.Linear(48, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(torch.relu(self.first(x.flatten(2).transpose(1, 2).reshape(len(x), 16, 48) + self.places)))
        return self.head(y[:, -1])


def test_weights_are_scaled_as_fresh_ones_of_the_narrower_network() -> None:
    torch.manual_seed(5)
    whole = Recurrent(64)
    space, searched = _searched(whole, 0.1)
    inner = build(searched.space, full(searched.space))
    assert torch.equal(inner.places, whole.places), "what no module draws stays"
    drawn = Recurrent(inner.gru.hidden_size).state_dict()
    for name, parameter in inner.state_dict().items():
        if parameter.dim() > 1 and name != "places" and parameter.shape == drawn[name].shape:
            assert 0.8 < float((parameter.square().mean() / drawn[name].square().mean()).sqrt()) < 1.3, name
    unscaled = build(space, searched.architecture).gru.weight_hh_l0.detach()
    factor = inner.gru.weight_hh_l0.detach() / unscaled
    assert factor.std() < 1e-4 * factor.mean(), "one factor for a whole parameter"
    assert float(factor.mean()) == pytest.approx((64 / inner.gru.hidden_size) ** 0.5, rel=0.1)


class Fussy(nn.Linear):
    """Draws its weights where it is told how large."""

    def reset_parameters(self, size: float | None = None) -> None:
        if self.out_features != 64 and size is None:
            raise ValueError("no size")
        super().reset_parameters()


def test_a_layer_that_cannot_be_drawn_anew_leaves_the_scale() -> None:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Flatten(), Fussy(768, 64), nn.ReLU(), nn.Linear(64, 10))
    space, searched = _searched(network, 0.2)
    taken = build(space, searched.architecture).state_dict()
    for name, value in build(searched.space, full(searched.space)).state_dict().items():
        assert torch.equal(value, taken[name]), name


@pytest.mark.parametrize("network", [_plain, _depthwise])
def test_weights_in_front_of_norms_keep_their_scale(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(6)
    space, searched = _searched(network(), 0.2)
    taken = build(space, searched.architecture).state_dict()
    for name, value in build(searched.space, full(searched.space)).state_dict().items():
        assert torch.equal(value, taken[name]), name


def test_a_layer_that_is_kept_keeps_its_width() -> None:
    space, searched = _searched(_plain(), 0.3, keep=("3",))
    assert "3" not in gates(space) and "3" not in gates(searched.space)
    inner = build(searched.space, full(searched.space))
    assert inner[3].out_channels == 32 and inner[0].out_channels < 16


def test_the_whole_network_is_searched_where_weights_are_at_rest() -> None:
    x = torch.randn(2, 3, 16, 16)
    space = ag.slim(_weights_at_rest(), x)
    widths = widths_to_search(GateConstraint(space, ag.macs(x).at_most(fraction=0.2), WidthRounding(1)))
    assert widths != full(space) and narrowed(space, widths, x) is None


def test_blocks_that_have_to_leave_are_all_searched() -> None:
    x = torch.randn(2, 3, 16, 16)
    space = ag.slim(_residual(), x)
    narrowest = ag.macs(x).of(build(space, uniform(space, 0.0, WidthRounding(8))))
    constraint = GateConstraint(space, ag.macs(x).at_most(0.8 * narrowest), WidthRounding(8))
    assert constraint.uniform_width() == 0.0 and widths_to_search(constraint) == full(space)


def test_the_whole_network_is_searched_where_weights_would_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 16, 16)
    space = ag.slim(_plain(), x)
    widths = widths_to_search(GateConstraint(space, ag.macs(x).at_most(fraction=0.2), WidthRounding(1)))
    assert narrowed(space, widths, x) is not None
    monkeypatch.setattr(module, "write_back", lambda *given: None)
    assert narrowed(space, widths, x) is None
    assert narrowed(space, full(space), x) is None


@pytest.mark.parametrize("steps", [3, 40])
def test_a_network_of_fresh_weights_has_no_score_before(digits_task: ag.Classification, steps: int) -> None:
    """Be the budget so small that there is no stage 1, or not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    limit, run = ag.macs(digits_task.example).at_most(fraction=0.3), ag.Run(steps=steps, device="cpu", progress=False)
    record = ag.dnal(ag.slim(net, digits_task.example), digits_task, run, limit=limit).record
    assert "accuracy" in record["after"] and "accuracy" not in record["before"]
    assert record["before"]["macs"] > record["after"]["macs"] and record["score"]["name"] == "accuracy"


@pytest.fixture
def digits_task() -> ag.Classification:
    return ag.Classification(ag.digits(), batch_size=64)

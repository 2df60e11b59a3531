"""Convolutions that standardize their weight: channels go on both sides, and statistics are of those left."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir, swapped
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.choices.gate import Gate
from archgrad.choices.standardized_weights import standardized_weight
from archgrad.extract.discretize import build


class Standard(nn.Conv2d):
    """A weight of mean 0 and variance 1 for each output channel, in one of the ways in which it is written."""

    def __init__(self, made: int, out: int, size: int, *, way: str, groups: int = 1, bias: bool = True) -> None:
        super().__init__(made, out, size, padding=size // 2, groups=groups, bias=bias)
        self.way, self.eps = way, 1e-3
        self.scale = self.weight[0].numel() ** -0.5
        if "gain" in way:
            self.gain = nn.Parameter(torch.rand(out, 1, 1, 1) + 0.5)

    def standardized(self) -> Tensor:
        w, axes = self.weight, (1, 2, 3)
        centred = w - w.mean(axes, keepdim=True)
        if self.way == "norm with gain":
            flat, gain = w.reshape(1, self.out_channels, -1), (self.gain * self.scale).view(-1)
            return F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=self.eps).reshape_as(
                w
            )
        if self.way == "norm":
            flat = w.reshape(1, self.out_channels, -1)
            return F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=self.eps).reshape_as(w)
        if self.way == "deviation":
            return centred / (w.flatten(1).std(1).view(-1, 1, 1, 1) + self.eps)
        if self.way == "largest":
            return centred / w.abs().amax(axes, keepdim=True)
        return centred * torch.rsqrt(w.var(axes, keepdim=True, unbiased=False) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        p = self.padding[0]  # type: ignore[index]
        x = F.pad(x, (int(p),) * 4)
        return F.conv2d(x, self.standardized(), self.bias, self.stride, 0, self.dilation, self.groups)


WAYS = ("norm with gain", "norm", "deviation", "variance")


class Net(nn.Module):
    """A residual block of such convolutions, one of them grouped, without any other norm."""

    def __init__(self, way: str, *, groups: int, size: int, bias: bool) -> None:
        super().__init__()
        self.stem = Standard(3, 6, 3, way=way, bias=bias)
        self.wide = Standard(6, 8, size, way=way, bias=bias)
        self.mid = Standard(8, 8, 3, way=way, groups=groups, bias=bias)
        self.back = Standard(8, 6, 1, way=way, bias=bias)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.3 * self.back(F.gelu(self.mid(F.gelu(self.wide(F.gelu(x))))))
        return self.head(F.gelu(x).mean((2, 3)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("groups", "size", "bias"), [(1, 3, True), (2, 1, False), (8, 3, True)])
def test_removal_on_both_sides_is_exact(way: str, groups: int, size: int, bias: bool) -> None:
    torch.manual_seed(0)
    net, x = Net(way, groups=groups, size=size, bias=bias).double(), torch.randn(2, 3, 6, 6).double()
    space = ag.slim(net, x)
    assert difference(outputs(net, (x,)), outputs(space, (x,))) == 0.0
    sizes = {n: same[0].size for n, same in choices(space).items()}
    lone = way in ("norm with gain", "norm", "deviation")  # one weight has no variance: channels go in pairs
    assert sizes["stem"] == (3 if size == 1 and lone else 6)
    assert set(ag.frozen(space)) <= {"head"} or groups == 2
    stir(space)
    for architecture in [
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)),
    ]:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-9
        grads = []
        for network in (held, built):
            given = x.clone().requires_grad_()
            grads.append([torch.autograd.grad(copy.deepcopy(network)(given).sin().sum(), given)[0]])
        assert difference(*grads) < 1e-9
        for cost in (ag.params(), ag.macs(x)):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)
        assert type(built.stem) is Standard
    most = ag.Architecture({n: tuple(range(max(1, s - 1))) for n, s in sizes.items()})
    wrong = build(space, swapped(most, sizes))
    assert difference(outputs(hold(space, most), (x,)), outputs(wrong, (x,))) > 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_what_is_standardized_is_known_by_what_it_computes(way: str) -> None:
    torch.manual_seed(0)
    conv = Standard(5, 4, 3, way=way).double()
    kind = standardized_weight(conv)
    assert kind is not None and kind.width == 5
    assert (kind.under_root, kind.unbiased) == ((False, True) if way == "deviation" else (True, False))
    assert torch.allclose(kind.weight(conv, torch.ones(5)), conv.standardized(), atol=1e-6)
    kept = torch.tensor([0, 3])
    smaller = copy.deepcopy(conv)
    smaller.weight = nn.Parameter(conv.weight.detach()[:, kept])
    x = torch.randn(2, 5, 6, 6).double()
    with kind.replacing(conv, torch.zeros(5).index_fill(0, kept, 1.0)):
        held = conv(x)
    assert torch.allclose(held, smaller(x[:, kept]), atol=1e-6)
    g = torch.rand(5).double().requires_grad_()
    share = g.view(1, 5, 1, 1).expand(4, 5, 3, 3)
    mean = (share * conv.weight).sum((1, 2, 3), keepdim=True) / share[0].sum()
    variance = (share * (conv.weight - mean) ** 2).sum((1, 2, 3), keepdim=True) / (
        share[0].sum() - float(way == "deviation")
    )
    expected = share * (conv.weight - mean)
    expected = expected / (variance.sqrt() + 1e-3 if way == "deviation" else (variance + 1e-3).sqrt())
    expected = expected * conv.gain * conv.scale if "gain" in way else expected
    assert torch.allclose(kind.weight(conv, g), expected, rtol=1e-4)
    assert torch.autograd.gradcheck(lambda s: kind.weight(conv, s), g)


def test_other_computed_weights_stay_frozen_and_branches_have_gates_that_count() -> None:
    torch.manual_seed(0)
    assert standardized_weight(Standard(5, 4, 3, way="largest")) is None
    assert standardized_weight(nn.Conv2d(5, 4, 3)) is None
    net, x = Net("largest", groups=1, size=3, bias=True), torch.randn(2, 3, 6, 6)
    with pytest.raises(ag.ArchgradError, match="computes its weight from its parameters in each call"):
        ag.slim(nn.Sequential(net.stem, net.wide), x)
    for way in ("norm with gain", "norm"):

        class Block(nn.Module):
            def __init__(self, way: str = way) -> None:
                super().__init__()
                self.a, self.b = Standard(6, 8, 3, way=way), Standard(8, 6, 3, way=way)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.b(F.gelu(self.a(F.gelu(x))))

        space = ag.slim(nn.Sequential(nn.Conv2d(3, 6, 3), Block(), nn.Conv2d(6, 4, 1)), x)
        branches = [m for n, m in space.named_modules() if isinstance(m, Gate) and m.vanishing]
        assert bool(branches) == (way == "norm with gain"), (
            "a factor on a weight that is standardized changes nothing"
        )

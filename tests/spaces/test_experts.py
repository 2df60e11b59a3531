"""Whole experts of a mixture go, with softmax and ranks of the router as they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from families.checks import assert_plain, difference, extremes, outputs, stir
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build
from archgrad.gates import full
from archgrad.spaces.slim.slimmable import slim

DOUBLE = torch.float64
WAYS = ("sum", "stack", "product", "rows", "masked", "first alone")


class Mixture(nn.Module):
    """[B, T, C] -> [B, T, outs]: experts of one hidden layer, weighted by a router."""

    def __init__(
        self, way: str, outs: int = 6, count: int = 4, *, experts: Sequence[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.way, self.router = way, nn.Linear(6, count)
        self.experts = nn.ModuleList(
            experts or (nn.Sequential(nn.Linear(6, 5 + k), nn.Tanh(), nn.Linear(5 + k, outs)) for k in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.way == "sum":
            return sum(weights[..., k, None] * expert(x) for k, expert in enumerate(self.experts))  # type: ignore[return-value]
        if self.way == "stack":
            return (torch.stack([expert(x) for expert in self.experts], -1) * weights[..., None, :]).sum(-1)
        if self.way == "product":
            made = torch.stack([expert(x) for expert in self.experts], 2)
            return torch.einsum("bte,bted->btd", weights, made)
        words, weights = x.flatten(0, 1), weights.flatten(0, 1)
        best, chosen = weights.topk(1 if self.way == "first alone" else 2)
        last = [layer for layer in self.experts[0].modules() if isinstance(layer, nn.Linear)][-1]
        made = words.new_zeros(len(words), last.out_features)
        if self.way == "one precision":  # the layers', whatever that of the words is
            made = made.to(self.experts[0](words[:1]).dtype)
            best = best.to(made.dtype)
        for number, expert in enumerate(self.experts):
            rows, rank = torch.where(chosen == number)
            if self.way == "masked":
                is_sent = (chosen == number).any(-1)
                made[is_sent] += (best * (chosen == number)).sum(-1)[is_sent, None] * expert(words[is_sent])
            else:
                made = made.index_add(0, rows, expert(words[rows]) * best[rows, rank, None])
        return made.view(*x.shape[:2], -1)


class Shifted(nn.Linear):
    """A linear layer and a shift, whose outputs are in single precision under autocast."""

    def __init__(self) -> None:
        super().__init__(3, 6)
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Around(nn.Module):
    """A mixture in a network: alone, or beside what passes it by."""

    def __init__(self, way: str, outs: int, *, skip: bool) -> None:
        super().__init__()
        self.first, self.mixture, self.last = nn.Linear(3, 6), Mixture(way, outs), nn.Linear(outs, 2)
        if skip:
            self.mixture = nn.Sequential(self.mixture, nn.Linear(outs, outs))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.mixture(x) if self.skip else self.mixture(x))


def blocks(space: nn.Module) -> list[str]:
    return sorted(name for name, same in choices(space).items() if same[0].vanishing)


@pytest.mark.parametrize("outs", [6, 4])
@pytest.mark.parametrize("way", WAYS)
def test_whole_experts_go_and_the_router_stays(way: str, outs: int) -> None:
    torch.manual_seed(len(way) + outs)
    x = torch.randn(3, 40, 3, dtype=DOUBLE)
    space = slim(Around(way, outs, skip=False).double(), x)
    gone = [f"mixture.experts.{k}.branch" for k in (1, 2, 3)]  # the smallest stays
    if way in ("rows", "masked", "first alone"):  # those that the example does not exercise stay
        gone = [name for name in gone if name in blocks(space)]
        assert len(gone) > 1
    assert set(gone) <= set(blocks(space)) and (way == "masked" or gone == blocks(space))
    stir(space)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for architecture in (extremes(space)[1], *draws):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            expected = outputs(held, (x,), training=training)
            assert difference(expected, outputs(built, (x,), training=training)) < 1e-9
        assert_plain(built)
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
    two = build(space, Architecture({**full(space), gone[0]: (), gone[-1]: ()}))
    assert sum(not [*expert.parameters()] for expert in two.mixture.experts) == 2
    assert two.mixture.router.out_features == 4
    if way in ("sum", "stack"):  # what the others add, weighted by a softmax over all four
        mixture, y = space.mixture, space.first(x)
        weights = mixture.router(y).softmax(-1)
        by_hand = sum(weights[..., k, None] * mixture.experts[k](y) for k in (0, 2))
        torch.testing.assert_close(two.mixture(two.first(x)), by_hand)
        fewer = float(macs(x).expected(hold(space, Architecture({**full(space), gone[0]: (), gone[-1]: ()}))))
        assert fewer == pytest.approx(macs(x).of(two), rel=1e-9)


@pytest.mark.parametrize("way", ["sum", "rows"])
def test_experts_go_inside_a_mixture_that_can_go_itself(way: str) -> None:
    x = torch.randn(3, 20, 3, dtype=DOUBLE)
    space = slim(Around(way, 6, skip=True).double(), x)
    inside = {f"mixture.0.experts.{k}.branch" for k in (1, 2, 3)}
    assert set(blocks(space)) == {"mixture.branch", *inside}
    stir(space)
    whole = full(space)
    closed = [{"mixture.branch": ()}, {"mixture.0.experts.2.branch": ()},
              {"mixture.branch": (), "mixture.0.experts.2.branch": ()}]  # fmt: skip
    for picks in closed:
        architecture = Architecture({**whole, **picks})
        pair = (outputs(make(space, architecture), (x,)) for make in (hold, build))
        assert difference(*pair) < 1e-9


@pytest.mark.parametrize("way", ["side by side", "chain", "product"])
def test_what_is_not_weighted_and_added_up_is_no_mixture(way: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)) for _ in range(3))
            self.scale, self.last = nn.Linear(6, 1), nn.Linear(18 if way == "side by side" else 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            if way == "side by side":
                return self.last(torch.cat([head(x) * self.scale(x) for head in self.heads], -1))
            y = x
            for head in self.heads:
                y = head(y) if way == "chain" else y * head(x)
            return self.last(y)

    assert blocks(slim(Other().double(), torch.randn(4, 6, dtype=DOUBLE))) == []


class Residual(nn.Module):
    """Adds a branch of one hidden layer to its input: without the branch that is left, and no zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.enters, self.leaves = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leaves(self.enters(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("words", [1, 2, 6])
@pytest.mark.parametrize("seed", range(3))
def test_residual_experts_are_no_zeros_though_none_was_sent_to_them(seed: int, words: int) -> None:
    torch.manual_seed(seed)
    net = Around("rows", 6, skip=False)
    net.mixture = Mixture("rows", experts=[Residual() for _ in range(4)])
    net = net.to(DOUBLE)
    x = torch.randn(1, words, 3, dtype=DOUBLE)
    space = slim(net, x)
    stir(space)
    other = torch.randn(4, 9, 3, dtype=DOUBLE)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for architecture in (extremes(space)[1], *draws):
        pair = (outputs(make(space, architecture), (other,)) for make in (hold, build))
        assert difference(*pair) < 1e-9


def of_images(kind: str, channels: int) -> nn.Module:
    """An expert of images; all but the plain one put out sizes that are the input's on some inputs alone."""
    narrow, wide = nn.Conv2d(channels, 5, 3, padding=1), nn.Conv2d(5, channels, 1)
    if kind == "pooled":
        return nn.Sequential(nn.AdaptiveAvgPool2d(8), narrow, nn.ReLU(), wide)
    if kind == "up":
        return nn.Sequential(nn.Conv2d(channels, 5, 2, stride=2), nn.ReLU(), nn.Upsample(scale_factor=2), wide)
    return nn.Sequential(narrow, nn.ReLU(), wide)


class Images(nn.Module):
    """[B, 3, H, W] -> [B, 2]: a mixture over images."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.head, self.router = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 2), nn.Linear(6, 3)
        self.experts = nn.ModuleList(of_images(kind, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        weights = self.router(x.mean((2, 3))).softmax(-1)
        mixed: Tensor = sum(weights[:, k].view(-1, 1, 1, 1) * expert(x) for k, expert in enumerate(self.experts))  # type: ignore[assignment]
        logits: Tensor = self.head(mixed.mean((2, 3)))
        return logits


@pytest.mark.parametrize(("kind", "size"), [("plain", 13), ("pooled", 16), ("up", 9)])
def test_experts_whose_size_is_the_inputs_on_the_example_alone_stay(kind: str, size: int) -> None:
    torch.manual_seed(0)
    net = Images(kind).to(DOUBLE)
    space = slim(net, torch.randn(2, 3, 8, 8, dtype=DOUBLE))
    assert (blocks(space) != []) == (kind == "plain")
    if kind == "up":  # its own sum fails on odd sizes
        return
    other = torch.randn(3, 3, size, size, dtype=DOUBLE)
    if kind == "plain":
        gone = Architecture({**full(space), blocks(space)[0]: ()})
        torch.testing.assert_close(build(space, gone)(other), hold(space, gone)(other))
    assert build(space, full(space))(other).shape == (3, 2)


@pytest.mark.parametrize("outs", [6, 4])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("way", ["sum", "stack", "product", "masked", "one precision"])
def test_experts_that_are_gone_have_the_precision_of_the_others_under_autocast(
    way: str, shifted: bool, outs: int
) -> None:
    torch.manual_seed(len(way) + outs)
    x, net = torch.randn(3, 40, 3), Around(way, outs, skip=False)
    net.first = Shifted() if shifted else net.first
    space = slim(net, x)
    stir(space)
    gone = blocks(space)
    assert gone
    for closed in (gone[:1], gone):
        architecture = Architecture({**full(space), **dict.fromkeys(closed, ())})
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                (expected,), (made,) = (outputs(net, (x,), training=training) for net in (held, built))
            assert expected.dtype == made.dtype == torch.bfloat16
            assert torch.equal(expected, made)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = built.train(training)(x).square().sum()
            loss.backward()
    exported = torch.export.export(built.eval(), (x,), strict=False) if way == "sum" else None
    assert exported is None or torch.equal(exported.module()(x), built(x))

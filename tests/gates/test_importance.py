"""Importance of gate entries against closed forms, and the networks that are cut by it."""

from __future__ import annotations

import warnings
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError, LimitError, ModelError
from archgrad.gates.importance import Criterion
from archgrad.gates.selection import gates

torch.set_num_threads(1)
CRITERIA = get_args(Criterion)


@pytest.fixture(scope="module")
def task() -> ag.Classification:
    return ag.Classification.load("digits")


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


def trained(task: ag.Classification) -> nn.Module:
    network = conv_net()
    ag.fit(network, task, ag.Run(steps=150, progress=False))
    return network


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_every_entry_and_cuts_under_the_limit(task: ag.Classification, criterion: str) -> None:
    network = conv_net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    space = ag.slim(network, task.example)
    scores = ag.importance(space, task, criterion=criterion, batches=2)  # type: ignore[arg-type]
    assert {name: tuple(row.shape) for name, row in scores.items()} == {n: (g.size,) for n, g in gates(space).items()}
    assert all(bool(row.isfinite().all()) and row.requires_grad is False for row in scores.values())
    small = ag.cut(
        space, scores, limit=ag.macs(task.example).at_most(fraction=0.4), task=task, repair=True, batches=2
    )
    assert ag.macs(task.example).of(small) <= 0.4 * ag.macs(task.example).of(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_scores_have_their_closed_forms(task: ag.Classification) -> None:
    network = conv_net()
    with torch.no_grad():
        network[1].weight.copy_(torch.arange(8.0))  # type: ignore[union-attr, operator]
    space = ag.slim(network, task.example)
    expected = torch.arange(8.0) / 3.5
    torch.testing.assert_close(ag.importance(space, criterion="bn_scale")["0"], expected)
    weight = network[0].weight.detach().abs().flatten(1).mean(1)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(ag.importance(space, criterion="magnitude")["0"], weight / weight.mean())

    # Taylor by hand: the channel's share of the input of its reader, and the loss's derivative with respect to it.
    factor = torch.ones(8, requires_grad=True)

    def loss(batch: object) -> Tensor:
        x, y = batch  # type: ignore[misc]
        hidden = network[2](network[1](network[0](x))) * factor.view(1, -1, 1, 1)
        return nn.functional.cross_entropy(network[3:](hidden), y)  # type: ignore[operator]

    stream, squares = task.stream(seed=5), torch.zeros(8)
    network.eval()
    for number in range(3):
        (gradient,) = torch.autograd.grad(loss(stream(number)), factor)
        squares += gradient**2
    found = ag.importance(space, task, criterion="taylor", batches=3, seed=5)["0"]
    torch.testing.assert_close(found, squares / squares.mean(), rtol=1e-3, atol=1e-4)

    with torch.no_grad():
        read = torch.cat([network[:3](stream(number)[0]) for number in range(3)])
    variance = read.var((0, 2, 3), correction=0)
    found = ag.importance(space, task, criterion="variance", batches=3, seed=5)["0"]
    torch.testing.assert_close(found, variance / variance.mean(), rtol=1e-3, atol=1e-4)


class Residual(nn.Module):
    """A block that may go, in a small CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.head((x + self.block(x)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("fraction", [0.6, 0.3, 0.1])
def test_uniform_keeps_the_same_share_of_every_layer_and_its_largest_channels(
    task: ag.Classification, fraction: float
) -> None:
    space, limit = ag.slim(conv_net(), task.example), ag.macs(task.example).at_most(fraction=fraction)
    scores = ag.importance(space, criterion="magnitude")
    network, by_magnitude = (
        ag.cut(space, scores, limit=limit, round_to=1, uniform=uniform) for uniform in (True, False)
    )
    assert ag.macs(task.example).of(network) <= fraction * ag.macs(task.example).of(conv_net())
    shares, others = (
        [len(after.weight) / len(before.weight) for before, after in zip(conv_net(), cut, strict=True)
         if isinstance(before, nn.Conv2d | nn.Linear)][:-1]
        for cut in (network, by_magnitude)
    )  # fmt: skip
    assert max(shares) - min(shares) <= 1 / 8 < max(others) - min(others)  # a channel of the narrowest layer
    first = conv_net()[0].weight.abs().flatten(1).mean(1)
    kept = first.topk(round(8 * shares[0])).indices.sort().values
    assert torch.equal(network[0].weight, conv_net()[0].weight[kept])


def test_uniform_leaves_blocks_where_they_are_and_says_what_it_cannot_keep(task: ag.Classification) -> None:
    space, macs = ag.slim(Residual(), task.example), ag.macs(task.example)
    scores = ag.importance(space, criterion="magnitude")
    assert any(gate.vanishing for gate in gates(space).values())
    network = ag.cut(space, scores, limit=macs.at_most(fraction=0.3), round_to=1, uniform=True)
    assert network.block[1].weight.shape[:2] == network.block[3].weight.shape[:2]
    counted_by_hand = ag.black_box(lambda net: float(sum(p.numel() for p in net.parameters())), name="own", unit="")
    for cost, fraction in ((macs, 0.01), (counted_by_hand, 0.03)):
        with pytest.raises(LimitError, match="no uniform width keeps"):
            ag.cut(space, scores, limit=cost.at_most(fraction=fraction), round_to=1, uniform=True)
    limit = counted_by_hand.at_most(fraction=0.4)
    assert counted_by_hand.of(ag.cut(space, scores, limit=limit, round_to=1, uniform=True)) <= 0.4 * sum(
        p.numel() for p in Residual().parameters()
    )


def test_repair_is_exact_where_a_channel_is_the_sum_of_others(task: ag.Classification) -> None:
    """The last channels repeat the first: without them, and repaired, the network computes what it did."""
    network = conv_net()
    with torch.no_grad():
        for layer in (network[0], network[1]):
            for value in layer.state_dict().values():
                if value.ndim:
                    value[4:] = value[:4]
    space = ag.slim(network, task.example)
    every = {name: tuple(range(gate.size)) for name, gate in gates(space).items()}
    scores = {name: torch.full((gate.size,), 3.0) for name, gate in gates(space).items()}
    scores["0"] = torch.tensor([2.0] * 4 + [0.0] * 4)
    few = ag.build(space, ag.Architecture(every | {"0": (0, 1, 2, 3)}))
    limit = ag.params().at_most(fraction=ag.params().of(few) / ag.params().of(network))
    x, whole = task.stream(seed=0)(0)[0], ag.build(space, ag.Architecture(every))
    fine, broken = (
        ag.cut(space, scores, limit=limit, task=task, round_to=1, repair=repair) for repair in (True, False)
    )
    assert fine[0].out_channels == 4 and fine[3].out_channels == 12  # type: ignore[index, union-attr]
    ag.recalibrate(whole, task, ag.Run(progress=False, device="cpu"), batches=16)
    with torch.no_grad():
        wanted = whole.eval()(x)
        assert float((fine.eval()(x) - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
        assert float((broken.eval()(x) - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def test_repair_keeps_more_of_a_trained_network(task: ag.Classification) -> None:
    space = ag.slim(trained(task), task.example)
    scores = ag.importance(space, criterion="magnitude")
    limit = ag.macs(task.example).at_most(fraction=0.5)
    plain, repaired = (
        task.evaluate(ag.cut(space, scores, limit=limit, task=task, round_to=1, repair=repair), "valid")["loss"]
        for repair in (False, True)
    )
    assert repaired < plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "tayler"}, "'magnitude', 'bn_scale', 'taylor'"),
        ({"criterion": "taylor"}, "no task was given"),
        ({"criterion": "variance"}, "no task was given"),
        ({"criterion": "magnitude", "batches": 0}, "a whole number from 1 up"),
    ],
)
def test_what_importance_refuses(task: ag.Classification, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ag.importance(ag.slim(conv_net(), task.example), **options)  # type: ignore[arg-type]


def test_cut_says_when_the_whole_network_keeps_the_limit(task: ag.Classification) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(task.example.numel(), 16), nn.ReLU(), nn.Linear(16, 10))
    space = ag.slim(network, task.example)
    scores = ag.importance(space, criterion="magnitude")
    with pytest.warns(UserWarning, match="nothing was cut: the whole network has macs at most") as caught:
        left = ag.cut(space, scores, limit=ag.macs(task.example).at_most(fraction=1.0))
    assert left[1].out_features == 16 and caught[0].filename == __file__
    several = [ag.macs(task.example).at_most(1e9), ag.params().at_most(1e6)]
    with pytest.warns(UserWarning, match="has macs at most 1,000,000,000 MACs and params at most 1,000,000 "):
        ag.cut(space, scores, limit=several)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ag.cut(space, scores, limit=ag.macs(task.example).at_most(fraction=0.5))


def test_cut_refuses_scores_of_another_space_and_repair_without_data(task: ag.Classification) -> None:
    space, limit = ag.slim(conv_net(), task.example), ag.macs(task.example).at_most(fraction=0.5)
    scores = ag.importance(space, criterion="random")
    with pytest.raises(ConfigError, match="another space"):
        ag.cut(space, scores | {"other": torch.ones(3)}, limit=limit)
    with pytest.raises(ConfigError, match="another space"):
        ag.cut(space, scores | {"0": torch.ones(3)}, limit=limit)
    with pytest.raises(ConfigError, match="no task was given"):
        ag.cut(space, scores, limit=limit, repair=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_is_no_obstacle(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        space = ag.slim(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
        scores = ag.importance(space, criterion="magnitude")
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(scores["0"]) == 8 and bool((scores["0"] > 0).all())


@pytest.mark.parametrize("criterion", ["taylor", "variance"])
def test_a_task_of_other_data_is_refused(task: ag.Classification, criterion: str) -> None:
    space = ag.slim(conv_net(), task.example)
    other = ag.Classification((torch.randn(30, 3, 8, 8), torch.arange(30) % 10), batch_size=5)
    with pytest.raises(ModelError, match="fails with Sequential on a batch of shape"):
        ag.importance(space, other, criterion=criterion)  # type: ignore[arg-type]

"""BatchNorm statistics estimated anew: of plain networks, and of supernets as their choices stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import using
from archgrad.choices.modules import OpChoice
from archgrad.errors import ModelError
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.training.fit import recalibrate


def task() -> Classification:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(1)) * 3 + 2
    return Classification((x, torch.arange(100) % 2), batch_size=10)


def supernet() -> nn.Module:
    torch.manual_seed(0)
    candidates = {name: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for name in "abc"}
    space = nn.Sequential(OpChoice(candidates, name="op"), nn.BatchNorm1d(3), nn.Linear(3, 2))
    for norm in norms(space):  # statistics that no data would give
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(5.0)
    return ag.relax(space, ag.softmax)


def norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]


def statistics(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean over batches of each batch's mean and variance."""
    return torch.stack([v.mean(0) for v in values]).mean(0), torch.stack([v.var(0) for v in values]).mean(0)


def check(norm: nn.BatchNorm1d, values: list[Tensor]) -> None:
    mean, var = statistics(values)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def batches(data: Classification, run: Run) -> list[Tensor]:
    stream = data.stream(seed=run.seed)
    return [stream(step)[0] for step in range(8)]  # type: ignore[misc]


@pytest.fixture
def run() -> Run:
    return Run(seed=2, device="cpu", progress=False)


def normed(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


@torch.no_grad()
def test_a_relaxed_supernet(run: Run) -> None:
    space, data = supernet(), task()
    recalibrate(space, data, run)
    *inner, outer = norms(space)
    choice = space[0]  # type: ignore[index]
    mixed = [torch.zeros(10, 3) for _ in range(8)]
    for candidate, norm in zip(choice.candidates, inner, strict=True):
        values = [candidate[0](x) for x in batches(data, run)]
        check(norm, values)
        mixed = [m + normed(v) / 3 for m, v in zip(mixed, values, strict=True)]
    check(outer, mixed)


@torch.no_grad()
def test_candidates_that_do_not_run_keep_their_statistics(run: Run) -> None:
    space, data = supernet(), task()
    with using(space, {"op": torch.tensor([0.0, 1.0, 0.0])}):
        recalibrate(space, data, run)
    first, second, third, outer = norms(space)
    values = [space[0].candidates[1][0](x) for x in batches(data, run)]  # type: ignore[index]
    check(second, values)
    check(outer, [normed(v) for v in values])
    for norm in (first, third):
        assert norm.running_mean is not None and norm.running_var is not None
        assert norm.running_mean.tolist() == [7.0] * 3 and norm.running_var.tolist() == [5.0] * 3


def test_modes_momenta_and_weights_are_left_alone(run: Run) -> None:
    space = supernet()
    space.train()
    norms(space)[0].eval()
    norms(space)[1].momentum = 0.3
    before = [m.training for m in space.modules()]
    parameters = [p.clone() for p in space.parameters()]
    recalibrate(space, task(), run)
    assert [m.training for m in space.modules()] == before
    assert [norm.momentum for norm in norms(space)] == [0.1, 0.3, 0.1, 0.1]
    assert all(torch.equal(a, b) for a, b in zip(parameters, space.parameters(), strict=True))


def test_a_network_that_fails_gets_its_modes_back(run: Run) -> None:
    space = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 2)).eval()
    with pytest.raises(ModelError):
        recalibrate(space, task(), run)
    assert not any(m.training for m in space.modules())
    assert norms(space)[0].momentum == 0.1


def test_a_held_supernet_is_as_if_used(run: Run) -> None:
    space, data = supernet(), task()
    held = ag.hold(space, ag.Architecture({"op": 1}))
    recalibrate(held, data, run)
    with using(space, {"op": torch.tensor([0.0, 1.0, 0.0])}):
        recalibrate(space, data, run)
    for one, other in zip(norms(held), norms(space), strict=True):
        assert torch.equal(one.running_mean, other.running_mean)  # type: ignore[arg-type]


MISFITS = [
    nn.BatchNorm2d(7),
    nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 2)),
    nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, device="meta")),
]


@pytest.mark.parametrize("network", MISFITS)
def test_a_network_that_does_not_fit_its_task_is_refused(network: nn.Module, run: Run) -> None:
    with pytest.raises(ModelError, match=r"on a batch of shape \[10, 3\] .* Change the network|no values"):
        recalibrate(network, task(), run)

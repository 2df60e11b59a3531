"""Peak memory: hand counts, exact bytes for many networks, the step as it really is, and limits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.costs import memory
from archgrad.costs.memory import GIB, measured_peak, peak_memory, predict_memory, saved_bytes
from archgrad.costs.memory_watch import Allocations, Saved
from archgrad.errors import ChoiceError, LimitError, ModelError
from archgrad.supernets import lifecycle as supernet


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, stride=2),
        nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 5),
    )  # fmt: skip


def mixed() -> nn.Module:
    candidates = {f"k{k}": nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, k, padding=k // 2)) for k in (1, 3, 5)}
    space = nn.Sequential(
        ag.OpChoice({**candidates, "skip": nn.Identity()}, name="a"), nn.Flatten(), nn.LazyLinear(2)
    )
    space[1:](torch.zeros(2, 3, 12, 12))
    return ag.relax(space, ag.softmax)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"convolutions": conv_net, "supernet": mixed}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def test_saved_bytes_of_a_chain_are_those_counted_by_hand() -> None:
    """The first layer saves its input, which is there anyway; ReLU its output, which the second layer saves too."""
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    assert saved_bytes(net, torch.randn(7, 10)) == 7 * 20 * 4
    without = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Tanh(), nn.Linear(20, 3))
    assert saved_bytes(without, torch.randn(7, 10)) == 2 * 7 * 20 * 4


def test_a_footprint_is_that_counted_by_hand() -> None:
    found = predict_memory(nn.Linear(10, 20), torch.randn(2, 10)).at(8)
    size = 4 * (10 * 20 + 20)
    assert (found.parameter_bytes, found.gradient_bytes, found.optimizer_bytes) == (size, size, size)
    assert (found.batch_bytes, found.saved_bytes, found.buffer_bytes) == (4 * 8 * 10, 0, 0)
    assert found.resident_bytes == 2 * size + 4 * 8 * 10
    # Both gradients, and while the optimizer works one temporary as large as the weight.
    assert found.peak_bytes == found.resident_bytes + size + 4 * 200


@every_network
@pytest.mark.parametrize("examples", [2, 5, 16])
def test_prediction_from_two_and_three_examples_is_exact(make: Callable[[], nn.Module], examples: int) -> None:
    net, x = make(), torch.randn(examples, 3, 12, 12)
    found = predict_memory(net, x).at(examples)
    assert found.saved_bytes == saved_bytes(net, x)
    assert found.peak_bytes == measured_peak(net, x)


def test_what_a_smaller_batch_takes_is_not_a_share_of_what_a_larger_takes() -> None:
    """The control: scaling the bytes of two examples, constant parts included, is off."""
    net, x = mixed(), torch.randn(16, 3, 12, 12)
    assert saved_bytes(net, x) != 8 * saved_bytes(net, x[:2].clone())


def test_each_further_candidate_adds_the_same_saved_bytes() -> None:
    """Of each its ReLU's output, and its own output for the gradient of its weight."""
    space, x = mixed(), torch.randn(4, 3, 12, 12)
    found = []
    for support in ([0, 1, 2, 3], [0, 1, 3], [0, 3]):
        ag.restrict(space, {"a": support})
        found.append(saved_bytes(space, x))
    assert found[0] - found[1] == found[1] - found[2] == 2 * x.nbytes


def test_the_peak_is_that_of_the_allocator() -> None:
    """The same step under torch's profiler, which sees each allocation; it needs no hook of ours."""
    net, x = conv_net(), torch.randn(32, 3, 32, 32)
    weights = list(net.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.autograd.grad(net(x).sum(), weights)
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    optimizer = sum(p.nbytes for p in weights)
    resident = sum(t.nbytes for t in net.state_dict().values()) + x.nbytes + optimizer
    assert measured_peak(net, x) == pytest.approx(resident + peak, rel=0.02)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.9), Adam])
def test_optimizer_state_is_counted_to_the_byte(make: memory.OptimizerFactory) -> None:
    net = conv_net()
    made = make(net.parameters())
    net(torch.randn(4, 3, 12, 12)).sum().backward()
    made.step()
    real = sum(t.nbytes for state in made.state.values() for t in state.values() if isinstance(t, Tensor))
    assert predict_memory(net, torch.randn(2, 3, 12, 12), optimizer=make).at(4).optimizer_bytes == real


def test_a_storage_counts_once_and_what_is_known_not_at_all() -> None:
    x = torch.randn(10, requires_grad=True)
    with Saved() as twice:
        held = (x.exp() * 1.0).view(2, 5).sin()  # exp saves its output, sin its input: a view of the product
    assert twice.saved_bytes == 2 * 40
    with Saved([x]) as known:
        held = (x * x).sum()
    assert known.saved_bytes == 0 and held.requires_grad


def test_allocations_are_followed_until_they_are_freed() -> None:
    with Allocations() as seen:
        a = torch.zeros(100)
        b = a + 1
        assert seen.held_bytes == 800
        del a
        c = b.view(10, 10)
        assert seen.held_bytes == 400
        del b
        assert seen.held_bytes == 400 and c.shape == (10, 10)
    assert seen.events == [400, 400, -400] and seen.peak_bytes == 800


def test_nothing_is_changed_by_being_asked() -> None:
    net, x = conv_net().eval(), torch.randn(4, 3, 12, 12)
    before, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    peak_memory(x).of(net)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and not any(m.training for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    found = predict_memory(conv_net(), torch.randn(1, 3, 12, 12))
    fits = found.largest_batch(1e6)
    assert found.at(fits).peak_bytes <= 1e6 < found.at(fits + 1).peak_bytes
    assert found.largest_batch(1000) == 0


def test_limits_in_gib_bytes_and_fractions() -> None:
    cost = peak_memory(torch.randn(1, 3, 12, 12), batch=8)
    assert cost.at_most(gib=2).bound == 2 * GIB and cost.at_most(peak_bytes=5e6).bound == 5e6
    assert cost.at_most(fraction=0.5).resolve(10.0) == 5.0
    assert cost.of(conv_net()) == peak_memory(torch.randn(8, 3, 12, 12)).of(conv_net())
    with pytest.raises(LimitError, match="has no gradient"):
        cost.expected(mixed())
    for wrong in ({"gib": 1, "peak_bytes": 1}, {}, {"gib": 0}, {"gib": -1.0}):
        with pytest.raises(LimitError):
            cost.at_most(**wrong)
    with pytest.raises(LimitError, match="from 1"):
        peak_memory(torch.zeros(1, 3, 12, 12), batch=0)


def test_a_network_that_fails_says_so() -> None:
    with pytest.raises(ModelError, match="Sequential fails on the batch"):
        peak_memory(torch.randn(2, 4, 12, 12)).of(conv_net())


def test_free_memory_of_a_container(tmp_path: Path) -> None:
    assert memory._free_of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert memory._free_of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._free_of_container(tmp_path) == 900
    assert memory.available_bytes(torch.device("cpu")) > 0
    assert memory.available_bytes(torch.device("meta")) is None


def task() -> ag.Classification:
    x = torch.randn(80, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return ag.Classification((x, (x.mean(dim=(1, 2, 3)) > 0).long()), batch_size=16)


SHARED = functools.partial(ag.random_search, shared=True)


@pytest.mark.parametrize("method", [ag.darts, ag.unas, ag.random_search, SHARED, ag.monas])
def test_every_search_foresees_its_peak(method: Callable[..., ag.Found]) -> None:
    found = method(mixed(), task(), ag.Run(steps=8, trials=2, device="cpu", progress=False))
    assert next(row["predicted_peak_bytes"] for row in found.history if "predicted_peak_bytes" in row) > 1e4


def test_slimming_foresees_its_peak_and_speaks_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(1024, 2))
    space = ag.slim(net, example=task().example)
    found = ag.dnal(space, task(), ag.Run(steps=8, device="cpu", progress=False))
    assert next(row["predicted_peak_bytes"] for row in found.history if "predicted_peak_bytes" in row) > 1e4
    monkeypatch.setattr(supernet, "available_bytes", lambda device: 1000)
    with pytest.raises(LimitError, match=r"training this network would take .* a smaller network, or candidates$"):
        ag.dnal(space, task(), ag.Run(steps=8, device="cpu", progress=False))


def test_the_whole_search_stays_near_the_step_that_was_foreseen() -> None:
    """What the architecture's loss saved is let go of before the weights' loss is computed."""
    layers = [
        ag.OpChoice({str(k): nn.Sequential(nn.Conv2d(3, 3, k, padding=k // 2), nn.ReLU()) for k in (1, 3, 5)}, name=n)
        for n in ("first", "second")
    ]
    space, data = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 144, 2)), task()
    with Allocations() as seen:
        found = ag.darts(space, data, ag.Run(steps=6, device="cpu", progress=False), search_fraction=1.0)
    foreseen = next(row["predicted_peak_bytes"] for row in found.history if "predicted_peak_bytes" in row)
    assert seen.peak_bytes <= 1.15 * foreseen


def test_a_run_that_would_not_fit_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = predict_memory(mixed(), task().stream(seed=0)(0), loss=task().loss).at(16).peak_bytes
    monkeypatch.setattr(supernet, "available_bytes", lambda device: needed // 2)
    run = ag.Run(steps=4, device="cpu", progress=False)
    with pytest.raises(LimitError, match=r"a batch of at most \d+ \(given: 16\), or archgrad.radars"):
        ag.darts(mixed(), task(), run)
    monkeypatch.setattr(supernet, "available_bytes", lambda device: 1000)
    with pytest.raises(LimitError, match="the largest of 5 networks drawn would take"):
        ag.random_search(mixed(), task(), ag.Run(steps=8, trials=2, device="cpu", progress=False))
    assert not any("loss" in row for row in run.history)
    monkeypatch.setattr(supernet, "available_bytes", lambda device: needed)
    ag.darts(mixed(), task(), ag.Run(steps=4, device="cpu", progress=False))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.head = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        x = x + torch.relu(self.b(x))
        return self.head(self.c(x).mean((2, 3)))


def test_memory_of_inference_by_hand() -> None:
    x = torch.randn(1, 4, 8, 8)
    cost = peak_memory(x, mode="inference")
    held = cost.liveness(Residual())
    assert held.peak_bytes == 4 * (8 + 16) * 64 and held.peak_layer == "c"  # c reads 8 channels and writes 16
    assert peak_memory(x, mode="inference", dtype="int8").of(Residual()) == (8 + 16) * 64
    assert peak_memory(x, mode="inference", batch=5, dtype=torch.float16).of(Residual()) == 5 * 2 * (8 + 16) * 64
    chain = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Unflatten(1, (2, 5)), nn.Flatten(), nn.Linear(10, 3))
    assert peak_memory(torch.randn(1, 4), mode="inference").of(chain) == 4 * (4 + 10)  # in place and by views
    branch = Branches()
    assert peak_memory(torch.randn(1, 6), mode="inference").of(branch) == 4 * (6 + 8 + 8)  # x waits for the sum


class Branches(nn.Module):
    """The input is read once more behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.same, self.down = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.same(self.up(x)))


@pytest.mark.parametrize("make", [Residual, Branches])
def test_expected_memory_is_that_of_the_network_built(make: type[nn.Module]) -> None:
    x = torch.randn(1, 4, 8, 8) if make is Residual else torch.randn(1, 6)
    space, cost = ag.slim(make(), x), peak_memory(x, mode="inference")
    names = {name: same[0].size for name, same in choices(space).items()}
    for seed in (1, 4):
        generator = torch.Generator().manual_seed(seed)
        drawn = {n: torch.randperm(s, generator=generator)[: 1 + seed % s].tolist() for n, s in names.items()}
        architecture = ag.Architecture({n: tuple(sorted(pick)) for n, pick in drawn.items()})
        held = ag.hold(space, architecture)
        assert float(cost.expected(held)) == pytest.approx(cost.of(ag.build(space, architecture)))


def test_expected_memory_has_a_gradient_where_the_peak_is() -> None:
    x = torch.randn(1, 4, 8, 8)
    space = ag.relax(ag.slim(Residual(), x), ag.scaled_sigmoid)
    peak_memory(x, mode="inference").expected(space).backward()
    gradients = {name: same[0].relaxation.logits.grad for name, same in choices(space).items()}
    assert all(g is not None and bool((g > 0).all()) for g in gradients.values())


def test_a_limit_on_the_memory_of_inference_is_kept() -> None:
    x = torch.randn(2, 4, 8, 8)
    space = ag.slim(Residual(), x)
    limit = peak_memory(x[:1], mode="inference", dtype="int8").at_most(peak_bytes=900)
    task = ag.Supervised((torch.randn(40, 4, 8, 8), torch.randn(40, 3)), loss=nn.MSELoss(), batch_size=10)
    scores = ag.importance(space, task, criterion="magnitude")
    small = ag.cut(space, scores, limit=limit)
    assert limit.cost.of(small) <= 900 < limit.cost.of(Residual())


def test_what_memory_of_inference_refuses() -> None:
    x = torch.randn(1, 4, 8, 8)
    for wrong in ({"dtype": "int8"}, {"mode": "inference", "dtype": "byte4"}):
        with pytest.raises(LimitError, match="goes with mode='inference'"):
            peak_memory(x, **wrong)
    with pytest.raises(ModelError, match="does not run on the example"):
        peak_memory(torch.randn(1, 3, 8, 8), mode="inference").of(Residual())
    with pytest.raises(ChoiceError, match="is no gate"):
        peak_memory(torch.randn(2, 3, 12, 12), mode="inference").expected(mixed())

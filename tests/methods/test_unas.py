"""UNAS: its gradient against enumeration, what its steps touch, black boxes, measured limits, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import logits, using
from archgrad.choices.relaxations import Softmax
from archgrad.errors import ChoiceError, ConfigError, LimitError
from archgrad.methods.unas.objective import LimitPenalty, Objective, RebarEstimate, Sampler, UnasTerms
from archgrad.supernets.constraint import ArchitectureConstraint


class Small(nn.Module):
    """Two choices: 3 x 2 architectures. [B, 6] to [B, 2]."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.first = ag.OpChoice(
            {"tanh": nn.Tanh(), "half": nn.Linear(6, 6), "erase": nn.Softshrink(9.0)}, name="first"
        )
        self.second = ag.OpChoice({"pass": nn.Identity(), "abs": nn.Hardshrink(0.5)}, name="second")
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def task(batch: int = 20) -> ag.Classification:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=g)
    return ag.Classification((x, (x[:, :3].sum(1) > 0).long()), batch_size=batch)


def begun(**settings: object) -> ag.Run:
    run = ag.Run(**{"steps": 10, "seed": 1, "device": "cpu", "progress": False, **settings})
    run.begin("test", {})
    return run


def objective(space: nn.Module, data: ag.Classification, terms: UnasTerms, penalty: bool = False) -> Objective:
    ag.relax(space, Softmax)
    with torch.no_grad():
        for i, logit in enumerate(logits(space)):
            logit.copy_(torch.linspace(-0.5, 0.7, len(logit)) * (1 - 2 * i))
    sampler = Sampler(space, begun(), temperature=terms.temperature, softening=terms.softening)
    made = None
    if penalty:
        constraint = ArchitectureConstraint(space, ag.macs(torch.zeros(1, 6)).at_most(20))
        made = LimitPenalty(sampler, constraint, beta=lambda: 1.0)
    return Objective(space, data, sampler, terms=terms, penalty=made)


def exact(space: nn.Module, data: ag.Classification, batches: tuple, terms: UnasTerms, penalty: bool) -> list[Tensor]:
    """The gradient of the expected objective, by enumeration."""
    total = torch.zeros((), dtype=torch.float64)
    soft = [torch.softmax(p.double(), 0) for p in logits(space)]
    soft = [(q + terms.softening) / (1 + len(q) * terms.softening) for q in soft]
    for picks in itertools.product(range(3), range(2)):
        architecture = ag.Architecture({"first": picks[0], "second": picks[1]})
        held = ag.hold(space, architecture)
        with torch.no_grad():
            first, second = (data.losses(held, batch) for batch in batches)
            gap = {"pairwise": (second - first).abs().mean(), "batch": (second.mean() - first.mean()).abs()}
            loss = first.mean() + terms.gap_weight * gap.get(terms.gap, torch.zeros(()))
            if penalty:
                price = ag.macs(torch.zeros(1, 6)).of(ag.build(space, architecture))
                loss = loss + max(0.0, price / 20 - 1)
        total = total + soft[0][picks[0]] * soft[1][picks[1]] * loss.double()
    return [g.double() for g in torch.autograd.grad(total, logits(space))]


def worst(space: nn.Module, found: Objective, batches: tuple, wanted: list[Tensor], draws: int) -> float:
    """The largest distance of the mean estimate from the exact gradient, in standard errors."""
    rows = []
    for _ in range(draws):
        _, gradients = found.gradient(*batches)
        rows.append(torch.cat([g.double() for g in gradients]))
    sample = torch.stack(rows)
    error = sample.std(0) / math.sqrt(draws)
    return float(((sample.mean(0) - torch.cat(wanted)).abs() / error).max())


@pytest.mark.parametrize(
    ("terms", "penalty"),
    [
        (UnasTerms(gap="batch"), False),
        (UnasTerms(gap="pairwise"), True),
        (UnasTerms(gap="none", estimator="score_function"), False),
    ],
)
def test_the_gradient_is_that_of_the_expected_objective(terms: UnasTerms, penalty: bool) -> None:
    space, data = small(), task()
    shares = data.split(0.5)
    batches = (shares[0].stream(seed=0)(0), shares[1].stream(seed=0)(0))
    found = objective(space, data, terms, penalty)
    assert worst(space, found, batches, exact(space, data, batches, terms, penalty), 1500) < 4.5


def test_a_gradient_without_its_score_function_fails_the_same_test() -> None:
    space, data = small(), task()
    batches = (data.stream(seed=0)(0), data.stream(seed=1)(0))
    found = objective(space, data, UnasTerms(gap="none"))

    class Relaxed(RebarEstimate):
        def __call__(self, hard: Tensor, relaxed: Tensor, log_probability: Tensor) -> Tensor:
            return relaxed.mean()

    found.estimate = Relaxed(lambda losses: losses)
    assert worst(space, found, batches, exact(space, data, batches, UnasTerms(gap="none"), False), 1500) > 4.5


def test_the_two_forms_of_the_gap_agree_where_a_batch_is_one_image() -> None:
    space, data = small(), task(batch=1)
    batches = (data.stream(seed=0)(0), data.stream(seed=1)(0))
    losses = []
    for gap in ("pairwise", "batch"):
        found = objective(space, data, UnasTerms(gap=gap))
        sample = found.sampler.draw()
        losses.append(found._loss(sample.hard, *batches))
    assert torch.allclose(*losses)


def test_each_step_moves_only_what_is_its_own() -> None:
    """An architecture step changes no weight, a weight step no logit; the latter never sees validation images."""
    space, data = small(), task()
    found = objective(space, data, UnasTerms())
    train, valid = data.stream(seed=0)(0), data.stream(seed=1)(0)
    weights, decided = ag.weights(space), logits(space)
    assert not {id(p) for p in weights} & {id(p) for p in decided}
    seen: list[Tensor] = []
    data_loss = data.loss
    data.loss = lambda network, batch: seen.append(batch[0]) or data_loss(network, batch)  # type: ignore[method-assign]
    _, gradients = found.gradient(train, valid)
    assert [g.shape for g in gradients] == [p.shape for p in decided]
    assert all(p.grad is None for p in weights)
    seen.clear()
    loss = found.weight_loss(space, train)
    assert len(seen) == 1 and seen[0] is train[0]
    assert all(g is None for g in torch.autograd.grad(loss, decided, allow_unused=True, retain_graph=True))
    assert any(g is not None for g in torch.autograd.grad(loss, weights, allow_unused=True))


def test_a_black_box_alone_is_enough() -> None:
    """A function without gradient that likes one candidate: no task loss, no relaxation."""

    def dislikes(network: nn.Module, batch: object) -> Tensor:
        weights = dict(network.named_modules())["first"].mixing()
        return 1.0 - weights[1]

    terms = UnasTerms(task=0.0, estimator="score_function", softening=0.0, warm_up=0.0)
    run = ag.Run(steps=60, seed=0, device="cpu", progress=False)
    found = ag.unas(small(), task(), run, black_box=dislikes, terms=terms, search_fraction=1.0)
    assert found.architecture["first"] == 1
    other = ag.unas(
        small(), task(), ag.Run(steps=60, seed=0, device="cpu", progress=False), terms=terms, search_fraction=1.0,
        black_box=lambda network, batch: 1.0 - dislikes(network, batch),
    )  # fmt: skip
    assert other.architecture["first"] != 1


def test_the_zero_one_error_beside_the_task() -> None:
    def error(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (network(batch[0]).argmax(1) != batch[1]).float().mean()

    found = ag.unas(small(), task(), ag.Run(steps=40, seed=0, device="cpu", progress=False), black_box=error)
    assert found.score is not None and found.score > 0.5


def test_a_measured_limit_is_kept_and_its_surrogate_is_reported() -> None:
    cost = ag.black_box(lambda net: 1.0 + sum(p.numel() for p in net.parameters()) / 10, name="latency", unit="ms")
    run = ag.Run(steps=40, seed=0, device="cpu", progress=False)
    found = ag.unas(small(), task(), run, limit=cost.at_most(4.0))
    assert found.architecture["first"] != 1, "the linear layer is too slow"
    assert found.record["limit"]["reached"] <= 4.0 == found.record["limit"]["bound"]
    assert found.record["surrogate"]["measured"]
    assert any("expected_latency" in row and "cost" in row for row in found.history)
    with pytest.raises(LimitError, match=r"lowest reachable is 2\.4"):
        ag.unas(small(), task(), ag.Run(steps=40, device="cpu", progress=False), limit=cost.at_most(2.0))


@pytest.mark.parametrize("warm_up", [0.0, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("restart", [False, True])
def test_the_logits_have_a_schedule_of_their_own_that_begins_when_they_do(warm_up: float, restart: bool) -> None:
    terms = UnasTerms(warm_up=warm_up, floor=0.3, restart=restart)
    of_weights, of_logits = terms.schedules(lambda progress: 1.0 - progress)
    half = warm_up + 0.5 * (1.0 - warm_up)
    assert [of_logits(p) for p in (warm_up, half, 1.0)] == [pytest.approx(v) for v in (1.0, 0.65, 0.3)]
    assert UnasTerms(warm_up=warm_up).schedules(of_weights)[1](1.0) == 0.0
    assert of_weights(half) == pytest.approx(0.5 if restart else 1.0 - half)
    assert terms.beta(warm_up) == 0.0 and terms.beta(half) == terms.beta(1.0) == 1.0


def test_only_the_weights_move_in_the_warm_up() -> None:
    run = ag.Run(steps=40, seed=0, device="cpu", progress=False, output=ag.Output(log_every=1))
    ag.unas(small(), task(), run, search_fraction=1.0)
    moved = [row["step"] for row in run.history if "architecture_loss" in row]
    assert moved == list(range(30, 40))


@pytest.mark.parametrize("weights_at", ["uniform", "policy"])
def test_the_weights_are_trained_evenly_or_at_what_the_policy_prefers(weights_at: str) -> None:
    space, data, terms = small(), task(), UnasTerms(gap="none", weights_at=weights_at)
    searched = objective(space, data, terms)
    with torch.no_grad():
        for row in logits(space):
            row[0] = 8.0  # the policy is all but decided
    batch, heaviest = data.stream(seed=0)(0), list[int]()
    space.first.register_forward_pre_hook(lambda choice, _: heaviest.append(int(choice.ready().argmax())))
    for _ in range(200):
        searched.gradient(batch, batch)
        del heaviest[-2:]  # of the discrete and the relaxed network
        searched.weight_loss(space, batch)
    assert len(heaviest) == 200
    assert heaviest.count(0) / 200 == pytest.approx(1.0 if weights_at == "policy" else 1 / 3, abs=0.12)


@pytest.mark.parametrize("wrong", [{"warm_up": 1.0}, {"warm_up": -0.1}, {"ramp": 1.5}, {"floor": 2.0}])
def test_parts_of_a_search_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="parts from 0 to 1, and a warm_up below 1"):
        UnasTerms(**wrong)


def test_what_it_cannot_search_is_refused() -> None:
    run = ag.Run(steps=10, device="cpu", progress=False)
    with pytest.raises(ChoiceError, match="no choice to search"):
        ag.unas(nn.Linear(6, 2), task(), run)
    gated = nn.Sequential(nn.Linear(6, 6), ag.Gate(6, name="gate"), nn.Linear(6, 2))
    with pytest.raises(ChoiceError, match=r"gate.*archgrad.dnal"):
        ag.unas(gated, task(), run)
    with pytest.raises(ChoiceError, match="factorized=True"):
        ag.unas(ag.darts_cells(channels=2, cells=3, in_channels=1), task(), run)
    unequal = nn.Sequential(ag.OpChoice({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}, name="op"))
    with pytest.raises(ChoiceError, match=r"a: \(2, 2\), b: \(2, 3\)"):
        ag.unas(unequal, task(), run)


def test_per_image_weights_are_those_of_their_images() -> None:
    space, data = small(), task()
    found = objective(space, data, UnasTerms(per_image=True, gap="none"))
    batch = data.stream(seed=0)(0)
    sample = found.sampler.draw(len(batch[1]))
    together = found._loss(sample.hard, batch, batch)
    named = found.sampler.named(sample.hard)
    for i in (0, 7, 19):
        with using(space, {name: row[i] for name, row in named.items()}), torch.no_grad():
            alone = data.losses(space, (batch[0][i : i + 1], batch[1][i : i + 1]))
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_terms_are_recorded() -> None:
    run = ag.Run(steps=16, device="cpu", progress=False)
    found = ag.unas(small(), task(), run, terms=UnasTerms(gap="pairwise"))
    assert found.record["settings"]["terms"] == dataclasses.asdict(UnasTerms(gap="pairwise"))

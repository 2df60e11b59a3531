"""The one training step: every loop of the library takes it, with all that it promises."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import archgrad as ag
from archgrad.control.nnilqr import NnilqrTerms
from archgrad.control.system import Equations, quadratic_cost
from archgrad.control.transitions import Transitions
from archgrad.errors import ModelError, NonFiniteError, ResourceError
from archgrad.methods.pruning_transfer.transfer import TransferProtocol
from archgrad.rl import ppo
from archgrad.rl.ppo import PpoTerms
from archgrad.run.run import Run
from archgrad.tasks.task import Batch
from archgrad.training.step import take_step

Happening = Callable[[Tensor], Tensor]


class Probe:
    """Does something to each loss that is computed for a gradient in the loop to be looked at."""

    happening: Happening | None = None
    run: Run | None = None
    where = ""

    @classmethod
    def touch(cls, loss: Tensor) -> Tensor:
        if cls.happening is None or cls.run is None or not torch.is_grad_enabled():
            return loss
        return cls.happening(loss) if cls.where in cls.run.location else loss


class Probed(ag.Classification):
    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return Probe.touch(super().loss(network, batch))


@functools.cache
def task() -> Probed:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    return Probed((torch.randn(120, 6, generator=g) + y[:, None], y), batch_size=20)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def slimmed() -> nn.Module:
    return ag.slim(network(), task().example)


def supernet() -> nn.Module:
    choice = ag.OpChoice({"a": nn.Linear(8, 8), "b": nn.Sequential(nn.Linear(8, 8), nn.Tanh())}, name="op")
    return nn.Sequential(nn.Linear(6, 8), choice, nn.Linear(8, 2))


def paths(run: Run) -> None:
    """Of eight wide candidates less than half fit."""
    wide = {name: nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 8)) for name in "abcdefgh"}
    space = nn.Sequential(nn.Linear(6, 8), ag.OpChoice(wide, name="op"), nn.Linear(8, 2))
    ag.radars(space, task(), run, memory=ag.peak_memory(task().example).at_most(peak_bytes=400_000))


def few_shots(run: Run) -> None:
    space, protocol = slimmed(), TransferProtocol(shots=(4,), draws=1, restarts=1, steps=3)
    ag.transfer(
        space, ag.sample(space), run, source=task(), target=task(), protocol=protocol, pretrained=True
    )  # fmt: skip


def dynamics(run: Run) -> None:
    one = torch.ones(1, dtype=torch.float64)
    system = Equations(
        name="drift", step=lambda x, u: 0.9 * x + u, cost=quadratic_cost((1.0, 0.1), (0.0, 0.0)),
        start=torch.tensor([1.0]), low=-one, high=one, horizon=6,
    )  # fmt: skip
    ag.nnilqr(None, system, run, terms=NnilqrTerms(explore=2, fit=5, refit=5))


def policy(run: Run) -> None:
    pixel_game = pytest.importorskip("archgrad.rl.pixel_game", reason="comes with the extra rl")
    game = functools.partial(pixel_game.PixelGame, size=6, gems=2, traps=1, blocks=1, max_steps=9)
    space = ag.impala_cells(size=6, depths=(4,), nodes=2, features=8)
    terms = PpoTerms(rollout_steps=8, minibatch_size=16, epochs=1)
    ag.rl_darts(
        space, ag.Reinforcement(game, num_envs=4), run, environment_steps=400, terms=terms, episodes=2,
        baselines=False,
    )  # fmt: skip


# Each loop by name: a program that enters it, and where the run is in it. A new loop is one line here.
LOOPS: dict[str, tuple[Callable[[Run], object], str]] = {
    "fit": (lambda run: ag.fit(network(), task(), run), "in phase 'fit'"),
    "weights of dnal": (lambda run: ag.dnal(slimmed(), task(), run), "in phase 'weights'"),
    "gates of dnal": (
        lambda run: ag.dnal(slimmed(), task(), run, pretrained=True, check_weights=False), "in phase 'gates'"
    ),
    "gates of dnal, with weights": (
        lambda run: ag.dnal(
            slimmed(), task(), run, pretrained=True, limit=ag.params().at_most(fraction=0.9), check_weights=False
        ),
        "in phase 'gates'",
    ),
    "pruning": (lambda run: ag.pruning_transfer(slimmed(), task(), run), "in phase 'gates'"),
    "source of transfer": (
        lambda run: ag.transfer(slimmed(), ag.sample(slimmed()), run, source=task(), target=task()),
        "in phase 'source'",
    ),
    "target of transfer": (few_shots, "between phases"),
    "bilevel": (lambda run: ag.darts(supernet(), task(), run), "in phase 'search'"),
    "single paths": (paths, "in phase 'explore-0'"),
    "dynamics": (dynamics, "in phase 'control'"),
    "policy": (policy, "in phase 'search'"),
}  # fmt: skip


def walk(name: str, happening: Happening, *, precision: str = "32-true") -> None:
    program, where = LOOPS[name]
    budget = {"dynamics": {"trials": 8}, "policy": {}}.get(name, {"steps": 60})
    run = Run(**budget, seed=1, device="cpu", precision=precision, progress=False)
    Probe.happening, Probe.run, Probe.where = happening, run, where
    program(run)


@pytest.fixture(autouse=True)
def _probed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a loop makes its task or its loss itself."""
    regression, actor = Transitions.loss, ppo.ppo_loss

    def ppo_loss(*given: Any) -> tuple[Tensor, Any]:
        loss, figures = actor(*given)
        return Probe.touch(loss), figures

    monkeypatch.setattr(Transitions, "loss", lambda *given: Probe.touch(regression(*given)))
    monkeypatch.setattr(ppo, "ppo_loss", ppo_loss)
    yield
    Probe.happening = Probe.run = None


class Enough(Exception):
    pass


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_precision_of_the_run_is_in_force(name: str, precision: str) -> None:
    seen: list[bool] = []

    def look(loss: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        if len(seen) == 3:
            raise Enough
        return loss

    with pytest.raises(Enough):
        walk(name, look, precision=precision)
    assert seen == [precision == "bf16-mixed"] * 3


@pytest.mark.parametrize("name", LOOPS)
def test_a_loss_that_is_nan_stops_the_loop_and_names_the_place(name: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"loss became NaN or infinite {LOOPS[name][1]}"):
        walk(name, lambda loss: loss * torch.nan)


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


@pytest.mark.parametrize("name", LOOPS)
def test_a_gradient_that_is_nan_stops_the_loop_and_names_the_place(name: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"gradient.*{LOOPS[name][1]}"):
        walk(name, Poisoned.apply)


def out_of_memory(loss: Tensor) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.")


@pytest.mark.parametrize("name", LOOPS)
def test_memory_that_runs_out_is_told_with_its_place(name: str) -> None:
    with pytest.raises(ResourceError, match=rf"4\.00 GiB.*It happened {LOOPS[name][1]}"):
        walk(name, out_of_memory)


def begun() -> Run:
    run = Run(device="cpu", progress=False)
    run.begin("test", {})
    return run


def test_the_gradient_of_accumulated_batches_is_that_of_the_joint_batch() -> None:
    x, y = torch.randn(12, 6), torch.arange(12) % 2
    one, several = network(), network()
    loss_of = nn.functional.cross_entropy
    joint = take_step(SGD(one.parameters(), lr=0.5), begun(), lambda: loss_of(one(x), y))
    parts = [functools.partial(lambda i: loss_of(several(x[i : i + 4]), y[i : i + 4]), i) for i in (0, 4, 8)]
    loss = take_step(SGD(several.parameters(), lr=0.5), begun(), *parts)
    torch.testing.assert_close(loss, joint)
    for a, b in zip(one.parameters(), several.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    # The first part alone is another step.
    first = network()
    take_step(SGD(first.parameters(), lr=0.5), begun(), lambda: loss_of(first(x[:4]), y[:4]))
    assert not torch.allclose(first[0].weight, one[0].weight, atol=1e-4)


def test_accumulation_counts_a_missing_gradient_as_zero() -> None:
    a, b = (nn.Parameter(torch.ones(())) for _ in range(2))
    take_step(SGD([a, b], lr=1.0), begun(), lambda: 2.0 * a, lambda: 3.0 * a + b)
    assert (a.item(), b.item()) == (1.0 - 2.5, 1.0 - 0.5)


class Checkpointed(nn.Module):
    """A block with dropout, recomputed in the backward pass, inside a network."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.block = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        inner = checkpoint(self.block, x, use_reentrant=self.reentrant) if self.training else self.block(x)
        return self.head(inner)


def checkpointed(*, reentrant: bool) -> Checkpointed:
    torch.manual_seed(0)
    return Checkpointed(reentrant=reentrant)


@pytest.mark.parametrize("recipe", [ag.Recipe(), ag.Recipe(clip=0.1, accumulate=2)], ids=["plain", "clipped"])
def test_reentrant_checkpointing_trains_as_the_other_kind_does(recipe: ag.Recipe) -> None:
    networks = [checkpointed(reentrant=reentrant) for reentrant in (True, False)]
    for net in networks:
        ag.fit(net, task(), Run(steps=7, device="cpu", progress=False), recipe=recipe)
    for (name, a), b in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert not torch.equal(networks[0].block[0].weight, checkpointed(reentrant=True).block[0].weight)


def test_reentrant_checkpointing_leaves_no_gradient_behind() -> None:
    net = checkpointed(reentrant=True)
    x = torch.randn(20, 6)
    optimizer = SGD(net.head.parameters(), lr=0.1)
    take_step(optimizer, begun(), lambda: net(x).square().mean())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch, of a network that is evaluated
def test_reentrant_checkpointing_is_slimmed_as_the_other_kind_is() -> None:
    def found(reentrant: bool) -> ag.Found:
        space = ag.slim(checkpointed(reentrant=reentrant), task().example)
        half = ag.macs(task().example).at_most(fraction=0.6)
        return ag.dnal(space, task(), Run(steps=40, device="cpu", progress=False), limit=half, round_to=1)

    first, second = found(True), found(False)
    assert first.architecture == second.architecture and len(first.architecture)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_reentrant_checkpointing_that_begins_later_is_named() -> None:
    net, x = checkpointed(reentrant=False), torch.randn(20, 6)
    optimizer = SGD(net.parameters(), lr=0.1)
    take_step(optimizer, begun(), lambda: net(x).square().mean())
    net.reentrant = True
    with pytest.raises(ModelError, match="Give use_reentrant=False"):
        take_step(optimizer, begun(), lambda: net(x).square().mean())


@pytest.mark.filterwarnings("ignore:of this network loss is NaN")
def test_a_nan_behind_reentrant_checkpointing_is_found() -> None:
    net = checkpointed(reentrant=True)
    with torch.no_grad():
        net.block[3].weight.fill_(3e38)  # whole, but its products overflow
    with pytest.raises(NonFiniteError, match="in phase 'fit' at step 0"):
        ag.fit(net, task(), Run(steps=2, device="cpu", progress=False))


def test_what_is_remembered_of_an_optimizer_goes_with_it() -> None:
    net = network()
    optimizer = SGD(net.parameters(), lr=0.1)
    take_step(optimizer, begun(), lambda: net(torch.ones(2, 6)).sum())
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None

"""Training what is handed back compiled: the same network to rounding, exact resume."""

from __future__ import annotations

import copy
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.run.run import Run, Stopped
from archgrad.tasks.task import Batch
from archgrad.training.compiled_steps import compiled

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # by torch's compiler itself


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(3))
    except torch._dynamo.exc.TorchDynamoException as error:
        pytest.skip(f"torch.compile finds no C++ compiler here: {error}")


def _network(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    features = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *more
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def _run(folder: Path | None = None, *, by_compiler: bool = True) -> Run:
    return Run(steps=6, device="cpu", folder=folder, progress=False, compile=by_compiler)


def test_a_compiled_training_is_that_of_the_network_as_written(tmp_path: Path) -> None:
    task, networks = ag.Classification.load("digits", batch_size=64), [_network(), _network()]
    frames = torch._dynamo.utils.counters["frames"]
    before = frames["ok"]
    losses = []
    for network, by_compiler in zip(networks, (False, True), strict=True):
        run = _run(by_compiler=by_compiler)
        ag.fit(network, task, run)
        assert (frames["ok"] > before) == by_compiler
        assert "forward" not in vars(network), "what is handed back is as it was written"
        losses.append([record["loss"] for record in run.history if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = (torch.cat([p.flatten() for p in network.parameters()]) for network in networks)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("features", [None, ["0"]])
def test_what_watches_calls_sees_each(features: list[str] | None) -> None:
    task, losses = ag.Classification.load("digits", batch_size=64), []
    ag.fit(_network(), task, _run())  # what torch compiled for it has no hooks
    for by_compiler in (False, True):
        run, network = _run(by_compiler=by_compiler), _network()
        ag.fit(network, ag.Distilled(task, _network(nn.ReLU()), features=features), run)
        losses.append([record["loss"] for record in run.history if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_each_of_many_networks_is_compiled() -> None:
    task, frames = ag.Classification.load("digits", batch_size=64), torch._dynamo.utils.counters["frames"]
    for width in range(4, 14):
        before = frames["ok"]
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        ag.fit(network, task, Run(steps=1, device="cpu", progress=False, compile=True))
        assert frames["ok"] > before, width


class OfItsOwn(nn.Linear):
    """A network whose instances have a forward pass of their own, as some libraries set it."""

    def __init__(self) -> None:
        super().__init__(64, 10)
        self.forward = self.flattened  # type: ignore[method-assign]

    def flattened(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.weight, self.bias)


def test_a_forward_pass_of_the_instance_comes_back() -> None:
    network = OfItsOwn()
    ag.fit(network, ag.Classification.load("digits", batch_size=64), _run())
    assert vars(network)["forward"] == network.flattened


class StopsAt:
    """A task that sends its process a signal before a step."""

    def __init__(self, task: ag.Classification, step: int) -> None:
        self.task, self.step = task, step
        self.steps_per_epoch, self.example = task.steps_per_epoch, task.example

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> object:
        batches = self.task.stream(seed=seed, rank=rank, world=world)

        def batch(number: int) -> Batch:
            if number == self.step:
                signal.raise_signal(signal.SIGTERM)
            return batches(number)

        return batch

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return self.task.loss(network, batch)

    def evaluate(self, network: nn.Module, part: str) -> dict[str, float]:
        return self.task.evaluate(network, part)


def test_a_compiled_training_resumes_exactly(tmp_path: Path) -> None:
    task = ag.Classification.load("digits", batch_size=64)
    whole, stopped, resumed = (_network(nn.Dropout(0.3)) for _ in range(3))
    ag.fit(whole, StopsAt(task, -1), _run(tmp_path / "whole"))
    with pytest.raises(Stopped):
        ag.fit(stopped, StopsAt(task, 3), _run(tmp_path / "stopped"))
    torch._dynamo.reset()  # as in a new process
    ag.fit(resumed, StopsAt(task, -1), _run(tmp_path / "stopped"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_run_is_not_resumed_as_written(tmp_path: Path) -> None:
    task = ag.Classification.load("digits", batch_size=64)
    with pytest.raises(Stopped):
        ag.fit(_network(), StopsAt(task, 2), _run(tmp_path))
    with pytest.raises(ag.errors.RunError, match="compile"):
        ag.fit(_network(), StopsAt(task, -1), _run(tmp_path, by_compiler=False))


def test_nothing_is_compiled_unasked() -> None:
    network, loss = _network(), ag.Classification.load("digits", batch_size=64).loss
    assert compiled(loss, network, _run(by_compiler=False)) is loss
    assert compiled(loss, network, _run()) is not loss


@torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
def test_a_machine_that_cannot_compile_is_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, 10))
    before = copy.deepcopy(network)
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"compile=True was given, and torch\.compile fails on Sequential"):
        ag.fit(network, ag.Classification.load("digits", batch_size=64), _run())
    assert "forward" not in vars(network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))

"""What a run saves besides parameters: buffers of both kinds, extra state, what a loss or a task carries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import RunError
from archgrad.run.stateful import restore

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


class Stopped(Exception):
    """What ends a run in the middle."""


class Network(nn.Module):
    """It subtracts the running mean of its inputs, kept in one of several ways.

    Args:
        keeps: "buffer", "buffer that is not persistent", "extra state", "attribute" or "" for no mean.
    """

    def __init__(self, keeps: str = "") -> None:
        super().__init__()
        self.first, self.last, self.keeps = nn.Linear(4, 8), nn.Linear(8, 2), keeps
        if keeps.startswith("buffer"):
            self.register_buffer("mean", torch.zeros(4), persistent=keeps == "buffer")
        else:
            self.mean = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.keeps:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.last(F.relu(self.first(x - self.mean)))  # type: ignore[no-any-return]

    def get_extra_state(self) -> Any:
        return {"mean": self.mean} if self.keeps == "extra state" else {}

    def set_extra_state(self, state: Any) -> None:
        self.mean = state.get("mean", self.mean)


class Centred(nn.Module):
    """A loss of outputs less their running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output - self.centre, target)
        self.centre = 0.9 * self.centre + 0.1 * output.detach().mean(0)
        return loss

    def of_batch(self, network: nn.Module, batch: Any) -> Tensor:
        return self(network(batch[0]), batch[1])  # type: ignore[no-any-return]


class Followed(nn.Module):
    """A loss that compares with a teacher whose weights follow the network's, and with one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.frozen = Network().requires_grad_(False), Network().requires_grad_(False)

    def of_batch(self, network: nn.Module, batch: Any) -> Tensor:
        output, target = network(batch[0]), batch[1]
        loss = F.cross_entropy(output, target)
        for teacher in (self.teacher, self.frozen):
            loss = loss + F.mse_loss(output, teacher(batch[0]))
        if network.training:
            for mine, theirs in zip(self.teacher.parameters(), network.parameters(), strict=False):
                if mine.shape == theirs.shape:
                    mine.data.mul_(0.9).add_(0.1 * theirs.detach())
        return loss


class Queue(nn.Module):
    """A loss with a queue whose entries move on, and a count that is extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.arange(40.0))
        self.count = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.queue = self.queue.roll(1)
        self.count += 1
        return F.cross_entropy(output * (1 + 0.01 * self.queue[20]) / self.count**0.1, target)

    def get_extra_state(self) -> int:
        return self.count

    def set_extra_state(self, state: int) -> None:
        self.count = state


class Shared(nn.Module):
    """Two modules with one buffer that is not persistent, which the first updates in place, and a sparse one."""

    class Adds(nn.Module):
        def __init__(self, mean: Tensor) -> None:
            super().__init__()
            self.register_buffer("mean", mean, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x - self.mean

    def __init__(self) -> None:
        super().__init__()
        mean = torch.zeros(4)
        self.first, self.second, self.network = self.Adds(mean), self.Adds(mean), Network()
        self.register_buffer("adjacency", torch.eye(4).to_sparse(), persistent=False)
        self.register_buffer("table", torch.zeros(10**6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.first.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.network(self.second(self.first((self.adjacency @ x.T).T)))  # type: ignore[no-any-return]


class Own:
    """A task of a user's own whose noise falls from step to step."""

    def __init__(self) -> None:
        self.example, self.steps_per_epoch, self.higher_is_better, self.scale = X[:1], 6, False, 1.0

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Any]:
        return lambda step: (X[step % 6 :: 6], Y[step % 6 :: 6])

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        self.scale *= 0.95 if network.training else 1.0
        return self.scale * F.cross_entropy(network(batch[0]), batch[1])

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        with torch.no_grad():
            return {"loss": float(F.cross_entropy(network(X), Y))}

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


def _supervised(**loss: Any) -> ag.Supervised:
    return ag.Supervised((X, Y), batch_size=16, **(loss or {"loss": F.cross_entropy}))


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "buffer": lambda: (Network("buffer"), _supervised()),
    "buffer that is not persistent": lambda: (Network("buffer that is not persistent"), _supervised()),
    "extra state": lambda: (Network("extra state"), _supervised()),
    "loss": lambda: (Network(), _supervised(loss=Centred())),
    "batch_loss": lambda: (Network(), _supervised(batch_loss=Centred().of_batch)),
    "queue": lambda: (Network(), _supervised(loss=Queue())),
    "shared": lambda: (Shared(), _supervised()),
    "a teacher that follows": lambda: (Network(), _supervised(batch_loss=Followed().of_batch)),
    "teacher": lambda: (Network(), ag.Distilled(_supervised(loss=Centred()), Network(), loss=F.mse_loss)),
    "task": lambda: (Network(), Own()),
    "attribute": lambda: (Network("attribute"), _supervised()),  # the control: it is not saved, as the documents say
}


@pytest.mark.parametrize(
    ("case", "searched"), [*((case, False) for case in CASES), ("extra state", True), ("batch_loss", True)]
)
def test_what_is_carried_from_step_to_step_is_resumed(case: str, searched: bool, tmp_path: Path) -> None:
    def trained(folder: str, fails_at: int = -1) -> dict[str, Tensor]:
        def told(record: dict[str, Any]) -> None:
            if record["step"] == fails_at:
                raise Stopped

        torch.manual_seed(0)
        network, task = CASES[case]()
        output = ag.Output(log_every=1, checkpoint_seconds=0.0, on_log=told)
        run = ag.Run(steps=9, folder=tmp_path / folder, output=output, progress=False)
        if not searched:
            ag.fit(network, task, run)
            return network.state_dict()
        found = ag.dnal(ag.slim(network, X[:1], keep=["last"]), task, run, sparsity=0.1, gate_epochs=1)
        return found.network.state_dict()

    whole = trained("whole")
    with pytest.raises(Stopped):
        trained("stopped", fails_at=3)
    resumed = trained("stopped")
    tensors = {name for name, value in whole.items() if isinstance(value, Tensor)}
    same = all(torch.equal(whole[name], resumed[name]) for name in tensors)
    assert same == (case != "attribute")
    sizes = [file.stat().st_size for file in (tmp_path / "stopped" / "checkpoints").glob("*.safetensors")]
    assert searched or max(sizes) < 10**5, "a table that stays as it is, is not saved"


def test_of_a_loss_only_what_changes_is_saved() -> None:
    loss = Followed()
    task, network = _supervised(batch_loss=loss.of_batch), Network()

    def state() -> dict[str, Any]:
        return {name: value for name, value in task.state_dict().items() if not name.endswith("extra_state")}

    assert state() == {}
    task.loss(network.train(), (X, Y))
    saved = state()
    assert set(saved) == {f"teacher.{name}" for name, _ in loss.teacher.named_parameters()}
    other = Followed()
    again = _supervised(batch_loss=other.of_batch)
    again.load_state_dict(saved)
    assert all(map(torch.equal, other.teacher.parameters(), loss.teacher.parameters()))


def test_a_run_begun_before_tasks_were_saved_goes_on(tmp_path: Path) -> None:
    part = nn.Linear(2, 2)
    task = _supervised(loss=Centred())
    restore({"network": part, "task": task}, {"network": part.state_dict()}, tmp_path)
    with pytest.raises(RunError, match="does not fit this program"):
        restore({"network": part, "more": part, "task": task}, {"network": part.state_dict()}, tmp_path)

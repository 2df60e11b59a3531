"""A function of the user's that is given each record, as an experiment tracker needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import archgrad as ag


def logged(run: ag.Run) -> list[dict[str, Any]]:
    run.begin("test", {})
    run.register_state(weights=torch.nn.Linear(1, 1))
    for step in run.steps(3, phase="search"):
        run.log({"loss": torch.tensor(0.5), "lr": 0.1 * step}, step=step)
    run.log({"valid_accuracy": 0.9})
    run.finish()
    return run.history


def test_the_function_gets_what_the_history_gets(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    history = logged(ag.Run(folder=tmp_path / "run", progress=False, output=ag.Output(on_log=seen.append)))
    assert seen == history and len(seen) == 4
    assert seen[2] == {"phase": "search", "step": 2, "time": seen[2]["time"], "loss": 0.5, "lr": 0.2}
    assert seen[3]["phase"] is None and seen[3]["step"] is None


def test_it_cannot_change_the_history() -> None:
    history = logged(ag.Run(progress=False, output=ag.Output(on_log=lambda record: record.clear())))
    assert [row.get("loss") for row in history] == [0.5, 0.5, 0.5, None]


def test_its_own_errors_are_not_hidden() -> None:
    def broken(record: dict[str, Any]) -> None:
        raise ConnectionError("the tracker is away")

    with pytest.raises(ConnectionError, match="the tracker is away"):
        logged(ag.Run(progress=False, output=ag.Output(on_log=broken)))


@pytest.mark.parametrize("kind", [ValueError, ConnectionError, StopIteration, KeyError])
def test_its_own_errors_say_where_the_run_was(kind: type[Exception]) -> None:
    def broken(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            raise kind("the tracker is away")

    with pytest.raises((kind, RuntimeError)) as caught:  # Python turns StopIteration in a generator into RuntimeError
        logged(ag.Run(progress=False, output=ag.Output(on_log=broken)))
    assert "in phase 'search' at step 2" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("place", ["function", "update", "compute", "worker_init_fn"])
def test_errors_of_metrics_and_workers_say_where_the_run_was(place: str) -> None:
    class Broken:
        def reset(self) -> None: ...

        def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
            if place == "update":
                raise ValueError("no luck today")

        def compute(self) -> float:
            if place == "compute":
                raise ValueError("no luck today")
            return 0.0

    def fail(*_: object) -> float:
        raise ValueError("no luck today")

    metric = fail if place == "function" else Broken()
    data: Any = torch.utils.data.TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
    if place == "worker_init_fn":
        data = torch.utils.data.DataLoader(data, batch_size=8, num_workers=1, shuffle=True, worker_init_fn=fail)
    task = ag.Classification(data, batch_size=8, metrics={"mine": metric} if place != "worker_init_fn" else None)
    task.check = lambda network: None  # which would find it before the run
    with pytest.raises((ag.ArchgradError, ValueError), match="no luck today") as caught:
        ag.fit(torch.nn.Linear(3, 2), task, ag.Run(epochs=2, progress=False))
    assert "archgrad was in phase" in " ".join(caught.value.__notes__)

"""Every gradient method in two processes: both hold the same, and it is what one process finds at the same batch.

Run under torchrun, this file is a program of two processes.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from planted import limit
from test_methods import METHODS, found_by, quiet
from torch import nn

import archgrad as ag
from archgrad.errors import ArchgradError, ConfigError, LimitError, ResourceError, RunError
from archgrad.run import device, failures
from archgrad.run.folder import RunFolder
from archgrad.run.run import Run, Stopped
from archgrad.training import optimize

NAMES = [
    "dnal",
    "dnal, published",
    "slim_front",
    "darts",
    "darts, second order",
    "darts_prime",
    "pruning_transfer",
    "toponas",
    "unas",
    "random_search",
    "monas",
]
# The program of two processes runs once, not once for each process of pytest.
pytestmark = pytest.mark.xdist_group("processes")
# Each process draws for its own images, or BatchNorm sees its own half: not what one process does, but alike.
ALIKE = ["unas, per image", "darts_prime, clipped and ADMM"]
# The same sums are taken in another order.
TOLERANCE = 2e-4
G = torch.Generator().manual_seed(0)
X = torch.randn(80, 4, generator=G)
BATCHED = ag.Classification((X, (X[:, 0] > 0).long()), batch_size=20)


def summary(found: ag.Found) -> dict[str, object]:
    weights = torch.cat([value.double().reshape(-1) for value in found.network.state_dict().values()])
    return {"architecture": found.architecture.to_json(), "score": found.score, "weights": weights.tolist()}


def normed(folder: Path, *, stop: bool = False) -> dict[str, object]:
    """A network with BatchNorm trained in two processes, stopped on the way or not."""
    torch.manual_seed(int(os.environ["RANK"]))  # weights that differ are made the same at the start
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    run = Run(epochs=4, seed=0, folder=folder, device="cpu", progress=False)

    class Halted(ag.Classification):
        steps_seen = 0

        def loss(self, network: nn.Module, batch: object) -> torch.Tensor:
            self.steps_seen += 1
            if stop and self.steps_seen == 7:
                os.kill(os.getpid(), 15)
            return super().loss(network, batch)

    ag.fit(network, Halted((X, (X[:, 0] > 0).long()), batch_size=20), run)
    return {"network": [value.tolist() for value in network.state_dict().values()]}


def timed(folder: Path) -> dict[str, object]:
    """A budget of time alone, for which a step is measured once, by a training step of the first process."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    run = Run(seconds=0.2, folder=folder, device="cpu", progress=False)
    ag.fit(network, BATCHED, run)
    return {"weights": network.weight.tolist(), "steps": run.history[-2]["step"]}


def computed_once(folder: Path) -> dict[str, object]:
    """A training that one process does for all, between steps that all take."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    run = Run(folder=folder, device="cpu", progress=False)
    run.begin("computed once", {})
    run.register_state(network=network, optimizer=optimizer)

    def trained() -> list[list[float]]:
        trial = copy.deepcopy(network)
        optimize(trial, BATCHED, run, optimizer=torch.optim.SGD(trial.parameters(), lr=0.1), steps=3, phase=None)
        return trial.weight.tolist()  # type: ignore[no-any-return]

    computed = []
    for phase in ("first", "second"):
        optimize(network, BATCHED, run, optimizer=optimizer, steps=2, phase=phase)
        computed.append(run.compute_once(phase, trained))
    run.finish()
    return {"computed": computed, "world": run.world, "weights": network.weight.tolist()}


def astray(folder: Path) -> dict[str, object]:
    """A program whose weights depend on the process."""
    network = nn.Linear(4, 2)
    run = Run(folder=folder, device="cpu", progress=False)
    run.begin("astray", {})
    run.total_steps(3, default_epochs=2)
    run.register_state(network=network)
    try:
        for _ in run.steps(6):
            with torch.no_grad():
                network.bias += run.rank
    except RunError as error:
        return {"error": str(error), "step": 3}
    return {}


def failed(folder: Path) -> dict[str, object]:
    """What the first process computes for all fails: with an error of its own, one of archgrad's, and no JSON."""
    run = Run(folder=folder, device="cpu", progress=False)
    run.begin("failed", {})

    def fails(error: Exception) -> None:
        raise error

    kinds = {"own": lambda: fails(KeyError("boom")), "archgrad": lambda: fails(LimitError("too much")), "value": set}
    told, began = dict[str, object](), time.monotonic()
    for name, compute in kinds.items():
        try:
            run.compute_once(name, compute)
        except (KeyError, ArchgradError) as error:
            told[name] = [type(error).__name__, str(error)]
    return told | {"after": run.compute_once("after", lambda: 1), "seconds": time.monotonic() - began}


def slow(folder: Path) -> dict[str, object]:
    """The first process computes for longer than the others wait for a sign of life, which it gives."""
    failures.PATIENCE, device._BEAT_SECONDS = timedelta(seconds=2), 0.2
    run = Run(folder=folder, device="cpu", progress=False)
    run.begin("slow", {})
    return {"value": run.compute_once("slow", lambda: time.sleep(4) or 7)}


def in_use(folder: Path) -> dict[str, object]:
    """The first process alone sees that the folder is in use."""
    folder.mkdir(exist_ok=True)
    if os.environ["RANK"] == "0":
        other = RunFolder(folder)
        other.acquire()
    try:
        Run(folder=folder, device="cpu", progress=False).begin("in use", {})
    except RunError as error:
        return {"error": str(error)}
    return {}


def abandoned(folder: Path) -> dict[str, object]:
    """A training whose second process dies on the way."""

    class Deadly(ag.Classification):
        steps_seen = 0

        def loss(self, network: nn.Module, batch: object) -> torch.Tensor:
            self.steps_seen += 1
            if self.steps_seen == 4 and os.environ["RANK"] == "1":
                os._exit(0)
            return super().loss(network, batch)

    output = ag.Output(checkpoint_seconds=0)
    run = Run(epochs=4, folder=folder, device="cpu", progress=False, output=output)
    with pytest.raises(ResourceError) as caught:
        ag.fit(nn.Linear(4, 2), Deadly((X, (X[:, 0] > 0).long()), batch_size=20), run)
    return {"error": str(caught.value)}


def main(place: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    found = {name: summary(found_by(name, quiet(name, epochs=6), limit=limit())) for name in (*NAMES, *ALIKE)}
    try:
        normed(place / "normed", stop=True)
    except Stopped:
        found["normed"] = normed(place / "normed")
    found["whole"] = normed(place / "whole")
    found |= {"timed": timed(place / "timed"), "computed once": computed_once(place / "once")}
    found |= {"failed": failed(place / "failed"), "in use": in_use(place / "in use")}
    found["astray"] = astray(place / "astray")
    (place / f"rank{rank}.json").write_text(json.dumps(found))
    found["slow"] = slow(place / "slow")
    (place / f"rank{rank}.json").write_text(json.dumps(found))
    found["abandoned"] = abandoned(place / "abandoned")
    (place / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, object]]]:
    place = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*command, str(place)], env=environment, capture_output=True, check=False, timeout=300, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((place / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_find_what_one_finds(name: str, both: list[dict[str, dict[str, object]]]) -> None:
    first, second = (one[name] for one in both)
    assert first == second
    alone = summary(found_by(name, quiet(name, epochs=6), limit=limit()))
    assert first["architecture"] == alone["architecture"]
    assert first["score"] == pytest.approx(alone["score"], abs=0.02)
    assert first["weights"] == pytest.approx(alone["weights"], abs=TOLERANCE)


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_hold_the_same(name: str, both: list[dict[str, dict[str, object]]]) -> None:
    assert both[0][name] == both[1][name]


def test_statistics_are_shared_and_a_stopped_run_ends_in_the_same_bits(
    both: list[dict[str, dict[str, object]]],
) -> None:
    assert both[0]["normed"] == both[1]["normed"] == both[0]["whole"] == both[1]["whole"]


def test_a_process_trains_for_all_without_waiting_for_the_others(
    both: list[dict[str, dict[str, object]]], tmp_path: Path
) -> None:
    for name in ("timed", "computed once"):
        assert both[0][name] == both[1][name]
    alone, there = computed_once(tmp_path / "alone"), both[0]["computed once"]
    assert (there["world"], alone["world"]) == (2, 1)
    for name in ("computed", "weights"):
        torch.testing.assert_close(torch.tensor(there[name]), torch.tensor(alone[name]))


def test_processes_that_differ_stop_with_an_error_in_both(both: list[dict[str, dict[str, object]]]) -> None:
    for one in both:
        assert "no longer hold the same 'network'" in str(one["astray"]["error"])


def test_what_fails_in_the_first_process_ends_the_others_at_once(both: list[dict[str, dict[str, object]]]) -> None:
    first, second = (one["failed"] for one in both)
    assert first["own"] == ["KeyError", "'boom'"]
    kind, text = second["own"]  # type: ignore[misc]
    assert kind == "ResourceError" and "KeyError: 'boom'" in text and "The first process" in text
    for name in ("archgrad", "value"):
        assert first[name] == second[name]
    assert [first["archgrad"], first["value"][0]] == [["LimitError", "too much"], "RunError"]  # type: ignore[index]
    assert first["after"] == second["after"] == 1
    assert float(str(second["seconds"])) < 10
    assert all("is using" in str(one["in use"]["error"]) for one in both)


def test_a_process_that_dies_ends_the_other_with_the_last_good_state(
    both: list[dict[str, dict[str, object]]],
) -> None:
    told = str(both[0]["abandoned"]["error"])
    for part in ("Another process of this run died", "start the program again", "0000-fit-0000000003.safetensors"):
        assert part in told
    assert "abandoned" not in both[1]


def test_the_first_process_may_take_its_time(both: list[dict[str, dict[str, object]]]) -> None:
    assert both[0]["slow"] == both[1]["slow"] == {"value": 7}


def test_every_gradient_method_is_here() -> None:
    one_process = {"multimodal_random", "radars"}
    assert {name.split(",")[0] for name in (*METHODS, *one_process)} == {n.split(",")[0] for n in NAMES} | one_process


def test_workers_and_several_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave one of the two out"):
        Run(device="cpu", devices=2, workers=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

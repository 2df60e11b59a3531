"""The transfer protocol: its rivals, what is equal among them, BatchNorm, resuming, and what is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError, DataError, ModelError, NonFiniteError
from archgrad.gates.selection import full
from archgrad.methods.pruning_transfer.gate_pruning import magnitudes
from archgrad.methods.pruning_transfer.transfer import RIVALS, Rival, TransferProtocol, _Lab
from archgrad.run.nonfinite import FiniteChecks
from archgrad.tasks.task import evaluate, stable_seed
from archgrad.training.recipe import Recipe, sgd

torch.set_num_threads(1)
QUICK = TransferProtocol(shots=(2, 4), draws=2, restarts=1, steps=20)


def data(seed: int, *, columns: tuple[int, ...], classes: int = 3, features: int = 12) -> ag.Classification:
    """Classes by the angle of two columns; the others are noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(300, features, generator=g)
    angle = torch.atan2(x[:, columns[0]], x[:, columns[1]])
    y = ((angle + torch.pi) / (2 * torch.pi) * classes).long().clamp(0, classes - 1)
    return ag.Classification((x, y), batch_size=50)


@functools.cache
def source() -> ag.Classification:
    return data(0, columns=(0, 1))


@functools.cache
def target() -> ag.Classification:
    return data(1, columns=(1, 0), classes=4)


@functools.cache
def space() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)
    )  # fmt: skip
    return ag.slim(net, source().example, inputs=True)


GOOD = ag.Architecture({"0.inputs": (0, 1), "0": tuple(range(8)), "3": tuple(range(8))})


def quiet(**settings: object) -> ag.Run:
    return ag.Run(**{"steps": 60, "seed": 1, "device": "cpu", "progress": False, **settings})


def transferred(run: ag.Run, protocol: TransferProtocol = QUICK, **others: object) -> ag.Found:
    return ag.transfer(space(), GOOD, run, source=source(), target=target(), protocol=protocol, **others)


def test_the_right_structure_beats_what_keeps_the_noise() -> None:
    found = transferred(quiet(), TransferProtocol(shots=(8,), draws=3, restarts=1, steps=60))
    rivals = {one["name"]: one["8 shots"][0] for one in found.record["baselines"]}
    assert found.score == found.record["after"]["8 shots"][0]
    assert found.score > rivals["whole network, from scratch"] + 0.05
    assert found.score > rivals["random mask"] + 0.05


def test_all_rivals_are_there_at_equal_cost_with_mean_and_deviation() -> None:
    found = transferred(quiet(), others={"mine": GOOD})
    names = [one["name"] for one in found.record["baselines"]]
    assert names == [
        "whole network, from scratch", "whole network, fine-tuned", "random mask", "magnitude mask",
        "magnitude mask, its weights", "this run, source weights", "mine",
    ]  # fmt: skip
    cost = found.costs["macs"]
    for one in found.record["baselines"]:
        # No part of this space takes more than 22 MACs.
        assert one["macs"] == 260 if "whole" in one["name"] else cost - 22 < one["macs"] <= cost
        assert 0.0 <= one["2 shots"][0] <= 1.0 and one["4 shots"][1] >= 0.0
    assert found.costs["macs"] == ag.macs(target().example).of(found.network)
    mine = found.record["baselines"][-1]
    assert mine["4 shots"] == found.record["after"]["4 shots"], "the same draws and restarts"
    assert "2 shots" in found.report() and " ± " in found.report() and "random mask" in found.report()
    assert found.network(target().example).shape == (1, 4)


def test_of_several_recipes_each_rival_takes_its_best_by_the_validation_part(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Recipe(optimizer_factory=functools.partial(ag.adam, learning_rate=rate)) for rate in (1e-7, 0.03)]
    several = TransferProtocol(shots=(4,), draws=2, restarts=1, steps=20, recipe=recipes)
    figures = evaluate
    found = transferred(quiet(), several)
    assert found.record["recipes"]["taken"] == {f"{name}, 4 shots": 1 for name in RIVALS}
    alone = transferred(quiet(), replace(several, recipe=recipes[1]))
    assert alone.record["after"]["4 shots"] == found.record["after"]["4 shots"] and "recipes" not in alone.record

    def upside_down(task: object, network: nn.Module, part: str = "valid") -> dict[str, float]:
        scores = figures(task, network, part)
        return {name: 1.0 - value for name, value in scores.items()} if part == "valid" else scores

    monkeypatch.setattr("archgrad.methods.pruning_transfer.transfer.evaluate", upside_down)
    worse = transferred(quiet(), several)
    assert worse.record["recipes"]["taken"]["this run, 4 shots"] == 0 and worse.score < found.score
    with pytest.raises(ConfigError, match="several of which each rival takes its best"):
        TransferProtocol(recipe=[])


def test_the_space_is_left_as_it_was_and_the_same_seed_gives_the_same() -> None:
    before = {k: v.clone() for k, v in space().state_dict().items()}
    first, again, other = (transferred(quiet(seed=s)).record["baselines"] for s in (1, 1, 2))
    assert first == again != other
    assert all(torch.equal(before[k], v) for k, v in space().state_dict().items())


@pytest.mark.parametrize("norm", ["shots", "source"])
def test_batchnorm_goes_by_what_is_asked_for(norm: str) -> None:
    torch.manual_seed(0)
    trained = ag.slim(
        nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), source().example
    )
    trained[1].running_mean.fill_(7.0)
    run = quiet()
    run.begin("test", {})
    lab = _Lab(trained, "3", target(), TransferProtocol(steps=5, norm=norm), run)
    kept, fresh = (
        lab.trained(Rival([full(trained)], kept=k), lab.protocol.recipes[0], shots=4, draw=0, restart=0)
        for k in (True, False)
    )
    run.close()
    assert torch.equal(kept[1].running_mean, torch.full((8,), 7.0)) == (norm == "source")
    x = target().shots(4, seed=stable_seed(1, 0)).stream(seed=0)(0)[0]
    expected = fresh[0](x).mean(0)
    assert torch.allclose(fresh[1].running_mean, expected, atol=1e-5), "of the last weights, on all shots"


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [0, 3])
def test_it_resumes_exactly_and_tries_nothing_twice(at: int, tmp_path: Path) -> None:
    expected = transferred(quiet())
    asked: list[str] = []

    class Stopping(ag.Run):
        def compute_once(self, key: str, compute: Callable[[], object]) -> object:
            if len(asked) == at:
                raise Stop
            asked.append(key)
            return super().compute_once(key, compute)

    broken = Stopping(steps=60, seed=1, device="cpu", progress=False, folder=tmp_path)
    with pytest.raises(Stop):
        transferred(broken)
    broken.close()
    resumed = transferred(quiet(folder=tmp_path))
    assert resumed.record["baselines"] == expected.record["baselines"]
    assert all(torch.equal(v, resumed.network.state_dict()[k]) for k, v in expected.network.state_dict().items())
    held = json.loads((tmp_path / "record.json").read_text())
    assert held["after"] == resumed.record["after"]


def test_trained_weights_that_are_given_are_the_source_network() -> None:
    run = quiet()
    given = transferred(run, pretrained=True).record["baselines"]
    assert not any("loss" in row for row in run.history)
    trained = transferred(quiet()).record["baselines"]
    tuned, scratch = (1, 0)
    assert given[scratch] == trained[scratch]
    assert given[tuned] != trained[tuned]


def refused(**settings: object) -> Callable[[], object]:
    given = {"source": source(), "target": target(), "protocol": QUICK, **settings}
    return lambda: ag.transfer(space(), GOOD, quiet(), **given)


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"source has inputs of shape \[12\], the target of \[9\]"):
        refused(target=data(1, columns=(0, 1), features=9))()


def test_more_shots_than_data_and_fewer_images_than_classes_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(DataError, match="500 shots of each class"):
        refused(protocol=TransferProtocol(shots=(2, 500)))()
    x = torch.randn(4, 12)
    valid, test = ((torch.randn(8, 12), torch.arange(8) % 6) for _ in range(2))
    poor = ag.Classification((x, torch.arange(4)), valid, test, classes=6)
    with pytest.raises(DataError, match="class '4' has 0 training samples of 4 in 6 classes"):
        refused(target=poor, protocol=TransferProtocol(shots=(1,)))()


@pytest.mark.parametrize("wrong", [{"shots": ()}, {"shots": (0,)}, {"draws": 0}, {"steps": 1.5}, {"norm": "none"}])
def test_a_protocol_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="whole numbers above 0"):
        TransferProtocol(**wrong)


class NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x))[:, :, None])[:, :, 0]


def test_a_network_without_a_linear_head_is_refused() -> None:
    bare = ag.slim(NoHead(), source().example)
    with pytest.raises(ModelError, match="no Linear layer with 3 outputs"):
        ag.transfer(bare, full(bare), quiet(), source=source(), target=target())


class Backwards(nn.Module):
    """Its last layer is made first, and a hidden one is as wide as there are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.body, self.narrow = nn.Linear(3, 3), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.narrow(self.body(x).relu()).relu()).log_softmax(dim=1)


def test_the_last_layer_to_run_is_the_one_replaced() -> None:
    net, few = Backwards(), data(2, columns=(4, 5), classes=2)
    found = ag.transfer(
        ag.slim(net, source().example), full(ag.slim(net, source().example)), quiet(steps=4), source=source(),
        target=few, protocol=QUICK,
    )  # fmt: skip
    assert (found.network.top.out_features, found.network.narrow.out_features) == (2, 3)


def test_magnitudes_of_a_trained_network_find_its_inputs() -> None:
    net = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
    ag.fit(net, source(), quiet(steps=300), recipe=ag.Recipe(optimizer_factory=ag.adam))
    ranks = magnitudes(ag.slim(net, source().example, inputs=True))["0.inputs"].argsort(descending=True)
    assert set(ranks[:2].tolist()) == {0, 1}


@pytest.mark.slow
def test_on_digits_beside_noise_a_structure_helps_where_a_random_one_harms() -> None:
    """The specification's small experiment: sources 0 to 4, targets 5 to 9; half of the inputs are planted noise."""
    held, g = ag.digits(), torch.Generator().manual_seed(0)
    x = torch.cat([held.x.flatten(1) / 255, 0.3 + 0.35 * torch.randn(len(held), 64, generator=g)], 1)
    first, second = (
        ag.Classification((x[half], held.y[half] % 5), batch_size=64, split=ag.Split(0.3))
        for half in (held.y < 5, held.y >= 5)
    )
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )  # fmt: skip
    digits = ag.slim(net, first.example, inputs=True)
    limit = ag.params().at_most(fraction=0.2)
    pruned = ag.pruning_transfer(digits, first, quiet(steps=1000), limit=limit, search_fraction=0.9)
    kept = pruned.architecture["0.inputs"]
    assert sum(i >= 64 for i in kept) < len(kept) / 4, "at random half would be noise"
    found = ag.transfer(
        digits, pruned.architecture, quiet(steps=400), source=first, target=second,
        protocol=TransferProtocol(shots=(5,), draws=3, restarts=2),
    )  # fmt: skip
    rivals = {one["name"]: one["5 shots"][0] for one in found.record["baselines"]}
    assert found.score > rivals["whole network, from scratch"] + 0.03
    assert found.score > rivals["whole network, fine-tuned"] + 0.03
    assert found.score > rivals["random mask"] + 0.03


def test_others_keep_off_the_names_of_the_rivals() -> None:
    with pytest.raises(ConfigError, match=r"'random mask'.*give yours other names"):
        transferred(quiet(), others={"random mask": GOOD})


@pytest.mark.parametrize("later", [False, True], ids=["each step", "as on an accelerator"])
def test_no_score_is_kept_of_a_training_that_diverges(
    later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FiniteChecks, "_later", later)
    recipe = Recipe(optimizer_factory=functools.partial(sgd, learning_rate=1e30))
    protocol = TransferProtocol(shots=(2,), draws=1, restarts=1, steps=12, recipe=recipe)
    for _ in range(2):
        run = quiet(folder=tmp_path)
        with pytest.raises(NonFiniteError, match="became NaN or infinite"):
            transferred(run, protocol, pretrained=True)
        run.close()
    assert "shots" not in "".join(path.read_text() for path in tmp_path.glob("computed.json"))

"""Every method on tasks of one's own: five members and what the method needs beyond, scores of any direction."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import SUPERNET, Searched, task
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError, ModelError, NonFiniteError
from archgrad.methods import UnasTerms
from archgrad.methods.monas.rewards import accurate, mixed, soft
from archgrad.methods.pruning_transfer.pruning_transfer import PruningTerms
from archgrad.tasks.task import PerSample, Splittable
from archgrad.trials.successive_halving import Halving


def _front(space: nn.Module, task: Any, run: ag.Run) -> ag.Found:
    """The network of a front at half of the parameters."""
    return ag.slim_front(space, task, run, cost=ag.params(), fractions=(0.5,), round_to=1).points[-1].found


# Each method with what it needs beyond the five members of a task.
METHODS: dict[str, tuple[Callable[..., ag.Found], tuple[type, ...]]] = {
    "darts": (ag.darts, (Splittable,)),
    "darts, second order": (functools.partial(ag.darts, second_order=True), (Splittable,)),
    "darts_prime": (ag.darts_prime, (Splittable,)),
    "toponas": (ag.toponas, (Splittable,)),
    "unas": (ag.unas, (Splittable,)),
    "unas, per image": (functools.partial(ag.unas, terms=UnasTerms(per_image=True)), (Splittable, PerSample)),
    "unas, pairs": (functools.partial(ag.unas, terms=UnasTerms(gap="pairwise")), (Splittable, PerSample)),
    "radars": (ag.radars, (Splittable,)),
    "monas": (ag.monas, ()),
    "multimodal_random": (functools.partial(ag.multimodal_random, recipe=ag.Recipe(), finalists=1), ()),
    "random_search": (ag.random_search, ()),
    "random_search, halving": (functools.partial(ag.random_search, halving=Halving()), ()),
    "random_search, shared": (functools.partial(ag.random_search, shared=True), ()),
    "dnal": (functools.partial(ag.dnal, round_to=1, gate_epochs=1), ()),
    "slim_front": (_front, ()),
    "pruning_transfer": (functools.partial(ag.pruning_transfer, terms=PruningTerms(weight_steps=2)), (Splittable,)),
}
SLIMMED = ("dnal", "slim_front", "pruning_transfer")
TRIALS = ("monas", "multimodal_random", "random_search", "random_search, halving", "random_search, shared")
every_method = pytest.mark.parametrize("name", METHODS)


class Own:
    """Regression on planted data, with a task's five members and no more: a lower score is better."""

    steps_per_epoch = 4
    higher_is_better = False

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, 8)

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Any]:
        return lambda step: self.batch(1000 * seed + step)

    def batch(self, number: int) -> Any:
        x = torch.randn(20, 8, generator=torch.Generator().manual_seed(number))
        return x, x[:, [0, 2, 5, 7]].sum(dim=1, keepdim=True)

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        return (network(batch[0]) - batch[1]).square().mean()

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        return {"mse": self.error(network, part)}

    def error(self, network: nn.Module, part: str) -> float:
        network.eval()
        with torch.no_grad():
            return float(self.loss(network, self.batch({"train": 7, "valid": 8, "test": 9}[part] + 10**6)))


class Split(Own):
    """It can be divided."""

    def split(self, fraction: float) -> tuple[Own, Own]:
        return self, self


class Each(Split):
    """And it knows the loss of each sample."""

    def losses(self, network: nn.Module, batch: Any) -> Tensor:
        return (network(batch[0]) - batch[1]).square().mean(dim=1)


class Negative(Each):
    """A score below 0 of which higher is better, and batches that are dicts."""

    higher_is_better = True

    def batch(self, number: int) -> Any:
        x, y = super().batch(number)
        return {"inputs": {"x": x}, "y": y}

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        return (network(batch["inputs"]["x"]) - batch["y"]).square().mean()

    def losses(self, network: nn.Module, batch: Any) -> Tensor:
        return (network(batch["inputs"]["x"]) - batch["y"]).square().mean(dim=1)

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        return {"negative_mse": -self.error(network, part)}


KINDS: dict[str, Callable[[], Any]] = {"classification": task, "regression": Each, "negative scores": Negative}


class Slimmed(nn.Sequential):
    """A network that takes its input by the name that the supernet has for it."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x)
        return output


def masks_and_inputs_by_name() -> ag.Supervised:
    """Eight pixels, each on or off; scored by how many are right."""
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    return ag.Supervised(
        ({"x": x}, (x > 0).to(torch.uint8)), batch_size=10, score="pixels",
        loss=lambda output, mask: nn.functional.binary_cross_entropy_with_logits(output, mask.float()),
        metrics={"pixels": lambda output, mask: ((output > 0) == (mask > 0)).float().mean(1)},
    )  # fmt: skip


def labels_from_a_teacher() -> ag.Distilled:
    """Several labels for a sample, and a teacher that knows them; a plain list of samples."""
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    teacher = nn.Linear(8, 8)
    with torch.no_grad():
        teacher.weight.copy_(3 * torch.eye(8))
    loss = nn.BCEWithLogitsLoss(reduction="none")
    samples = [(row, (row > 0).float()) for row in x]
    task = ag.Supervised(samples, loss=lambda o, t: loss(o, t).mean(1), batch_size=10)
    return ag.Distilled(task, teacher, loss=nn.functional.mse_loss)


MORE_KINDS: dict[str, Callable[[], Any]] = {
    "masks, inputs by name": masks_and_inputs_by_name,
    "several labels, distilled": labels_from_a_teacher,
}


def space(name: str, *, outputs: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name in SLIMMED:
            return ag.slim(Slimmed(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, outputs)), torch.zeros(2, 8))
        searched = SUPERNET.space()
        searched.head = nn.Linear(8, outputs)
        return searched


def quiet(**settings: Any) -> ag.Run:
    return ag.Run(**{"steps": 16, "trials": 4, "seed": 3, "device": "cpu", "progress": False, **settings})


@pytest.mark.parametrize("name", [name for name in METHODS if name != "slim_front"])  # whose folder holds several
@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_to_its_end_saves_and_reports(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # its export takes seconds, and is not what this is about
    data, run = KINDS[kind](), quiet(folder=tmp_path / "run")
    found = METHODS[name][0](space(name, outputs=2 if kind == "classification" else 1), data, run)
    (score, value), higher = next(iter(data.evaluate(found.network, "test").items())), kind != "regression"
    assert found.score == pytest.approx(value)
    assert found.record["score"] == {"name": score, "higher_is_better": higher}
    assert score.replace("_", " ") in found.report().replace("_", " ")
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "network.pt2").exists()


@every_method
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_it_takes_masks_labels_names_and_teachers(name: str, kind: str) -> None:
    data, run = MORE_KINDS[kind](), quiet(steps=10, trials=2)
    if "masks" in kind and PerSample in METHODS[name][1]:
        with pytest.raises(
            ModelError, match=r"the loss of a batch is a tensor \[\] float32, and that of each sample"
        ):
            METHODS[name][0](space(name, outputs=8), data, run)
        assert not run.history, "it had begun"
        return
    with torch.random.fork_rng():
        found = METHODS[name][0](space(name, outputs=8), data, run)
    figures = data.evaluate(found.network, "test")
    assert found.score == pytest.approx(next(iter(figures.values())))
    assert found.record["score"]["higher_is_better"] is data.higher_is_better
    assert list(figures) == (["pixels", "loss"] if "masks" in kind else ["loss"])


@every_method
def test_what_the_task_lacks_is_listed_before_anything_begins(name: str, tmp_path: Path) -> None:
    method, abilities = METHODS[name]
    missing = {Splittable: r"split\(fraction\)", PerSample: r"losses\(network, batch\)"}
    run = quiet(folder=tmp_path / "run")
    for ability in abilities:
        with pytest.raises(
            ConfigError, match=rf"cannot run on Own, which lacks {len(abilities)}.*{missing[ability]}"
        ):
            method(space(name), Own(), run)
    if not abilities:
        method(space(name), Own(), quiet())

    class Mute(Each):
        evaluate = property()  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"evaluate\(network, part\)"):
        method(space(name), Mute(), run)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("kind", ["regression", "negative scores"])
def test_trials_are_ranked_by_the_direction_of_the_score(name: str, kind: str) -> None:
    found = METHODS[name][0](space(name), KINDS[kind](), quiet(steps=40, trials=8))
    rows = found.record["trials"]
    last = max(row.get("round", 0) for row in rows)
    ranked = [row for row in rows if row.get("round", 0) == last]
    best = (min if kind == "regression" else max)(ranked, key=lambda row: row["score"])
    assert ag.Architecture(best["architecture"]) == found.architecture
    assert len({row["score"] for row in rows}) > 1, "nothing to rank otherwise"


@pytest.mark.parametrize("reward", [mixed(ag.params(), alpha=0.9), soft(ag.params().at_most(500))])
@pytest.mark.parametrize("kind", ["regression", "negative scores"])
def test_a_reward_of_scores_without_a_scale_lies_between_0_and_1(reward: Any, kind: str) -> None:
    run = quiet(steps=40, trials=8)
    found = ag.monas(space("monas"), KINDS[kind](), run, reward=reward)
    rewards = [row["reward"] for row in run.history if "reward" in row]
    assert all(-0.1 <= reward <= 1.0 for reward in rewards) and len(set(rewards)) > 1
    assert math.isfinite(found.score or math.nan)


def test_an_accuracy_that_a_score_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="a lower score of Each is better"):
        ag.monas(space("monas"), Each(), quiet(), reward=accurate(ag.params(), least=0.9))


class Failing(nn.Module):
    """A layer that raises, or gives NaN, in training or not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "raises":
            raise ValueError("this layer is broken")
        if self.kind == "nan loss" and self.training:
            return self.linear(x) * math.nan
        return self.linear(x) * (math.inf if self.kind == "infinite score" and not self.training else 1.0)


def broken(kind: str, *, sound: bool = True) -> nn.Module:
    """Searched, with hidden layers that fail."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Searched()
        layers = {f"broken {i}": Failing(kind) for i in range(3)}
        good = {"sound": nn.Linear(8, 8), "sound too": nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))}
        net.hidden, net.head = ag.OpChoice(layers | (good if sound else {}), name="hidden"), nn.Linear(8, 1)
        return net


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("kind", ["raises", "nan loss", "infinite score"])
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(name: str, kind: str) -> None:
    """The first layer fails, and would win by the order of equals or as NaN in a sort."""
    if name == "random_search, shared" and kind != "infinite score":
        pytest.skip("one supernet is trained: it fails whole")
    found = METHODS[name][0](broken(kind), Each(), quiet(steps=60, trials=9))
    failed = [row for row in found.record["trials"] if "failed" in row]
    assert failed and all(row["score"] is None and row["architecture"]["hidden"] < 3 for row in failed)
    assert all("broken" in row["failed"] if kind == "raises" else "NonFinite" in row["failed"] for row in failed)
    assert found.architecture["hidden"] >= 3 and math.isfinite(found.score or math.nan)
    assert any(
        f"{len(failed)} of {len(found.record['trials'])} trials failed" in note for note in found.record["notes"]
    )
    assert found.report()


@pytest.mark.parametrize("name", ["monas", "multimodal_random", "random_search", "random_search, halving"])
@pytest.mark.parametrize(("kind", "error"), [("raises", ModelError), ("nan loss", NonFiniteError)])
def test_a_search_in_which_every_trial_fails_is_an_error(name: str, kind: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"all \d trials failed.*(this layer is broken|NaN or infinite)"):
        METHODS[name][0](broken(kind, sound=False), Each(), quiet(trials=3))


@pytest.mark.parametrize("name", ["random_search", "random_search, halving"])
def test_workers_record_the_same_failures(name: str) -> None:
    here, there = (
        METHODS[name][0](broken("raises"), Each(), quiet(steps=40, trials=6, workers=workers))
        for workers in (None, 1)
    )
    assert here.record["trials"] == there.record["trials"]
    assert any("failed" in row for row in here.record["trials"])


def test_a_resumed_run_does_not_take_a_failed_trial_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phase of a failed trial has an end, through which a resumed run passes without training."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    class Stops(Each):
        left = 10**9

        def loss(self, network: nn.Module, batch: Any) -> Tensor:
            Stops.left -= 1
            if Stops.left == 0:
                raise KeyboardInterrupt
            return super().loss(network, batch)

    def search(folder: Path | None) -> ag.Found:
        run = quiet(steps=60, trials=9, folder=folder, output=ag.Output(checkpoint_seconds=0.0))
        try:
            return ag.random_search(broken("nan loss"), Stops(), run)
        finally:
            if Stops.left == 0:
                run.close()

    whole = search(None)
    Stops.left = 25
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run")
    Stops.left = 10**9
    resumed = search(tmp_path / "run")
    # Of a failure the first sentence: what follows names a folder.
    rows = [
        [row.get("failed", "").partition(".")[0] or row["score"] for row in f.record["trials"]]
        for f in (whole, resumed)
    ]
    assert rows[0] == rows[1] and any(isinstance(row, str) for row in rows[0])
    assert all(torch.equal(value, whole.network.state_dict()[k]) for k, value in resumed.network.state_dict().items())


class Table:
    """Scores architectures itself, some of them NaN."""

    perfect = 1.0

    def score(self, architecture: ag.Architecture, /) -> float:
        picks = dict(architecture)
        return math.nan if picks["1.0"] == 4 else sum(map(int, picks.values())) / 24


@pytest.mark.parametrize("method", [ag.random_search, ag.monas])
def test_a_table_with_gaps_gives_the_best_finite_score(method: Callable[..., ag.Found]) -> None:
    found = method(ag.nasbench201_cells(channels=2, cells=1), Table(), ag.Run(trials=40, progress=False))
    rows = found.record["trials"]
    assert any("failed" in row for row in rows)
    assert found.score == max(row["score"] for row in rows if "failed" not in row)

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler, default_collate

import archgrad as ag
from archgrad.errors import ConfigError, RunError
from archgrad.fingerprint import described, of_network

X = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


class Images(Dataset[Any]):
    """A dataset without tensors of its own, read sample by sample."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


class Net(nn.Module):
    def __init__(self, activation: Any = functional.relu, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=stride, padding=1)
        self.head = nn.LazyLinear(3)
        self.activation = activation

    def forward(self, x: Tensor) -> Any:
        return self.head(self.activation(self.conv(x)).mean((2, 3)))


class Kept:
    """What a module may hold beside tensors that are trained and saved."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: Tensor) -> Tensor:
        return self.by * x


class Holder(Net):
    def __init__(self, kind: str, value: float) -> None:
        super().__init__()
        self.calls, self.seen = 0, list[Tensor]()
        shown = {"tensor": torch.tensor([value]), "dict": {"a": {"b": value}}, "list": [lambda x: value * x]}
        shown |= {"object": Kept(value), "built-in": torch.tanh if value > 1 else torch.relu, "_private": value}
        self.options = shown.get(kind)
        self._options = shown["_private"] if kind == "_private" else None
        self.register_buffer("mask", torch.full((1,), value if kind == "buffer" else 0.0), persistent=False)
        if kind == "hook":
            self.conv.register_forward_hook(lambda module, given, made: value * made)

    def forward(self, x: Tensor) -> Any:
        self.calls += 1  # state, and no setting
        return super().forward(x)


class Doubled(Net):
    def forward(self, x: Tensor) -> Any:
        return self.head(self.activation(2 * self.conv(x)).mean((2, 3)))


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def more_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.2 * torch.randn(x.shape, generator=generator)


def rate(value: float) -> Callable[[Any], SGD]:
    return lambda parameters: SGD(parameters, lr=value)


def trained(
    folder: Path,
    *,
    network: Callable[[], nn.Module] = Net,
    recipe: Any = None,
    data: Any = None,
    accept: tuple[str, ...] = (),
    **options: Any,
) -> None:
    torch.manual_seed(0)
    task = ag.Classification(data or (X, Y), **({"batch_size": 10} | options))
    run = ag.Run(steps=2, folder=folder, device="cpu", progress=False).accept(*accept)
    ag.fit(network(), task, run, recipe=ag.Recipe(optimizer_factory=recipe or rate(0.1)))


HELD = ("tensor", "dict", "list", "object", "built-in", "_private", "buffer", "hook")
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "labels permuted by one": ("data.train samples", {"data": (X, Y.roll(1))}),
    "one pixel": ("data.train samples", {"data": (torch.cat([X[:-1], X[-1:] + 1e-3]), Y)}),
    "batch size": ("data.batch_size", {"batch_size": 12}),
    "split seed": ("data.split_seed", {"split": ag.Split(seed=1)}),
    "an augmentation": ("data.augmentation", {"augment": [ag.crop(1)]}),
    "a function that augments": ("data.augmentation", {"augment": [noise]}),
    "smoothing": ("data.smoothing", {"loss": torch.nn.CrossEntropyLoss(label_smoothing=0.1)}),
    "an optimizer behind a lambda": (
        "settings.recipe.optimizer_factory",
        {"recipe": lambda parameters: Adam(parameters, lr=0.1)},
    ),
    "a rate that is bound": ("settings.recipe.optimizer_factory", {"recipe": rate(0.2)}),
    "a rate in a partial": ("settings.recipe.optimizer_factory", {"recipe": functools.partial(SGD, lr=0.2)}),
    "an activation": ("network", {"network": lambda: Net(functional.gelu)}),
    "a lambda as activation": ("network", {"network": lambda: Net(lambda x: 2 * functional.relu(x))}),
    "a stride": ("network", {"network": lambda: Net(stride=2)}),
    "what forward computes": ("network", {"network": Doubled}),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("begun") / "run"
    trained(folder)
    yield folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_resumed_run_names_what_has_changed(begun: Path, change: str) -> None:
    name, options = CHANGES[change]
    with pytest.raises(RunError, match=r"--accept") as caught:
        trained(begun, **options)
    assert f"{name} (given" in str(caught.value)


@pytest.mark.parametrize("kind", HELD)
def test_what_a_module_holds_beside_its_weights_is_part_of_it(kind: str) -> None:
    assert of_network(Holder(kind, 1.0)) == of_network(Holder(kind, 1.0))
    assert of_network(Holder(kind, 1.0)) != of_network(Holder(kind, 2.0))
    called = Holder(kind, 1.0)
    called.calls, called.seen = 7, []
    assert of_network(called) == of_network(Holder(kind, 1.0))


class Refuses(dict[str, float]):
    def items(self) -> Any:
        raise RuntimeError("no items")


STRANGE: list[Callable[[], Any]] = [
    Refuses, lambda: torch.empty(3, device="meta"), lambda: torch.nested.nested_tensor([X[0], X[1, :, :2]]),
    lambda: np.array([object()]), lambda: (i for i in range(3)), threading.Lock, lambda: np.datetime64("2020", "D"),
    lambda: torch.ones(4).to(torch.float8_e4m3fn), lambda: {1, None, "a"}, lambda: sys, lambda: Path("a"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", STRANGE)
def test_what_cannot_be_described_is_no_obstacle(make: Callable[[], Any]) -> None:
    network, loop = Net(), list[Any]()
    loop.append(loop)
    network.option, network.loop = make(), loop
    assert of_network(network) == of_network(network)
    assert described(functools.partial(print, make())) == described(functools.partial(print, make()))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_and_arrays_of_text_are_told_apart() -> None:
    def of(value: Any) -> str:
        network = Net()
        network.option = value
        return of_network(network)

    for layout in ("to_sparse", "to_sparse_csr"):
        one, same, other = (getattr(torch.diag(torch.tensor([1.0, v])), layout)() for v in (2.0, 2.0, 3.0))
        assert of(one) == of(same) != of(other)
    assert of(np.array(["a", "b"])) == of(np.array(["a", "b"])) != of(np.array(["a", "c"]))


def reading(source: str, **values: Any) -> Any:
    """A function of a program of the user's that reads values of its module."""
    program: dict[str, Any] = {"__name__": "theirs", **values}
    exec(source, program)
    return program["f"]


@pytest.mark.parametrize("make", [
    lambda v: {"A": v}, lambda v: argparse.Namespace(A=v), lambda v: [v], str,
    lambda v: torch.tensor([v]), lambda v: functools.partial(round, v),
])  # fmt: skip
def test_options_that_code_reads_are_part_of_it_and_what_it_changes_is_not(make: Callable[[float], Any]) -> None:
    reads, changes = "def f(x):\n    return OPTIONS, x.OTHER", "def f(x):\n    OPTIONS['n'] = OPTIONS.n = x"
    one, same, other = (described(reading(reads, OPTIONS=make(v), OTHER=v)) for v in (1.5, 1.5, 2.5))
    assert one == same != other
    held = isinstance(make(1.5), dict | list | torch.Tensor | argparse.Namespace)
    first, second = (described(reading(changes, OPTIONS=make(v))) for v in (1.5, 2.5))
    assert (first == second) == held
    assert described(reading(reads, OPTIONS=1, OTHER=1)) == described(reading(reads, OPTIONS=1, OTHER=2)), "a name"


def test_code_that_leads_back_to_itself_ends() -> None:
    source = (
        "class C:\n    def go(self):\n        return TABLE, f\nTABLE = {'c': C, 'f': None}\n"
        "def f(x):\n    return C, TABLE, 1\nTABLE['f'] = f"
    )
    assert described(reading(source)) == described(reading(source))
    assert described(reading(source)) != described(reading(source.replace("TABLE, 1", "TABLE, 2")))
    other = reading("class C:\n    def go(self):\n        return 1\ndef f(x):\n    return C().go()")
    assert described(other) != described(
        reading("class C:\n    def go(self):\n        return 2\ndef f(x):\n    return C().go()")
    )


def test_how_samples_come_and_given_weights_are_compared(tmp_path: Path) -> None:
    def loader(weight: float, draws: int = 60, by: float = 1.0) -> DataLoader[Any]:
        def collate(samples: list[Any]) -> Any:
            x, y = default_collate(samples)
            return by * x, y

        weights = torch.ones(60).index_fill(0, torch.arange(9), weight)
        return DataLoader(Images(X, Y), 10, sampler=WeightedRandomSampler(weights, draws), collate_fn=collate)

    parts = [
        str(ag.Classification(given, Images(X, Y), Images(X, Y), classes=3).fingerprint())
        for given in (loader(1.0), loader(1.0), loader(2.0), loader(1.0, 40), loader(1.0, by=2.0))
    ]
    assert parts[0] == parts[1] and len(set(parts)) == 4

    def slim(seed: int) -> None:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
        run = ag.Run(steps=4, folder=tmp_path / "run", device="cpu", progress=False)
        task, limit = ag.Classification((X, Y)), ag.params().at_most(fraction=0.8)
        ag.dnal(ag.slim(network, task.example), task, run, limit=limit, pretrained=True, check_weights=False)

    slim(0)
    slim(0)
    with pytest.raises(RunError, match=r"settings\.given_weights"):
        slim(1)


def test_the_same_run_goes_on_and_another_default_dtype_is_refused(begun: Path, tmp_path: Path) -> None:
    trained(begun)
    ag.Run(folder=tmp_path, device="cpu", progress=False).begin("test", {})
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(RunError, match=r"differs in dtype \(given") as caught:
            ag.Run(folder=tmp_path, device="cpu", progress=False).begin("test", {})
    finally:
        torch.set_default_dtype(torch.float32)
    assert "--accept" not in str(caught.value)


def test_another_augmentation_of_the_same_name_is_another_one() -> None:
    assert described(noise) != described(more_noise).replace("more_noise", "noise")
    first: Any = Images(X, Y)
    assert "drawn" not in str(ag.Classification(first, classes=3).fingerprint())


def test_a_dataset_is_known_by_its_samples(tmp_path: Path) -> None:
    trained(tmp_path, data=Images(X, Y))
    trained(tmp_path, data=Images(X.clone(), Y.clone()))
    with pytest.raises(RunError, match=r"data\.train samples"):
        trained(tmp_path, data=Images(X, Y.roll(1)))


class Augmented(Images):
    """Draws as it is read, from the global generators or from one of its own."""

    def __init__(self, x: Tensor, y: Tensor, by: float, own: torch.Generator | None = None) -> None:
        super().__init__(x, y)
        self.by, self.own = by, own

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = super().__getitem__(index)
        return x + self.by * torch.randn(x.shape, generator=self.own), y


def test_samples_that_are_drawn_as_they_are_read_are_compared_too() -> None:
    def of(x: Tensor, by: float) -> str:
        data = Augmented(x, Y, by)
        torch.manual_seed(int(1000 * by))  # what was drawn before is no matter
        return str(ag.Classification(data, classes=3).fingerprint())

    assert of(X, 0.1) == of(X.clone(), 0.1)
    assert len({of(X, 0.1), of(X, 0.2), of(X + 1, 0.1)}) == 3
    own = [str(ag.Classification(Augmented(X, Y, 0.1, torch.Generator()), classes=3).fingerprint()) for _ in "ab"]
    assert own[0] == own[1]


def test_another_version_of_python_is_named_as_a_reason(tmp_path: Path) -> None:
    trained(tmp_path, recipe=reading("def f(p):\n    return SGD(p, lr=0.1)", SGD=SGD))
    path = tmp_path / "run.json"
    body = json.loads(path.read_text())
    for version, told in (("3.2.9", True), (body["made_with"]["python"], False)):
        path.write_text(json.dumps({**body, "made_with": {**body["made_with"], "python": version}}))
        with pytest.raises(RunError, match="optimizer_factory") as caught:
            trained(tmp_path, recipe=reading("def f(p):\n    return SGD(p, lr=0.2)", SGD=SGD))
        assert ("begun by Python 3.2.9" in str(caught.value)) == told


def test_a_task_of_the_users_is_known_by_its_first_batch(tmp_path: Path) -> None:
    class Line:
        example, steps_per_epoch, higher_is_better = torch.ones(1, 1), 4, False

        def __init__(self, slope: float) -> None:
            self.slope = slope

        def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], tuple[Tensor, Tensor]]:
            def batch(step: int) -> tuple[Tensor, Tensor]:
                x = torch.rand(8, 1, generator=torch.Generator().manual_seed(step))
                return x, self.slope * x

            return batch

        def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return functional.mse_loss(network(batch[0]), batch[1])

        def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
            return {"mse": 0.0}

    def train(slope: float) -> None:
        ag.fit(nn.Linear(1, 1), Line(slope), ag.Run(steps=1, folder=tmp_path, device="cpu", progress=False))

    train(3.0)
    train(3.0)
    with pytest.raises(RunError, match=r"data\.first batch"):
        train(2.0)


def test_a_difference_that_is_meant_is_accepted_and_noted(tmp_path: Path) -> None:
    trained(tmp_path)
    trained(tmp_path, data=(X, Y.roll(1)), accept=("data",))
    with pytest.raises(RunError, match="network"):
        trained(tmp_path, data=(X, Y.roll(2)), network=Doubled, accept=("data",))
    trained(tmp_path, data=(X, Y.roll(1)))  # what was accepted is what the run is from then on
    (note,) = json.loads((tmp_path / "run.json").read_text())["accepted"]
    assert "data.train samples" in note
    with pytest.raises(ConfigError, match="data, network, settings"):
        ag.Run().accept("seed")


def test_the_note_on_what_was_accepted_is_in_the_result(tmp_path: Path) -> None:
    def slim(data: Any, *accept: str) -> ag.Found:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
        task = ag.Classification(data)
        run = ag.Run(steps=4, folder=tmp_path, device="cpu", progress=False).accept(*accept)
        return ag.dnal(ag.slim(network, task.example), task, run, limit=ag.params().at_most(fraction=0.8))

    slim((X, Y))
    found = slim((X, Y.roll(1)), "data")
    assert any("differs from what the run was begun with in data" in note for note in found.record["notes"])
    assert "begun with in data" in (tmp_path / "report.html").read_text()


def test_digests_are_the_same_in_every_process() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.BatchNorm2d(4))
    program = (
        "import torch; from torch import nn; from archgrad.fingerprint import of_network; "
        "print(of_network(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.BatchNorm2d(4))))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == of_network(network)


def test_what_a_function_binds_is_written_out() -> None:
    assert described(functools.partial(ag.sgd, learning_rate=0.1)) == "sgd(learning_rate=0.1)"
    assert described(rate(0.1)).startswith("rate.<locals>.<lambda>(value=0.1) #")
    assert described(functional.relu) == "relu"

    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __call__(self, x: Tensor) -> Tensor:
            return self.factor * x

    assert "(factor=2.0)" in described(Scale(2.0))
    counter = Scale(0.0)  # an object that a function works on is no setting: it may change while the run goes on

    def counted(x: Tensor) -> Tensor:
        counter.factor += 1
        return x

    before = described(counted)
    counted(X)
    assert described(counted) == before
    assert described(Scale(2.0)) != described(Scale(3.0))


def test_a_module_that_a_function_of_its_own_refers_to_has_a_digest() -> None:
    network = Net()
    network.activation = lambda x: 2 * network.conv(x)
    assert of_network(network) == of_network(network)

"""Every public function and class refuses an argument of a wrong type in words of archgrad, whichever it is."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing
from torch import nn

import archgrad as ag
from archgrad.cli.app import app
from archgrad.control import cart_pole
from archgrad.errors import ChoiceError, LimitError, ModelError, RunError
from archgrad.rl import PixelGame


class Wrong:
    """No argument of any function."""

    def __repr__(self) -> str:
        return "something else"


@functools.cache
def valid() -> dict[str, Any]:
    """Arguments that go, by the names that parameters have."""
    x = torch.zeros(2, 1, 8, 8)
    space = nn.Sequential(ag.OpChoice([nn.Identity(), nn.ReLU()], name="layer"), nn.Flatten(), nn.Linear(64, 10))
    task = ag.Classification((torch.randn(40, 1, 8, 8), torch.arange(40) % 10), batch_size=8)
    return {
        "space": ag.relax(space, ag.gumbel_softmax), "system": cart_pole(), "source": task,
        "target": task, "network": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "net": nn.Linear(4, 4),
        "task": task, "run": ag.Run(steps=2, trials=2, device="cpu", progress=False), "teacher": nn.Linear(4, 4),
        "architecture": ag.Architecture({"layer": 0}), "structure": ag.Architecture({"layer": 0}),
        "limit": ag.params().at_most(fraction=0.9), "steps": 3, "example": x, "x": x, "size": 3, "channels": 4,
        "features": 4, "classes": 3, "name": "name", "unit": "unit", "padding": 2, "cost": ag.params(), "given": {},
        "bound": 3.0, "path": "file", "picks": {"layer": 0}, "inputs": {"a": ag.vector_encoder(3)}, "support": {},
        "weights": {}, "relaxation": ag.softmax, "function": len, "score": len, "train": None, "labels": [0],
        "parameters": list(nn.Linear(2, 2).parameters()), "mnist": "none", "fsdd": "none", "factory": nn.ReLU,
        "candidates": [nn.ReLU(), nn.Identity()], "string": "none", "cell": "none", "env": PixelGame, "arrays": {},
        "scores": {}, "files": {"a": "file"}, "batches": [torch.zeros(1, 2, dtype=torch.long)],
    }  # fmt: skip


def parameters() -> list[tuple[str, str]]:
    """Every parameter of every public function and class; the fields of a result are what methods put there."""
    pairs = []
    for name in sorted(set(ag.__all__) - {"Found", "Front", "FrontPoint", "ArchgradClassifier", "__version__"}):
        function = getattr(ag, name)
        if callable(function) and not (inspect.isclass(function) and issubclass(function, BaseException)):
            signature = inspect.signature(function)
            pairs += [(name, option) for option, p in signature.parameters.items() if p.annotation != "Any"]
    return pairs


@pytest.mark.parametrize(("name", "option"), parameters(), ids=str)
def test_a_wrong_argument_is_refused(name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some of these functions write files
    function: Callable[..., Any] = getattr(ag, name)
    required = [n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty]
    with pytest.raises(ag.ArchgradError):
        result = function(**({n: valid()[n] for n in required if n != option} | {option: Wrong()}))
        if isinstance(result, AbstractContextManager):
            result.__enter__()


class Streamless(ag.Classification):
    """A task whose stream forgets to return."""

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Any:
        """Nothing."""


class Batchless(ag.Classification):
    """A task whose stream returns no batch."""

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Any:
        """A function that forgets to return."""
        return lambda step: None


def fitted(task: type[ag.Classification] = ag.Classification, **options: Any) -> object:
    data = (torch.randn(40, 1, 8, 8), torch.arange(40) % 10)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return ag.fit(network, task(data, batch_size=8, **options), ag.Run(steps=1, device="cpu", progress=False))


def classified(network: Any) -> object:
    return ag.ArchgradClassifier(network=network, epochs=1).fit([[0.0], [1.0]] * 8, [0, 1] * 8)


RETURNS_NOTHING: dict[str, Callable[[], object]] = {
    "stream": lambda: fitted(Streamless),
    "batch": lambda: fitted(Batchless),
    "augmentation": lambda: fitted(augment=[lambda x, generator: None]),
    "score of a prior": lambda: ag.prior(valid()["space"], lambda some: None),  # type: ignore[arg-type,return-value]
    "scores of a prior": lambda: ag.prior(valid()["space"], lambda some: [None for _ in some]),  # type: ignore[misc]
    "cost": lambda: ag.black_box(lambda net: None, name="a", unit="b").of(nn.ReLU()),  # type: ignore[arg-type,return-value]
    "network of a classifier": lambda: classified(lambda shape, classes: None),
    "a module for a function of it": lambda: classified(nn.Linear(1, 2)),
    "no function": lambda: classified(3),
}


@pytest.mark.parametrize("what", RETURNS_NOTHING)
def test_a_function_of_the_users_that_returns_nothing_is_named(what: str) -> None:
    with pytest.raises(ag.ArchgradError, match=r"None|network="):
        RETURNS_NOTHING[what]()


def test_the_mistakes_of_a_first_hour_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message names what to write instead."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import torch\n\nclass Mine(torch.nn.Linear):\n    pass\n", encoding="utf-8")
    x = torch.zeros(1, 4)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    space, task = ag.slim(net, x), ag.Classification((torch.randn(60, 4), torch.arange(60) % 2))
    run, found = ag.Run(epochs=1, progress=False), ag.Found(ag.Architecture({}), net)
    command = typer.testing.CliRunner().invoke(app, ["slim", "net.py", "digits", "--limit", "macs=0.5"])
    assert command.exit_code == 2 and "net.py:Mine" in command.stderr
    for given, told in (
        (("net.py", "Mine", "digits"), "MODEL DATA in this order, a MODEL in a file as FILE.py:NAME"),
        (("net.py:Mine", "--data", "digits"), "MODEL DATA in this order"),
        (("net.py:Mine", "digist"), "Did you mean digits?"),
        (("net.py:Mine", "pictuers", "--size", "32"), "no such file or folder. Did you mean pictures?"),
    ):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        command = typer.testing.CliRunner().invoke(app, ["slim", *given], env={"COLUMNS": "200"})
        assert command.exit_code == 2 and told in " ".join(command.stderr.split()), command.stderr
    for call, error, told in (
        (lambda: ag.dnal(space, task, run, limit=ag.macs(x).at_most(0.5)), LimitError, r"at_most\(fraction=0.5\)"),
        (
            lambda: ag.dnal(space, task),
            TypeError,
            r"dnal\(\): missing .*'run'. It takes space, task, run; by name alone limit",
        ),
        (lambda: ag.dnal(space, task, run, limit=ag.macs(x).at_most(10)), LimitError, r"for 10 % .* macs=0.1"),
        (lambda: ag.slim(space, x), ModelError, "is a gate of archgrad; give it to archgrad.dnal as it is"),
        (lambda: ag.darts(net, task, run), ChoiceError, "A network of your own is slimmed: archgrad.slim and"),
        (lambda: ag.export_onnx(found, x, "a.onnx"), ModelError, r"Allowed is a torch.nn.Module. Give its .network"),
        (lambda: ag.Run(10), TypeError, "too many .* It takes by name alone epochs, steps"),
        (lambda: ag.dnal(net, task, run), ChoiceError, r"archgrad.slim\(network, example=x\)"),
        (lambda: ag.Classificaton, AttributeError, "Did you mean Classification"),
        (lambda: pickle.dumps(found), RunError, r"found.save\(folder\)"),
    ):
        with pytest.raises(error, match=told):
            call()


@pytest.mark.parametrize("given", ["a.onnx", None, torch.zeros(2), [nn.Linear(4, 4)], ag.Found], ids=repr)
def test_costs_are_asked_for_modules(given: object) -> None:
    net, x = nn.Linear(4, 4), torch.zeros(1, 4)
    given = ag.Found(ag.Architecture({}), net) if given is ag.Found else given
    mine = ag.black_box(lambda network: 1.0, name="mine", unit="")
    assert ag.macs(x).of(net) == 16 and mine.of(net) == 1.0
    for cost in (ag.macs(x), ag.params(), ag.latency(x), ag.energy(x), ag.peak_memory(x), ag.file_size(x), mine):
        with pytest.raises(ModelError, match=r"of\(network=.*Allowed is a torch.nn.Module") as refused:
            cost.of(given)  # type: ignore[arg-type]
        assert ("Give its .network" in str(refused.value)) == isinstance(given, ag.Found)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fitted_by(schedule=lambda progress: {"a": 1}), "the schedule gave {'a': 1} at progress 0"),
        (lambda: fitted_by(optimizer_factory=lambda parameters: 3), "optimizer_factory=.* gave a int"),
        (lambda: ag.slim(nn.Linear(2, 2), torch.zeros(1, 2), keep=[[]]), "Allowed is a list of paths"),  # type: ignore[list-item]
        (lambda: ag.nasbench201_cells(cells=2**31), "Allowed is a number below 2,147,483,648"),
        (lambda: ag.prior(ag.darts_cells(cells=1, nodes=1), lambda some: [0.0] * len(some), samples=10**20), "below"),
        (lambda: ag.av_digits("a" * 300, "b"), "no file system takes a name as long as aaa"),
        (
            lambda: ag.freenas(ag.darts_cells(cells=1), ag.Run(), example=torch.ones(1, 3, 8, 8, device="meta")),
            "on the device meta",
        ),
        (
            lambda: ag.Distilled(valid()["task"], nn.Linear(2, 2), features=torch.zeros(2, 1)),  # type: ignore[arg-type]
            "features=a Tensor.*Allowed is Mapping",
        ),
        (lambda: ag.slim(nn.Linear(2, 2)), r"none was given: archgrad.slim\(net, example=x\)"),
        (lambda: ag.fit(nn.Linear(2, 2, device="meta"), valid()["task"], ag.Run(steps=1)), "on the device meta"),
        (lambda: ag.export_onnx(nn.Linear(2, 2, device="meta"), torch.zeros(1, 2), "a.onnx"), "on the device meta"),
        (lambda: ag.scaled_sigmoid(2**40), "Allowed is a number below"),
        (lambda: ag.darts_cells(cells=1, channels=2**30), "memory ran out"),
        (lambda: ag.adam([], learning_rate=0.1), "no optimizer can be made of this"),
        (
            lambda: ag.Split(groups=[[1], [1, 2]]).resolve(valid()["task"]._parts["train"].source),
            "one number or string",
        ),
    ],
    ids=range(15),
)
def test_what_is_wrong_inside_an_argument_is_told(
    call: Callable[[], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ag.ArchgradError, match=told):
        call()


def fitted_by(**options: Any) -> object:
    return ag.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        valid()["task"],
        ag.Run(steps=1, device="cpu", progress=False),
        recipe=ag.Recipe(**options),
    )


@pytest.mark.parametrize("raised", [KeyError, StopIteration, ZeroDivisionError, OSError])
def test_an_error_of_a_data_set_names_its_sample_wherever_it_is_read(raised: type[Exception]) -> None:
    class Raising(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise raised("mine")
            return torch.zeros(2), index % 3

    with pytest.raises(ag.DataError if raised is StopIteration else raised) as caught:
        ag.Classification(Raising(), batch_size=2)
    assert "sample 4" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])

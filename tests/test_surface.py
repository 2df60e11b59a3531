"""The public names of the package and of its rooms: documented, imported only when used, and enough for all pages."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families.timm_shim import make_torchvision_importable

import archgrad
from archgrad.errors import MissingExtra
from archgrad.rl import PixelGame

ROOT = Path(__file__).parent.parent
ROOMS = sorted(
    module.name for module in pkgutil.iter_modules(archgrad.__path__) if module.ispkg and module.name != "cli"
)
EXPORTS = [
    (room, name) for room in ROOMS for name in getattr(importlib.import_module(f"archgrad.{room}"), "__all__", [])
]
READ_BY_USERS = [
    path
    for place in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "examples", "benchmarks")
    for path in ([ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*")))
    if path.suffix in (".md", ".py", ".ipynb")
    # which run commands and the board in their own process
    and path.name not in ("reliability_inputs.py", "reliability_python.py")
]
NAMED = re.compile(r"\barchgrad\.([a-z]\w*)\.([A-Za-z]\w*)")
IMPORTED = re.compile(r"\bfrom archgrad\.([\w.]+) import (\([^)]*\)|.*)")


def test_all_is_sorted_and_is_what_resolves() -> None:
    assert archgrad.__all__ == sorted(set(archgrad.__all__))
    for name in archgrad.__all__:
        assert getattr(archgrad, name) is not None
    assert set(archgrad.__all__) - {"__version__"} <= set(dir(archgrad))


@pytest.mark.parametrize("name", [name for name in archgrad.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    assert (getattr(archgrad, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", [name for name in archgrad.__all__ if callable(getattr(archgrad, name))])
def test_what_is_called_takes_few_arguments(name: str) -> None:
    """At most 12, and 3 by position, of which those of a record that is filled in are free.

    A run has one more: each is a circumstance that training depends on, and no two of them are one.
    """
    called = getattr(archgrad, name)
    if isinstance(called, type) and issubclass(called, Exception):
        return
    parameters = inspect.signature(called).parameters.values()
    assert len(parameters) <= (13 if called is archgrad.Run else 12)
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert dataclasses.is_dataclass(called) or len(positional) <= 3


@pytest.mark.parametrize("name", [name for name in archgrad.__all__ if isinstance(getattr(archgrad, name), type)])
def test_no_public_class_is_printed_with_an_address(name: str) -> None:
    kind = getattr(archgrad, name)
    if not issubclass(kind, Exception) and not getattr(kind, "_is_protocol", False):
        assert kind.__repr__ is not object.__repr__


def test_what_a_user_holds_is_printed_in_words() -> None:
    x, y = torch.zeros(60, 8), torch.arange(60) % 2
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    space, task = archgrad.slim(net, x[:1]), archgrad.Classification((x, y), batch_size=8)
    limit = archgrad.macs(x[:1]).at_most(fraction=0.5)
    for held in (
        archgrad.Recipe(), archgrad.Output(), archgrad.Run(), task, archgrad.Distilled(task, net), limit, space,
        archgrad.latency(x[:1]), archgrad.file_size(x[:1]), archgrad.peak_memory(x[:1]), archgrad.params(),
        archgrad.flip(), archgrad.lower("mae"),
        archgrad.black_box(len, name="layers", unit="layers"), archgrad.over_part(max), archgrad.frozen(space),
        archgrad.GateTrainer(space, limit=limit, steps=9), archgrad.Architecture({"a": 1}),
        archgrad.Found(archgrad.Architecture({}), net), archgrad.importance(space, criterion="magnitude"),
        archgrad.Supervised((x, x), loss=torch.nn.functional.l1_loss), archgrad.ArchgradClassifier(),
        archgrad.control.Transitions((x, x), (x, x)),
    ):  # fmt: skip
        assert " at 0x" not in repr(held), type(held).__name__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="archgrad has no 'mutator'"):
        _ = archgrad.mutator


def test_derive_is_the_function_and_its_room_can_still_be_imported() -> None:
    room = importlib.import_module("archgrad.extract.export")
    assert callable(archgrad.derive)
    assert archgrad.export_onnx is room.export_onnx


def test_choices_is_the_room() -> None:
    room = importlib.import_module("archgrad.choices.access")
    assert archgrad.choices.access is room


@pytest.mark.parametrize("module", ["archgrad", "archgrad.cli", "archgrad.cli.schemas.methods"])
def test_importing_leaves_torch_out(module: str) -> None:
    code = f"import {module}, sys; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("room", "name"), EXPORTS)
def test_what_a_room_exports_resolves_and_is_documented(room: str, name: str) -> None:
    make_torchvision_importable()
    try:
        exported = getattr(importlib.import_module(f"archgrad.{room}"), name)
    except MissingExtra as error:
        pytest.skip(str(error))
    if inspect.isclass(exported) or inspect.isfunction(exported):
        assert (exported.__doc__ or "").strip()


@pytest.mark.parametrize(("room", "name"), EXPORTS)
def test_the_example_of_what_a_room_exports_runs(
    room: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        exported = getattr(importlib.import_module(f"archgrad.{room}"), name)
    except MissingExtra as error:
        pytest.skip(str(error))
    if not (inspect.isclass(exported) or inspect.isfunction(exported)):
        return
    monkeypatch.chdir(tmp_path)
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), list[str]()
    for example in doctest.DocTestFinder(recurse=False).find(exported, name, globs={}):
        runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("room", ROOMS)
def test_no_export_of_a_room_hides_behind_one_of_its_files(room: str) -> None:
    """Once a file is imported, Python binds its name in the room, where it would hide an export of that name."""
    package = importlib.import_module(f"archgrad.{room}")
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(
        getattr(package, "__all__", [])
    )


def deep_names(text: str) -> list[str]:
    """What a text names below the rooms, or in a room that does not export it."""
    exported = {room: {name for other, name in EXPORTS if other == room} for room in ROOMS}
    wrong = [f"{room}.{name}" for room, name in NAMED.findall(text) if name not in exported.get(room, {name})]
    for module, names in IMPORTED.findall(text):
        listed = {name.strip() for name in names.strip("()").split(",") if name.strip()}
        of_a_file = [] if module in ROOMS or "." in module else vars(importlib.import_module(f"archgrad.{module}"))
        wrong += [f"{module}: {name}" for name in listed if name not in exported.get(module, of_a_file)]
    return wrong


@pytest.mark.parametrize("path", READ_BY_USERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_users_read_names_the_package_or_one_room(path: Path) -> None:
    assert not deep_names(path.read_text(encoding="utf-8"))


def test_deep_names_are_found() -> None:
    assert deep_names("`archgrad.costs.CostTable.load`, from archgrad.costs import CostTable, measure_table") == []
    assert deep_names("from archgrad.errors import RunError") == []
    assert deep_names("`archgrad.costs.table.CostTable`") == ["costs.table"]
    assert deep_names("from archgrad.costs.table import CostTable") == ["costs.table", "costs.table: CostTable"]
    assert deep_names("from archgrad.costs import (\n    CostTable,\n    no_such_name,\n)") == ["costs: no_such_name"]


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_leaves_torch_out(room: str) -> None:
    code = f"import archgrad.{room}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_user_prints_says_what_it_is() -> None:
    x = torch.zeros(1, 1, 8, 8)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10))
    space, limit = archgrad.slim(net, x), archgrad.macs(x).at_most(fraction=0.5)
    task = archgrad.Classification.load("digits")
    recipe, reasons = archgrad.Recipe(optimizer_factory=archgrad.adamw), archgrad.frozen(space)
    things = [
        reasons, limit, limit.cost, recipe, task, archgrad.GateTrainer(space, limit=limit, steps=3),
        archgrad.derive(space), archgrad.Distilled(task, net), archgrad.Run(epochs=2), archgrad.Split(),
        archgrad.Modalities({"image": torch.zeros(3, 4)}, torch.arange(3)), archgrad.Reinforcement(PixelGame),
        archgrad.Gate(3, name="gate"), archgrad.Architecture({"gate": 0}),
    ]  # fmt: skip
    for thing in things:
        assert not re.search(r" at 0x|object>|<function", repr(thing)), repr(thing)
    assert repr(reasons).endswith("its channels reach the network's output")
    assert repr(recipe) == "Recipe(optimizer_factory=adamw)"


@pytest.mark.parametrize(("room", "name"), [*EXPORTS, *(("", name) for name in archgrad.__all__)])
def test_every_public_class_says_what_it_is(room: str, name: str) -> None:
    """Its own form, not the address of an object; protocols have no objects, and errors say what they were given."""
    make_torchvision_importable()
    try:
        named = getattr(importlib.import_module(f"archgrad.{room}".rstrip(".")), name)
    except MissingExtra:
        pytest.skip("an extra is not installed")
    if (
        isinstance(named, type)
        and not getattr(named, "_is_protocol", False)
        and named.__module__.startswith("archgrad")
    ):
        assert named.__repr__ is not object.__repr__

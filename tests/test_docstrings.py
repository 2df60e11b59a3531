"""The public surface is documented, and says the shape of every tensor that it takes."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import archgrad as ag

# A shape or an index as docstrings write them: [B, C, H, W], [size], [N, ...], [1, ...].
SHAPE = re.compile(r"\[(?:\w+|\.\.\.)(?:, (?:\w+|\.\.\.|[\w +*/-]+))*\]")
TENSORS = re.compile(r"\b(Tensor|Inputs|Example|Batch|ArrayLike|NDArray)\b")
# What nn.Module and exceptions bring along, with the same meaning in every class.
INHERITED = {"forward", "extra_repr"}


def surface() -> Iterator[tuple[str, Any, Any]]:
    """Each public function, class and method: its name, itself, and the class that it is of."""
    for name in ag.__all__:
        thing = getattr(ag, name)
        if name == "__version__":
            continue
        yield name, thing, None
        if inspect.isclass(thing):
            for attribute, member in vars(thing).items():
                if attribute.startswith("_") or attribute in INHERITED:
                    continue
                plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                plain = plain.fget if isinstance(plain, property) else plain
                if inspect.isfunction(plain) and plain.__module__.startswith("archgrad"):
                    yield f"{name}.{attribute}", plain, thing


def issubclass_of_error(thing: Any) -> bool:
    """Errors explain themselves where they are raised, and need no example."""
    return inspect.isclass(thing) and issubclass(thing, BaseException)


EVERYTHING = [pytest.param(thing, owner, id=name) for name, thing, owner in surface()]


def text_of(thing: Any, owner: Any) -> str:
    """The docstring, with that of the class that it belongs to."""
    return "\n".join(one.__doc__ or "" for one in (thing, owner) if one is not None)


def tensors_of(thing: Any) -> list[str]:
    """The parameters that are tensors by their annotation."""
    function = thing.__init__ if inspect.isclass(thing) else thing
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if TENSORS.search(str(p.annotation))]


@pytest.mark.parametrize(("thing", "owner"), EVERYTHING)
def test_it_has_a_docstring_of_its_own(thing: Any, owner: Any) -> None:
    text = (thing.__doc__ or "").strip()
    assert text and text[0].isupper() | text[0].isdigit() | (text[0] in "`[")
    assert not inspect.isclass(thing) or thing.__doc__ != thing.__mro__[1].__doc__


@pytest.mark.parametrize(("thing", "owner"), EVERYTHING)
def test_it_says_the_shapes_of_its_tensors(thing: Any, owner: Any) -> None:
    given = tensors_of(thing)
    assert not given or SHAPE.search(text_of(thing, owner)), f"no shape is told of {', '.join(given)}"


def test_shapes_are_recognized() -> None:
    assert SHAPE.search("images [B, C, H, W]") and SHAPE.search("`[size]`") and SHAPE.search("[1, ...]")
    assert not SHAPE.search("a tensor") and not SHAPE.search("[]")
    assert tensors_of(ag.slim) == ["example"] and tensors_of(ag.frozen) == []


def test_the_surface_is_looked_at_whole() -> None:
    names = {name for name, _, _ in surface()}
    assert len(names) > 120 and {"Run.steps", "Classification.load", "Found.report", "unas"} <= names


PUBLIC = [name for name, thing, owner in surface() if owner is None and not issubclass_of_error(thing)]


@pytest.mark.parametrize("name", PUBLIC)
def test_its_docstring_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = getattr(ag, name)
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    assert found and found[0].examples, "no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(found[0], out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)

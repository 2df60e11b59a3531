"""What is explained, and what keeps its traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archgrad.cli.failures import explained, user_line
from archgrad.errors import ModelError, NonFiniteError
from archgrad.search.signals import Stopped


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_statuses() -> None:
    for error, status in {
        ModelError("x"): 2,
        NonFiniteError("x"): 2,
        FileNotFoundError(2, "No such file", "a.npz"): 2,
        torch.OutOfMemoryError("x"): 2,
        Stopped("x", 15): 143,
        Stopped("x", 2): 130,
        KeyboardInterrupt(): 130,
    }.items():
        failure = explained(error)
        assert failure is not None and failure.status == status


def test_a_fault_of_ours_is_not_explained() -> None:
    assert explained(AssertionError("ours")) is None
    with pytest.raises(ModelError) as caught:
        from archgrad.spaces.slim import slim

        slim(torch.nn.ReLU(), torch.zeros(1, 3))
    assert __file__ in user_line(caught.value)


def test_code_of_the_user_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(x):\n    return {}[x]\n")
    scope: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(KeyError) as caught:
        scope["f"]("key")  # type: ignore[operator]
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # type: ignore[union-attr]
    failure = explained(caught.value)
    assert failure is not None and failure.status == 2
    assert failure.message == f"Your code raised KeyError: 'key' ({path}, line 2)."


def test_the_cause_says_where(tmp_path: Path) -> None:
    error = ModelError("the network fails")
    error.__cause__ = _raised(ValueError("inside"))
    failure = explained(error)
    assert failure is not None and f"{__file__}, line" in failure.message

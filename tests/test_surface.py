"""The public names: sorted, documented, and imported only when they are used."""

import importlib
import subprocess
import sys

import pytest

import archgrad


def test_all_is_sorted_and_is_what_resolves() -> None:
    assert archgrad.__all__ == sorted(set(archgrad.__all__))
    for name in archgrad.__all__:
        assert getattr(archgrad, name) is not None
    assert set(archgrad.__all__) - {"__version__"} <= set(dir(archgrad))


@pytest.mark.parametrize("name", [name for name in archgrad.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    assert (getattr(archgrad, name).__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No archgrad attribute mutator"):
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

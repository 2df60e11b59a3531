"""Without its library an adapter says which extra brings it."""

from __future__ import annotations

import importlib
import sys

import pytest

from archgrad.errors import MissingExtra


@pytest.mark.parametrize(
    ("file", "module", "extra"),
    [
        ("lightning", "lightning.pytorch", "lightning"),
        ("transformers", "transformers", "transformers"),
        ("transformers", "accelerate", "transformers"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    file: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"archgrad.integrations.{file}", raising=False)
    with pytest.raises(MissingExtra, match=rf"pip install 'archgrad\[{extra}\]'"):
        importlib.import_module(f"archgrad.integrations.{file}")

"""The methods that the command line knows, each described by the header of its own file."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

METHODS = {"dnal": "archgrad.methods.dnal:dnal"}


def described() -> list[dict[str, str]]:
    """Name, what for, and paper of each method; read without importing it, which would take seconds."""
    rows = []
    for name, place in METHODS.items():
        found = importlib.util.find_spec(place.partition(":")[0])
        assert found is not None and found.origin is not None
        header = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
        first, *rest = (" ".join(part.split()) for part in re.split(r"\n\s*\n", header))
        paper = next((part.removeprefix("Paper: ") for part in rest if part.startswith("Paper: ")), "")
        rows.append({"name": name, "purpose": first.partition(": ")[2] or first, "paper": paper})
    return rows

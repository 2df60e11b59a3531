"""`archgrad methods`: the methods, each described by the header of its own file."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
from pathlib import Path

from archgrad.cli.command_output import Outcome
from archgrad.cli.schemas.methods import METHODS


def described() -> list[dict[str, str]]:
    """Name, purpose and paper of each method; read without importing it, which would take seconds."""
    rows = []
    for method in METHODS.values():
        spec = importlib.util.find_spec(method.module)
        assert spec is not None and spec.origin is not None
        header = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        first, *rest = (" ".join(part.split()) for part in re.split(r"\n\s*\n", header))
        # After the year the header says what is implemented.
        paper = next((match[1] for part in rest if (match := re.match(r"Paper: (.+?\d{4}\))\.", part))), "")
        rows.append({"name": method.name, "purpose": first.partition(": ")[2] or first, "paper": paper})
    return rows


def list_methods() -> Outcome:
    """The methods, as rows and as text in the width of the terminal: of each what it is for, and its paper below."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = described()
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
    for row in rows:
        table.add_row(Text(row["name"], style="bold"), Text("\n".join(filter(None, (row["purpose"], row["paper"])))))
    console = Console(highlight=False, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return Outcome(rows, "\n".join(line.rstrip() for line in capture.get().splitlines()))

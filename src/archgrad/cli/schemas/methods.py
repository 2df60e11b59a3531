"""The methods that the command line knows, each described by the header of its own file."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

METHODS = {
    "unas": "archgrad.methods.unas.unas:unas",
    "darts": "archgrad.methods.darts:darts",
    "darts_prime": "archgrad.methods.darts_prime.darts_prime:darts_prime",
    "toponas": "archgrad.methods.toponas.toponas:toponas",
    "radars": "archgrad.methods.radars.radars:radars",
    "monas": "archgrad.methods.monas.monas:monas",
    "multimodal_random": "archgrad.methods.multimodal_random.multimodal_random:multimodal_random",
    "nnilqr": "archgrad.control.nnilqr:nnilqr",
    "rl_darts": "archgrad.rl.rl_darts:rl_darts",
    "random_search": "archgrad.methods.random_search:random_search",
    "freenas": "archgrad.methods.freenas.freenas:freenas",
    "dnal": "archgrad.methods.dnal:dnal",
    "pruning_transfer": "archgrad.methods.pruning_transfer.pruning_transfer:pruning_transfer",
}


def described() -> list[dict[str, str]]:
    """Name, what for, and paper of each method; read without importing it, which would take seconds."""
    rows = []
    for name, place in METHODS.items():
        found = importlib.util.find_spec(place.partition(":")[0])
        assert found is not None and found.origin is not None
        header = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
        first, *rest = (" ".join(part.split()) for part in re.split(r"\n\s*\n", header))
        # Behind the year the header goes on to what is implemented.
        paper = next((match[1] for part in rest if (match := re.match(r"Paper: (.+?\d{4}\))\.", part))), "")
        rows.append({"name": name, "purpose": first.partition(": ")[2] or first, "paper": paper})
    return rows

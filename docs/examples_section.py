"""For mkdocstrings: a section "Example:" of a docstring is one of code, as "Examples:" is."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExamplesSection(griffe.Extension):
    """Without it the lines that begin with >>> are taken for quotations."""

    def on_object(self, *, obj: griffe.Object, **ignored: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

"""What a mistyped name may have meant, and what a shell may complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def meant(word: str, known: Iterable[str]) -> str:
    """ " Did you mean NAME?", or nothing where no known name is near."""
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def completes(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completion for typer: of the names those that begin as what was typed."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete

"""What a person decided in a run, as its card tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archgrad.errors import RunError

Rows = list[tuple[str, str, str]]


def rows(record: Mapping[str, Any]) -> Rows:
    """Each item: its name, its count, and what was counted; the total and what else the card says come last.

    Raises:
        RunError: the card is of another kind than it should be.
    """
    card = _card(record)
    if not card:
        return []
    try:
        found = [(str(one["item"]), str(one["count"]), _told(one["what"], one["count"])) for one in card["items"]]
        spent = card["compute"]
        seconds = "not known" if spent["seconds"] is None else f"{spent['seconds']:,.1f} s on {spent['device']}"
        seeds = "no: one seed" if spent["seeds"] == 1 else f"yes: {spent['seeds']} seeds"
        missing = "yes" if card["missing_inputs"] else "no"
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "the record is damaged at card: it has items of item, count and what, a total, compute and "
            "missing_inputs; run again to write it anew"
        ) from error
    more = [
        ("total, what is made for the data counted once", str(card.get("total", "")), ""),
        ("compute", "", seconds),
        ("spread over seeds reported", "", seeds),
        ("copes with missing inputs", "", missing),
    ]
    return [*found, *more]


def _card(record: Mapping[str, Any]) -> Mapping[str, Any]:
    card = record.get("card") or {}
    if not isinstance(card, Mapping):
        raise RunError("the record is damaged at card: it is a JSON object; run again to write it anew")
    return card


def _told(what: list[str], count: int) -> str:
    more = f", and {count - len(what)} more" if count > len(what) else ""
    return ", ".join(map(str, what)) + more

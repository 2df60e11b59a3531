"""How a run was made, as a reader would write it: settings with their optimizers, limits and data, without JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archgrad.report import numbers

_MOST = 12  # entries of a list that are written out
_RECIPES = {"recipe": "", "search_recipe": " of the search"}
_PARTS = {"train": "training part", "valid": "validation part", "test": "test part"}


def settings(record: Mapping[str, Any]) -> dict[str, str]:
    """A method's settings; what is not given is left out."""
    rows: dict[str, str] = {}
    for key, value in (record.get("settings") or {}).items():
        if key in _RECIPES and isinstance(value, Mapping):
            rows |= {f"{name}{_RECIPES[key]}": told for name, told in _recipe(value).items()}
        elif told := _limits(value, record) if key in ("limit", "limits") else written(value):
            rows[key.replace("_", " ")] = told
    return rows


def data(record: Mapping[str, Any], name: object = None) -> dict[str, str]:
    """What the run was trained and judged on: its name where that is known, the sizes of its parts, and the rest."""
    held = record.get("data") or {}
    rows = {"data": str(name)} if isinstance(name, str) and name else {}
    for part, label in _PARTS.items():
        about = held.get(part)
        if isinstance(about, Mapping) and numbers.is_number(about.get("size")):
            split = ", split off the training part" if about.get("split_off_train") else ""
            rows[label] = f"{numbers.counted(int(about['size']), 'sample')}{split}"
    for key, value in held.items():
        if key not in rows and not (key in _PARTS and isinstance(value, Mapping)) and (told := written(value)):
            rows[key.replace("_", " ")] = told
    return rows


def written(value: object) -> str:
    """A value in words; empty where nothing was given."""
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if numbers.is_number(value):
        return numbers.amount(value)
    if isinstance(value, Mapping):
        pairs = [
            (str(key).replace("_", " "), written(each)) for key, each in value.items() if "sha256" not in str(key)
        ]
        return "; ".join(f"{key} {told}" for key, told in pairs if told)
    if isinstance(value, list):
        told = [written(each) or "none" for each in value[:_MOST]]
        return ", ".join(told) + (f" and {len(value) - _MOST} more" if len(value) > _MOST else "")
    return numbers.value_text(value)


def _limits(value: object, record: Mapping[str, Any]) -> str:
    """Limits that were asked for: MACs at most 20 % of the whole network's."""
    kept = record.get("limit") or {}
    units = {
        one.get("cost"): one.get("unit") for one in (kept, *(kept.get("others") or [])) if isinstance(one, Mapping)
    }
    told = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, Mapping) or "cost" not in one:
            return written(value)
        name, bound, share = numbers.label(str(one.get("cost"))), one.get("bound"), one.get("fraction")
        if numbers.is_number(share):
            told.append(f"{name} at most {numbers.amount(100 * share)} % of the whole network's")
        elif numbers.is_number(bound):
            unit = str(units.get(one.get("cost")) or "")
            told.append(f"{name} at most {numbers.amount(bound, '' if unit == name else unit)}")
    return "; ".join(told)


def _recipe(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Optimizer with its rates, schedule; of the rest what was asked for."""
    given = dict(recipe)
    rows = {
        "optimizer": written(given.pop("optimizer_factory", None)),
        "schedule": written(given.pop("schedule", None)),
    }
    unused: dict[str, object] = {"accumulate": 1, "drop_path": 0.0, "best_epoch": False}
    rows |= {key.replace("_", " "): written(value) for key, value in given.items() if value != unused.get(key)}
    return {key: told for key, told in rows.items() if told}

"""What a network returns, in a form that a file can hold and any program knows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import MappingKey, tree_leaves_with_path, tree_map_only, tree_structure

from archgrad.copy_and_run import run_on_example


def plain_outputs(output: Any) -> Any:
    """What a network returns, of classes that any program knows: data classes become dicts, named tuples tuples.

    Entries of a data class that are None are left out, as Hugging Face's outputs do.
    """
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        entries = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        return {name: plain_outputs(value) for name, value in entries.items() if value is not None}
    if isinstance(output, Mapping):
        return {name: plain_outputs(value) for name, value in output.items()}
    if isinstance(output, tuple | list):
        return (list if isinstance(output, list) else tuple)(map(plain_outputs, output))
    return output


def tensors_by_name(output: Any) -> list[Tensor] | dict[str, Tensor]:
    """All tensors that a network returns, in order: of a dict by their keys, those of inner ones joined by "."."""
    leaves = [(path, leaf) for path, leaf in tree_leaves_with_path(plain_outputs(output)) if isinstance(leaf, Tensor)]
    names = [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in leaves]
    named = all(path and isinstance(path[0], MappingKey) for path, _ in leaves) and len({*names}) == len(names)
    values = [leaf for _, leaf in leaves]
    return dict(zip(names, values, strict=True)) if named else values


def returning(form: Callable[[Any], Any], plain: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """The network, whose outputs are given a form where they do not have it."""
    with torch.no_grad():
        output = run_on_example(plain, tree_map_only(Tensor, torch.clone, inputs))
    if isinstance(output, Tensor) or tree_structure(form(output)) == tree_structure(output):
        return plain
    original = plain.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return form(original(*args, **kwargs))

    plain.forward = forward
    return plain

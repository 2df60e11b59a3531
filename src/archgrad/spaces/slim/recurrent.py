"""Recurrent layers: which weights make and read their units, and what becomes of channels' labels in them.

    h_t, c_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, c_{t-1}),   with projections  h_t = W_hr o_t tanh(c_t)

A unit is a row of `W_ih`, `W_hh` and their biases in each of the blocks that f divides them into (4 of an LSTM, 3 of
a GRU), and a column of every weight that reads it: `W_hh`, the next layer's `W_ih`, `W_hr`. A layer of torch has one
`hidden_size`, so unit j of all its layers and directions is one entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from archgrad.choices.channels import Coupling
from archgrad.copy_and_run import Intercepted
from archgrad.spaces.slim.dependency import Components, Labels, Walk
from archgrad.spaces.slim.seeded_run import computed_weights

Cut = tuple[int, tuple[tuple[str, int], ...], tuple[str, ...]]  # width, (tensor, dimension), integer attributes
Sides = dict[str, Labels]  # of one module
_KINDS = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
NARROWER = "torch's LSTM keeps more cells than projected features; proj_size=0 lets all cells be cut"


def is_recurrent(module: nn.Module) -> bool:
    """Whether this is a recurrent layer of torch's, with weights that are parameters."""
    torchs = any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _KINDS)
    return torchs and not computed_weights("", module)


def recurrent_sides(module: nn.Module) -> dict[str, Cut]:
    """By side what is cut along it: "out" (and "out cells" of projections), "in" with the name of a weight."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    rows = tuple((name, 0) for name in names if not name.startswith("weight_hr"))
    hidden, projected = int(module.hidden_size), int(getattr(module, "proj_size", 0))  # type: ignore[arg-type]
    made: dict[str, Cut] = {"out": (hidden, rows, ("hidden_size",))}
    if projected:
        projections = tuple((name, 0) for name in names if name.startswith("weight_hr"))
        made = {"out": (projected, projections, ("proj_size",)), "out cells": (hidden, rows, ("hidden_size",))}
    read: dict[str, Cut] = {
        f"in {name}": (getattr(module, name).shape[1], ((name, 1),), ("input_size",) if name in _FIRST else ())
        for name in names if name.startswith("weight")
    }  # fmt: skip
    return made | read


_FIRST = ("weight_ih_l0", "weight_ih")
_INPUTS = ("in weight_ih_l0", "in weight_ih_l0_reverse", "in weight_ih")


def tie_units(components: Components, sides: Sides) -> None:
    """Tie each weight's columns inside a recurrent layer to the units that it reads."""
    made, cells = sides["out"], sides.get("out cells")
    for side, labels in sides.items():
        if side.startswith("in ") and side not in _INPUTS:
            units = cells if cells is not None and side.startswith("in weight_hr") else made
            components.join(labels, np.tile(units, len(labels) // len(units)), "")
    if cells is not None:
        components.freeze(cells[: len(made) + 1], NARROWER)


def recurrent_hooks(
    path: str, module: nn.Module, sides: Sides, walk: Walk, positions: Counter[str], blank: set[str]
) -> list[Any]:
    """Follow channels through a recurrent layer as a whole, whatever kernel computes it.

    Args:
        path: of the layer.
        module: the layer.
        sides: its labels.
        walk: the run; it looks at no operator inside the layer.
        positions: takes the number of examples and steps at which the layer's weights were used.
        blank: takes the path where the layer starts from states that were made out of nothing, of a size that the
            network keeps.
    """
    where = f"{path or 'forward'} ({type(module).__name__})"

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        walk.paused += 1

    def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        walk.paused -= 1
        x = _data(args[0] if args else kwargs["input"])
        positions[path] += x.numel() // max(x.shape[-1], 1)
        walk.freeze(x, f"{where} takes these channels for steps or examples", axes=range(x.dim() - 1))
        for side in _INPUTS:
            if side in sides:
                tie_features(walk, x, sides[side], f"{where} reads a fixed number of channels")
        sequence, states = output if isinstance(module, nn.RNNBase) else (None, output)
        made = [sides["out"], sides.get("out cells", sides["out"])]
        for given in _states(args[1] if len(args) > 1 else kwargs.get("hx")):
            for state, labels in zip(given, made, strict=False):
                shadow = walk.shadow(state)
                if shadow.constant and state.dim() - 1 not in shadow.axes:
                    blank.add(path)
                else:
                    tie_features(walk, state, labels, f"{where} starts from states of a fixed number of units")
        if sequence is not None:
            _note(walk, _data(sequence), made[0])
        for result in _states(states):
            for state, labels in zip(result, made, strict=False):
                _note(walk, state, labels)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]


def count_states(groups: Mapping[str, list[Coupling]], modules: Mapping[str, nn.Module], blank: set[str]) -> None:
    """Let the numbers of units that modules around a layer keep for its first states shrink with its units."""
    for couplings in groups.values():
        for member in [c for c in couplings if c.kind == "out" and c.module in blank]:
            counted = {(c.module, name) for c in couplings for name in c.counts}
            for path in (p for p in modules if not p or member.module.startswith(f"{p}.")):
                own = {n: v for n, v in vars(modules[path]).items() if "hid" in n and isinstance(v, int)}
                counts = tuple(
                    n for n, size in own.items()
                    if size == len(member.places) and path != member.module and (path, n) not in counted
                )  # fmt: skip
                if counts:
                    couplings.append(Coupling(path, f"param {' '.join(counts)}", member.places, counts=counts))


def _data(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _states(given: Any) -> list[tuple[Tensor, ...]]:
    """The hidden state, with an LSTM's cells."""
    return [] if given is None else [given] if isinstance(given, tuple) else [(given,)]


def tie_features(walk: Walk, x: Tensor, labels: Labels, reason: str) -> None:
    """Tie what lies along the last axis of a tensor to the labels of what reads it."""
    arrays = walk.shadow(x).axes.get(x.dim() - 1, [])
    for own in arrays:
        walk.components.join(own, labels, reason)
    if not arrays:
        walk.components.freeze(labels, reason)


def _note(walk: Walk, x: Tensor, labels: Labels) -> None:
    """Both directions put out the same units."""
    walk.note(x, {x.dim() - 1: [np.tile(labels, x.shape[-1] // len(labels))]})


def packing(walk: Walk) -> Intercepted:
    """Follow channels through the packing of sequences, [T, B, ...] <-> [steps of all, ...]."""

    def moved(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        moves = {"_pack_padded_sequence": -1, "_pad_packed_sequence": 1}.get(getattr(function, "__name__", ""))
        if moves is None:
            return function(*args, **kwargs)
        walk.paused += 1
        try:
            results = function(*args, **kwargs)
        finally:
            walk.paused -= 1
        first = 1 - min(moves, 0)  # axis of the channels
        walk.freeze(args[0], f"{walk.here()} packs these channels as steps or examples", axes=range(first))
        axes = walk.shadow(args[0]).axes
        walk.note(results[0], {a + moves: labels for a, labels in axes.items() if a >= first})
        return results

    return Intercepted(moved)


def follow_weights(layer: nn.Module) -> None:
    """Let a recurrent layer whose weights are parametrized hand its kernels the present ones.

    It keeps a list of its weights, which would be those of the moment when it was last filled.
    """
    if not isinstance(layer, nn.RNNBase):
        return
    own = type(layer)  # made for this layer by parametrize
    vars(layer).pop("_flat_weights", None)

    def present(self: nn.RNNBase) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    own._flat_weights = property(present, lambda self, weights: None)  # type: ignore[assignment]
    own._update_flat_weights = lambda self: None  # type: ignore[method-assign]

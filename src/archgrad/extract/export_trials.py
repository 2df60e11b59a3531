"""What an exported file is compared on: inputs, and what the network itself computes from them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from archgrad.copy_and_run import run_on_example
from archgrad.errors import ModelError
from archgrad.tasks.task import tensors

BATCH, HEIGHT, WIDTH = "batch", "height", "width"
AXES = {HEIGHT: 2, WIDTH: 3}  # of images, [B, C, H, W]


@dataclass(frozen=True)
class Trial:
    """Arguments of the network and its outputs; `exact`: whether whole numbers among the outputs are compared."""

    inputs: tuple[Any, ...]
    outputs: list[Tensor]
    exact: bool = True


def make_trials(plain: nn.Module, inputs: tuple[Any, ...], axes: Sequence[str]) -> list[Trial]:
    """What the file is compared on: the example, and what else of these the network runs on.

    Flipped inputs show a file that kept the example's figures as constants. Zeros show small constants that were
    dropped, such as the 1e-10 in a denominator. Whole numbers are not compared there: among equal values, such as
    those that zeros lead to, the runtimes may rank differently.
    """
    others = [inputs]
    if BATCH in axes:
        others = [with_batch(inputs, 1), with_batch(inputs, len(tensors(inputs)[0]) + 2)]
    others[-1] = tree_map_only(Tensor, lambda x: x.flip(-1) if x.dim() else x, others[-1])
    zeros = tree_map_only(Tensor, lambda x: torch.zeros_like(x) if x.is_floating_point() else x, inputs)
    trials = [Trial(inputs, _outputs(plain, inputs))]
    for other in (*others, zeros):
        with contextlib.suppress(ModelError):
            trials.append(Trial(other, _outputs(plain, other), exact=other is not zeros))
    if sizes := [name for name in axes if name in AXES]:
        before, errors = len(trials), []
        for kind, factor in itertools.product([sizes, sizes[:1]], (2.0, 1.5)):
            other = _with_sizes(inputs, kind, factor=factor)
            try:
                trials.append(Trial(other, _outputs(plain, other)))
            except ModelError as error:
                errors.append(error)
        if len(trials) == before:
            raise ModelError(f"dynamic asks for {' and '.join(sizes)} of any size, and {errors[0]}") from errors[0]
    return trials


def with_batch(inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Inputs of another batch size: samples repeated or left out."""
    rows = torch.arange(size)
    return tree_map_only(Tensor, lambda x: x[rows % len(x)], inputs)  # type: ignore[no-any-return]


def _with_sizes(inputs: tuple[Any, ...], axes: Sequence[str], *, factor: float) -> tuple[Any, ...]:
    """Images of another height and width, or of one of them."""

    def resized(x: Tensor) -> Tensor:
        for name, axis in AXES.items():
            if name in axes and x.dim() == 4:
                size = x.shape[axis]
                x = x.index_select(axis, torch.arange(int(size * factor)) % size)
        return x

    return tree_map_only(Tensor, resized, inputs)  # type: ignore[no-any-return]


def _outputs(plain: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tensors(run_on_example(plain, tree_map_only(Tensor, torch.clone, inputs)))


def largest_difference(run: Callable[[tuple[Any, ...]], Sequence[Tensor]], trials: Sequence[Trial]) -> float:
    """The largest of max |got - expected| / max(1, max |expected|) over all outputs; inf where shapes differ."""
    largest = 0.0
    for trial in trials:
        outputs = run(trial.inputs)
        if [x.shape for x in outputs] != [x.shape for x in trial.outputs]:
            return float("inf")
        for expected, got in zip(trial.outputs, outputs, strict=True):
            if trial.exact or expected.is_floating_point():
                difference = _difference(_real(expected), _real(got))
                # `not <=` so that NaN counts as the largest difference, not as none.
                largest = difference if not difference <= largest else largest
    return largest


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).double() if x.is_complex() else x.double()


def _difference(expected: Tensor, got: Tensor) -> float:
    differs = ~((expected == got) | (expected.isnan() & got.isnan()))
    if not bool(differs.any()):
        return 0.0
    finite = expected[expected.isfinite()]
    scale = max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
    return float((expected - got)[differs].abs().max()) / scale

"""Slim one random network of the grammar and compare what is held with what is built."""

from __future__ import annotations

import contextlib

import torch
from families.checks import extremes, stir
from families.grammar import network
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.copy_and_run import copied
from archgrad.errors import ArchgradError
from archgrad.extract.discretize import build
from archgrad.spaces.slim.seeded_run import run, tensors_of
from archgrad.spaces.slim.slimmable import slim
from archgrad.spaces.slim.trial_inputs import KeptDouble
from archgrad.spaces.slim.width_independent_draws import AlignedDraws

RELATIVE = 1e-6
AS_SHIPPED = 1e-3  # where a network computes a part in single precision, whose rounding a norm behind it may magnify


def results(net: nn.Module, x: Tensor, *, training: bool, as_shipped: bool = False) -> list[Tensor]:
    net.train(training)
    precision = contextlib.nullcontext() if as_shipped else KeptDouble()
    with precision, AlignedDraws() if training else contextlib.nullcontext():
        return tensors_of(run(net, (x,)))


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative difference; infinite for other shapes or other infinities."""
    if [t.shape for t in a] != [t.shape for t in b]:
        return float("inf")
    worst = 0.0
    for s, t in zip(a, b, strict=True):
        finite = s.isfinite()
        if not torch.equal(finite, t.isfinite()):
            return float("inf")
        if bool(finite.any()):
            worst = max(worst, float((s - t)[finite].abs().max()) / max(float(s[finite].abs().max()), 1e-12))
    return worst


def verdict(seed: int) -> str:
    """What slimming one random network came to: "exact", "refused", or what is wrong with it."""
    net, x = network(seed)
    try:
        run(copied(net).eval(), (x,))
    except (RuntimeError, ValueError):
        return "refused: the network itself does not run"
    try:
        space = slim(net, x)
    except ArchgradError as error:
        return f"refused: {str(error)[:60]}" if "no channels" in str(error) else f"WRONG refusal: {error}"
    stir(space)
    order = [n for n, _ in net.named_parameters()]
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    draws = [sample(space, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)]
    for architecture in [*extremes(space), *draws]:
        for training in (False, True):
            try:
                expected = results(hold(space, architecture), other, training=training)
            except (RuntimeError, ValueError):  # BatchNorm on one value
                continue
            built = build(space, architecture)
            if () not in architecture.values() and [n for n, _ in built.named_parameters()] != order:
                return f"WRONG order of parameters at {architecture}"
            actual = results(built, other, training=training)
            if (worst := gap(expected, actual)) > RELATIVE:
                return f"WRONG by {worst:.1e} in {'training' if training else 'eval'} at {architecture}"
        pair = hold(space, architecture), build(space, architecture)
        as_shipped = [results(one, other, training=False, as_shipped=True) for one in pair]
        if (worst := gap(*as_shipped)) > AS_SHIPPED:
            return f"WRONG by {worst:.1e} in the network's own precision at {architecture}"
    return "exact" if choices(space) else "WRONG: no gate"

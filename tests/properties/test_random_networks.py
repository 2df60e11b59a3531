"""Random small CNNs through slim, sample and build: the removal is exact and so are the counts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from families.checks import assert_plain, difference, extremes, outputs, stir
from families.verdict import verdict
from hypothesis import example, given, settings, strategies as st
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import slim

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Identity)
NORMS = ("batch", "group", "instance", "none")
KINDS = ("conv", "pointwise", "depthwise", "grouped", "residual", "projected", "concat", "pool", "squeeze")


@dataclass(frozen=True)
class Step:
    kind: str
    width: int
    norm: str
    activation: int
    bias: bool


STEPS = st.builds(
    Step,
    kind=st.sampled_from(KINDS),
    width=st.sampled_from((4, 6, 8, 12)),
    norm=st.sampled_from(NORMS),
    activation=st.integers(0, len(ACTIVATIONS) - 1),
    bias=st.booleans(),
)


def layer(inputs: int, outputs: int, step: Step, *, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    norms = {
        "batch": nn.BatchNorm2d(outputs), "group": nn.GroupNorm(2, outputs),
        "instance": nn.InstanceNorm2d(outputs, affine=True), "none": nn.Identity(),
    }  # fmt: skip
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=step.bias)
    return nn.Sequential(conv, norms[step.norm], ACTIVATIONS[step.activation]())


class Block(nn.Module):
    def __init__(self, inputs: int, step: Step) -> None:
        super().__init__()
        self.kind, self.outputs = step.kind, step.width
        if step.kind in ("depthwise", "residual", "squeeze", "pool"):
            self.outputs = inputs
        if step.kind == "concat":
            self.outputs = inputs + step.width
        narrow = {"kernel": 1} if step.kind == "pointwise" else {}
        groups = {"depthwise": inputs, "grouped": 2}.get(step.kind, 1)
        if step.kind == "squeeze":
            self.body: nn.Module = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, 3, 1), nn.ReLU(), nn.Conv2d(3, inputs, 1), nn.Sigmoid()
            )
        elif step.kind == "pool":
            self.body = nn.MaxPool2d(2)
        elif step.kind in ("residual", "projected"):
            self.body = nn.Sequential(layer(inputs, step.width, step), layer(step.width, self.outputs, step))
        else:
            self.body = layer(
                inputs, step.width if step.kind == "concat" else self.outputs, step, groups=groups, **narrow
            )
        self.short = nn.Conv2d(inputs, self.outputs, 1) if step.kind == "projected" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.kind in ("residual", "projected"):
            return torch.relu(y + self.short(x))
        if self.kind == "concat":
            return torch.cat([x, y], 1)
        return x * y if self.kind == "squeeze" else y


class Net(nn.Module):
    """Steps, then an average or a flattening, then one or two linear layers."""

    def __init__(self, steps: list[Step], *, flat: bool, hidden: bool) -> None:
        super().__init__()
        width, side = 8, 8
        parts: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for step in steps:
            if step.kind == "pool" and side < 4:
                continue
            parts.append(Block(width, step))
            width, side = parts[-1].outputs, side // 2 if step.kind == "pool" else side
        self.body = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(2 if flat else 1)
        features = width * (4 if flat else 1)
        self.head = nn.Sequential(
            *([nn.Linear(features, 9), nn.ReLU()] if hidden else []), nn.Linear(9 if hidden else features, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(x)).flatten(1))


@settings(max_examples=15)
@given(st.lists(STEPS, min_size=1, max_size=5), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_removal_is_exact(steps: list[Step], flat: bool, hidden: bool, seed: int) -> None:
    torch.manual_seed(seed)
    net, x = Net(steps, flat=flat, hidden=hidden).double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    space = slim(net, x)
    assert difference(outputs(net, (x,)), outputs(space, (x,))) == 0.0
    stir(space)
    cost = macs(x)
    draws = [sample(space, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)]
    for architecture in [*extremes(space), *draws]:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-8
        assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
    assert_plain(built)
    assert len(choices(space)) >= 1


@settings(max_examples=int(os.environ.get("ARCHGRAD_NETWORKS", "250")))
@given(st.integers(0, 10**9))
@example(60000267)  # zeros for a block without a shortcut, as wide as its output by chance
def test_a_network_of_the_grammar_is_slimmed_exactly_or_frozen(seed: int) -> None:
    """Extreme and random masks, eval and training, on other inputs than the example; nothing but our errors."""
    assert verdict(seed).startswith(("exact", "refused"))

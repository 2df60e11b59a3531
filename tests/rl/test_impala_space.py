"""Encoders of cells: rows of the mixture, shapes, the fixed cell in the limit, discretization, searches by others."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from families.checks import assert_plain
from torch import nn

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.choices.decide import decision_weights
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import Softmax
from archgrad.choices.subsets import topology
from archgrad.errors import ArchitectureError, ChoiceError, ConfigError
from archgrad.report.graphs import cells as graphs
from archgrad.rl.impala_space import OPERATIONS, ImpalaCells
from archgrad.supernets.bilevel import mixed, relaxation_figures
from archgrad.supernets.darts_loop import relax_as_mixture

TINY = {"size": (9, 7), "in_channels": 2, "depths": (4, 6), "features": 8}
FORMS = [
    {},
    {"operations": "classic", "kinds": 2, "norm": "group"},
    {"skeleton": "standard", "kinds": 2, "norm": "batch"},
    {"skeleton": "standard", "operations": "classic", "nodes": 2},
    {"operations": "residual", "nodes": 2},
]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


def relaxed(scale: float = 1.0, **settings: object) -> ImpalaCells:
    space = ag.impala_cells(**{**TINY, **settings})
    relax_as_mixture(space, functools.partial(Softmax, scale=scale))
    return space


def ops(space: nn.Module) -> dict[str, OpChoice]:
    return {name: same[0] for name, same in choices(space).items() if isinstance(same[0], OpChoice)}


def images(batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 2, 9, 7)


def test_the_residual_block_of_impala_is_in_the_space() -> None:
    """x + conv(relu(conv(relu(x)))), where the convolution behind the cell passes on its node."""
    space = ag.impala_cells(**TINY, operations="residual", nodes=1, cells=1)
    picked = ag.Architecture({"normal.1.0": list(OPERATIONS["residual"]).index("residual_3x3")})
    cell = ag.hold(space, picked).body[2]
    with torch.no_grad():
        cell.join.weight.copy_(torch.eye(4)[:, :, None, None])
        cell.join.bias.zero_()
    x = torch.randn(2, 4, 5, 4)
    (block,) = (m for m in cell.modules() if type(m).__name__ == "_Residual")
    _, first, _, second = block.branch
    assert torch.allclose(cell(x), x + second(first(x.relu()).relu()), atol=1e-6)


def test_at_zero_logits_every_row_is_uniform() -> None:
    space = relaxed()
    assert sum(p.numel() for p in ag.logits(space)) == 50
    rows = mixed(space)
    assert all(torch.equal(rows[name], torch.full((5,), 0.2)) for name in ops(space))
    assert relaxation_figures(space)["entropy"] == pytest.approx(math.log(5), abs=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_rows_sum_to_one_at_any_scale_and_the_scale_multiplies(scale: float) -> None:
    space = relaxed(scale)
    for p in ag.logits(space):
        nn.init.normal_(p)
    for name, choice in ops(space).items():
        row = mixed(space)[name].detach()
        assert float(row.sum()) == pytest.approx(1.0, abs=1e-6)
        assert torch.allclose(row, (scale * choice.relaxation.logits).softmax(0))
    with pytest.raises(ChoiceError, match="scale"):
        Softmax(3, scale=0.0)


@every_form
def test_one_hot_logits_are_the_fixed_cell_with_its_weights(form: dict[str, object]) -> None:
    space = relaxed(**form).eval()
    architecture = ag.sample(space, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, choice in ops(space).items():
            node, _, source = name.rpartition(".")
            kept = architecture.get(f"{node}.inputs", (0,))
            pick = architecture[name] if int(source) in kept else choice.labels.index("none")
            choice.relaxation.logits[pick] = 60.0
    network, x = ag.build(space, architecture), images()
    assert torch.allclose(space(x), network(x), atol=1e-5)
    another = ag.build(space, ag.sample(space, generator=torch.Generator().manual_seed(2)))
    assert not torch.allclose(space(x), another(x), atol=1e-5)


@every_form
def test_what_is_built_is_plain_and_computes_what_was_held(form: dict[str, object]) -> None:
    space, x = ag.impala_cells(**{**TINY, **form}).eval(), images()
    for seed in range(3):
        architecture = ag.sample(space, generator=torch.Generator().manual_seed(seed))
        network = ag.build(space, architecture)
        assert_plain(network)
        assert torch.equal(network(x), ag.hold(space, architecture)(x))
        assert network(x).shape == (3, 8)
        assert ag.Architecture.from_json(architecture.to_json()) == architecture
        wider = ag.build(space, architecture, channels=8)
        assert ag.params().of(wider) > ag.params().of(network)
        assert wider(x).shape == (3, 8)
        described = space.describe(architecture)
        assert all(graphs.draw_cell(one, part="graph") for one in described["graphs"])
        assert "none" not in described["architecture_text"]


@pytest.mark.parametrize(
    ("operations", "label"), [(form, label) for form, made in OPERATIONS.items() for label in made]
)
@pytest.mark.parametrize("side", [1, 6, 7])
def test_every_operation_heeds_its_stride(operations: str, label: str, side: int) -> None:
    x = torch.rand(2, 4, side, side + 1)
    for stride in (1, 2):
        y = OPERATIONS[operations][label](4, stride)(x)
        assert y.shape == (2, 4, math.ceil(side / stride), math.ceil((side + 1) / stride))


def test_discretization_by_hand() -> None:
    space = relaxed()
    labels = space.labels
    with torch.no_grad():
        for name, choice in ops(space).items():
            choice.relaxation.logits.zero_()
            choice.relaxation.logits[labels.index("none")] = 3.0
            best = {"normal.2.1": "tanh", "normal.3.0": "relu", "normal.3.2": "conv_3x3"}.get(name)
            if best:
                choice.relaxation.logits[labels.index(best)] = 1.0
    found = ag.decide(space)
    # "none" is far ahead everywhere, and no edge goes: nothing is scaled up for it either.
    assert found["normal.2.1"] == labels.index("tanh") and found["normal.2.inputs"] == (0, 1)
    assert found["normal.3.inputs"] == (0, 2)
    row = ops(space)["normal.3.2"].mixing().detach()
    strength = decision_weights(space)["normal.3.inputs"]
    assert float(strength[2]) == pytest.approx(float(row[labels.index("conv_3x3")]), abs=1e-6)
    # Of equals the first; the first node has the input alone, and no choice of inputs.
    assert found["normal.4.inputs"] == (0, 1) and found["normal.4.0"] == 0
    assert "normal.1.inputs" not in found


def test_the_space_has_as_many_cells_as_counted() -> None:
    space = ag.impala_cells(**TINY)
    sizes = [math.comb(c[0].size, 2) for c in choices(space).values() if isinstance(c[0], InputChoice)]
    assert 4**7 * math.prod(sizes) == 294_912


def test_weights_and_logits_are_disjoint_and_all() -> None:
    space = relaxed(kinds=2)
    weights, logits = set(ag.weights(space)), set(ag.logits(space))
    assert not weights & logits
    assert weights | logits == set(space.parameters())
    assert sum(p.numel() for p in logits) == 100


def test_frozen_statistics_make_an_image_independent_of_its_neighbors() -> None:
    x = images(4)
    for norm in ("none", "group", "batch"):
        space = relaxed(norm=norm).eval()
        assert torch.allclose(space(x)[:1], space(x[:1]), atol=1e-6)
    assert not torch.allclose(space.train()(x)[:1], space(x[:1]), atol=1e-3), "statistics of a batch"


def test_the_hand_made_network_counts_as_published() -> None:
    network = ag.impala_network(in_channels=3, features=256)
    convolutions = [(3, 16), *[(16, 16)] * 4, (16, 32), *[(32, 32)] * 4, (32, 32), *[(32, 32)] * 4]
    assert ag.params().of(network) == sum(9 * i * o + o for i, o in convolutions) + 2048 * 256 + 256
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 256)
    assert_plain(network)


@pytest.mark.parametrize("method", [ag.darts, ag.random_search, ag.unas])
def test_other_searches_take_the_space(method: object) -> None:
    space = ag.impala_cells(in_channels=1, size=8, depths=(4,), nodes=2, features=16)
    if method is ag.unas:
        space = topology(space, form="table")
    task = ag.Classification(ag.digits(), batch_size=64)
    net = nn.Sequential(space, nn.Linear(16, 10))
    found = method(net, task, ag.Run(steps=8, trials=2, seed=0, device="cpu", progress=False))
    assert set(found.architecture) == {"normal.1.0", "normal.2.0", "normal.2.1", "normal.2.inputs"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nodes": 0}, "nodes=0"),
        ({"depths": ()}, "depths="),
        ({"depths": (4, 0)}, r"depths\[1\]=0"),
        ({"size": (8,)}, r"size=\(8,\)"),
        ({"kinds": 3}, "kinds=3"),
        ({"kinds": 2, "cells": 1}, "at least 2 cells"),
        ({"operations": "macro"}, "'micro', 'classic'"),
        ({"norm": "layer"}, "'none', 'group', 'batch'"),
        ({"skeleton": "resnet"}, "'impala', 'standard'"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ag.impala_cells(**{**TINY, **given})


def test_what_an_agent_has_not_is_refused() -> None:
    space = ag.impala_cells(**TINY)
    architecture = ag.sample(space)
    with pytest.raises(ConfigError, match="cannot be built with auxiliary=True"):
        ag.build(space, architecture, auxiliary=True)
    foreign = ag.sample(ag.impala_cells(**{**TINY, "nodes": 2}))
    with pytest.raises(ArchitectureError, match="another space"):
        space.describe(foreign)
    assert not list(itertools.chain(ag.logits(space)))

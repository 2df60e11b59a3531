"""NAS-Bench-201: strings, cells, and networks that compute what the supernet computes."""

from __future__ import annotations

import pickle

import pytest
import torch
from families.checks import assert_plain, stir
from hypothesis import given, strategies as st

import archgrad as ag
from archgrad.choices.access import choices, hold, relax, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import OpChoice
from archgrad.choices.relaxations import softmax
from archgrad.errors import ArchitectureError, ConfigError
from archgrad.extract.discretize import build
from archgrad.report.graphs import cells as graphs
from archgrad.spaces.nasbench201 import (
    EDGES,
    LABELS,
    NASBench201,
    from_string,
    nasbench201_cells,
    nasbench201_network,
    to_string,
)

SOME = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|none~1|avg_pool_3x3~2|"
DISCONNECTED = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|none~2|"
cells = st.tuples(*[st.integers(0, 4)] * 6).map(lambda picks: Architecture(dict(zip(EDGES, picks, strict=True))))


def tiny(**settings: int) -> NASBench201:
    return nasbench201_cells(**{"channels": 4, "cells": 1, **settings})


@given(cells)
def test_strings_and_json_there_and_back(cell: Architecture) -> None:
    assert from_string(to_string(cell)) == cell
    assert from_string(f" {to_string(cell)}\n") == cell
    assert Architecture.from_json(cell.to_json()) == cell


def test_the_string_names_edges_in_the_published_order() -> None:
    cell = from_string(SOME)
    assert {name: LABELS[cell[name]] for name in EDGES} == {
        "1.0": "nor_conv_3x3", "2.0": "none", "2.1": "skip_connect",
        "3.0": "nor_conv_1x1", "3.1": "none", "3.2": "avg_pool_3x3",
    }  # fmt: skip
    assert to_string(cell) == SOME


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1 parts"),
        ("|none~0|", "1 parts"),
        (SOME + "+|none~0|", "4 parts"),
        (SOME.replace("skip_connect", "sep_conv_3x3"), "'sep_conv_3x3'"),
        (SOME.replace("none~0", "~0"), "operation ''"),
        (SOME.replace("skip_connect~1", "skip_connect~0"), "should end in ~1"),
        (SOME.replace("skip_connect~1", "skip_connect"), "should end in ~1"),
        (SOME.replace("skip_connect~1", "skip_connect~01"), "should end in ~1"),
        (SOME.replace("|none~0|skip", "|skip"), "node 2 has 1 edges, not 2"),
        (SOME.replace("|none~0|", "|none~0||"), "node 2 has 3 edges, not 2"),
        (SOME + "none", "does not stand between"),
        (SOME[1:], "does not stand between"),
        (SOME.replace("+", "+ "), "does not stand between"),
        ("|+|+|", "does not stand between"),
        ("||+||+||", "operation ''"),
        ("x" * 10_000, "..."),
    ],
)
def test_malformed_strings_say_what_is_wrong(text: str, problem: str) -> None:
    for read in (from_string, nasbench201_network, tiny().from_string):
        with pytest.raises(ArchitectureError) as error:
            read(text)
        assert problem in str(error.value) and "a cell is written |op~0|+" in str(error.value)
        assert len(str(error.value)) < 700


def test_what_is_no_string_or_no_cell() -> None:
    with pytest.raises(ArchitectureError, match="not as a Architecture"):
        from_string(from_string(SOME))
    for cell in ({"1.0": 1}, {**from_string(SOME), "4.0": 1}, {}):
        with pytest.raises(ArchitectureError, match="a NAS-Bench-201 cell has"):
            to_string(Architecture(cell))
    for pick in (5, (1,)):
        with pytest.raises(ArchitectureError, match="index from 0 to 4"):
            to_string(Architecture({**from_string(SOME), "2.1": pick}))


def test_one_choice_an_edge_and_none_is_a_candidate_like_the_others() -> None:
    space = nasbench201_cells(cells=2)
    found = choices(space)
    assert tuple(found) == EDGES
    for same in found.values():
        assert len(same) == 6 and isinstance(same[0], OpChoice)
        assert same[0].labels == LABELS and not same[0].barred and bool(same[0].pickable.all())
    drawn = {sample(space, generator=torch.Generator().manual_seed(seed))["1.0"] for seed in range(40)}
    assert drawn == set(range(5))
    assert not any(m.affine for m in space.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_built_is_plain_and_computes_what_was_held_bit_for_bit(seed: int) -> None:
    space = nasbench201_cells(channels=4, cells=2, affine=seed % 2 == 0)
    stir(space)
    cell = sample(space, generator=torch.Generator().manual_seed(seed))
    held, built = hold(space, cell).eval(), build(space, cell).eval()
    assert_plain(built)
    x = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        y = built(x)
        assert torch.equal(held(x), y)
        other = Architecture({**cell, "3.0": (cell["3.0"] + 2) % 5})
        assert not torch.equal(hold(space, other).eval()(x), y)


def test_the_network_of_a_string_is_plain_and_exports() -> None:
    network = nasbench201_network(SOME, channels=4, cells=1, classes=7).eval()
    assert_plain(network)
    x = torch.randn(2, 3, 9, 9)
    y = network(x)
    assert y.shape == (2, 7)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), y)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), y)


def test_the_network_of_a_string_is_the_one_that_is_built_from_the_resized_space() -> None:
    network = nasbench201_network(SOME, channels=4, cells=1)
    built = build(tiny().resized(), from_string(SOME))
    assert [p.shape for p in network.state_dict().values()] == [p.shape for p in built.state_dict().values()]
    network.load_state_dict(dict(zip(network.state_dict(), built.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(network.eval()(x), built.eval()(x))


def test_a_disconnected_cell_builds_runs_and_learns() -> None:
    network = nasbench201_network(DISCONNECTED, channels=4, cells=1)
    held = hold(tiny(), from_string(DISCONNECTED))
    for net in (network, held):
        rows = net.eval()(torch.randn(5, 3, 8, 8) * 1e30)
        assert torch.isfinite(rows).all() and torch.equal(rows, rows[:1].expand_as(rows))
        net.train()(torch.randn(5, 3, 8, 8)).sum().backward()
        assert net.classifier.bias.grad is not None
    connected = nasbench201_network(SOME, channels=4, cells=1).eval()(torch.randn(5, 3, 8, 8))
    assert not torch.equal(connected, connected[:1].expand_as(connected))


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (16, 16), (33, 5)])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_input_size(size: tuple[int, int], channels: int) -> None:
    network = nasbench201_network(SOME, channels=2, cells=1, classes=3, in_channels=channels).eval()
    assert network(torch.randn(2, channels, *size)).shape == (2, 3)


def test_the_published_reduction_is_untouched_at_even_sizes() -> None:
    shortcut = tiny().body[1].shortcut
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(shortcut(x), shortcut[1](torch.nn.functional.avg_pool2d(x, 2)))


def test_the_relaxed_supernet_reaches_every_logit() -> None:
    space = relax(tiny(), softmax)
    space(torch.randn(4, 3, 8, 8)).square().sum().backward()
    for same in choices(space).values():
        assert bool((same[0].relaxation.logits.grad != 0).any())


def test_resized() -> None:
    space = tiny(classes=7, in_channels=1)
    larger = space.resized(cells=3, channels=8)
    assert list(choices(larger)) == list(choices(space)) and len(choices(larger)["1.0"]) == 9
    assert relax(larger, softmax)(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert larger.stem[0].out_channels == 8 and larger.stem[1].affine
    network = build(space.resized(cells=2), from_string(SOME))
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    for asked in ({"auxiliary": True}, {"drop_path": 0.2}):
        with pytest.raises(ConfigError, match=rf"cannot be built with {next(iter(asked))}=.*by cells and channels"):
            build(space, from_string(SOME), cells=2, **asked)


@pytest.mark.parametrize(
    "wrong", [{"channels": 0}, {"cells": 0}, {"classes": -1}, {"in_channels": 0}, {"cells": 1.5}]
)
def test_numbers_that_make_no_network(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}=.*(from 1 up|Allowed is int)"):
        nasbench201_cells(**wrong)
    with pytest.raises(ConfigError, match=name):
        nasbench201_network(SOME, **wrong)
    if name in ("channels", "cells"):
        with pytest.raises(ConfigError, match=name):
            tiny().resized(**wrong)


def test_a_description_can_be_drawn() -> None:
    space = ag.nasbench201_cells()
    described = space.describe(ag.sample(space, generator=torch.Generator().manual_seed(0)))
    assert graphs.draw_cell(described["graphs"][0])
    assert space.from_string(described["architecture_text"])

"""The mobile space: strings, layers, and networks that compute what the supernet computes."""

from __future__ import annotations

import pickle

import pytest
import torch
from families.checks import assert_plain, stir
from hypothesis import given, strategies as st
from torch import nn

import archgrad as ag
from archgrad.choices.access import choices, hold, relax, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import softmax
from archgrad.costs.count import macs
from archgrad.errors import ArchgradError, ArchitectureError, ConfigError
from archgrad.extract.discretize import build
from archgrad.report.graphs import cells as graphs
from archgrad.spaces.mobile import (
    LABELS,
    PROXYLESS,
    MobileNet,
    Widths,
    from_string,
    mobile_backbone,
    mobile_network,
    to_string,
)

SMALL = {"widths": Widths(4, 4, (4, 6), 8), "cells": (1, 2), "strides": (1, 2), "classes": 5}
SOME = "identity k5e6 k3e3"
architectures = st.lists(st.sampled_from(LABELS), min_size=1, max_size=120).map(
    lambda labels: Architecture({f"layer{i:02d}": LABELS.index(label) for i, label in enumerate(labels, start=1)})
)


def tiny(**settings: object) -> MobileNet:
    return mobile_backbone(**{**SMALL, **settings})


@given(architectures)
def test_strings_and_json_there_and_back(architecture: Architecture) -> None:
    assert from_string(to_string(architecture)) == architecture
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_a_string_names_the_layers_in_order() -> None:
    space = tiny()
    assert from_string(f"\n {SOME}\t") == Architecture({"layer01": 6, "layer02": 3, "layer03": 0})
    assert space.from_string(SOME) == from_string(SOME) and space.to_string(from_string(SOME)) == SOME
    many = " ".join(["k3e3"] * 9 + ["k7e6"] + ["k5e3"] * 95)  # names of three digits too
    assert to_string(from_string(many)) == many


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "finds no label"),
        ("  ", "finds no label"),
        ("k3e3,k3e6,k5e3", "does not know 'k3e3,k3e6,k5e3'"),
        ("k3e3 K3E6 k5e3", "does not know 'K3E6'"),
        ("k3e3 k9e6 k5e3", "does not know 'k9e6'"),
        ("x" * 10_000, "does not know"),
        (None, "not as a NoneType"),
        (["k3e3"], "not as a list"),
    ],
)
def test_malformed_strings_say_what_is_wrong(text: str, problem: str) -> None:
    for read in (from_string, tiny().from_string):
        with pytest.raises(ArchitectureError, match=problem) as error:
            read(text)
        assert len(str(error.value)) < 500
    with pytest.raises(ArchgradError, match=problem if isinstance(text, str) else "Allowed is str"):
        mobile_network(text, **SMALL)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("k3e3 k3e3", "names 2 layers, this network has 3"),
        ("k3e3 k3e3 k3e3 k3e3", "names 4 layers, this network has 3"),
        ("k3e3 identity k3e3", "layer02 cannot be 'identity': it has stride 2 and goes from 4 to 6"),
    ],
)
def test_strings_of_another_network(text: str, problem: str) -> None:
    for read in (tiny().from_string, lambda t: mobile_network(t, **SMALL)):
        with pytest.raises(ArchitectureError, match=problem):
            read(text)
    with pytest.raises(ArchitectureError):
        build(tiny(), from_string(text))


def test_architectures_of_another_space_have_no_string() -> None:
    for picks in ({}, {"1.0": 2}, {"layer02": 0}, {"layer01": 0, "layer03": 0}):
        with pytest.raises(ArchitectureError, match="'layer01', 'layer02'"):
            to_string(Architecture(picks))
    for pick in (7, (1,)):
        with pytest.raises(ArchitectureError, match="index from 0 to 6"):
            to_string(Architecture({"layer01": pick}))
    with pytest.raises(ArchitectureError, match="another space"):
        tiny().to_string(from_string("k3e3"))


def test_the_identity_is_offered_where_stride_and_width_stay() -> None:
    with torch.device("meta"):
        found = choices(mobile_backbone())
    without = [name for name, same in found.items() if "identity" not in same[0].labels]
    assert without == ["layer01", "layer05", "layer09", "layer13", "layer17", "layer21"]
    labels = [same[0].labels for same in choices(tiny()).values()]
    assert labels == [LABELS, LABELS[:-1], LABELS]  # the first stage keeps the width of the first block


@pytest.mark.parametrize("seed", range(5))
def test_what_is_built_is_plain_and_computes_what_was_held_bit_for_bit(seed: int) -> None:
    space = tiny(identity_dropout=0.1 if seed % 2 else 0.0)
    stir(space)
    architecture = sample(space, generator=torch.Generator().manual_seed(seed))
    held, built = hold(space, architecture).eval(), build(space, architecture).eval()
    assert_plain(built)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        y = built(x)
        assert torch.equal(held(x), y)
        other = Architecture({**architecture, "layer02": (architecture["layer02"] + 1) % 6})
        assert not torch.equal(hold(space, other).eval()(x), y)
    counter = macs(x).counter(space)
    masks = [same[0].picked(architecture[name]).double() for name, same in choices(space).items()]
    assert float(counter.at(torch.cat(masks))) == macs(x).of(built)


def test_the_network_of_a_string_is_plain_and_exports() -> None:
    network = mobile_network(SOME, **SMALL).eval()
    assert_plain(network)
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    x = torch.randn(2, 3, 16, 16)
    y = network(x)
    assert y.shape == (2, 5)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), y)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), y)


def test_the_network_of_a_string_is_the_one_that_is_built() -> None:
    network, built = mobile_network(SOME, **SMALL), build(tiny(), from_string(SOME))
    assert [p.shape for p in network.state_dict().values()] == [p.shape for p in built.state_dict().values()]
    network.load_state_dict(dict(zip(network.state_dict(), built.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(network.eval()(x), built.eval()(x))


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (32, 33)])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_input_size(size: tuple[int, int], channels: int) -> None:
    network = mobile_network(SOME, **SMALL, in_channels=channels, norm_eps=1e-5).eval()
    assert network(torch.randn(2, channels, *size)).shape == (2, 5)


def test_strides_for_small_images() -> None:
    network = mobile_network("k3e3 " * 21, stem_stride=1, strides=(1, 2, 2, 1, 2, 1), classes=10)
    seen: list[torch.Size] = []
    network.get_submodule("head.0").register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape))
    network.eval()(torch.randn(1, 3, 32, 32))
    assert seen == [(1, 320, 4, 4)]


def test_dropout_on_the_identity_is_for_the_search_alone() -> None:
    space = tiny(identity_dropout=0.5)
    held = hold(space, from_string(SOME)).train()
    inputs = torch.randn(2, 4, 8, 8)
    assert bool((held.layers[0](inputs) == 0).any())
    assert torch.equal(held.eval().layers[0](inputs), inputs)
    fresh = space.resized()
    assert not any(isinstance(module, nn.Dropout) for module in fresh.modules())
    assert list(choices(fresh)) == list(choices(space))


def test_residual_layers_add_their_input() -> None:
    space = hold(tiny(), from_string("k3e3 k3e3 k3e3")).eval()
    last = space.layers[0].candidates[0].body[-1]
    nn.init.zeros_(last.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(space.layers[0](x), x)
    assert space.layers[1](x).shape == (2, 6, 4, 4)


def test_the_relaxed_supernet_reaches_every_logit() -> None:
    space = relax(tiny(), softmax)
    space(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for same in choices(space).values():
        assert bool((same[0].relaxation.logits.grad != 0).all())


@pytest.mark.parametrize("asked", [{"cells": 3}, {"channels": 8}, {"auxiliary": True}, {"drop_path": 0.1}])
def test_a_mobile_network_is_not_resized(asked: dict[str, float]) -> None:
    space = tiny()
    with pytest.raises(ConfigError, match=rf"MobileNet cannot be built with {next(iter(asked))}=.*one size only"):
        build(space, sample(space), **asked)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"cells": (1,)}, "widths has 2 stages"),
        ({"strides": (1, 2, 2)}, "widths has 2 stages"),
        ({"widths": PROXYLESS}, "widths has 6 stages"),
        ({"widths": Widths(4, 4, (), 8), "cells": (), "strides": ()}, "one or more"),
        ({"widths": Widths(4, 0, (4, 6), 8)}, "0 among its widths"),
        ({"cells": (1, 0)}, "0 among its cells"),
        ({"strides": (1, -2)}, "-2 among its strides"),
        ({"stem_stride": 0}, "0 among its strides"),
        ({"classes": 0}, "0 among its classes"),
        ({"in_channels": 2.5}, "in_channels=2.5"),
        ({"norm_eps": 0.0}, "eps above 0"),
        ({"norm_eps": float("nan")}, "eps above 0"),
    ],
)
def test_numbers_that_make_no_network(wrong: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        tiny(**wrong)
    with pytest.raises(ConfigError, match=problem):
        mobile_network(SOME, **{**SMALL, **wrong})


@pytest.mark.parametrize("wrong", [{"identity_dropout": 1.0}, {"identity_dropout": -0.1}, {"mixed": "mean"}])
def test_settings_of_the_supernet(wrong: dict[str, object]) -> None:
    with pytest.raises(ArchgradError, match=next(iter(wrong))):
        tiny(**wrong)


def test_a_description_can_be_drawn() -> None:
    space = ag.mobile_backbone(classes=10)
    described = space.describe(ag.sample(space, generator=torch.Generator().manual_seed(0)))
    assert graphs.draw_cell(described["graphs"][0])
    assert space.from_string(described["architecture_text"])

"""The fusion space: every architecture builds for odd sizes, counts exactly, does without a missing input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families.checks import assert_plain
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.choices.modules import OpChoice
from archgrad.errors import ConfigError, ModelError
from archgrad.multimodal.encoders import InputForm
from archgrad.multimodal.fusion import Fusion

SMALL = {"3": (3,), "2 doubling": (2, 4)}
ODD = {"image": ag.image_encoder(1, size=(27, 31)), "sound": ag.waveform_encoder(2), "facts": ag.vector_encoder(5)}


def inputs(batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"image": (1, 27, 31), "sound": (2, 131), "facts": (5,)}
    return {name: torch.randn(batch, *shape, generator=g) for name, shape in shapes.items()}


def small(forms: dict[str, InputForm | Tensor] | None = None, **settings: object) -> Fusion:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ag.fusion(forms or ODD, **{"classes": 4, "features": 6, "widths": SMALL, **settings})


def at(space: nn.Module, seed: int = 0, **labels: str) -> ag.Architecture:
    """A random architecture with some picks given by label; "__" in a name stands for a dot."""
    picks = dict(ag.sample(space, generator=torch.Generator().manual_seed(seed)))
    found = choices(space)
    for name, label in labels.items():
        choice = found[name.replace("__", ".")][0]
        assert isinstance(choice, OpChoice)
        picks[name.replace("__", ".")] = choice.labels.index(label)
    return ag.Architecture(picks)


def test_every_sampled_architecture_builds_counts_and_computes_for_odd_sizes() -> None:
    space, x = small(), inputs()
    macs, params = ag.macs(x), ag.params()
    counters = [(cost, cost.counter(space)) for cost in (macs, params)]
    for seed in range(12):
        architecture = at(space, seed)
        held, network = ag.hold(space, architecture).eval(), ag.build(space, architecture).eval()
        assert network(x).shape == (3, 4)
        assert torch.equal(held(x), network(x)), space.describe(architecture)
        for cost, counter in counters:
            assert float(counter(held)) == cost.of(network), space.describe(architecture)
    assert_plain(network)


def test_expected_cost_is_the_mean_over_independent_draws() -> None:
    space = small({"a": ag.image_encoder(1, size=(8, 8)), "b": ag.vector_encoder(5)})
    counter, found = ag.params().counter(space), {name: same[0] for name, same in choices(space).items()}

    def price(seed: int) -> float:
        architecture = at(space, seed)
        return float(counter.at(torch.cat([c.picked(architecture[n]).double() for n, c in found.items()])))

    mean = sum(map(price, range(1000))) / 1000
    assert float(counter(ag.relax(space, ag.softmax)).detach()) == pytest.approx(mean, rel=0.1), (
        "0.05 is its deviation"
    )
    assert ag.params().of(space) > 3 * mean, "the supernet's own number is another"


def test_examples_make_the_encoders_that_forms_do() -> None:
    by_example = small(inputs(1))
    assert [f.form for f in by_example.encoders] == [
        InputForm("images", 1, 2, (27, 31), (2, 4)), InputForm("sound", 2, 1, (131,), (2, 3)),
        InputForm("vectors", 5, 0, None, (2, 3)),
    ]  # fmt: skip
    assert ag.fusion({"a": torch.zeros(1, 1, 112, 112)}, classes=2).encoders[0].form.blocks == (2, 5)


@pytest.mark.parametrize(
    ("form", "least"),
    [
        (lambda: ag.image_encoder(1, size=(1, 1)), 4),
        (lambda: ag.audio_encoder(1, size=(3, 30)), 4),
        (lambda: ag.image_encoder(1, size=(7, 9), blocks=(3, 4)), 8),
        (lambda: ag.waveform_encoder(1, length=15), 16),
        (lambda: ag.fusion({"a": torch.zeros(1, 1, 1, 1)}, classes=2), 4),
        (lambda: ag.fusion({"a": ag.image_encoder(1)}, classes=2)({"a": torch.zeros(1, 1, 1, 1)}), 4),
    ],
)
def test_too_small_an_input_is_refused_with_the_least_size(form: object, least: int) -> None:
    with pytest.raises(ModelError, match=rf"too small .* the least is {least}\."):
        form()  # type: ignore[operator]


@pytest.mark.parametrize("side", [4, 5, 7])
def test_the_least_size_itself_works(side: int) -> None:
    space = small({"a": ag.image_encoder(1, size=(side, 4)), "b": ag.waveform_encoder(1, length=16)})
    x = {"a": torch.randn(2, 1, side, 4), "b": torch.randn(2, 1, 16)}
    for seed in range(10):
        assert ag.build(space, at(space, seed)).eval()(x).shape == (2, 4)


def test_a_zeroed_input_of_a_late_sum_leaves_the_others_logits() -> None:
    space, x = small(), inputs()
    picks = {"fusion__where": "late", "fusion__merge": "sum", "head": "linear"}
    network = ag.hold(space, at(space, **picks)).eval()
    alone = small({"image": ODD["image"]})
    alone.encoders[0].load_state_dict(space.encoders[0].state_dict(), strict=False)
    alone.head.load_state_dict(space.head.state_dict())
    own = {n: p for n, p in at(space, **picks).items() if not n.startswith(("fusion", "sound", "facts"))}
    unimodal = ag.hold(alone, ag.Architecture(own)).eval()({"image": x["image"]})
    missing = x | {"sound": torch.zeros_like(x["sound"]), "facts": torch.zeros_like(x["facts"])}
    assert torch.allclose(network(missing), unimodal, atol=1e-6)
    assert not torch.allclose(network(x), unimodal, atol=1e-2)
    # For each example by itself.
    mixed = {n: torch.cat([t[:1], missing[n][1:]]) for n, t in x.items()}
    assert torch.allclose(network(mixed)[1:], unimodal[1:], atol=1e-6)
    assert torch.allclose(network(mixed)[:1], network(x)[:1], atol=1e-6)


@pytest.mark.parametrize("merge", ["sum", "product", "concat", "gated", "bilinear"])
def test_no_merge_lets_a_missing_input_erase_the_others(merge: str) -> None:
    space, x = small(), inputs()
    network = ag.build(space, at(space, fusion__merge=merge, fusion__where="late")).eval()
    there = x | {"sound": torch.zeros_like(x["sound"])}
    assert len({tuple(row) for row in network(there).tolist()}) == 3, "the examples have become one"


def test_the_order_of_a_concatenation_does_not_matter_once_its_columns_are_moved() -> None:
    forms = {"a": ag.image_encoder(1), "b": ag.vector_encoder(3)}
    one, other = small(forms), small(dict(reversed(forms.items())))
    architecture = at(one, fusion__merge="concat", fusion__where="every")
    state = {}
    for name, value in one.state_dict().items():
        if name.startswith("encoders."):
            name = {"0": "encoders.1", "1": "encoders.0"}[name.split(".")[1]] + name[len("encoders.0") :]
        elif name.endswith("candidates.0.linear.weight") and value.shape == (6, 12):
            value = torch.cat([value[:, 6:], value[:, :6]], dim=1)
        state[name] = value
    kept = {n: v for n, v in state.items() if "where.candidates.2" not in n}
    other.load_state_dict(kept, strict=False)
    x = {"a": torch.randn(2, 1, 9, 9), "b": torch.randn(2, 3)}
    first, second = (ag.hold(space, architecture).eval()(x) for space in (one, other))
    assert torch.allclose(first, second, atol=1e-6)
    other.load_state_dict(
        {n: v for n, v in one.state_dict().items() if n.startswith("where.candidates.1")}, strict=False
    )
    assert not torch.allclose(first, ag.hold(other, architecture).eval()(x), atol=1e-3), (
        "columns left where they were"
    )


def test_modality_dropout_drops_whole_inputs_in_training_alone() -> None:
    space, x = small(modality_dropout=0.5), inputs(64)
    picks = {"fusion__where": "late", "fusion__merge": "sum", "head": "linear", "dropout": "0"}
    network = ag.build(space, at(space, **picks))
    whole = network.eval()(x)
    assert torch.equal(whole, network(x))
    patterns = []
    for kept in ((), ("image",), ("sound",), ("facts",), ("image", "sound")):
        patterns.append(network({n: t if n in kept else torch.zeros_like(t) for n, t in x.items()}))
    torch.manual_seed(0)
    network.train()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        norm.eval()  # its statistics would depend on the batch
    dropped = network(x)
    same = [torch.isclose(dropped, p, atol=1e-5).all(dim=1) for p in (whole, *patterns)]
    assert all(3 <= int(rows.sum()) <= 16 for rows in same), "an eighth of the examples each"


def test_blocks_behind_the_last_that_is_read_do_not_run() -> None:
    space, x = small({"a": ag.image_encoder(1, size=(32, 32), blocks=(2, 5))}), {"a": torch.randn(2, 1, 32, 32)}
    runs: list[int] = []
    for trunk in space.encoders[0].trunks:
        for i, block in enumerate(trunk.blocks):
            block.register_forward_hook(lambda *_, i=i: runs.append(i))
    ag.hold(space, ag.Architecture({**at(space), "a.depth": (1,)}))(x)
    assert runs == [0, 1, 2]


def test_every_logit_of_a_mixture_has_a_gradient() -> None:
    space = ag.relax(small(), ag.softmax)
    torch.nn.functional.cross_entropy(space(inputs()), torch.tensor([0, 1, 2])).backward()
    assert all(bool((p.grad != 0).any()) for p in ag.logits(space) if p.numel() > 1)


@pytest.mark.parametrize(
    "method", [ag.darts, ag.unas, ag.darts_prime, ag.toponas, ag.monas], ids=lambda m: m.__name__
)
def test_other_methods_search_it(method: object) -> None:
    g = torch.Generator().manual_seed(0)
    named = {"a": torch.randn(60, 1, 8, 8, generator=g), "b": torch.randn(60, 3, generator=g)}
    task = ag.Classification(ag.Modalities(named, torch.arange(60) % 2), batch_size=8)
    space = small({"a": ag.image_encoder(1, size=(8, 8)), "b": ag.vector_encoder(3)}, classes=2)
    run = ag.Run(steps=8, trials=2, device="cpu", progress=False)
    limit = ag.macs(task.example).at_most(fraction=0.6)
    found = method(space, task, run, limit=limit)  # type: ignore[operator]
    assert found.network(task.example).shape == (1, 2)
    assert found.costs["macs"] == ag.macs(task.example).of(found.network)


def test_what_is_built_is_exported_with_its_names(tmp_path: Path) -> None:
    space, x = small({"image": ODD["image"], "facts": ODD["facts"]}), inputs(2)
    network = ag.build(space, at(space, fusion__where="every", fusion__merge="gated")).eval()
    del x["sound"]
    done = ag.export_program(network, x, tmp_path / "network.pt2")
    assert done.dynamic_batch
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    other = {name: inputs(5, seed=1)[name] for name in x}
    assert torch.allclose(loaded(other), network(other), atol=1e-5)
    onnx = ag.export_onnx(network, x, tmp_path / "network.onnx")
    assert onnx.dynamic_batch and onnx.largest_difference < 1e-5


def test_an_architecture_is_described_by_what_it_uses() -> None:
    space = small({"a": ag.image_encoder(1, size=(8, 8)), "b": ag.vector_encoder(3)})
    picks = {**at(space, fusion__where="pair", fusion__merge="gated"), "a.depth": (0,), "fusion.pair.a": (1,)}
    text = space.describe(ag.Architecture(picks))["architecture_text"]
    assert text.count("a: ") == 1 and "fusion: pair (a after block 2, b after block" in text and "gated" in text
    assert len(text.split(";")[0].split()) == 3, "two operations behind the name"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"inputs": {}}, "give one or more by name"),
        ({"inputs": {"a.b": ag.image_encoder(1)}}, "without dots"),
        ({"inputs": {"a": 3}}, r"inputs=\{'a': 3\}"),
        ({"inputs": {"a": torch.zeros(3)}}, r"shape \[3\]: give vectors"),
        ({"classes": 1}, "at least two classes"),
        ({"features": 0}, "whole numbers from 1"),
        ({"widths": {}}, "whole numbers from 1"),
        ({"widths": {"none": ()}}, "whole numbers from 1"),
        ({"modality_dropout": 1.0}, "from 0 to below 1"),
    ],
)
def test_what_makes_no_space_is_refused(change: dict[str, object], problem: str) -> None:
    given = {"inputs": {"a": ag.image_encoder(1)}, "classes": 3, **change}
    with pytest.raises(ConfigError, match=problem):
        ag.fusion(given.pop("inputs"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ag.image_encoder(0),
        lambda: ag.audio_encoder(1, blocks=(3, 2)),
        lambda: ag.vector_encoder(True),
        lambda: ag.image_encoder(1, size=(8,)),
    ],
)
def test_numbers_that_make_no_encoder_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match=r"an encoder of|_encoder\(.*Allowed is"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        ({"a": torch.zeros(2, 1, 8, 8)}, r"without \['b'\]. Where a sample lacks an input, give zeros"),
        (torch.zeros(2, 1, 8, 8), "takes a dict of the inputs"),
        ({"a": torch.zeros(2, 3, 8, 8), "b": torch.zeros(2, 3)}, r"'a' is \[2, 3, 8, 8\]; .* with 1 for the second"),
        (
            {"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(2, 3, 1)},
            r"'b' is \[2, 3, 1\]; its encoder takes \[B, F\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(x: object, problem: str) -> None:
    space = ag.relax(small({"a": ag.image_encoder(1), "b": ag.vector_encoder(3)}), ag.softmax)
    with pytest.raises(ModelError, match=problem):
        space(x)


def test_an_input_too_many_is_not_read() -> None:
    space = small({"a": ag.vector_encoder(3)})
    network = ag.build(space, at(space)).eval()
    x = {"a": torch.randn(2, 3)}
    assert torch.equal(network(x), network(x | {"b": torch.randn(2, 9)}))

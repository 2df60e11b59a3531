from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, using
from archgrad.choices.decide import decide
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import Open, softmax
from archgrad.costs.count import macs, params
from archgrad.errors import ArchgradError, ArchitectureError, ChoiceError, ConfigError
from archgrad.extract.discretize import build
from archgrad.report.graphs import cells as graphs
from archgrad.spaces.cells import Dropped
from archgrad.spaces.darts import DARTS_LABELS, UNAS_LABELS, DartsCells, darts_cells, darts_network

FORMS = (False, True)
SMALL = {"channels": 2, "cells": 3, "classes": 3, "in_channels": 1}


def small(
    *, factorized: bool, cells: int = 3, nodes: int = 2, operations: int | tuple[str, ...] | None = None
) -> DartsCells:
    return darts_cells(
        channels=2, cells=cells, classes=3, in_channels=1, nodes=nodes, factorized=factorized, operations=operations
    )


def published(space: DartsCells) -> DartsCells:
    """Relaxed as DARTS is: softmax over operations, all inputs open."""
    ag.relax(space, softmax)
    return ag.relax(space, Open, where=lambda choice: isinstance(choice, InputChoice))


def randomised(network: nn.Module) -> nn.Module:
    """BatchNorm statistics and scales that no two layers share."""
    g = torch.Generator().manual_seed(5)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) / 4)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + 0.5)
            if m.affine:
                nn.init.normal_(m.weight, 1.0, 0.2, generator=g)
                nn.init.normal_(m.bias, 0.0, 0.2, generator=g)
    return network.eval()


@pytest.mark.parametrize("factorized", FORMS)
@pytest.mark.parametrize("evaluation", (False, True))
def test_what_is_built_is_plain_and_computes_what_was_held(factorized: bool, evaluation: bool) -> None:
    searched = small(factorized=factorized)
    space = searched.resized(auxiliary=True, drop_path=0.25) if evaluation else searched
    randomised(space)
    g = torch.Generator().manual_seed(1)
    for sizes in ((8, 27), (1, 7)):
        architecture = ag.sample(searched, generator=g)
        held, network = ag.hold(space, architecture), build(space, architecture).eval()
        for size in sizes:
            x = torch.randn(2, 1, size, size + 1, generator=g)
            with torch.no_grad():
                assert all(map(torch.equal, _flat(held(x)), _flat(network(x))))
    assert len(_flat(network(x))) == 1 + evaluation
    assert not [type(m) for m in network.modules() if type(m).__module__.startswith("archgrad")]
    assert b"archgrad" not in pickle.dumps(network)
    program = torch.export.export(network, (x,), strict=False)
    for one, other in zip(_flat(program.module()(x)), _flat(network(x)), strict=True):
        torch.testing.assert_close(one, other)
    assert bool([name for name, _ in network.named_modules() if name.endswith(".drop_path")]) == evaluation


def _flat(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def test_the_published_supernet_is_the_double_sum_of_the_paper() -> None:
    """node = sum over j, o of softmax(alpha)_o op_o(x_j), in the published order of operations."""
    space = published(small(factorized=False))
    for p in ag.logits(space):
        nn.init.normal_(p)
    randomised(space)
    net = space.network
    x = torch.randn(2, 1, 8, 8)
    before = last = net.stem(x)
    for i, cell in enumerate(net.cells):
        kind = "normal" if i == 0 else "reduce"
        states = [cell.before(before), cell.last(last)]
        for number, node in enumerate(cell.nodes, start=2):
            total = torch.zeros(())
            for j, edge in enumerate(node.edges):
                assert edge.name == f"{kind}.{number}.{j}" and edge.labels == DARTS_LABELS
                alpha = torch.softmax(edge.relaxation.logits, dim=0)
                total = total + sum(alpha[o] * op(states[j]) for o, op in enumerate(edge.candidates))
            states.append(total)
        before, last = last, torch.cat(states[2:], dim=1)
    torch.testing.assert_close(space(x), net.head(last))


def test_the_factorized_supernet_is_the_sum_of_its_branches() -> None:
    """Two separate sums over sources and operations, on the same modules; each module runs once."""
    space = ag.relax(small(factorized=True, nodes=1, operations=4), softmax)
    for p in ag.logits(space):
        nn.init.normal_(p)
    node = space.network.cells[0].nodes[0]
    states = [torch.randn(3, 2, 6, 6), torch.randn(3, 2, 6, 6)]
    randomised(space)
    total = torch.zeros(())
    for inputs, ops in ((node.input0, node.op0), (node.input1, node.op1)):
        for j, o in itertools.product(range(2), range(4)):
            total = total + inputs.mixing()[j] * ops.mixing()[o] * node.edges[j][o](states[j])
    torch.testing.assert_close(node(states), total)
    runs: list[nn.Module] = []
    for edges in node.edges:
        for op in edges:
            op.register_forward_hook(lambda module, *_: runs.append(module))
    node(states)
    assert len(runs) == len(set(runs)) == 8
    runs.clear()
    same = {"normal.2.input0": [0.0, 1], "normal.2.input1": [0.0, 1], "normal.2.op0": [0.0, 1, 0, 0]}
    picked = {name: torch.tensor(value) for name, value in same.items()}
    with using(space, {**picked, "normal.2.op1": picked["normal.2.op0"]}):
        twice = node(states)
    assert runs == [node.edges[1][1]]
    torch.testing.assert_close(twice, 2 * node.edges[1][1](states[1]))


def test_a_double_pick_is_two_modules_in_the_evaluation_form() -> None:
    text = "normal 0:sep_conv_3x3,0:sep_conv_3x3 | 1:skip_connect,1:skip_connect reduce 0:avg_pool_3x3,1:sep_conv_3x3"
    text += " | 2:sep_conv_3x3,2:sep_conv_3x3"
    space = small(factorized=True)
    architecture = space.from_string(text)
    once, twice = build(space, architecture), build(space.resized(), architecture)
    depthwise = [sum(getattr(m, "groups", 1) > 1 for m in n.modules()) for n in (once, twice)]
    assert depthwise[1] - depthwise[0] == 2 * 3  # one module of two depthwise layers more, in each of three cells


@pytest.mark.parametrize("factorized", FORMS)
def test_the_network_of_a_string_has_the_parameters_of_the_space_at_its_architecture(factorized: bool) -> None:
    space = small(factorized=factorized)
    for seed, size in ((0, 3), (1, 4)):
        architecture = ag.sample(space, generator=torch.Generator().manual_seed(seed))
        text = space.to_string(architecture)
        made = build(space, architecture, cells=size, channels=4, auxiliary=True)
        network = darts_network(text, cells=size, channels=4, classes=3, in_channels=1, auxiliary=True)
        assert not [type(m) for m in network.modules() if type(m).__module__.startswith("archgrad")]
        assert b"archgrad" not in pickle.dumps(network)
        shapes = [sorted(tuple(p.shape) for p in n.parameters()) for n in (made, network)]
        assert shapes[0] == shapes[1]
        x = torch.zeros(1, 1, 8, 8)
        assert macs(x).of(made) == macs(x).of(network)
        assert not any(isinstance(m, nn.BatchNorm2d) and not m.affine for m in network.modules())


@pytest.mark.parametrize("factorized", FORMS)
def test_every_sampled_and_decided_cell_has_two_inputs_a_node_and_no_none(factorized: bool) -> None:
    space = ag.relax(small(factorized=factorized, nodes=4), softmax)
    g = torch.Generator().manual_seed(0)
    for trial in range(20):
        for p in ag.logits(space):
            nn.init.normal_(p, generator=g)
            if not factorized and len(p) == 8:
                with torch.no_grad():
                    p[0] = 10.0  # none is the heaviest
        architecture = decide(space) if trial % 2 else ag.sample(space, generator=g)
        text = space.to_string(architecture)
        assert text.count(":") == 2 * 2 * 4 and "none" not in text
        if not factorized:
            kept = [pick for name, pick in architecture.items() if name.endswith("inputs")]
            assert all(isinstance(pick, tuple) and len(set(pick)) == 2 for pick in kept)


@pytest.mark.parametrize("factorized", FORMS)
def test_gradients_reach_all_logits_and_weights(factorized: bool) -> None:
    space = small(factorized=factorized, nodes=3)
    relaxed = ag.relax(space, softmax) if factorized else published(space)
    relaxed(torch.randn(4, 1, 8, 8)).logsumexp(dim=1).sum().backward()
    logits = ag.logits(relaxed)
    assert len(logits) == 2 * 3 * 4 if factorized else 2 * (2 + 3 + 4)
    assert all(p.grad is not None and bool(p.grad.any()) for p in logits)
    assert all(p.grad is not None for p in ag.weights(relaxed))


@pytest.mark.parametrize("factorized", FORMS)
def test_rows_for_each_image_equal_a_loop_over_images(factorized: bool) -> None:
    space = randomised(small(factorized=factorized))
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 1, 9, 9, generator=g)
    rows = {
        name: torch.softmax(torch.randn(3, c.size, generator=g), dim=1) for name, (c, *_) in choices(space).items()
    }
    hard = {name: nn.functional.one_hot(w.argmax(dim=1), w.shape[1]).float() for name, w in rows.items()}
    for chosen in (rows, hard):
        with using(space, chosen), torch.no_grad():
            together = space(x)
        for b in range(3):
            with using(space, {name: w[b] for name, w in chosen.items()}), torch.no_grad():
                torch.testing.assert_close(together[b : b + 1], space(x[b : b + 1]), rtol=1e-5, atol=1e-6)


def test_a_choice_of_labels_alone_decides_and_does_not_run() -> None:
    choice = OpChoice(("skip_connect", "sep_conv_3x3"), name="op")
    assert choice.size == 2 and choice.labels == ("skip_connect", "sep_conv_3x3")
    assert {choice.sampled(torch.Generator().manual_seed(seed)) for seed in range(9)} == {0, 1}
    with pytest.raises(ChoiceError, match="labels alone"):
        ag.relax(choice, softmax)(torch.zeros(1))
    for strange in ((nn.Identity(), "skip_connect"), (1, 2)):
        with pytest.raises(ChoiceError, match="give torch"):
            OpChoice(strange, name="op")  # type: ignore[arg-type]
    node = small(factorized=True).network.cells[0].nodes[0]
    with pytest.raises(ChoiceError, match="undecided"):
        node([torch.zeros(1, 2, 4, 4)] * 2)


def test_modules_of_weight_zero_are_not_run() -> None:
    space = small(factorized=True)
    held = ag.hold(space, ag.sample(space, generator=torch.Generator().manual_seed(0)))
    ran: list[nn.Module] = []
    for cell in held.network.cells:
        for node in cell.nodes:
            for edges in node.edges:
                for op in edges:
                    op.register_forward_hook(lambda module, *_: ran.append(module))
    held(torch.randn(2, 1, 8, 8))
    assert 3 * 2 <= len(ran) <= 3 * 2 * 2


@pytest.mark.parametrize("cost", ("macs", "params"))
def test_expected_cost_of_the_factorized_form_is_the_mean_over_its_architectures(cost: str) -> None:
    """All architectures of 2 sources x 2 operations in two branches, one kind of cell, counted one by one."""
    space = ag.relax(
        darts_cells(
            channels=2, cells=1, classes=2, in_channels=1, nodes=1, factorized=True, operations=2, affine=True
        ),
        softmax,
    )
    g = torch.Generator().manual_seed(2)
    for p in ag.logits(space):
        nn.init.normal_(p, generator=g)
    x = torch.zeros(1, 1, 8, 8)
    price = macs(x) if cost == "macs" else params()
    weights = {name: c.ready().detach() for name, (c, *_) in choices(space).items()}
    mean = 0.0
    for i0, o0, i1, o1 in itertools.product(range(2), repeat=4):
        node = f"{i0}:{UNAS_LABELS[o0]},{i1}:{UNAS_LABELS[o1]}"
        probability = weights["reduce.2.input0"][i0] * weights["reduce.2.op0"][o0]
        probability = probability * weights["reduce.2.input1"][i1] * weights["reduce.2.op1"][o1]
        network = darts_network(f"reduce {node}", channels=2, cells=1, classes=2, in_channels=1)
        # What is handed back lacks the 1x1 convolution (6 to 4 channels, 8 x 8) of an input that no node reads.
        unread = len({0, 1} - {i0, i1}) * (64 * 6 * 4 if cost == "macs" else 6 * 4 + 2 * 4)
        mean += float(probability) * (price.of(network) + unread)
    assert float(price.expected(space).detach()) == pytest.approx(mean, rel=1e-6)
    (gradient,) = torch.autograd.grad(price.expected(space), [weights_of(space, "reduce.2.op0")])
    assert bool(gradient.any())


def weights_of(space: nn.Module, name: str) -> nn.Parameter:
    relaxation = choices(space)[name][0].relaxation
    assert relaxation is not None
    return next(relaxation.parameters())


def test_expected_macs_of_the_published_form_by_hand() -> None:
    """One cell, one node, strided: stem + preprocess + both edges' operations at their probabilities + head."""
    space = darts_cells(
        channels=2, cells=1, classes=2, in_channels=1, nodes=1, operations=("none", "sep_conv_3x3", "skip_connect")
    )
    published(space)
    for p, probability in zip(ag.logits(space), ((0.5, 0.25, 0.25), (0.125, 0.75, 0.125)), strict=True):
        with torch.no_grad():
            p.copy_(torch.tensor(probability).log())
    channels, big, half = 4, 64, 16
    separable = half * (9 * channels + channels**2) * 2
    skip = half * 2 * channels * channels // 2
    fixed = big * 9 * 6 + 2 * big * 6 * channels + channels * 2
    expected = fixed + (0.25 + 0.75) * separable + (0.25 + 0.125) * skip
    assert float(macs(torch.zeros(1, 1, 8, 8)).expected(space).detach()) == pytest.approx(expected)


@pytest.mark.parametrize(("cells", "reductions"), [(1, (0,)), (2, (0, 1)), (3, (1, 2)), (4, (1, 2)), (8, (2, 5))])
@pytest.mark.parametrize("stem", ("cifar", "imagenet"))
def test_any_number_of_cells_at_any_size(cells: int, reductions: tuple[int, ...], stem: str) -> None:
    space = darts_cells(channels=2, cells=cells, classes=5, in_channels=4, nodes=1, stem=stem, auxiliary=True)  # type: ignore[arg-type]
    assert space.plan.reductions == reductions
    shapes: list[tuple[int, ...]] = []
    for cell in space.network.cells:
        cell.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    held = ag.hold(space, ag.sample(space, generator=torch.Generator().manual_seed(0))).eval()
    shapes.clear()
    logits, auxiliary = held(torch.randn(2, 4, 27, 33))
    assert logits.shape == auxiliary.shape == (2, 5)
    side, width = (27, 2) if stem == "cifar" else (4, 2)
    for i, shape in enumerate(shapes):
        side, width = (-(-side // 2), width * 2) if i in reductions else (side, width)
        assert shape[:3] == (2, width, side)
    assert len(shapes) == cells


def test_the_auxiliary_head_is_the_published_one_at_its_published_size() -> None:
    space = darts_cells(channels=2, cells=3, nodes=1, auxiliary=True)
    head = space.network.auxiliary
    assert head is not None
    x = torch.randn(2, 8, 8, 8)
    relu, bring, pool, *_ = head
    assert torch.equal(pool(bring(relu(x))), nn.functional.avg_pool2d(x.relu(), 5, 3))
    assert sum(p.numel() for p in head.parameters()) == 8 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 769 * 10


def test_drop_path_drops_whole_images_of_everything_but_the_identity() -> None:
    dropped = Dropped(nn.Identity(), 0.5).train()
    y = dropped(torch.ones(400, 3, 2, 2))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert bool((y.flatten(1).amin(dim=1) == y.flatten(1).amax(dim=1)).all())
    assert 120 < int((y[:, 0, 0, 0] == 0).sum()) < 280
    assert torch.equal(dropped.eval()(torch.ones(2, 3, 2, 2)), torch.ones(2, 3, 2, 2))
    text = "normal 0:skip_connect,1:sep_conv_3x3 reduce 0:skip_connect,1:skip_connect"
    network = darts_network(text, drop_path=0.3, **SMALL)
    drops = [(name, m) for name, m in network.named_modules() if name.endswith("drop_path")]
    assert len(drops) == 1 + 2 + 2 and all(isinstance(m, nn.Dropout3d) and m.p == 0.3 for _, m in drops)
    assert not any("drop_path" in name for name, _ in darts_network(text, **SMALL).named_modules())


def test_norms_are_where_they_were_published() -> None:
    for factorized in FORMS:
        space = small(factorized=factorized)
        norms = [m for cell in space.network.cells for m in cell.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and not any(m.affine for m in norms)
        pools = [m for m in space.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.AvgPool2d)]
        assert bool(pools) == (not factorized)
        evaluated = space.resized()
        assert all(m.affine for m in evaluated.modules() if isinstance(m, nn.BatchNorm2d))
        assert not [m for m in evaluated.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.AvgPool2d)]
        assert choices(evaluated).keys() == choices(space).keys()


def test_duplicate_share_is_one_a_node_only_where_both_branches_agree() -> None:
    space = small(factorized=True, operations=3)
    for text, share in (
        ("normal 0:skip_connect,0:skip_connect | 1:skip_connect,2:skip_connect reduce", 1.0),
        ("normal 0:skip_connect,0:sep_conv_3x3 | 1:skip_connect,2:skip_connect reduce", 0.0),
        ("normal 1:sep_conv_3x3,1:sep_conv_3x3 | 2:max_pool_3x3,2:max_pool_3x3 reduce", 2.0),
    ):
        architecture = space.from_string(f"{text} 0:skip_connect,1:skip_connect | 0:skip_connect,1:skip_connect")
        same = choices(space)
        picked = {name: c.picked(architecture[name]).float() for name, (c, *_) in same.items()}
        assert float(space.duplicates(picked)) == share
    rows = {name: torch.softmax(torch.randn(5, c.size), dim=1).requires_grad_() for name, (c, *_) in same.items()}
    shares = space.duplicates(rows)
    wanted = torch.zeros(5)
    for node in ("normal.2", "normal.3", "reduce.2", "reduce.3"):
        outer = [
            torch.einsum("bi,bo->bio", rows[f"{node}.input{branch}"], rows[f"{node}.op{branch}"]) for branch in (0, 1)
        ]
        wanted = wanted + (outer[0] * outer[1]).sum(dim=(1, 2))
    torch.testing.assert_close(shares, wanted)
    shares.sum().backward()
    assert all(w.grad is not None and bool(w.grad.any()) for w in rows.values())
    mixed = {**rows, "normal.2.input0": torch.tensor([0.5, 0.5])}
    assert space.duplicates(mixed).shape == (5,)
    with pytest.raises(ChoiceError, match="factorized=True"):
        small(factorized=False).duplicates({})
    with pytest.raises(ChoiceError, match="no weights"):
        space.duplicates({})


@given(seed=st.integers(0, 10_000), factorized=st.booleans())
@settings(max_examples=20)
def test_architectures_survive_text_and_json(seed: int, factorized: bool) -> None:
    space = SPACES[factorized]
    architecture = ag.sample(space, generator=torch.Generator().manual_seed(seed))
    assert ag.Architecture.from_json(architecture.to_json()) == architecture
    text = space.to_string(architecture)
    again = space.from_string(text)
    assert space.to_string(again) == text
    if factorized:
        assert again == architecture
    kinds = {
        kind: [tuple(pair.split(":")) for node in body.split(" | ") for pair in node.split(",")]
        for kind, body in zip(("normal", "reduce"), text.removeprefix("normal ").split(" reduce "), strict=True)
    }
    printed = ", ".join(
        f"{kind}={[(label, int(source)) for source, label in pairs]}, {kind}_concat=range(2, 4)"
        for kind, pairs in kinds.items()
    )
    assert space.from_string(f"Genotype({printed})") == again


SPACES = {factorized: small(factorized=factorized) for factorized in FORMS}
ONE = "0:skip_connect,1:skip_connect"
TWO = f"{ONE} | {ONE}"


def test_strings_in_any_order_and_with_none_are_read_in_the_published_form() -> None:
    space = SPACES[False]
    text = (
        "reduce 1:none , 0:sep_conv_3x3|2:none,1:none\n normal 1:skip_connect,0:none | 2:dil_conv_5x5,0:max_pool_3x3"
    )
    architecture = space.from_string(text)
    assert space.to_string(architecture) == (
        "normal 0:none,1:skip_connect | 0:max_pool_3x3,2:dil_conv_5x5 reduce 0:sep_conv_3x3,1:none | 1:none,2:none"
    )
    assert architecture["normal.3.1"] == 1  # an edge that is not used: the first operation that is not barred
    held = ag.hold(space, architecture).eval()
    network = build(space, architecture).eval()
    x = torch.randn(1, 1, 7, 7)
    assert torch.equal(held(x), network(x))
    listed = "DARTS = Genotype(normal=[('none', 1), ('none', 0)], normal_concat=[2], "
    listed += "reduce=[('none', 0), ('none', 1)], reduce_concat=[2])"
    assert isinstance(darts_network(listed, **SMALL)(torch.randn(2, 1, 8, 8)), Tensor)


BAD = [
    ("", "must begin"),
    ("  ", "must begin"),
    ("hello", "must begin"),
    (f"normal {TWO}", "no 'reduce' cell"),
    (f"normal {TWO} reduce", "not two pairs"),
    (f"normal {TWO} reduce {ONE}", "1 nodes; the cells of this space have 2"),
    (f"normal {TWO} normal {TWO} reduce {TWO}", "each once"),
    (f"normal {TWO} reduce {ONE} | 0:skip_connect", "not two pairs"),
    (f"normal {TWO} reduce {ONE} | {ONE},2:skip_connect", "not two pairs"),
    (f"normal {TWO} reduce {ONE} | 0:skip_connect,3:skip_connect", "0 to 2"),
    (f"normal {TWO} reduce {ONE} | 0:skip_connect,-1:skip_connect", "not two pairs"),
    (f"normal {TWO} reduce {ONE} | 0:skip_connect,99999:skip_connect", "not two pairs"),
    (f"normal {TWO} reduce {ONE} | 0:skip_connect,1:conv_9x9", "sep_conv_3x3"),
    (f"normal {TWO} reduce {ONE} | 0:skip_connect,1:", "not two pairs"),
    (f"x normal {TWO} reduce {TWO}", "must begin"),
    ("0:a," * 9000, "characters"),
    ("Genotype(", "cannot be read"),
    ("Genotype\0", "cannot be read"),
    ("Genotype(" + "(" * 5000, "cannot be read"),
    ("Genotype(" + "-" * 9000 + "1)", "Genotype"),
    ("__import__('os').system('false') or Genotype()", "not one Genotype"),
    ("Genotype()", "each once and by name"),
    ("Genotype(normal=1, normal_concat=1, reduce=1, reduce_concat=1)", "list of pairs"),
    ("Genotype(normal=open('x'), normal_concat=1, reduce=1, reduce_concat=1)", "only names"),
    ("Genotype(normal=[('a', 1.5)], normal_concat=1, reduce=1, reduce_concat=1)", "list of pairs"),
    (
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=range(2, 10**9), "
        "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=range(2, 3))",
        "only names",
    ),
    (
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=[0, 2], "
        "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=[2])",
        "must be all nodes",
    ),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("factorized", FORMS)
def test_damaged_text_is_refused_with_what_is_allowed(text: str, said: str, factorized: bool) -> None:
    with pytest.raises(ArchitectureError, match=said.replace("(", r"\(")) as raised:
        SPACES[factorized].from_string(text)
    assert len(str(raised.value)) < 700
    with pytest.raises(ArchitectureError):
        darts_network(text if "this space have" not in said else "", **SMALL)


def test_each_form_refuses_what_it_forbids() -> None:
    double = "0:skip_connect,0:skip_connect | 0:skip_connect,1:skip_connect"
    with pytest.raises(ArchitectureError, match="twice"):
        SPACES[False].from_string(f"normal {double} reduce {double}")
    assert SPACES[True].from_string(f"normal {double} reduce {double}")
    for label, factorized in (("sep_conv_7x7", False), ("none", True), ("dil_conv_5x5", True)):
        bad = f"0:{label},1:skip_connect | 0:skip_connect,1:skip_connect"
        with pytest.raises(ArchitectureError, match="allowed are"):
            SPACES[factorized].from_string(f"normal {bad} reduce {bad}")
    with pytest.raises(ConfigError, match="Allowed is str"):
        darts_network(3)  # type: ignore[arg-type]
    with pytest.raises(ArchitectureError, match="different numbers"):
        darts_network(f"normal {ONE} reduce {TWO}")
    with pytest.raises(ArchitectureError, match="another space"):
        SPACES[False].to_string(ag.sample(SPACES[True]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cells": 0}, "cells is 0"),
        ({"channels": -1}, "channels is -1"),
        ({"channels": 2.5}, "Allowed is int"),
        ({"classes": True}, "classes=True"),
        ({"in_channels": "3"}, "in_channels='3'"),
        ({"nodes": 0}, "nodes is 0"),
        ({"stem": "mnist"}, "'cifar', 'imagenet'"),
        ({"stem": "imagenet", "channels": 1}, "channels=2"),
        ({"drop_path": 1.0}, "below 1"),
        ({"drop_path": float("nan")}, "below 1"),
        ({"operations": 9}, "1 to 8"),
        ({"operations": 0}, "1 to 8"),
        ({"operations": 8, "factorized": True}, "1 to 7"),
        ({"operations": ("none",)}, "besides 'none'"),
        ({"operations": 1}, "besides 'none'"),
        ({"operations": ()}, "labels"),
        ({"operations": "none"}, "operations='none'"),
        ({"operations": ("skip_connect", "skip_connect")}, "different"),
        ({"operations": ("conv",)}, "sep_conv_3x3"),
        ({"operations": ("none", "skip_connect"), "factorized": True}, "no operation 'none'"),
        ({"factorized": "yes"}, "factorized='yes'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        darts_cells(**options)  # type: ignore[arg-type]


def test_resizing_that_would_lose_a_kind_of_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 cells or more"):
        SPACES[False].resized(cells=2)
    with pytest.raises(ConfigError, match="3 cells or more"):
        small(factorized=True, cells=2, nodes=1).resized(cells=20)
    with pytest.raises(ConfigError, match="channels is 0"):
        SPACES[False].resized(channels=0)
    architecture = ag.sample(small(factorized=True, cells=1, nodes=1))
    assert {name.partition(".")[0] for name in architecture} == {"reduce"}


def test_the_first_n_operations_are_taken_and_one_channel_is_enough() -> None:
    space = darts_cells(channels=1, cells=3, nodes=1, operations=5, factorized=True)
    (op,) = {c.labels for (c, *_) in choices(space).values() if isinstance(c, OpChoice)}
    assert op == UNAS_LABELS[:5]
    logits = ag.relax(space, softmax)(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 10)
    copied = copy.deepcopy(space)
    assert torch.equal(copied.eval()(torch.ones(1, 3, 8, 8)), space.eval()(torch.ones(1, 3, 8, 8)))


def test_narrowed_spaces_still_run_and_read_text() -> None:
    space = small(factorized=False, nodes=1)
    ag.restrict(space, {"normal.2.0": [4], "reduce.2.1": [3, 4]})
    assert space.to_string(space.from_string(f"normal 0:sep_conv_3x3,1:none reduce {ONE}"))
    with pytest.raises(ArchgradError, match="no longer has"):
        space.from_string(f"normal {ONE} reduce {ONE}")
    shared = small(factorized=True, nodes=1)
    ag.restrict(shared, {"normal.2.op0": [1], "normal.2.op1": [0, 1]})
    assert ag.relax(shared, softmax)(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("factorized", FORMS)
def test_a_description_can_be_drawn(factorized: bool) -> None:
    space = small(factorized=factorized)
    described = space.describe(ag.sample(space, generator=torch.Generator().manual_seed(0)))
    assert [graph["name"] for graph in described["graphs"]] == ["normal", "reduce"]
    for graph in described["graphs"]:
        assert len(graph["edges"]) == 2 * 2 + 2
        assert "concatenation" in graphs.draw_cell(graph)
    assert space.from_string(described["architecture_text"])

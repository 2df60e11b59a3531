"""TopoNAS, and its topology under other methods: decoded cells, the planted pair, limits, refusals."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.decide import decision_weights
from archgrad.choices.relaxations import Open
from archgrad.choices.subsets import Keep, topology
from archgrad.errors import ChoiceError, ConfigError, LimitError
from archgrad.methods import UnasTerms as Sampled
from archgrad.methods.toponas.toponas import ToponasTerms, toponas
from archgrad.supernets.constraint import ArchitectureConstraint, scores

X = torch.zeros(1, 1, 8, 8)


def images() -> ag.Classification:
    g = torch.Generator().manual_seed(0)
    return ag.Classification((torch.randn(80, 1, 8, 8, generator=g), torch.arange(80) % 3), batch_size=8)


def cells() -> nn.Module:
    return ag.darts_cells(channels=2, cells=3, in_channels=1, classes=3, nodes=3, operations=4)


def quiet(steps: int = 12, **options: object) -> ag.Run:
    return ag.Run(steps=steps, seed=0, device="cpu", progress=False, **options)


def under_darts(space: nn.Module, task: ag.Classification, run: ag.Run, **options: object) -> ag.Found:
    return ag.darts(topology(space, form="table"), task, run, **options)


def under_unas(space: nn.Module, task: ag.Classification, run: ag.Run, **options: object) -> ag.Found:
    return ag.unas(topology(space), task, run, **options)


METHODS: dict[str, Callable[..., ag.Found]] = {
    "toponas": toponas,
    "toponas, table": functools.partial(toponas, terms=ToponasTerms(form="table", temperature=(4.0, 0.1))),
    "darts": under_darts,
    "unas": under_unas,
    "unas, score function": functools.partial(under_unas, terms=Sampled(estimator="score_function")),
    "unas, per image": functools.partial(under_unas, terms=Sampled(per_image=True)),
}


def kept(architecture: ag.Architecture) -> dict[str, tuple[int, ...]]:
    return {name: pick for name, pick in architecture.items() if name.endswith("inputs")}


@pytest.mark.parametrize("name", METHODS)
def test_a_found_cell_is_connected_and_keeps_two_different_inputs_a_node(name: str) -> None:
    space = cells()
    found = METHODS[name](space, images(), quiet(), limit=ag.macs(X).at_most(fraction=0.9))
    assert "none" not in found.record["architecture_text"]
    picks = kept(found.architecture)
    assert len(picks) == 6 and all(len(set(pick)) == 2 for pick in picks.values())
    for graph in found.record["graphs"]:
        reached = {0, 1}
        for edge in graph["edges"]:  # in the order of their targets
            assert edge["source"] in reached
            reached.add(edge["target"])
        assert reached == {0, 1, 2, 3, 4, "out"}
    assert ag.macs(X).of(found.network) <= found.record["limit"]["bound"]
    assert ag.Architecture.from_json(found.architecture.to_json()) == found.architecture
    larger = ag.build(space, found.architecture, cells=5, channels=4)
    assert larger(X.expand(2, -1, -1, -1)).shape == (2, 3)


@pytest.mark.parametrize("keep", [1, (1, 3)])
def test_other_numbers_of_inputs_are_searched_and_built(keep: Keep) -> None:
    space = cells()
    found = toponas(space, images(), quiet(), terms=ToponasTerms(keep=keep))
    sizes = {len(pick) for pick in kept(found.architecture).values()}
    assert sizes <= ({1} if keep == 1 else {1, 2, 3})
    assert sorted(found.record["architecture_text"].split()) and found.network(X).shape == (1, 3)
    larger = ag.build(topology(space, keep=keep), found.architecture, cells=5, channels=4)
    assert larger(X.expand(2, -1, -1, -1)).shape == (2, 3)


class Paired(nn.Module):
    """Of four inputs, parts of x, two carry the label and two carry noise."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = ag.InputChoice(4, name="inputs", keep=2)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inputs(list(x.chunk(4, dim=1))))


def pairs(good: tuple[int, int]) -> ag.Classification:
    x = torch.randn(600, 4, 2, generator=torch.Generator().manual_seed(1))
    y = (x[:, list(good)].sum(dim=(1, 2)) > 0).long()
    return ag.Classification((x.flatten(1), y), batch_size=50)


@pytest.mark.parametrize("name", METHODS)
def test_a_planted_pair_is_found(name: str) -> None:
    """Two pairs are planted in turn: no fixed answer passes."""
    for good in ((0, 2), (1, 3)):
        torch.manual_seed(0)
        # Without a control variate the gradient needs more draws.
        steps = 960 if name == "unas, score function" else 320
        found = METHODS[name](Paired(), pairs(good), quiet(steps=steps))
        assert kept(found.architecture) == {"inputs": good}


def test_the_rule_of_darts_cannot_tell_these_inputs_apart() -> None:
    """Without operations to weigh, all are alike, whatever is planted."""
    assert decision_weights(ag.relax(Paired(), Open))["inputs"].tolist() == [1.0] * 4


def test_under_a_limit_a_subset_is_weighed_by_its_probability() -> None:
    """Were the inputs' marginals summed, more inputs would always be better."""
    space = topology(Paired(), keep=(1, 4))
    with torch.no_grad():
        space.inputs.relaxation.size_logits[0] = 5.0
        space.inputs.relaxation.logits[2] = 3.0
    constraint = ArchitectureConstraint(space, ag.macs(torch.zeros(1, 8)).at_most(fraction=1.0))
    for logarithms in (False, True):
        assert constraint.best_feasible(scores(space, logarithms=logarithms))["inputs"] == (2,)


def test_the_topology_logits_move_in_all_nodes_with_a_choice() -> None:
    torch.manual_seed(0)
    run = quiet(steps=30)
    toponas(cells(), images(), run, search_fraction=1.0)
    rows = [row for row in run.history if "entropy" in row]
    first, last = rows[0], rows[-1]
    for kind, node in itertools.product(("normal", "reduce"), (3, 4)):
        names = [f"weight/{kind}.{node}.inputs/{i}" for i in range(node)]
        assert sum(first[n] for n in names) == pytest.approx(2.0, abs=1e-5)
        assert sum(last[n] for n in names) == pytest.approx(2.0, abs=1e-5)
        assert any(abs(first[n] - last[n]) > 1e-3 for n in names)
    assert [last[f"weight/normal.2.inputs/{i}"] for i in (0, 1)] == pytest.approx([1.0, 1.0])
    assert last["topology_invalid"] < first["topology_invalid"]


def refuses(match: str, error: type[Exception], **options: object) -> None:
    with pytest.raises(error, match=match):
        toponas(cells(), images(), quiet(), **options)


def test_what_cannot_be_searched_is_refused() -> None:
    refuses("has 2 inputs and cannot keep 3", ChoiceError, terms=ToponasTerms(keep=3))
    refuses(r"archgrad\.unas", LimitError, limit=ag.latency(X).at_most(ms=5.0))
    refuses("margin=-1", ConfigError, terms=ToponasTerms(margin=-1.0))
    refuses("reading='margin'", ChoiceError, terms=ToponasTerms(form="table", regularizer="mass"))
    with pytest.raises(ConfigError, match=r"temperatures from 1\.0 to 0\.0"):
        ToponasTerms(temperature=(1.0, 0.0))
    with pytest.raises(ConfigError, match=r"warm_up=1\.0"):
        ToponasTerms(warm_up=1.0)
    with pytest.raises(ChoiceError, match="no InputChoice"):
        toponas(ag.OpChoice([nn.Linear(2, 2)], name="op"), images(), quiet())
    with pytest.raises(ChoiceError, match="topology"):
        ag.unas(cells(), images(), quiet())

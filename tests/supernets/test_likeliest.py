"""The order of the likeliest architectures, and those whose network does not read its input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.likeliest import by_likelihood, ignores_input, likeliest, reading, that_reads_its_input
from archgrad.trials.finalists import Finalists


class Erase(nn.Module):
    """`none`, as spaces write it: zeros, or the input times 0."""

    def __init__(self, *, times: bool = True) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * x if self.times else torch.zeros_like(x)


def quiet(**settings: Any) -> ag.Run:
    return ag.Run(**{"steps": 16, "seed": 1, "device": "cpu", "progress": False, **settings})


def task() -> ag.Classification:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    return ag.Classification((x, (x[:, 0] > 0).long()), batch_size=20)


def drawn(made: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for logit in ag.logits(made):
        logit.data = torch.randn(logit.shape, generator=generator)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_the_enumeration(seed: int) -> None:
    sizes = (2, 3, 4)
    layers = [ag.OpChoice([nn.Identity() for _ in range(n)], name=f"op{n}") for n in sizes]
    made = drawn(ag.relax(nn.ModuleList(layers), ag.softmax), seed)
    logs = [logit.log_softmax(0).tolist() for logit in ag.logits(made)]
    every = sorted(
        itertools.product(*map(range, sizes)), key=lambda a: -sum(row[i] for row, i in zip(logs, a, strict=True))
    )
    assert [tuple(a.values()) for a in by_likelihood(made, ag.decide(made))] == every


def test_what_differs_on_inputs_that_are_not_kept_alone_is_not_another_architecture() -> None:
    made = ag.darts_cells(channels=2, cells=1, in_channels=1, nodes=2, operations=3)
    relax_as_mixture(made)
    found = list(by_likelihood(drawn(made, 0), ag.decide(made)))
    texts = [made.describe(a)["architecture_text"] for a in found]
    # A node has two operations on each of the two inputs that it keeps; the second one keeps a pair of three.
    assert len(set(texts)) == len(found) == 2**2 * 3 * 2**2


def test_the_others_keep_a_limit() -> None:
    first = ag.OpChoice([nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4)], name="first")
    made = ag.relax(nn.Sequential(first, ag.OpChoice([nn.Identity(), nn.ReLU()], name="second")), ag.softmax)
    constraint = ArchitectureConstraint(made, ag.params().at_most(10))
    found = list(by_likelihood(made, ag.Architecture({"first": 1, "second": 0}), constraint))
    assert len(found) == 2 and all(a["first"] == 1 for a in found)


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Refused(Exception):
    pass


def refuses(x: Tensor) -> Tensor:
    raise Refused


ALIVE: dict[str, Callable[[], nn.Module]] = {
    "a layer": lambda: nn.Linear(4, 2),
    "no gradient": lambda: Applied(torch.sign),
    "classes": lambda: Applied(lambda x: x.argmax(1)),
    "norms of a batch": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "a dict": lambda: Applied(lambda x: {"scores": x.mean(1)}),
    "no tensors": lambda: Applied(lambda x: [float(v) for v in 0.0 * x[:, 0]]),
    "nothing found": lambda: Applied(lambda x: {"boxes": x[:0]}),
    "an error of its own": lambda: Applied(refuses),
}
DEAD: dict[str, Callable[[], nn.Module]] = {
    "times 0": lambda: nn.Sequential(Erase(), nn.Linear(4, 2)),
    "zeros": lambda: nn.Sequential(Erase(times=False), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "a weight of 0": lambda: Applied(lambda x: x @ torch.zeros(4, 2)),
    "a dict": lambda: Applied(lambda x: {"scores": 0.0 * x}),
}


class Calls(ag.Classification):
    """Its loss is of no network; the network is called, as by a loss of the user's own."""

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        network(batch[0])
        return torch.zeros(())


def ignores(network: nn.Module, *, rows: tuple[int, int] = (20, 20), dtype: torch.dtype = torch.float32) -> bool:
    x = torch.randn(sum(rows), 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.arange(sum(rows)) % 2
    return ignores_input(network, calls(), [(x[: rows[0]], y[: rows[0]]), (x[rows[0] :], y[rows[0] :])])


def calls() -> Calls:
    return Calls((torch.randn(40, 4), torch.arange(40) % 2), batch_size=20)


@pytest.mark.parametrize("rows", [(20, 20), (20, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(("made", "dead"), [(m, False) for m in ALIVE.values()] + [(m, True) for m in DEAD.values()])
def test_what_ignores_its_input(made: Callable[[], nn.Module], dead: bool, rows: tuple[int, int]) -> None:
    network = made().train()
    if dead or rows != (1, 1):  # two samples alone may be of one class
        assert ignores(network, rows=rows) is dead
    assert all(module.training for module in network.modules()) and not network._forward_hooks


def test_words_are_never_invented() -> None:
    """Ids out of their range are an error, on a GPU one that ends the process."""
    seen = list[Tensor]()
    ignores(Applied(lambda x: seen.append(x) or x.float()), dtype=torch.long)
    given = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).long()
    assert all(bool((given == row).all(1).any()) for batch in seen for row in batch)


def test_batches_of_the_same_samples_say_nothing() -> None:
    x, y = torch.ones(3, 4), torch.arange(3) % 2
    assert not ignores_input(DEAD["times 0"](), calls(), [(x, y), (x, y)])


def chain(depth: int, *, times: bool) -> nn.Module:
    layers = [
        ag.OpChoice({"erase": Erase(times=times), "layer": nn.Linear(4, 4), "pass": nn.Identity()}, name=f"at{i}")
        for i in range(depth)
    ]
    return nn.Sequential(*layers, nn.Linear(4, 2))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_that_reads_its_input_takes_the_place_of_one_that_does_not(
    seed: int, depth: int, times: bool
) -> None:
    made, run = drawn(ag.relax(chain(depth, times=times), ag.softmax), seed), quiet()
    for logit in ag.logits(made):
        logit.data[0] += 2.0 * (seed > 0)  # likely to erase
    run.begin("test", {})
    logs = [logit.log_softmax(0).tolist() for logit in ag.logits(made)]
    every = sorted(
        itertools.product((1, 2), repeat=depth), key=lambda a: -sum(row[i] for row, i in zip(logs, a, strict=True))
    )
    found = that_reads_its_input(made, ag.decide(made), task(), run)
    assert tuple(found.values()) == (
        tuple(ag.decide(made).values()) if 0 not in ag.decide(made).values() else every[0]
    )
    assert any("same whatever its input" in note for note in run.notes) == (0 in ag.decide(made).values())


def test_the_next_likeliest_reads_its_input_too() -> None:
    made, run = ag.relax(chain(2, times=True), ag.softmax), quiet()
    for logit in ag.logits(made):
        logit.data = torch.tensor([9.0, 0.0, -1.0])
    run.begin("test", {})
    own = that_reads_its_input(made, ag.decide(made), task(), run)
    found = likeliest(made, own, 3, reads=reading(made, task(), run))
    assert found[0] == own and len(found) == 3 and all(0 not in each.values() for each in found)


def test_a_deep_network_of_which_each_layer_erases_is_repaired_or_told() -> None:
    made, run = ag.relax(chain(7, times=True), ag.softmax), quiet()
    for logit in ag.logits(made):
        logit.data = torch.tensor([9.0, 0.0, -9.0])
    run.begin("test", {})
    found = that_reads_its_input(made, ag.decide(made), task(), run)
    assert any("same whatever its input" in note for note in run.notes)
    assert set(found.values()) == {1} or any("no other that was tried" in note for note in run.notes)


def test_under_a_limit_what_is_likelier_and_over_it_uses_up_no_trials() -> None:
    made, run = ag.relax(chain(5, times=True), ag.softmax), quiet()
    for logit in ag.logits(made):
        logit.data = torch.tensor([2.0, 5.0, 0.0])  # layers are likeliest, and over the limit
    run.begin("test", {})
    constraint = ArchitectureConstraint(made, ag.params().at_most(35))
    own = ag.Architecture({f"at{i}": 0 if i == 2 else 2 for i in range(5)})
    found = that_reads_its_input(made, own, task(), run, constraint)
    assert 0 not in found.values() and constraint.is_feasible(found)


def test_a_measured_limit_is_read_for_few_that_are_over_it() -> None:
    made, readings = drawn(ag.relax(chain(5, times=True), ag.softmax), 0), list[int]()

    def measure(network: nn.Module) -> float:
        readings.append(0)
        return 1.0 + sum(p.numel() for p in network.parameters())

    constraint = ArchitectureConstraint(made, ag.black_box(measure, name="latency", unit="ms").at_most(30.0))
    run = quiet()
    run.begin("test", {})
    constraint.fit_surrogate(run)
    own, before = ag.Architecture({f"at{i}": 0 for i in range(5)}), len(readings)
    found = list(by_likelihood(made, own, constraint))
    assert found[0] == own and len({tuple(each.values()) for each in found}) == len(found)
    assert len(readings) - before < 30 * 40 < 3**5 * 15


@pytest.mark.parametrize("keep", [8, 12])
def test_a_node_with_many_subsets_of_inputs_costs_nothing_where_its_network_reads_them(keep: int) -> None:
    class Node(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.head = ag.InputChoice(24, keep=keep, name="inputs"), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inputs([x] * 24))

    found = ag.toponas(Node(), task(), quiet(), finalists=None)
    assert len(found.architecture["inputs"]) == keep


def test_where_no_network_reads_its_input_the_likeliest_stays() -> None:
    made, run = ag.relax(chain(2, times=True), ag.softmax), quiet()
    nn.init.zeros_(made[-1].weight)
    run.begin("test", {})
    assert that_reads_its_input(made, ag.decide(made), task(), run) == ag.decide(made)
    assert "no other that was tried" in run.notes[-1]


METHODS: dict[str, Callable[..., ag.Found]] = {
    "darts": ag.darts, "darts_prime": ag.darts_prime, "unas": ag.unas,
}  # fmt: skip


@pytest.mark.parametrize("ending", [None, Finalists()], ids=("published", "finalists"))
@pytest.mark.parametrize("name", METHODS)
def test_no_search_hands_back_a_network_that_does_not_read_its_input(name: str, ending: Finalists | None) -> None:
    """A prior that nothing in so short a search overcomes: without the check all of them erase their input."""
    space = chain(2, times=True)
    prior = {f"at{i}": torch.tensor([9.0, 0.0, -1.0]) for i in range(2)}
    run = quiet(steps=400 if ending else 16)
    found = METHODS[name](space, task(), run, prior=prior, finalists=ending)
    assert 0 not in found.architecture.values()

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
from archgrad.supernets.likeliest import by_likelihood, likeliest, reads_input
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


ALIVE: dict[str, Callable[[], nn.Module]] = {
    "a layer": lambda: nn.Linear(4, 2),
    "no gradient": lambda: Applied(torch.sign),
    "rounded": lambda: Applied(lambda x: x.round()),
    "norms of a batch": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "a dict": lambda: Applied(lambda x: {"scores": x.mean(1)}),
}
DEAD: dict[str, Callable[[], nn.Module]] = {
    "times 0": lambda: nn.Sequential(Erase(), nn.Linear(4, 2)),
    "zeros": lambda: nn.Sequential(Erase(times=False), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "a weight of 0": lambda: Applied(lambda x: x @ torch.zeros(4, 2)),
    "a dict": lambda: Applied(lambda x: {"scores": 0.0 * x}),
}


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("inputs", [torch.zeros(3, 4), torch.ones(1, 4), torch.randn(3, 4)], ids=("0", "1", "drawn"))
@pytest.mark.parametrize(("made", "reads"), [(m, True) for m in ALIVE.values()] + [(m, False) for m in DEAD.values()])
def test_what_reads_its_input(made: Callable[[], nn.Module], reads: bool, inputs: Tensor) -> None:
    network = made().train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert reads_input(network, inputs) is reads
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


class Words(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(7, 3), scale

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.scale * (self.table(tokens) * mask[..., None]).sum(1)


@pytest.mark.parametrize("tokens", [torch.tensor([[0, 6, 2]]), torch.tensor([[3, 3, 3]])], ids=("several", "one"))
def test_words_and_masks_stay_in_their_range(tokens: Tensor) -> None:
    mask = torch.tensor([[True, True, False]])
    assert reads_input(Words(1.0), (tokens, mask))
    assert not reads_input(Words(0.0), (tokens, mask))


def test_what_cannot_be_tried_is_taken_to_read() -> None:
    assert reads_input(nn.Embedding(3, 2), torch.tensor([1, 1]))  # the only other values may be out of its range
    assert reads_input(Applied(lambda x: 1 / 0), torch.ones(2))


def chain(depth: int, *, times: bool) -> nn.Module:
    layers = [
        ag.OpChoice({"erase": Erase(times=times), "layer": nn.Linear(4, 4), "pass": nn.Identity()}, name=f"at{i}")
        for i in range(depth)
    ]
    return nn.Sequential(*layers, nn.Linear(4, 2))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_are_the_likeliest_that_read_their_input(seed: int, depth: int, times: bool) -> None:
    made, run = drawn(ag.relax(chain(depth, times=times), ag.softmax), seed), quiet()
    for logit in ag.logits(made):
        logit.data[0] += 2.0 * (seed > 0)  # likely to erase
    run.begin("test", {})
    logs = [logit.log_softmax(0).tolist() for logit in ag.logits(made)]
    every = sorted(
        itertools.product((1, 2), repeat=depth), key=lambda a: -sum(row[i] for row, i in zip(logs, a, strict=True))
    )
    found = itertools.islice(likeliest(made, ag.decide(made), task().example, run), 2)
    assert [tuple(a.values()) for a in found] == every[:2]
    assert any("same whatever its input" in note for note in run.notes) == (0 in ag.decide(made).values())


def test_where_no_network_reads_its_input_the_likeliest_stays() -> None:
    made, run = ag.relax(chain(2, times=True), ag.softmax), quiet()
    nn.init.zeros_(made[-1].weight)
    run.begin("test", {})
    assert next(likeliest(made, ag.decide(made), task().example, run)) == ag.decide(made)
    assert not run.notes


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

"""Rows of embeddings that no batch reads are gone; ids stay what they were."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from families.checks import assert_plain, difference, extremes, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold
from archgrad.errors import DataError, ModelError
from archgrad.extract.discretize import build
from archgrad.tasks.task import call

WORDS, KINDS, WIDTH = 40, 9, 6


class Reader(nn.Module):
    """Words, kinds and positions; the output layer has the weight of the words' table if it is tied."""

    def __init__(self, *, padding: int | None = None, tied: bool = False) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(WORDS, WIDTH, padding_idx=padding), nn.Embedding(KINDS, WIDTH)
        self.positions, self.norm = nn.Embedding(12, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor, kinds: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
        x = x if kinds is None else x + self.kinds(kinds)
        return self.head(self.norm(x + self.down(self.up(x).relu())))


def drawn(seed: int) -> tuple[Reader, list[Any], set[int], set[int]]:
    """A network, batches as tensors, tuples or dicts, and the words and kinds in them."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    words, kinds = draw.sample(range(WORDS), 15), draw.sample(range(KINDS), 4)
    ids = [torch.tensor(words)[torch.randint(15, (2, draw.randint(3, 8)), generator=generator)] for _ in range(5)]
    marks = [torch.tensor(kinds)[torch.randint(4, x.shape, generator=generator)] for x in ids]
    way = draw.choice(["lone", "tuple", "names"])
    made = {"lone": lambda x, k: x, "tuple": lambda x, k: (x, k), "names": lambda x, k: {"ids": x, "kinds": k}}[way]
    seen = {i for x in ids for i in x.flatten().tolist()}
    used = set() if way == "lone" else {k for x in marks for k in x.flatten().tolist()}
    net = Reader(padding=draw.choice([None, words[0]])).double()
    return net, [made(x, k) for x, k in zip(ids, marks, strict=True)], seen, used


def computed(net: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return call(net, batch)


@pytest.mark.parametrize("seed", range(9))
def test_what_some_batch_reads_is_computed_exactly_and_the_rest_is_gone(seed: int) -> None:
    net, batches, words, kinds = drawn(seed)
    small = ag.trim_vocabulary(net, batches)
    for batch in batches:
        assert torch.equal(computed(small, batch), computed(net, batch))
    padding = net.words.padding_idx
    assert small.words.table.weight.shape == (len(words | ({padding} if padding is not None else set())), WIDTH)
    assert (
        (small.kinds.table.weight.shape == (len(kinds), WIDTH))
        if kinds
        else (small.kinds.weight.shape == (KINDS, WIDTH))
    )
    assert small.positions.weight.shape == (12, WIDTH), "positions are no inputs"
    assert net.words.weight.shape == (WORDS, WIDTH)
    missing = min(set(range(WORDS)) - words - {padding})
    with pytest.raises(IndexError):
        small(torch.tensor([[missing]]))
    known = ag.trim_vocabulary(net, batches, unseen=missing)
    other = min(set(range(WORDS)) - words - {padding, missing})
    assert torch.equal(known(torch.tensor([[other, missing]]))[:, 0], net(torch.tensor([[missing, missing]]))[:, 0])
    assert_plain(small)
    with torch.no_grad():
        exported = torch.export.export(small.eval(), (torch.tensor([[min(words)] * 3]),)).module()
        assert torch.equal(exported(torch.tensor([[max(words)] * 3])), net(torch.tensor([[max(words)] * 3])))
    again = ag.trim_vocabulary(Reader(padding=padding).double(), batches)
    again.load_state_dict(small.state_dict())
    assert torch.equal(computed(again, batches[0]), computed(net, batches[0]))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_of_a_table_is_slimmed_and_trained_as_any_other(seed: int) -> None:
    net, batches, _, _ = drawn(seed)
    small = ag.trim_vocabulary(net, batches)
    space = ag.slim(small, batches[0])
    assert sorted(same[0].size for same in choices(space).values()) == [1, WIDTH, 7]
    stir(space)
    for architecture in extremes(space):
        built, held = build(space, architecture), hold(space, architecture)
        assert difference([computed(held, batches[0])], [computed(built, batches[0])]) < 1e-9
        assert float(ag.params().expected(held)) == pytest.approx(ag.params().of(built), rel=1e-9)
    call(small, batches[0]).square().sum().backward()
    assert small.words.table.weight.grad is not None and small.words.table.weight.grad.any()


def test_rows_that_an_output_layer_shares_stay() -> None:
    ids = torch.randint(0, 5, (2, 4))
    tied = Reader(tied=True)
    with pytest.raises(ModelError, match="shares its weight with no other layer; name those to trim"):
        ag.trim_vocabulary(tied, [ids])
    with pytest.raises(ModelError, match="needs all its rows"):
        ag.trim_vocabulary(tied, [ids], tables=["words"])
    assert ag.trim_vocabulary(tied, [ids], tables=["positions"]).positions.table.weight.shape == (4, WIDTH)


@pytest.mark.parametrize(
    ("batches", "options", "error", "words"),
    [
        ([], {}, DataError, "batches is empty"),
        ([torch.zeros(1, 2).long()], {"tables": ["norm"]}, ModelError, r"are \['words', 'kinds', 'positions'\]"),
        ([torch.zeros(1, 2).long()], {"unseen": WORDS}, ModelError, "from 0 to 39"),
    ],
)
def test_wrong_calls_say_what_is_allowed(batches: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ag.trim_vocabulary(Reader(), batches, **options)


@pytest.mark.parametrize("wrong", [-1, -100, 100])
def test_ids_that_the_network_refuses_are_refused_as_before(wrong: int) -> None:
    net = nn.Sequential(nn.Embedding(100, 4), nn.Flatten(), nn.Linear(12, 2))
    small = ag.trim_vocabulary(net, [torch.tensor([[3, 98, 5]])], unseen=3)
    ids = torch.tensor([[3, wrong, 5]])
    for network in (net, small):
        with pytest.raises(IndexError, match="out of range"):
            network(ids)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_computed_weights_are_refused(norm: Any) -> None:
    net = nn.Sequential(norm(nn.Embedding(10, 4)), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ModelError, match=r"weight of \['0'\] is computed .*remove_parametrizations"):
        ag.trim_vocabulary(net, [torch.tensor([[3, 8, 5]])])


class ReadsTable(nn.Module):
    """Divides by the number of rows, or reads the weight itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.how = nn.Embedding(10, 4), how

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.how == "weight":
            return self.table(ids) + self.table.weight.mean()
        return self.table(ids) / sum(p.shape[0] for p in self.table.parameters())


@pytest.mark.parametrize("how", ["weight", "rows"])
def test_a_network_that_would_compute_something_else_is_refused(how: str) -> None:
    with pytest.raises(ModelError, match="does not compute the same"):
        ag.trim_vocabulary(ReadsTable(how), iter([torch.tensor([[3, 8, 5]])]))


def test_what_cannot_be_trimmed_is_told_and_the_network_stays_as_it_was() -> None:
    ids, net = torch.randint(0, 50, (4, 3)), nn.Sequential(nn.Embedding(60, 4), nn.Flatten(), nn.Linear(12, 2))
    loader = [(ids, torch.zeros(4))]
    for wrong, message in (
        (loader, r"inputs alone: batches=\[x for x, _ in loader\]"), ([ids.float()], "ids as integers"),
        ([ids.numpy()], "does not run on a batch"), ([ids + 60], "does not run on a batch"), (ids, "such as"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            ag.trim_vocabulary(net, wrong)
    with pytest.raises(ModelError, match="has gates"):
        ag.trim_vocabulary(ag.slim(net, ids), [ids])
    with pytest.raises(ModelError, match="an embedding itself"):
        ag.trim_vocabulary(nn.Embedding(60, 4), [ids])
    net[0].max_norm, before = 0.1, net[0].weight.clone()
    ag.trim_vocabulary(net, [ids])
    assert torch.equal(net[0].weight, before)

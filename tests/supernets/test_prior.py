"""Scores of untrained networks as a warm start."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.choices.access import choices, relax
from archgrad.errors import ChoiceError, ConfigError
from archgrad.proxies.flow import mean_channels, synflow_each
from archgrad.supernets.prior import prior, prior_of_candidates, warm_start
from archgrad.tasks.tabular_benchmark import Tabular

WORTH = torch.tensor([0.0, 1.0, 2.0, 5.0, 1.5])


def space() -> nn.Module:
    torch.manual_seed(0)
    return ag.nasbench201_cells(channels=1, cells=1)


def additive(some: Sequence[ag.Architecture]) -> list[float]:
    return [sum(float(WORTH[pick]) for pick in a.values()) for a in some]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(given: dict[str, torch.Tensor], count: int, seed: int) -> list[ag.Architecture]:
    g = generator(seed)
    picks = {n: torch.multinomial(v.softmax(0), count, replacement=True, generator=g) for n, v in given.items()}
    return [ag.Architecture({n: int(p[i]) for n, p in picks.items()}) for i in range(count)]


def test_additive_scores_give_their_own_order() -> None:
    found = prior(space(), additive, samples=400, generator=generator())
    assert list(found) == list(choices(space()))
    for logits in found.values():
        assert logits.argsort().tolist() == WORTH.argsort().tolist()
        assert abs(float(logits.mean())) < 1e-6


def test_scores_that_say_nothing_and_strength_0_say_nothing() -> None:
    assert all(not v.any() for v in prior(space(), lambda some: [1.0] * len(some), samples=50).values())
    assert all(not v.any() for v in prior(space(), additive, samples=50, strength=0.0).values())
    noise = prior(space(), lambda some: torch.rand(len(some), generator=generator()).tolist(), samples=400)
    assert max(float(v.abs().max()) for v in noise.values()) < 0.6


def test_only_the_order_of_scores_counts_and_undefined_ones_are_lowest() -> None:
    plain = prior(space(), additive, samples=200, generator=generator())
    bent = prior(space(), lambda some: [math.exp(s) for s in additive(some)], samples=200, generator=generator())
    assert all(torch.allclose(plain[n], bent[n]) for n in plain)

    def broken(some: Sequence[ag.Architecture]) -> list[float]:
        return [math.nan if a["1.0"] == 3 else s for a, s in zip(some, additive(some), strict=True)]

    assert int(prior(space(), broken, samples=400, generator=generator())["1.0"].argmin()) == 3


def test_sampling_from_it_scores_higher_by_what_the_docstring_says() -> None:
    found = prior(space(), additive, samples=500, strength=1.0, generator=generator())
    uniform = torch.tensor(additive(drawn({n: torch.zeros(5) for n in found}, 2000, 1)))
    tilted = torch.tensor(additive(drawn(found, 2000, 2)))
    # An additive score is predicted whole, so that one unit of strength is about one standard deviation.
    assert 0.7 < float((tilted.mean() - uniform.mean()) / uniform.std()) < 1.3


def test_picks_of_several_entries() -> None:
    torch.manual_seed(0)
    cells = ag.darts_cells(channels=4, cells=3, classes=10)
    name = next(n for n, same in choices(cells).items() if isinstance(same[0], ag.InputChoice) and same[0].size > 3)

    def score(some: Sequence[ag.Architecture]) -> list[float]:
        return [float(1 in a[name]) for a in some]  # type: ignore[operator]

    assert int(prior(cells, score, samples=200, generator=generator())[name].argmax()) == 1


def test_warm_start_adds_to_logits_that_are_there() -> None:
    relaxed = relax(space(), ag.softmax)
    given = prior(relaxed, additive, samples=100, generator=generator())
    warm_start(relaxed, {"1.0": given["1.0"]})
    warm_start(relaxed, {"1.0": given["1.0"]})
    found = {n: same[0].relaxation.logits for n, same in choices(relaxed).items()}
    assert torch.allclose(found["1.0"], 2 * given["1.0"])
    assert not found["2.0"].any()
    warm_start(space(), given)  # not relaxed: nothing to add to


def test_shares_are_the_probabilities() -> None:
    found = prior_of_candidates({"a": [3.0, 1.0, 0.0], "b": [0.0, 0.0]}, least=0.02)
    assert torch.allclose(found["a"].softmax(0), torch.tensor([0.75, 0.25, 0.02]) / 1.02)
    assert torch.allclose(found["b"].softmax(0), torch.full((2,), 0.5))
    with pytest.raises(ConfigError, match="not negative"):
        prior_of_candidates({"a": [1.0, -1.0]})
    with pytest.raises(ConfigError, match="least=0"):
        prior_of_candidates({"a": [1.0]}, least=0.0)


@pytest.mark.parametrize("method", [ag.darts, ag.unas])
def test_a_search_begins_where_the_prior_says(method: Callable[..., ag.Found]) -> None:
    task = ag.Classification.load("digits", batch_size=64)
    cells = ag.nasbench201_cells(channels=4, cells=1, in_channels=1)
    given = {name: torch.tensor([0.0, 0.0, 0.0, 0.0, 30.0]) for name in choices(cells)}
    quiet = {"steps": 8, "seed": 0, "progress": False, "device": "cpu"}
    found = method(cells, task, ag.Run(**quiet), prior=given)
    assert set(found.architecture.values()) == {4}
    assert set(method(cells, task, ag.Run(**quiet)).architecture.values()) != {4}
    with pytest.raises(ChoiceError, match="another space"):
        method(cells, task, ag.Run(**quiet), prior={"x": torch.zeros(5)})


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="samples=1"):
        prior(space(), additive, samples=1)
    with pytest.raises(ConfigError, match="strength=-1"):
        prior(space(), additive, strength=-1)
    with pytest.raises(ConfigError, match="3 scores for 10"):
        prior(space(), lambda some: [1.0] * 3, samples=10)
    with pytest.raises(ChoiceError, match="another space"):
        warm_start(space(), {"other": torch.zeros(5)})
    with pytest.raises(ChoiceError, match="5 finite logits"):
        warm_start(space(), {"1.0": torch.zeros(4)})
    with pytest.raises(ChoiceError, match="5 finite logits"):
        warm_start(space(), {"1.0": torch.full((5,), math.nan)})


def test_synflow_reaches_a_good_cell_in_fewer_trials() -> None:
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "nasbench201" / "nasbench201.npz"
    if not path.is_file():
        pytest.skip("needs the table of NAS-Bench-201: set ARCHGRAD_DATA to the folder that holds nasbench201/")
    table, torch_space = Tabular.load(path, data="cifar100"), ag.nasbench201_cells()
    small, x = mean_channels(torch_space), torch.ones(1, 1, 16, 16)
    found = prior(small, lambda some: synflow_each(small, some, x), samples=300, generator=generator())
    nothing = {name: torch.zeros_like(v) for name, v in found.items()}
    backwards = {name: -v for name, v in found.items()}

    def trials(given: dict[str, torch.Tensor]) -> list[int]:
        first = []
        for seed in range(30):
            scores = [table.score(a) for a in drawn(given, 2000, seed)]
            first.append(next((i for i, s in enumerate(scores, 1) if s >= 71.0), 2000))
        return sorted(first)

    with_it, without, against = (trials(given)[15] for given in (found, nothing, backwards))  # medians
    assert 2 * with_it < without < against, (with_it, without, against)

"""Every method on one tiny task with a planted best answer. A new method is one line in METHODS."""

from __future__ import annotations

import collections
import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import safetensors.torch
import torch
from planted import EXAMPLE, GATES, INPUTS, SUPERNET, Problem, limit, task
from torch import nn

import archgrad as ag
from archgrad.choices.subsets import topology
from archgrad.errors import LimitError
from archgrad.methods import DartsPrimeTerms, RadarsTerms, ToponasTerms, UnasTerms
from archgrad.trials.successive_halving import Halving

SLIM = functools.partial(ag.dnal, pretrained=True, round_to=1, gate_epochs=3)


def _on(method: Callable[..., ag.Found], form: Literal["table", "factorized"]) -> Callable[..., ag.Found]:
    """The method on a space whose inputs have distributions over subsets."""

    def search(space: nn.Module, task: ag.Classification, run: ag.Run, *, limit: ag.Limit | None) -> ag.Found:
        return method(topology(space, form=form), task, run, limit=limit)

    return search


def _front(space: nn.Module, task: ag.Classification, run: ag.Run, *, limit: ag.Limit) -> ag.Found:
    """The network of a front at the limit's budget, in the run's folder."""
    assert limit.fraction is not None
    front = ag.slim_front(
        space, task, run, cost=limit.cost, fractions=(limit.fraction,), pretrained=True, round_to=1
    )  # fmt: skip
    found = front.points[-1].found
    if run.folder:
        found.save(run.folder)
    return found


METHODS: dict[str, tuple[Callable[..., ag.Found], Problem]] = {
    "dnal": (SLIM, GATES),
    "dnal, published": (functools.partial(SLIM, sparsity=3.0), GATES),
    "dnal, from scratch": (functools.partial(ag.dnal, round_to=1, gate_epochs=2), GATES),
    "slim_front": (_front, GATES),
    "darts": (ag.darts, SUPERNET),
    "darts, second order": (functools.partial(ag.darts, second_order=True), SUPERNET),
    # From the published threshold, 1, the architecture would move at once, on untrained weights.
    "darts_prime": (functools.partial(ag.darts_prime, terms=DartsPrimeTerms(threshold=1e-3)), SUPERNET),
    # At f = 10 clipped weights have too few steps here: they keep what they began with.
    "darts_prime, clipped and ADMM": (
        functools.partial(ag.darts_prime, terms=DartsPrimeTerms(f=2, activation="clipped", regularizer="admm")),
        SUPERNET,
    ),
    # Weights that are drawn afresh have to learn something in the steps of a round.
    "pruning_transfer": (
        functools.partial(
            ag.pruning_transfer,
            search_fraction=0.8,
            recipe=ag.Recipe(optimizer_factory=functools.partial(ag.adam, learning_rate=0.05)),
        ),
        INPUTS,
    ),
    "pruning_transfer, frozen": (
        functools.partial(ag.pruning_transfer, process="frozen", search_fraction=0.8),
        GATES,
    ),
    "toponas": (ag.toponas, SUPERNET),
    "toponas, table": (
        functools.partial(ag.toponas, terms=ToponasTerms(form="table", temperature=(2.0, 0.2))),
        SUPERNET,
    ),
    "darts, topology": (_on(ag.darts, "table"), SUPERNET),
    "unas, topology": (_on(ag.unas, "factorized"), SUPERNET),
    "radars": (ag.radars, SUPERNET),
    "radars, bound": (
        # In so short a search episodes of four steps leave the policy too few draws.
        functools.partial(
            ag.radars, memory=ag.peak_memory(EXAMPLE).at_most(peak_bytes=44_000), terms=RadarsTerms(episode_steps=2)
        ),
        SUPERNET,
    ),
    "monas": (ag.monas, SUPERNET),
    # Its own rate is for epochs of training, and the first round has five steps.
    "multimodal_random": (functools.partial(ag.multimodal_random, recipe=ag.Recipe()), SUPERNET),
    "unas": (ag.unas, SUPERNET),
    "unas, per image": (functools.partial(ag.unas, terms=UnasTerms(per_image=True)), SUPERNET),
    "unas, score function": (functools.partial(ag.unas, terms=UnasTerms(estimator="score_function")), SUPERNET),
    "random_search": (ag.random_search, SUPERNET),
    "random_search, halving": (functools.partial(ag.random_search, halving=Halving()), SUPERNET),
    "random_search, shared": (functools.partial(ag.random_search, shared=True), SUPERNET),
}
every_method = pytest.mark.parametrize("name", METHODS)
HERE = Path(__file__).parent


def quiet(name: str, **settings: object) -> ag.Run:
    epochs = METHODS[name][1].epochs
    return ag.Run(
        **{
            "epochs": epochs,
            "seed": 3,
            "device": "cpu",
            "progress": False,
            "output": ag.Output(log_every=1),
            "trials": 18,
            **settings,
        }
    )


def found_by(name: str, run: ag.Run, *, limit: ag.Limit | None, space: nn.Module | None = None) -> ag.Found:
    method, problem = METHODS[name]
    return method(space or problem.space(), task(), run, limit=limit)


@pytest.mark.parametrize("name", [n for n in METHODS if "scratch" not in n])
def test_finds_the_planted_answer(name: str) -> None:
    # Weights that learn beside the gates need some steps in each of the rounds to tell units apart.
    longer = {"dnal": functools.partial(SLIM, gate_epochs=9), "slim_front": _front}
    method, problem = METHODS[name]
    # Without the relaxed loss as control variate the gradient is so noisy that half of the seeds need more steps.
    epochs = {"unas, score function": 120} | dict.fromkeys(longer, 18)
    run = quiet(name, epochs=epochs[name]) if name in epochs else quiet(name)
    found = longer.get(name, method)(problem.space(), task(), run, limit=limit())
    assert problem.answered(found.architecture), found.architecture
    assert found.score is not None and found.score > 0.9


@every_method
def test_same_seed_same_result_and_another_seed_another(name: str) -> None:
    first, again, other = (
        found_by(name, quiet(name, seed=s, epochs=6), limit=limit()).network.state_dict() for s in (3, 3, 4)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(k in other and first[k].shape == other[k].shape and torch.equal(first[k], other[k]) for k in first)


@every_method
def test_leaves_the_space_as_it_was(name: str) -> None:
    given = METHODS[name][1].space()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    found_by(name, quiet(name, epochs=6), limit=limit(), space=given)
    after = given.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@every_method
@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.3])
def test_obeys_its_limit_on_a_recount(name: str, fraction: float) -> None:
    problem, cost = METHODS[name][1], ag.macs(EXAMPLE)
    found = found_by(name, quiet(name, epochs=6), limit=limit(fraction))
    assert cost.of(found.network) <= fraction * problem.reference()
    assert cost.of(found.network) > (fraction - problem.tight) * problem.reference()


@every_method
def test_refuses_a_limit_that_nothing_meets_and_says_what_is_reachable(name: str) -> None:
    with pytest.raises(LimitError, match=f"lowest reachable is {METHODS[name][1].lowest}"):
        found_by(name, quiet(name), limit=limit(0.01))


@every_method
def test_stops_on_a_budget_of_steps(name: str) -> None:
    run = quiet(name, epochs=None, steps=40)
    found_by(name, run, limit=limit())
    assert sum(1 for row in run.history if "loss" in row) == 40


@pytest.mark.parametrize("name", ["unas", "darts", "random_search", "random_search, shared"])
def test_a_budget_of_seconds_is_shared_with_the_training(name: str) -> None:
    run = quiet(name, epochs=1000, seconds=1.5, trials=2)
    found_by(name, run, limit=None)
    assert sum(row["phase"] == "train" for row in run.history) > 1


def test_a_gap_of_pairs_prefers_what_answers_always_the_same() -> None:
    """Why the difference of the batch means is UNAS's default here."""
    terms = UnasTerms(gap="pairwise", warm_up=0.5, weights_at="policy")
    run = quiet("unas", seed=1)
    found = ag.unas(SUPERNET.space(), task(), run, limit=limit(), terms=terms)
    assert any("puts out the same whatever its input is" in note for note in run.notes), "it erases everything"
    assert found.architecture["entries"] != 2, "another operation takes its place"


@every_method
def test_architecture_survives_json_and_builds_the_same_network(name: str, tmp_path: Path) -> None:
    found = found_by(name, quiet(name, epochs=6, folder=tmp_path / "run"), limit=limit())
    loaded = ag.Architecture.load(tmp_path / "run" / "architecture.json")
    assert loaded == found.architecture
    network = ag.build(METHODS[name][1].space(), loaded)
    safetensors.torch.load_model(network, tmp_path / "run" / "network.safetensors")
    x = torch.randn(5, 8)
    assert torch.equal(network.eval()(x), found.network(x))
    plain = torch.export.load(tmp_path / "run" / "network.pt2").module()
    assert torch.allclose(plain(x), found.network(x), atol=1e-5)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["after"]["macs"] == found.costs["macs"]


KILLED_IN = {
    "dnal": ("gates", "finetune"),
    "dnal, published": ("gates",),
    "slim_front": ("gates-0.5", "train-0.5"),
    "darts": ("search",),
    "darts_prime": ("search",),
    "darts_prime, clipped and ADMM": ("search",),
    "pruning_transfer": ("gates", "train"),
    "toponas": ("search",),
    "radars, bound": ("explore-0", "exploit-0-search"),
    "monas": ("trial",),
    "multimodal_random": ("trial", "train"),
    "unas": ("search", "train"),
    "random_search": ("trial",),
    "random_search, shared": ("supernet",),
}


@pytest.mark.parametrize("name", KILLED_IN)
def test_resumes_exactly_after_being_killed(name: str, tmp_path: Path) -> None:
    whole = found_by(name, quiet(name, epochs=6), limit=limit())
    for phase in KILLED_IN[name]:
        assert forked(name, tmp_path / phase, killed_in=phase) == -signal.SIGKILL
        assert not (tmp_path / phase / "network.safetensors").exists(), "it was to be killed in mid-run"
        assert forked(name, tmp_path / phase) == 0
        resumed = safetensors.torch.load_file(tmp_path / phase / "network.safetensors")
        assert all(torch.equal(resumed[k], v) for k, v in whole.network.state_dict().items())


def forked(name: str, folder: Path, *, killed_in: str = "") -> int:
    """The exit status of a process that runs the method, or kills itself with the third record of a phase."""
    pid = os.fork()
    if pid == 0:
        seen: collections.Counter[str] = collections.Counter()

        def told(record: dict[str, object]) -> None:
            seen[str(record["phase"])] += 1
            if seen[killed_in] == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 70
        try:
            run = quiet(
                name, epochs=6, folder=folder, output=ag.Output(log_every=1, checkpoint_seconds=0.0, on_log=told)
            )
            found_by(name, run, limit=limit())
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

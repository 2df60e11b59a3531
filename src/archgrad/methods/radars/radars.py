"""RADARS: search any space under a bound on memory, by exploring it path by path and descending in what fits.

Paper: Yan, Jiang, Hu, Shi, "RADARS: memory efficient reinforcement learning aided differentiable neural architecture
search", arXiv 2109.05691 (ASP-DAC 2022). Its full text was not at hand: the abstract and a survey say that a learner
by reinforcement explores and prunes, that a differentiable method runs in the subspace that is left, that the two
alternate, and that the memory is bounded whatever the size of the space. All else is reconstructed. Implemented, with
sites l, policy pi_l, active candidates A_l, subspace S_l, price table m[l, o] and bound B:

    refuse B if the dearest single path does not fit;  if all fits, S = all and there is nothing to explore
    for each round:
        explore:  draw paths a ~ pi on A; build a alone, its weights from file; train it; R(a); step of the policy
                  grad = (R - b) sum_l grad log pi_l(a_l) + lambda_H sum_l grad H(pi_l)
        prune:    drop o from A_l where pi_l(o) < 0.2 / n_l
        choose:   S = argmax_l of pi_l, then pairs (l, o) by pi_l(o) / m[l, o], while M(S) <= 0.9 B
        exploit:  a differentiable method searches S; its weights go back to file
        feed back: theta_l[S_l] += 0.5 (log w_l - mean log w_l), w its mixing weights;  a step on what it found
        prune:    drop o from A_l where w_l(o) < 0.2 / k_l, k_l candidates being in S_l
    derive: the architecture of the round that scored best on validation data (`finalists=None`); by default the best
            of few, of the rounds and of random draws, trained apart; trained from fresh weights

What is open, and what is done here, all of it ours:
- M(S) goes by a prediction of the peak; pairs are taken out again where it is too high, as when measured.
- The reward is exp(-loss) on a validation batch; the first episodes are drawn uniformly and do not update the policy.
  Choices of inputs are not shrunk: paths draw them too, and the inner method has all of them.
- A candidate is pruned when it is low once; the reconstruction asks for two rounds in a row (`patience=2`), in which
  a search of three rounds hardly prunes. The likeliest of a site stays. `standard_errors=1.0` prunes by rewards.
- `limit` bounds what is found; it prices the whole space, whose candidates are built once for that, on the device.

Checked against: counted bytes, the policy gradient by enumeration, DARTS where all fits, a planted answer: the tests.
"""

from __future__ import annotations

import sys

from torch import nn

from archgrad.argument_types import checked
from archgrad.choices.architecture import Architecture
from archgrad.costs.limits import Limit
from archgrad.costs.memory import PeakMemory, available_bytes
from archgrad.errors import LimitError
from archgrad.extract.discretize import build
from archgrad.methods.radars.offload import OffloadedSupernet
from archgrad.methods.radars.rounds import RadarsSettings, RadarsTerms, Rounds
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.lifecycle import (
    check_search,
    prepare_supernet,
    refuse_unfit,
    split_steps,
    train_and_report,
)
from archgrad.supernets.nested import Inner
from archgrad.tasks.task import Splittable, Task
from archgrad.training.recipe import Recipe, darts_sgd
from archgrad.trials.finalists import Chosen, Ending, Finalists, random_draws, shared_loss

RECIPE = Recipe(optimizer_factory=darts_sgd)


@checked
def radars(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    memory: Limit | None = None,
    inner: Inner | None = None,
    terms: RadarsTerms = RadarsTerms(),
    search_fraction: float = 0.5,
    weights_fraction: float = 0.5,
    finalists: Finalists | None = Finalists(),
    search_recipe: Recipe = RECIPE,
    recipe: Recipe = Recipe(),
) -> Found:
    """Search a space of any size under a bound on memory; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice; it is not changed. Candidates may be `Lazy`, so that few are ever built.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder (of the candidates' files too), device.
        limit: on what is found, for instance `archgrad.macs(x).at_most(3e6)`.
        memory: on the search: `archgrad.peak_memory(x).at_most(gib=2.0)`; default: what the device has available.
        inner: the method that searches the subspaces, such as `archgrad.unas`; default: DARTS, first order.
        terms: numbers of the exploration.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        weights_fraction: part of the training data that weights are trained on while searching.
        finalists: how the search ends: what the likeliest are elsewhere, here the best rounds found; None: with what
            the best round found.
        search_recipe: optimizer and clip of the weights; its schedule is that of the default inner method, since
            exploration keeps its learning rate.
        recipe: how the result is trained.

    Raises:
        ChoiceError: the space has no choice of operations, has gates, choices of labels alone, or choices inside
            candidates.
        ConfigError: the task lacks what the method needs, or an option out of its range.
        LimitError: no network meets the limit; a single path does not fit into memory; the message says what does.
        NonFiniteError: a loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> found = ag.radars(space, ag.Classification.load("digits"), ag.Run(steps=8, progress=False))
        >>> found.architecture["layer"] in (0, 1)
        True
    """
    settings = RadarsSettings(
        limit, memory, inner, terms, search_fraction, weights_fraction=weights_fraction, finalists=finalists,
        search_recipe=search_recipe, recipe=recipe,
    )  # fmt: skip
    check_search(task, Splittable, method="RADARS", search_fraction=search_fraction, search_recipe=search_recipe)
    if memory and not isinstance(memory.cost, PeakMemory):
        raise LimitError(f"memory= bounds the search by archgrad.peak_memory(x).at_most(...), not {memory.cost.name}")
    refuse_unfit(space, needs="RADARS")
    constraint = (
        ArchitectureConstraint(prepare_supernet(space, run, needs="RADARS"), limit) if limit is not None else None
    )
    folder = run.folder / "candidates" if run.folder else None
    with OffloadedSupernet(space, device=run.device, folder=folder, seed=run.seed) as supernet:
        rounds = Rounds(supernet, task, run, settings, constraint)
        if memory:
            rounds.bind(memory.resolve(rounds.prices.of(rounds.everything)))
        run.begin("radars", settings_record(settings), task=task, network=space)
        if not memory:
            rounds.bind(
                run.compute_once("available_bytes", lambda: available_bytes(run.device)) or sys.float_info.max
            )
        if constraint:
            constraint.fit_surrogate(run)
        path = supernet.taken({site: [0] for site in supernet.sites})
        relax_as_mixture(path)
        steps, rest = split_steps(
            run, task, search_fraction, search_recipe=search_recipe, recipe=recipe, network=path
        )
        ending = Ending(finalists, steps, search_fraction)
        ranked = rounds.run_all(ending.search_steps, ending.search_time)
        chosen = _finish(ending, ranked, rounds, recipe=recipe)
        space = _path(supernet, rounds, chosen.architecture)
        title = f"{type(space).__name__} searched by RADARS"
        record = {**heading(radars, settings_record(settings), title), "rounds": rounds.rows, **chosen.record}
        return train_and_report(
            space, chosen.architecture, task, run, steps=rest, recipe=recipe, constraint=constraint, record=record,
            trained=None if rest else chosen.network,
        )  # fmt: skip


def _path(supernet: OffloadedSupernet, rounds: Rounds, architecture: Architecture) -> nn.Module:
    return supernet.taken({site: [i] for site, i in rounds.path(architecture).items()})


def _finish(ending: Ending, ranked: list[Architecture], rounds: Rounds, *, recipe: Recipe) -> Chosen:
    """The best of the rounds' architectures and of the random draws that shared weights rank first, trained apart."""
    if ending.finalists is None:
        return Chosen(ranked[0], None, {})
    run, task, supernet, finalists = rounds.run, rounds.task, rounds.supernet, ending.finalists

    def enter() -> dict[str, str]:
        entered = {f"likely{place}": each for place, each in enumerate(ranked[: finalists.likely], 1)}
        with run.isolated_rng("shared losses"):
            others = random_draws(supernet.space, run, rounds.constraint, finalists.drawn)
            losses = {each: shared_loss(_path(supernet, rounds, each), each, task, run) for each in others}
        left = [each for each in sorted(losses, key=losses.__getitem__) if each not in entered.values()]
        places = finalists.count - len(entered)  # rounds that found the same leave places to further draws
        entered |= {f"drawn{place}": each for place, each in enumerate(left[:places], 1)}
        return {name: each.to_json() for name, each in entered.items()}

    named = {name: Architecture.from_json(text) for name, text in run.compute_once("finalists", enter).items()}
    return ending.train_apart(
        named, lambda each: build(_path(supernet, rounds, each), each, weights="fresh"), task, run, recipe=recipe
    )

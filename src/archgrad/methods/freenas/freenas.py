"""FreeNAS: score every candidate of an untrained supernet by one gradient, without data or labels.

Paper: Zhang, Su, Pan, Chang, Huang, Haffari, "Differentiable architecture search without training nor labels: a
pruning perspective" (arXiv 2106.11542, v1, 2021). Its v2 (FreeDARTS) is the version whose code was read. Implemented,
with alpha the raw multiplicative weights of all candidates, no softmax, shared by the cells of a kind:

    theta = |theta|;   norms left out;   ReLU6 not clipped;   biases and shifts = 0;   alpha = 1;   float64
    repeat rounds r = 0 .. R - 1:
        value = sum of f(ones; theta, alpha)
        S     = | alpha d value / d alpha |                          "FreeFlow"
        keep n0 (n1 / n0)^((r + 1) / R) of all n0 candidates, n1 being those that an architecture picks, and never
        fewer of a choice than it picks
    derive: each operation the best of its choice, "none" left out; each node the inputs of its best operations

What the paper leaves open, or is done otherwise here:
- The text of v1 was not available: FreeFlow with rounds is reconstructed from what was read of v1 and v2, and the
  number of rounds in v1 is not known. One round is v2's one-shot form, the default. The schedule is SynFlow's.
- The authors' code has alpha of N(0, 1e-3^2) and BatchNorm on batch statistics, which breaks the positivity that the
  score rests on, and its cells differ from seed to seed. Here alpha = 1, the norms are left out, and the scores are
  means over draws of the weights, each divided by its sum. Ours. `norm` has the other conventions; all are recorded.
- `limit` is ours: the highest sum of log scores under it.

Checked against: conservation of alpha d value / d alpha over the cuts of a cell, exact, in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from archgrad.argument_types import checked
from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.copy_and_run import in_mode
from archgrad.costs.count import macs, params
from archgrad.costs.limits import Limit
from archgrad.digests import of_item
from archgrad.errors import ConfigError, LimitError, ModelError, NonFiniteError
from archgrad.extract.discretize import build
from archgrad.methods.freenas import sensitivity as scoring
from archgrad.report.numbers import amount
from archgrad.results.record import conditions, heading, settings_record
from archgrad.results.result import Example, Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import LOAD_SEARCHED, Described, prepare_supernet

NORMS: tuple[scoring.Norm, ...] = get_args(scoring.Norm)


@dataclass(frozen=True)
class FreenasSettings:
    """What a FreeNAS run is begun with; see `freenas`."""

    rounds: int
    norm: scoring.Norm
    seeds: int
    limit: Limit | None


@checked
def freenas(
    space: nn.Module,
    run: Run,
    *,
    example: Example,
    rounds: int = 1,
    norm: scoring.Norm = "off",
    seeds: int = 3,
    limit: Limit | None = None,
) -> Found:
    """Score the candidates of an untrained supernet, without data; the algorithm is on top of this file.

    Nothing is trained: the network found has fresh weights and no score.

    Args:
        space: a network with OpChoice and InputChoice, such as `archgrad.nasbench201_cells()`; it is not changed.
        run: seed, folder, device; its budgets of steps are not used.
        example: inputs [B, ...], for their shapes alone: floating ones are replaced by a single example of ones.
        rounds: of scoring and dropping; 1 decides at once.
        norm: normalization layers left out, in evaluation mode, or on the statistics of the batch.
        seeds: draws of the weights; the first is the space's own, the others every module's `reset_parameters`.
        limit: on any cost.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: rounds or seeds below 1, or another norm.
        LimitError: no network of the space meets the limit, or none that lets its input through.
        ModelError: the space does not run on the example, or no candidate reaches its outputs.
        NonFiniteError: a weight is NaN, or the network is too deep for float64.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.nasbench201_cells(channels=2, cells=1)
        >>> found = ag.freenas(space, ag.Run(progress=False), example=torch.ones(1, 3, 8, 8), seeds=1)
        >>> len(found.architecture), found.score
        (6, None)
    """
    if norm not in NORMS or not all(type(n) is int and n >= 1 for n in (rounds, seeds)):
        raise ConfigError(
            f"norm={norm!r}, rounds={rounds!r}, seeds={seeds!r}: give norm 'off', 'eval' or 'train', and whole "
            f"numbers from 1 up"
        )
    device = torch.device("cpu") if run.device.type == "mps" else run.device  # MPS has no float64
    space, inputs = prepare_supernet(space, run, needs="FreeNAS").to(device), scoring.inputs_of(example, device)
    scoring.shares(space, inputs, norm=norm, draw=None)  # before anything long starts
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    settings = FreenasSettings(rounds, norm, seeds, limit)
    begun_with = settings_record(settings) | {"example": of_item(example)}
    run.begin("freenas", begun_with, network=space)
    if constraint:
        constraint.fit_surrogate(run)

    def compute() -> dict[str, Any]:
        drawn = torch.randint(2**31, (seeds - 1,), generator=run.generator("weights")).tolist()
        return _conventions(space, inputs, settings, draws=[None, *drawn])

    computed = run.compute_once("scores", compute)
    draws, dropped = [_tensors(rows) for rows in computed["scores"]], _tensors(computed["dropped"])
    scores = scoring.mean(draws)
    architecture = decided = scoring.decoded(space, scores, dropped)
    if constraint:
        ranked = scoring.logarithms(scoring.ranked(space, scores, dropped))
        architecture = constraint.decide(ranked, run)
        _refuse_cut(space, architecture, inputs, constraint)
    of_draws = [scoring.decoded(space, draw, dropped) for draw in draws]
    for k, (value, other) in enumerate(zip(computed["log10_values"], of_draws, strict=True)):
        figures = {"log10_value": math.nan if value is None else value, "agreement": _agreement([decided, other])}
        run.log(figures, step=k)
    agreement = _agreement(of_draws) if seeds > 1 else None
    of_norms = {name: Architecture.from_json(text) for name, text in computed["others"].items()}
    run.note(_caution({name: _agreement([decided, other]) for name, other in of_norms.items()}, norm, agreement))
    title = f"{type(space).__name__} scored by FreeNAS"
    record = heading(freenas, settings_record(settings), title) | {
        "scores": _lists(scores), "draws": computed["scores"], "labels": scoring.labels(space),
        "log10_values": computed["log10_values"], "seed_agreement": agreement,
        "conventions": {name: _text(space, other) for name, other in {norm: decided, **of_norms}.items()},
    }  # fmt: skip
    return _report(space, architecture, run, example=inputs, constraint=constraint, record=record)


def _tensors(rows: Mapping[str, list[float]]) -> scoring.Scores:
    return {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}


def _lists(scores: scoring.Scores) -> dict[str, list[float]]:
    return {name: row.tolist() for name, row in scores.items()}


def _conventions(
    space: nn.Module, example: Example, settings: FreenasSettings, *, draws: Sequence[int | None]
) -> dict[str, Any]:
    """The scores by the norm that was given, and what the other two would decide, as JSON."""
    scores, dropped, values = scoring.scored(space, example, rounds=settings.rounds, norm=settings.norm, draws=draws)
    others: dict[str, str] = {}
    for norm in NORMS:
        if norm != settings.norm:
            try:
                of_norm, gone, _ = scoring.scored(space, example, rounds=settings.rounds, norm=norm, draws=draws)
            except (ModelError, NonFiniteError):
                continue
            others[norm] = scoring.decoded(space, scoring.mean(of_norm), gone).to_json()
    return {
        "scores": [_lists(rows) for rows in scores], "dropped": _lists(dropped), "log10_values": values,
        "others": others,
    }  # fmt: skip


def _agreement(architectures: Sequence[Architecture]) -> float:
    """The fraction of choices on which all architectures agree."""
    first = architectures[0]
    return sum(len({architecture[name] for architecture in architectures}) == 1 for name in first) / len(first)


def _report(
    space: nn.Module,
    architecture: Architecture,
    run: Run,
    *,
    example: Example,
    constraint: ArchitectureConstraint | None,
    record: dict[str, Any],
) -> Found:
    network = in_mode(build(space, architecture, weights="fresh"))
    costs = {"params": params().of(network), "macs": macs(example).of(network)}
    limit = None
    if constraint:
        reached = constraint.verify_once(architecture, network, run)
        limit = {
            "cost": constraint.cost.name,
            "unit": constraint.cost.unit,
            "bound": constraint.bound,
            "reached": reached,
        }
        costs[constraint.cost.name] = reached
    full = {
        "after": {"params": costs["params"], "macs": costs["macs"]},
        "picks": _picks(space, architecture, record["scores"]),
        **(space.describe(architecture) if isinstance(space, Described) else {}),
        "limit": limit,
        **conditions(run),
        "load": LOAD_SEARCHED,
        **record,
    }  # fmt: skip
    found = Found(architecture, network, None, costs, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
    run.finish()
    return found


def _picks(space: nn.Module, architecture: Architecture, scores: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, labels in scoring.labels(space).items():
        pick, weights = architecture[name], scores[name]
        if isinstance(pick, int):
            rows.append({"choice": name, "pick": labels[pick], "weight": weights[pick]})
        else:
            rows.append({"choice": name, "pick": [labels[i] for i in pick], "weight": [weights[i] for i in pick]})
    return rows


def _text(space: nn.Module, architecture: Architecture) -> Any:
    described = space.describe(architecture) if isinstance(space, Described) else {}
    return described.get("architecture_text", dict(architecture))


def _refuse_cut(
    space: nn.Module, architecture: Architecture, example: Example, constraint: ArchitectureConstraint
) -> None:
    masks = {name: choice.picked(architecture[name]).double() for name, choice in decisions(space).items()}
    if not float(scoring.sensitivity(space, masks, example)[0]):
        raise LimitError(
            f"under {amount(constraint.bound, constraint.cost.unit)} the candidates of the best scores leave no path "
            f"from the network's input to its output; raise the limit"
        )


def _caution(same: Mapping[str, float], norm: scoring.Norm, agreement: float | None) -> str:
    """How much of the answer depends on conventions, in words."""
    others = [f"norm={other!r} decides {share:.0%} of the choices alike" for other, share in same.items()]
    others += [f"norm={other!r} has no answer" for other in NORMS if other not in same and other != norm]
    drawn = "" if agreement is None else f" The draws of the weights agree on {agreement:.0%} of the choices."
    return (
        f"Nothing was trained and no data was read: conventions decide the answer. Compared with norm={norm!r}, "
        f"{' and '.join(others)}.{drawn} This is one candidate, not the best network of the space: train it together "
        f"with others, such as random ones and those of the other conventions."
    )

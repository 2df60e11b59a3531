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
from typing import Any, get_args

import torch
from torch import nn

from archgrad.choices.access import choices, restrict
from archgrad.choices.architecture import Architecture
from archgrad.costs.count import macs, params
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, LimitError, ModelError, NonFiniteError
from archgrad.extract.discretize import build
from archgrad.methods.freenas import sensitivity as scoring
from archgrad.proxies.probe import probe
from archgrad.results.record import conditions, heading
from archgrad.results.result import Example, Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import LOAD, Described, prepare_supernet

NORMS: tuple[scoring.Norm, ...] = get_args(scoring.Norm)


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

    Nothing is trained: the network found has fresh weights, and no score.

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
    """
    if norm not in NORMS or not all(type(n) is int and n >= 1 for n in (rounds, seeds)):
        raise ConfigError(
            f"norm={norm!r}, rounds={rounds!r}, seeds={seeds!r}: give norm 'off', 'eval' or 'train', and whole "
            f"numbers from 1 up"
        )
    device = torch.device("cpu") if run.device.type == "mps" else run.device  # MPS has no float64
    space, inputs = prepare_supernet(space, run, needs="FreeNAS").to(device), scoring.inputs_of(example, device)
    scoring.shares(space, inputs, norm=norm, draw=None)  # before anything long starts
    constraint = ArchitectureConstraint(space, limit) if limit else None
    settings = {"rounds": rounds, "norm": norm, "seeds": seeds, "limit": limit and limit.record()}
    run.begin("freenas", settings)
    if constraint:
        constraint.fit_surrogate(run)

    def compute() -> dict[str, Any]:
        drawn = torch.randint(2**31, (seeds - 1,), generator=run.generator("weights")).tolist()
        return _conventions(space, inputs, rounds=rounds, norm=norm, draws=[None, *drawn])

    kept = run.compute_once("scores", compute)
    draws, dropped = [_tensors(one) for one in kept["scores"]], _tensors(kept["dropped"])
    scores = scoring.mean(draws)
    architecture = decided = scoring.decoded(space, scores, dropped)
    if constraint:
        architecture = constraint.best_feasible(scoring.logarithms(scoring.ranked(space, scores, dropped)))
        _refuse_cut(space, architecture, inputs, constraint)
    alone = [scoring.decoded(space, one, dropped) for one in draws]
    for k, (value, one) in enumerate(zip(kept["log10_values"], alone, strict=True)):
        run.log({"log10_value": math.nan if value is None else value, "agreement": _shared([decided, one])}, step=k)
    agreement = _shared(alone) if seeds > 1 else None
    others = {other: Architecture.from_json(text) for other, text in kept["others"].items()}
    run.note(_caution({other: _shared([decided, one]) for other, one in others.items()}, norm, agreement))
    record = heading(freenas, settings, f"{type(space).__name__} scored by FreeNAS") | {
        "scores": _lists(scores), "draws": kept["scores"], "labels": scoring.labels(space),
        "log10_values": kept["log10_values"], "seed_agreement": agreement,
        "conventions": {other: _text(space, one) for other, one in {norm: decided, **others}.items()},
    }  # fmt: skip
    return _concluded(space, architecture, run, example=inputs, constraint=constraint, record=record)


def scored(
    space: nn.Module, example: Example, *, rounds: int, norm: scoring.Norm, draws: Sequence[int | None]
) -> tuple[list[scoring.Scores], scoring.Scores, list[float | None]]:
    """What all rounds say of each candidate; the space is left as it was.

    Args:
        space, example, norm: see `freenas`.
        rounds: after each but the last the worst candidates are dropped.
        draws: seeds of the weights; None for the space's own.

    Returns:
        For each draw S divided by its sum, [size] for each choice, the last that a candidate had while alive. 1 for
        what was dropped, else 0. For each draw log10 of the first value, None where that is 0.
    """
    kept: list[scoring.Scores] = [{} for _ in draws]
    dropped = {name: torch.zeros(same[0].size, dtype=torch.float64) for name, same in choices(space).items()}
    values: list[float | None] = []
    first, last = scoring.counts(space)
    with probe(space):  # gives the support back
        for r in range(rounds):
            for now, draw in zip(kept, draws, strict=True):
                value, found = scoring.shares(space, example, norm=norm, draw=draw)
                values += [value] if r == 0 else []
                for name, row in found.items():
                    now[name] = torch.where(row > 0.0, row, now.get(name, row))
            if r < rounds - 1:
                count = round(first * (last / first) ** ((r + 1) / rounds))
                alive = scoring.narrowed(space, scoring.mean(kept), count)
                restrict(space, alive)
                dropped = {name: 1.0 - mask.double() for name, mask in alive.items()}
    return kept, dropped, values


def _tensors(rows: Mapping[str, list[float]]) -> scoring.Scores:
    return {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}


def _lists(scores: scoring.Scores) -> dict[str, list[float]]:
    return {name: row.tolist() for name, row in scores.items()}


def _conventions(
    space: nn.Module, example: Example, *, rounds: int, norm: scoring.Norm, draws: Sequence[int | None]
) -> dict[str, Any]:
    """The scores by the norm asked for, and what the other two would decide, as JSON."""
    kept, dropped, values = scored(space, example, rounds=rounds, norm=norm, draws=draws)
    others: dict[str, str] = {}
    for other in NORMS:
        if other != norm:
            try:
                found, gone, _ = scored(space, example, rounds=rounds, norm=other, draws=draws)
            except (ModelError, NonFiniteError):
                continue
            others[other] = scoring.decoded(space, scoring.mean(found), gone).to_json()
    return {
        "scores": [_lists(one) for one in kept], "dropped": _lists(dropped), "log10_values": values, "others": others,
    }  # fmt: skip


def _shared(found: Sequence[Architecture]) -> float:
    """The share of choices on which all of them agree."""
    return sum(len({one[name] for one in found}) == 1 for name in found[0]) / len(found[0])


def _concluded(
    space: nn.Module,
    architecture: Architecture,
    run: Run,
    *,
    example: Example,
    constraint: ArchitectureConstraint | None,
    record: dict[str, Any],
) -> Found:
    network = build(space, architecture, weights="fresh").eval()
    costs = {"params": params().of(network), "macs": macs(example).of(network)}
    limit = None
    if constraint:
        reached = run.compute_once("reached", lambda: constraint.verify(architecture, network))
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
        "load": LOAD,
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
    masks = {name: same[0].picked(architecture[name]).double() for name, same in choices(space).items()}
    if not float(scoring.sensitivity(space, masks, example)[0]):
        raise LimitError(
            f"under {constraint.bound:,.6g} {constraint.cost.unit} the best scores leave no way from the network's "
            f"input to its output; raise the limit"
        )


def _caution(same: Mapping[str, float], norm: scoring.Norm, agreement: float | None) -> str:
    """How far the answer is one, in words."""
    told = [f"norm={other!r} decides {share:.0%} of the choices alike" for other, share in same.items()]
    told += [f"norm={other!r} has no answer" for other in NORMS if other not in same and other != norm]
    drawn = "" if agreement is None else f" The draws of the weights agree on {agreement:.0%} of the choices."
    return (
        f"Nothing was trained and no data was read: conventions decide the answer. Beside norm={norm!r}, "
        f"{' and '.join(told)}.{drawn} This is one candidate, not the best network of the space: train it beside "
        f"others, random ones and those of the other conventions among them."
    )

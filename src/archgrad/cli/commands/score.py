"""`archgrad score`: networks ranked by proxies, without training, and how far the ranking is to be trusted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from archgrad import proxies
from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.cli import command_file as folder
from archgrad.cli.commands.setup import seed, set_threads
from archgrad.cli.inputs import accuracy_table as tables
from archgrad.cli.inputs import architectures, data, models, spaces
from archgrad.cli.schemas.commands import TABLE_DATA
from archgrad.cli.schemas.score import PROXIES, RANDOM, ScoreOptions
from archgrad.errors import ConfigError, ModelError
from archgrad.extract.discretize import Resizable, build
from archgrad.proxies.scoring import Batch, theta
from archgrad.report import page
from archgrad.report.charts.curves import SCORE
from archgrad.report.data.run_folder import write_record
from archgrad.results.record import conditions
from archgrad.run.output import Output
from archgrad.run.run import Run
from archgrad.supernets.lifecycle import Described, prepare_supernet
from archgrad.tasks.tabular import Tabular

Record = dict[str, Any]

_CLASSES, _CHANNELS, _SIDE = 10, 3, 32
_MOST_DRAWN = 4
_SIZES = ("params", "macs")  # what any proxy has to rank better than
_KEPT_EVERY = 5.0  # seconds; what is kept is small


class _Subject(NamedTuple):
    """What is scored: its name, how it is made, and its architecture where it is one of a space."""

    name: str
    make: Callable[[], nn.Module]
    architecture: Architecture | None = None


class _Subjects(NamedTuple):
    """All of them, the space that they are of, and its record."""

    subjects: list[_Subject]
    space: nn.Module | None = None
    made: Record | None = None


def score(options: ScoreOptions) -> Record:
    """Score the networks; returns the record, the best mean rank first."""
    set_threads(options)
    out = Path(options.out) if options.out else None
    run = Run(seed=options.seed, folder=out, device=options.device, output=Output(checkpoint_seconds=_KEPT_EVERY))
    if out:
        folder.check(out, "score", options)
    batch, fits = _batch(options)
    table = _table(options)
    found = _subjects(options, fits, run, table)
    names = options.wanted(len(found.subjects))
    accuracies = [_accuracy(table, one) for one in found.subjects]
    if out:
        folder.write(out, "score", options)
    with folder.resumable(out) if out else contextlib.nullcontext():
        scores = _scored(found.subjects, batch, run, names, seed_of=options.seed, strict="all" not in options.proxy)
        record = _record(options, run, found, scores, accuracies, names=names)
        record["notes"] = [*run.notes, *(table.notes if table else ()), _caution(table, options)]
        if out:
            write_record(out, record)
            page.write(out)
        run.finish()
    return record


def _batch(options: ScoreOptions) -> tuple[Batch, spaces.Fits]:
    """The batch that scores are made from, and what networks are made to fit."""
    if options.data:
        task = data.load(
            options.data, size=options.size, skip_corrupt=options.skip_corrupt, batch_size=options.batch_size
        )
        inputs, labels = task.stream(seed=options.seed)(0)
        if not isinstance(inputs, torch.Tensor):
            raise ConfigError(f"--data {options.data}: its samples are several tensors each; proxies take one")
        return (inputs, labels), task
    side = options.size or _SIDE
    shape = (options.batch_size, options.in_channels or _CHANNELS, side, side)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
    return inputs, spaces.Shape(options.classes or _CLASSES, inputs[:1])


def _table(options: ScoreOptions) -> Tabular | None:
    if not options.table:
        return None
    return tables.load(
        options.table,
        data=options.table_data or TABLE_DATA[0],
        epochs=options.table_epochs or 200,
        partial=options.partial,
    )


def _subjects(options: ScoreOptions, fits: spaces.Fits, run: Run, table: Tabular | None) -> _Subjects:
    if options.model:
        return _Subjects([_model(name, fits, options.seed) for name in options.model])
    form = spaces.form(
        options.space, cells=options.cells, channels=options.channels, factorized=bool(options.factorized)
    )
    seed(options.seed)
    space, made = spaces.make(form, fits)
    prepare_supernet(space, run, needs="archgrad score")
    if isinstance(space, Resizable):
        # Networks are scored in the form in which they are trained.
        space = space.resized()
    found = [architectures.given(space, text, "--arch") for text in options.arch]
    if options.architectures:
        found += architectures.from_file(space, Path(options.architectures))
    if options.sample:
        found += architectures.drawn(space, options.sample, table=table, seed=options.seed)
    return _Subjects([_of(space, one) for one in dict.fromkeys(found)], space, made)


def _model(name: str, fits: spaces.Fits, number: int) -> _Subject:
    def make() -> nn.Module:
        seed(number)
        network = models.load(name, classes=fits.classes, example=fits.example)
        if choices(network):
            raise ModelError(f"MODEL {name!r} has choices: it is a space. Give --space {name}, and --sample N")
        return network

    return _Subject(name, make)


def _of(space: nn.Module, architecture: Architecture) -> _Subject:
    name = architectures.named(space, architecture)
    return _Subject(name, lambda: build(space, architecture, weights="fresh"), architecture)


def _accuracy(table: Tabular | None, subject: _Subject) -> float | None:
    return None if table is None or subject.architecture is None else table.score(subject.architecture)


def _scored(
    subjects: Sequence[_Subject], batch: Batch, run: Run, names: Sequence[str], *, seed_of: int, strict: bool
) -> dict[str, list[float]]:
    """For each proxy one score a network, sizes and what others join included; kept as soon as they are there."""
    parts = [one for name in names for one in (PROXIES[name].joins or (name,))]
    single = list(dict.fromkeys([*_SIZES, *parts]))
    settings = {"networks": [one.name for one in subjects], "proxies": single}
    random = _random(batch, seed_of)
    device = torch.device("cpu") if run.device.type == "mps" else run.device  # MPS has no float64
    run.begin("score", settings)
    run.register_state()
    for k in run.steps(len(subjects), phase="score"):
        # Every network has the weights that the seed gives it, whatever was scored before.
        seed(seed_of)
        try:
            network = subjects[k].make()
            theta(network)
            network.to(device)
            row = {
                name: _one(name, network, random if name in RANDOM else batch, run, strict=strict) for name in single
            }
        except ModelError as error:
            raise ModelError(f"{subjects[k].name}: {error}") from error
        run.log({f"{SCORE}{name}": value for name, value in row.items()})
    found = {name: [float(row[f"{SCORE}{name}"]) for row in run.history] for name in single}
    if "az_nas" in names:
        found["az_nas"] = proxies.az_nas({name: found[name] for name in PROXIES["az_nas"].joins})
    if "te_nas" in names:
        found["te_nas"] = proxies.te_nas(found["ntk_condition"], found["linear_regions"])
    return found


def _random(batch: Batch, number: int) -> Batch:
    """Standard normal inputs in place of images."""
    if isinstance(batch, torch.Tensor):
        return batch
    return torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(number))


def _one(name: str, network: nn.Module, batch: Batch, run: Run, *, strict: bool) -> float:
    proxy: Callable[[nn.Module, Batch], float] = getattr(proxies, name)
    try:
        return proxy(network, batch)
    except ModelError as error:
        # Asked for by name, a proxy that cannot score a network is refused; as one of all it is left out.
        if strict:
            raise ModelError(f"proxy {name}: {error}") from error
        run.note(f"proxy {name} is left out where it cannot score a network: {error}")
        return math.nan
    except ConfigError as error:
        raise ConfigError(f"proxy {name}: {error}") from error


def _record(
    options: ScoreOptions,
    run: Run,
    found: _Subjects,
    scores: dict[str, list[float]],
    accuracies: Sequence[float | None],
    *,
    names: Sequence[str],
) -> Record:
    better = {name: [-s if PROXIES[name].lower else s for s in column] for name, column in scores.items()}
    ranks = proxies.rank_vote({name: better[name] for name in names})
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    networks = []
    for k in order:
        row = {"name": found.subjects[k].name, "scores": {name: _finite(scores[name][k]) for name in scores}}
        networks.append(row | {"rank": ranks[k], "accuracy": accuracies[k]})
    described = []
    for name in scores:
        of = PROXIES[name]
        row = {"name": name, "needs": of.needs, "better": "lower" if of.lower else "higher"}
        measured = tables.agreement(better[name], known) if known else {}
        described.append({**row, "published": of.published, "darts": of.darts, **measured})
    where = f" of {spaces.described(found.made)}" if found.made else ""
    count = len(ranks)
    return {
        "title": f"{count:,} {'network' if count == 1 else 'networks'}{where}, scored without training",
        "networks": networks,
        "proxies": described,
        "graphs": list(_graphs(found, order)),
        "space": found.made,
        "settings": options.model_dump(mode="json", exclude={"out"}, exclude_defaults=True),
        **conditions(run),
    }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _graphs(found: _Subjects, order: Sequence[int]) -> Iterator[Record]:
    """The cells of the networks ranked first."""
    for place, k in enumerate(order[:_MOST_DRAWN], start=1):
        architecture = found.subjects[k].architecture
        if architecture is not None and isinstance(found.space, Described):
            for graph in found.space.describe(architecture).get("graphs", []):
                yield {**graph, "name": f"{place} {graph.get('name', '')}".strip()}


def _caution(table: Tabular | None, options: ScoreOptions) -> str:
    """How far to trust the scores, in words."""
    drawn = "" if options.data else " Inputs, where any are needed, are random."
    held = (
        f" Measured here against {table.column}: among these networks, and no others."
        if table
        else " Nothing was measured here: give --table to hold the scores against accuracies."
    )
    return (
        f"Nothing was trained.{drawn}{held} Compare every proxy with params and macs, the sizes: on the DARTS space "
        f"none that was measured ranks better than params, and among the best tenth of NAS-Bench-201 hardly any rank "
        f"at all. Take several of the first and train them, beside random ones."
    )

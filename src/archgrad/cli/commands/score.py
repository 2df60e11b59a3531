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
from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.inputs import accuracy_table, architectures, data, models, spaces
from archgrad.cli.schemas.options import TABLE_DATA, BatchOptions
from archgrad.cli.schemas.score import PROXIES, RANDOM_INPUTS, ScoreOptions
from archgrad.digests import of_item
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
from archgrad.tasks.tabular_benchmark import Tabular

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
    """All networks, the space that they are of, and its description."""

    subjects: list[_Subject]
    space: nn.Module | None = None
    described: Record | None = None


def execute(options: ScoreOptions) -> command_output.Outcome:
    """Score the networks; the outcome is the record, the best mean rank first."""
    run_setup.set_threads(options)
    out = Path(options.out) if options.out else None
    run = Run(seed=options.seed, folder=out, device=options.device, output=Output(checkpoint_seconds=_KEPT_EVERY))
    if out:
        command_file.check(out, "score", options)
    batch, fits = _batch(options)
    table = _table(options)
    chosen = _subjects(options, fits, run, table)
    names = options.chosen_proxies(len(chosen.subjects))
    accuracies = [_accuracy(table, subject) for subject in chosen.subjects]
    if out:
        command_file.write(out, "score", options)
    with command_file.resumable(out) if out else contextlib.nullcontext():
        scores = _scores(chosen.subjects, batch, run, names, seed=options.seed, strict="all" not in options.proxy)
        record = _record(options, run, chosen, scores, accuracies, names=names)
        record["notes"] = [*run.notes, *(table.notes if table else ()), _caution(table, options)]
        if out:
            write_record(out, record)
            page.write(out)
        run.finish()
    return command_output.of_record(record, command_output.files_in(out) if out else "")


def _batch(options: ScoreOptions) -> tuple[Batch, spaces.Fits]:
    """The batch that scores are computed on, and what networks are built for."""
    if options.data:
        names = ("size", "skip_corrupt", "batch_size")
        batches = BatchOptions.model_validate({name: getattr(options, name) for name in names})
        task = data.load(options.data, batches)
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
    return accuracy_table.load(
        options.table,
        data=options.table_data or TABLE_DATA[0],
        epochs=options.table_epochs or 200,
        partial=options.partial,
    )


def _subjects(options: ScoreOptions, fits: spaces.Fits, run: Run, table: Tabular | None) -> _Subjects:
    if options.model:
        return _Subjects([_model(name, fits, options.seed) for name in options.model])
    description = spaces.describe(
        options.space, cells=options.cells, channels=options.channels, factorized=bool(options.factorized)
    )
    run_setup.seed(options.seed)
    space, described = spaces.build_space(description, fits)
    prepare_supernet(space, run, needs="archgrad score")
    if isinstance(space, Resizable):
        # Networks are scored in the form in which they are trained.
        space = space.resized()
    chosen = [architectures.parse(space, text, "--arch") for text in options.arch]
    if options.architectures:
        chosen += architectures.from_file(space, Path(options.architectures))
    if options.sample:
        chosen += architectures.draw(space, options.sample, table=table, seed=options.seed)
    return _Subjects([_of(space, architecture) for architecture in dict.fromkeys(chosen)], space, described)


def _model(name: str, fits: spaces.Fits, number: int) -> _Subject:
    def make() -> nn.Module:
        run_setup.seed(number)
        network = models.load(name, classes=data.classes_of(fits), example=fits.example)
        if choices(network):
            raise ModelError(f"MODEL {name!r} has choices: it is a space. Give --space {name}, and --sample N")
        return network

    return _Subject(name, make)


def _of(space: nn.Module, architecture: Architecture) -> _Subject:
    name = architectures.named(space, architecture)
    return _Subject(name, lambda: build(space, architecture, weights="fresh"), architecture)


def _accuracy(table: Tabular | None, subject: _Subject) -> float | None:
    return None if table is None or subject.architecture is None else table.score(subject.architecture)


def _scores(
    subjects: Sequence[_Subject], batch: Batch, run: Run, names: Sequence[str], *, seed: int, strict: bool
) -> dict[str, list[float]]:
    """For each proxy the networks' scores, with sizes and the parts of joined proxies; logged network by network."""
    parts = [part for name in names for part in (PROXIES[name].joins or (name,))]
    single = list(dict.fromkeys([*_SIZES, *parts]))
    settings = {"networks": [subject.name for subject in subjects], "proxies": single, "weights drawn by": seed}
    settings |= {"batch": of_item(batch)}
    random = _random(batch, seed)
    device = torch.device("cpu") if run.device.type == "mps" else run.device  # MPS has no float64
    run.begin("score", settings)
    run.register_state()
    for k in run.steps(len(subjects), phase="score"):
        # Every network has the weights that the seed gives it, whatever was scored before.
        run_setup.seed(seed)
        try:
            network = subjects[k].make()
            theta(network)
            network.to(device)
            row = {
                name: _score(name, network, random if name in RANDOM_INPUTS else batch, run, strict=strict)
                for name in single
            }
        except ModelError as error:
            raise ModelError(f"{subjects[k].name}: {error}") from error
        run.log({f"{SCORE}{name}": value for name, value in row.items()})
    scores = {name: [float(row[f"{SCORE}{name}"]) for row in run.history] for name in single}
    if "az_nas" in names:
        scores["az_nas"] = proxies.az_nas({name: scores[name] for name in PROXIES["az_nas"].joins})
    if "te_nas" in names:
        scores["te_nas"] = proxies.te_nas(scores["ntk_condition"], scores["linear_regions"])
    return scores


def _random(batch: Batch, seed: int) -> Batch:
    """Standard normal inputs in place of images."""
    if isinstance(batch, torch.Tensor):
        return batch
    return torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(seed))


def _score(name: str, network: nn.Module, batch: Batch, run: Run, *, strict: bool) -> float:
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
    chosen: _Subjects,
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
        row = {"name": chosen.subjects[k].name, "scores": {name: _finite(scores[name][k]) for name in scores}}
        networks.append(row | {"rank": ranks[k], "accuracy": accuracies[k]})
    described = []
    for name in scores:
        proxy = PROXIES[name]
        row = {"name": name, "needs": proxy.needs, "better": "lower" if proxy.lower else "higher"}
        measured = proxies.rank_agreement(better[name], known) if known else {}
        described.append({**row, "published": proxy.published, "darts": proxy.darts, **measured})
    where = f" of {spaces.in_words(chosen.described)}" if chosen.described else ""
    count = len(ranks)
    return {
        "title": f"{count:,} {'network' if count == 1 else 'networks'}{where}, scored without training",
        "networks": networks,
        "proxies": described,
        "graphs": list(_graphs(chosen, order)),
        "space": chosen.described,
        "settings": options.model_dump(mode="json", exclude={"out"}, exclude_defaults=True),
        **conditions(run),
    }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _graphs(chosen: _Subjects, order: Sequence[int]) -> Iterator[Record]:
    """The cells of the networks ranked first."""
    for place, k in enumerate(order[:_MOST_DRAWN], start=1):
        architecture = chosen.subjects[k].architecture
        if architecture is not None and isinstance(chosen.space, Described):
            for graph in chosen.space.describe(architecture).get("graphs", []):
                yield {**graph, "name": f"{place} {graph.get('name', '')}".strip()}


def _caution(table: Tabular | None, options: ScoreOptions) -> str:
    """How far to trust the scores, in words."""
    random = "" if options.data else " Inputs, where any are needed, are random."
    measured = (
        f" Measured here against {table.column}: among these networks, and no others."
        if table
        else " Nothing was measured here: give --table to compare the scores with accuracies."
    )
    return (
        f"Nothing was trained.{random}{measured} Compare every proxy with params and macs, the sizes: on the DARTS "
        f"space none that was measured ranks better than params, and among the best tenth of NAS-Bench-201 hardly "
        f"any ranks at all. Take several of the first and train them, beside random ones."
    )

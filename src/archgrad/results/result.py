"""What a method hands back: the architecture, the plain network, its figures and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from archgrad import files
from archgrad.argument_types import checked
from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decide
from archgrad.choices.modules import Gate
from archgrad.costs.count import macs, params, uncounted
from archgrad.costs.latency import Runtime, latency
from archgrad.errors import ArchitectureError, MissingExtra, ModelError, RunError
from archgrad.extract.discretize import build
from archgrad.extract.export import export_program
from archgrad.report import notebook, page, text
from archgrad.report.data.run_folder import write_record
from archgrad.report.data.run_format import HISTORY, record_line
from archgrad.results.record import conditions
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import frozen
from archgrad.tasks.task import Inputs, Task, evaluate, mapped, remarks, require_finite

Example = Inputs
LOAD = """import torch
network = torch.export.load("network.pt2").module()   # needs torch alone
# or, with your own model class and archgrad, to train on:
#   space = archgrad.slim(MyModel(), example)
#   network = archgrad.build(space, archgrad.Architecture.load("architecture.json"))
#   safetensors.torch.load_model(network, "network.safetensors")
"""


@dataclass(frozen=True, repr=False)
class Found:
    """The result of a method.

    Attributes:
        architecture: one pick per choice.
        network: a plain module that holds no object of ours, in eval mode.
        score: on the test part where there is one, else on the validation part; None where nothing was scored.
        costs: {cost name: what `network` takes}.
        history: the records that the run logged.
        record: everything that the report shows, as JSON.
        example: inputs of the network, [1, ...], for export.

    Example:
        >>> import torch, archgrad as ag
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> space = ag.slim(network, torch.zeros(1, 4))
        >>> found = ag.Found(ag.sample(space), network, score=0.9, costs={"params": 44})
        >>> found
        Found(score=0.9, params=44, 1 choices, Sequential)
    """

    architecture: Architecture
    network: nn.Module
    score: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[dict[str, Any]] = ()
    record: dict[str, Any] = field(default_factory=dict)
    example: Example | None = None

    def __repr__(self) -> str:
        score = "not scored" if self.score is None else f"score={self.score:.6g}"
        costs = "".join(f", {name}={value:,.6g}" for name, value in self.costs.items())
        return f"Found({score}{costs}, {len(self.architecture)} choices, {type(self.network).__name__})"

    def _repr_html_(self) -> str:
        """Figures and what was found, for a notebook."""
        picks = [(name, str(pick), "") for name, pick in self.architecture.items()]
        return notebook.summary(self.record, picks=picks)

    def report(self) -> str:
        """Before and after as a table in plain text."""
        return text.plain(self.record)

    def save(self, folder: str | Path) -> None:
        """Write the result into a folder.

        architecture.json, network.safetensors (weights), network.pt2 (loads with torch alone), record.json,
        history.jsonl and report.html. What cannot be exported is noted in the record and left out.

        Raises:
            RunError: the disk is full, or the folder cannot be written in.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder)
        except (OSError, safetensors.SafetensorError, ArchitectureError, RunError) as error:
            raise RunError(
                f"the result could not be written to {folder}: {error}; make room there and run again: a run with a "
                f"folder goes on from its last checkpoint"
            ) from error

    def _write(self, folder: Path) -> None:
        self.architecture.save(folder / "architecture.json")
        size = sum(t.nbytes for t in self.network.state_dict().values())
        files.replace(
            folder / "network.safetensors",
            lambda partial: safetensors.torch.save_model(self.network, str(partial)), RunError, size=size,
        )  # fmt: skip
        if self.example is not None:
            try:
                export_program(self.network, self.example, folder / "network.pt2")
            except ModelError as error:
                self.record.setdefault("notes", []).append(str(error))
        write_record(folder, self.record)
        if not (folder / HISTORY).exists():
            files.write_text(folder / HISTORY, "".join(map(record_line, self.history)), RunError)
        page.write(folder)


@checked
def derive(space: nn.Module, *, threshold: float = 0.5) -> Found:
    """The architecture with the largest mixing weights of a relaxed space, and its plain network with their weights.

    For a loop of your own. Nothing is scored, and BatchNorm statistics are the space's; see `recalibrate`.

    Args:
        space: relaxed, for instance by `archgrad.relax(space, archgrad.scaled_sigmoid)`.
        threshold: a gate keeps the entries whose mixing weight is above it.

    Raises:
        ChoiceError: a choice has no relaxation yet.

    Example:
        >>> import torch, archgrad as ag
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> space = ag.relax(ag.slim(network, torch.zeros(1, 4)), ag.scaled_sigmoid)
        >>> ag.logits(space)[0].data[2:] = -1.0
        >>> ag.derive(space, threshold=0.4).network[0].out_features
        2
    """
    architecture = decide(space, threshold=threshold)
    network = build(space, architecture).eval()
    return Found(architecture, network, costs={"params": params().of(network)})


def figures(network: nn.Module, task: Task, example: Example) -> dict[str, Any]:
    """What a plain network scores on the test part and takes: the columns of a report, without times."""
    scored = evaluate(task, network, "test")
    require_finite(scored, task, "test")
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return {**scored, "params": params().of(network), "macs": macs(example).of(network), "size_bytes": size}


def latencies(
    networks: Mapping[str, nn.Module], example: Example, *, runtimes: Sequence[Runtime]
) -> dict[str, dict[str, Any]]:
    """{network: {runtime: timing}}, all timed in turns, one example at a time, on one CPU thread.

    A runtime that is not installed, or to which a network cannot be exported, is left out.
    """
    single = mapped(lambda x: x[:1].cpu(), example)
    rows: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for runtime in runtimes:
        try:
            timed = latency(single, runtime=runtime).timings(networks)
        except (MissingExtra, ModelError):
            continue
        for name, timing in timed.items():
            rows[name][runtime] = {
                "median_ms": timing.median_ms, "low_ms": timing.low_ms, "high_ms": timing.high_ms,
            }  # fmt: skip
    return rows


def assemble(
    space: nn.Module,
    architecture: Architecture,
    networks: Mapping[str, nn.Module],
    *,
    task: Task,
    run: Run,
    example: Example,
    record: Mapping[str, Any],
) -> Found:
    """Score, measure and record what a slimming method found.

    Args:
        space: the space of gates.
        architecture: what was found in it.
        networks: the plain networks "before", if there is one to compare with, and "after", on the run's device.
        task: scored on its test part, here and nowhere else.
        run: whose folder, if any, gets the result.
        example: inputs of the networks.
        record: what the method adds to the report: method, title, settings, limit.
    """
    example = run.to_device(example)
    columns: dict[str, dict[str, Any]] = run.compute_once(
        "figures", lambda: {name: figures(network, task, example) for name, network in networks.items()}
    )
    # The export that ONNX Runtime needs takes longer than a small run: only where a report is kept.
    runtimes: tuple[Runtime, ...] = ("eager", "onnx") if run.folder else ("eager",)
    times = run.compute_once("latency", lambda: latencies(networks, example, runtimes=runtimes))
    note_remarks(networks["after"], task, run, example)
    full = {
        "layers": widths(space, architecture),
        **{name: {**columns[name], "latency_ms": times[name]} for name in networks},
        **conditions(run, task, score=next(iter(columns["after"]))),
        "frozen": [{"name": name, "reason": reason} for name, reason in frozen(space).items()],
        "load": LOAD,
        **record,
    }
    after = columns["after"]
    costs = {name: after[name] for name in ("params", "macs")}
    found = Found(
        architecture, networks["after"].eval(), next(iter(after.values())), costs, run.history, full, example
    )  # fmt: skip
    if run.folder and run.rank == 0:
        found.save(run.folder)
    return found


def note_remarks(network: nn.Module, task: Task, run: Run, example: Example) -> None:
    """Note what the task says of the network found, that a teacher was no better say, and what MACs omit."""
    for remark in run.compute_once("remarks", lambda: [*remarks(task, network), *uncounted(network, example)]):
        if remark not in run.notes:
            run.note(remark)


def widths(space: nn.Module, architecture: Architecture) -> list[dict[str, Any]]:
    """For each gate how many entries it had and how many stay."""
    rows = []
    for name, (choice, *_) in choices(space).items():
        pick = architecture[name]
        if isinstance(choice, Gate) and isinstance(pick, tuple):
            rows.append({"name": name, "before": choice.size, "after": len(pick)})
    return rows

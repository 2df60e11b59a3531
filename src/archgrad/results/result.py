"""What a method hands back: the architecture, the plain network, its figures and its report."""

from __future__ import annotations

import copy
import functools
import math
import traceback
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import safetensors
import safetensors.torch
from torch import nn

from archgrad import files
from archgrad.argument_types import checked
from archgrad.choices.architecture import Architecture
from archgrad.copy_and_run import in_mode, state_tensors
from archgrad.costs.count import macs, params, uncounted
from archgrad.costs.latency import latency
from archgrad.errors import ArchitectureError, ConfigError, LimitError, MissingExtra, ModelError, RunError, one_line
from archgrad.extract.export import Exported, export_executorch, export_onnx, export_open_program
from archgrad.extract.preprocessing import Preprocessing
from archgrad.extract.runtimes import Runtime, kind_of_file
from archgrad.report import notebook, page, text
from archgrad.report.charts import axes
from archgrad.report.data.run_folder import write_record
from archgrad.report.data.run_format import HISTORY
from archgrad.report.numbers import amount
from archgrad.results.int8 import Quantized, export_int8
from archgrad.results.record import conditions, widths
from archgrad.run.output import record_line
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import frozen
from archgrad.tasks.batch_checks import FAILURES, nonfinite_tensors
from archgrad.tasks.task import Inputs, Task, evaluate, mapped, remarks

Example = Inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOAD_SLIM = """import torch
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
        costs = "".join(f", {name}={amount(value)}" for name, value in self.costs.items())
        return f"Found({score}{costs}, {len(self.architecture)} choices, {type(self.network).__name__})"

    def __reduce__(self) -> NoReturn:
        raise RunError(
            "A Found is not pickled: reading a pickle can execute code. Write it with found.save(folder); of the "
            "network alone, torch.save(found.network.state_dict(), file) or archgrad.export_onnx"
        )

    __copy__ = replace

    def __deepcopy__(self, memo: dict[int, Any]) -> Found:
        return Found(**{name: copy.deepcopy(value, memo) for name, value in vars(self).items()})

    def _repr_html_(self) -> str:
        """Figures and what was found, for a notebook."""
        picks = [(name, str(pick), "") for name, pick in self.architecture.items()]
        return notebook.summary(self.record, picks=picks)

    def report(self) -> str:
        """Before and after as a table in plain text."""
        return text.plain(self.record)

    def plot(self) -> dict[str, Figure]:
        """The pictures of the report as figures of matplotlib, by heading: score against cost, layers, curves, ...

        Each can be changed, shown, and saved with `savefig`. Cells and other graphs are in report.html alone.
        Raises RunError where a part of the record is of another kind than it should be.

        Example:
            >>> import torch, archgrad as ag
            >>> network = torch.nn.Linear(4, 2)
            >>> history = [{"phase": "weights", "step": k, "loss": 1 / (k + 1)} for k in range(5)]
            >>> figures = ag.Found(ag.Architecture({}), network, history=history).plot()
            >>> list(figures), figures["Loss"].axes[0].get_xlabel()
            (['Loss'], 'step')
        """
        return axes.figures(page.charts(self.record, self.history))

    @checked
    def export(
        self,
        path: str | Path,
        *,
        task: Task | None = None,
        int8: bool = False,
        max_drop: float = 1.0,
        max_ms: float | None = None,
        max_kb: float | None = None,
        preprocess: bool = False,
        dynamic: Sequence[str] = ("batch",),
    ) -> Exported | Quantized:
        """Write the network as ONNX, in float32 or quantized to int8; int8's `report()` has its price.

        A path that ends in .pte is an ExecuTorch program, for the example's batch size.

        Args:
            path: of the file, .onnx or .pte.
            task: calibrates and scores int8: its training batches, its validation part to decide by, its test part.
            int8: whether to quantize; the batch size is open where it can be.
            max_drop: of the validation score that int8 may cost, in points (1.0 is 0.01 of an accuracy); else layers
                stay in float, the most sensitive first.
            max_ms: that the int8 file may take in its runtime, measured on it as it is written.
            max_kb: that the int8 file may have, in kB of 1,024 bytes.
            preprocess: whether normalization, labels and metadata go into the file; see `export_onnx`.
            dynamic: of a float file; see `export_onnx`.

        Raises:
            ConfigError: another ending; no example is known; int8 without a task, or with other sizes open than the
                batch size; a bound without int8; preprocessing in a .pte file.
            LimitError: the int8 file takes or has more than it may, and is not written.
            MissingExtra, ModelError, RunError: as `export_onnx`; int8 loses too much with nearly all in float.
        """
        kind = kind_of_file(Path(path), f"path={str(path)!r}")
        preprocessing = Preprocessing.of(self.record.get("data")) if preprocess else None
        if int8:
            if task is None or tuple(dynamic) != ("batch",):
                raise ConfigError(
                    "int8=True needs task=, to calibrate and score on, and opens the batch size alone: "
                    "found.export(path, task=task, int8=True)"
                )
            return export_int8(
                self.network, task, Path(path), max_drop=max_drop, max_ms=max_ms, max_kb=max_kb,
                preprocess=preprocessing,
            )  # fmt: skip
        if max_ms is not None or max_kb is not None:
            raise ConfigError("max_ms and max_kb are of the int8 file: found.export(path, task=task, int8=True, ...)")
        if self.example is None:
            raise ConfigError("this result has no example inputs: call archgrad.export_onnx(network, example, path)")
        if kind == "executorch":
            return export_executorch(self.network, self.example, path)
        return export_onnx(self.network, self.example, path, dynamic=dynamic, preprocess=preprocessing)

    def save(self, folder: str | Path) -> None:
        """Write the result into a folder.

        architecture.json, network.safetensors (the tensors of the state), network.pt2 (loads with torch alone; takes
        images of any size where the network does), record.json, history.jsonl and report.html. What cannot be
        exported is noted in the record and left out.

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
        _save_network(folder, self.architecture, self.network)
        if self.example is not None:
            try:
                export_open_program(self.network, self.example, folder / "network.pt2")
            except ModelError as error:
                self.record.setdefault("notes", []).append(str(error))
        write_record(folder, self.record)
        if not (folder / HISTORY).exists():
            files.write_text(folder / HISTORY, "".join(map(record_line, self.history)), RunError)
        try:
            page.write(folder)
        except RunError:
            raise
        except FAILURES as error:
            self.record.setdefault("notes", []).append(f"report.html could not be drawn: {one_line(error)}")
            write_record(folder, self.record)


@checked
def _save_network(folder: Path, architecture: Architecture, network: nn.Module) -> None:
    architecture.save(folder / "architecture.json")
    tensors = state_tensors(network)
    holder: Any = types.SimpleNamespace(state_dict=lambda: dict(tensors))
    files.replace(
        folder / "network.safetensors", lambda partial: safetensors.torch.save_model(holder, str(partial)), RunError,
        size=sum(t.nbytes for t in tensors.values()),
    )  # fmt: skip


def figures(network: nn.Module, task: Task, example: Example) -> dict[str, Any]:
    """What a plain network scores on the test part and takes: the columns of a report, without times."""
    return {**evaluate(task, network, "test"), **takes(network, example)}


def takes(network: nn.Module, example: Example) -> dict[str, Any]:
    """What a plain network takes, as counted: `params`, `macs`, `size_bytes`."""
    size = sum(t.numel() * t.element_size() for t in state_tensors(network).values())
    return {"params": params().of(network), "macs": macs(example).of(network), "size_bytes": size}


def attempt(run: Run, what: str, compute: Callable[[], Any]) -> Any:
    """One step after training, which fails alone: that it did is noted, and None is returned.

    Raises:
        LimitError: the limit is not kept.
        RunError: the disk is full.
    """
    try:
        return compute()
    except (LimitError, RunError):
        raise
    except (*FAILURES, OSError) as error:
        if run.world > 1:  # the others wait for what the first computes
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        run.note(
            f"{what} failed after training and is left out: {one_line(error)} ({frame.filename}, line "
            f"{frame.lineno}). The network and its architecture are kept; the same program, run again, tries again."
        )
        return None


def keep(architecture: Architecture, network: nn.Module, run: Run, *, place: str = ".") -> None:
    """Save a network and its architecture in the run's folder, before anything is done with it that may fail."""
    if run.folder and run.rank == 0:
        (run.folder / place).mkdir(parents=True, exist_ok=True)
        _save_network(run.folder / place, architecture, network)


def measured(
    networks: Mapping[str, nn.Module], task: Task, run: Run, example: Example, *, unscored: Collection[str] = ()
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """What networks score, take and need: the columns of a report; and the score's name, None where scoring failed.

    Networks that `unscored` names are not scored; the last is. Figures that are not finite stay as they are, and a
    note says where they come from.
    """

    def compute() -> dict[str, dict[str, Any]]:
        return {
            name: takes(network, example) if name in unscored else figures(network, task, example)
            for name, network in networks.items()
        }

    scored = attempt(run, "scoring on the test part", lambda: run.compute_once("figures", compute))
    columns: dict[str, dict[str, Any]] = scored or {
        name: attempt(run, "counting", functools.partial(takes, network, example)) or {}
        for name, network in networks.items()
    }
    for name, network in networks.items():
        wrong = [key for key, value in columns[name].items() if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            where = attempt(run, "looking for the samples", functools.partial(_nonfinite, network, task))
            run.note(
                f"{', '.join(wrong)} of the network {name!r} on the test part: not finite. {where or ''}".rstrip()
            )
    # The export that ONNX Runtime needs takes longer than a small run: only where a report is kept.
    runtimes: tuple[Runtime, ...] = ("eager", "onnx") if run.folder else ("eager",)
    times = attempt(
        run, "measuring the latency",
        lambda: run.compute_once("latency", lambda: latencies(networks, example, runtimes=runtimes)),
    )  # fmt: skip
    full = {name: {**column, "latency_ms": (times or {}).get(name, {})} for name, column in columns.items()}
    return full, next(iter([*columns.values()][-1])) if scored else None


def _nonfinite(network: nn.Module, task: Task) -> str:
    """Where figures on the test part that are not finite come from."""
    if wrong := nonfinite_tensors(network):
        return f"The network holds NaN, infinite numbers or a negative variance in {', '.join(wrong[:5])}."
    find = getattr(task, "nonfinite_samples", None)
    if not (samples := find(network, "test") if find else []):
        return ""
    more = ", ..." if len(samples) > 10 else ""
    return (
        f"It comes from {len(samples)} {'sample' if len(samples) == 1 else 'samples'} (by their place in the data: "
        f"{', '.join(map(str, samples[:10]))}{more})."
    )


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
            rows[name][runtime] = {key: getattr(timing, key) for key in ("median_ms", "low_ms", "high_ms")}
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
    untrained: bool = False,
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
        untrained: whether "before" was never trained, so that a score of it would say nothing.
    """
    example = run.to_device(example)
    keep(architecture, networks["after"], run)
    columns, score = measured(networks, task, run, example, unscored=("before",) if untrained else ())
    note_remarks(networks["after"], task, run, example)
    full = {
        "layers": widths(space, architecture),
        **columns,
        **conditions(run, task, score=score),
        "frozen": [{"name": name, "reason": reason} for name, reason in frozen(space).items()],
        "load": LOAD_SLIM,
        **record,
    }
    after = columns["after"]
    costs: dict[str, float] = {name: after[name] for name in ("params", "macs") if name in after}
    found = Found(
        architecture, in_mode(networks["after"]), after.get(score or ""), costs, run.history, full, example
    )  # fmt: skip
    if run.folder and run.rank == 0:
        found.save(run.folder)
    return found


def note_remarks(network: nn.Module, task: Task, run: Run, example: Example) -> None:
    """Note what the task says of the network found, that a teacher was no better say, and what MACs omit."""

    def compute() -> list[str]:
        return [*remarks(task, network), *uncounted(network, example)]

    for remark in attempt(run, "a remark of the task", lambda: run.compute_once("remarks", compute)) or []:
        run.note(remark)

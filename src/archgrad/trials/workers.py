"""Trials in other processes, of this machine or of a Ray cluster; what each found is kept as it comes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pickle
import platform
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle
import torch
from torch import Tensor

from archgrad import files
from archgrad.choices.architecture import Architecture
from archgrad.errors import ArchgradError, ConfigError, MissingExtra, RunError
from archgrad.run import checkpoint_file as checkpoint

if TYPE_CHECKING:
    from archgrad.run.run import Run

RETRIES = 3  # of a trial whose worker died
_GLANCE_SECONDS = 0.2  # between two looks for a signal
_LINE = 16 * files.MIB  # characters of one trial, which has a pick for each choice
_IDLE_SECONDS = 30  # after which a worker without work ends, that of a killed program too

Outcome = tuple[dict[str, float], dict[str, Tensor]]


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        name: unique in the run; its randomness is that of (seed, name).
        architecture: what is tried.
        steps: of training.
        first: the step that its data begin at.
        weights: to go on from; None: fresh ones.
        time_fraction: of the run's budget in seconds, if it has one.
        keep: whether the weights that it ends with are wanted.
    """

    name: str
    architecture: Architecture
    steps: int = 0
    first: int = 0
    time_fraction: float = 1.0
    weights: Mapping[str, Tensor] | None = None
    keep: bool = False


@dataclass(frozen=True)
class Done:
    """What a trial found: its figures; its weights, where they were wanted; where it was and how long it took."""

    figures: dict[str, float]
    weights: dict[str, Tensor] = field(default_factory=dict)
    where: str = ""
    seconds: float = 0.0


# From a job to its figures and weights; it travels to the workers with all that trials share.
RunTrial = Callable[[Job], Outcome]


class Workers:
    """Tries architectures in several processes, each trial as it would go in this one: see `Run(workers=...)`.

    A trial whose worker dies is tried again. A finished one is appended to trials.jsonl in the run's folder at once;
    a resumed run reads it from there, and only there is it counted.

    Args:
        run: begun, with workers.
        recipe: of the trials.

    Raises:
        ConfigError: the recipe holds what cannot be sent to another process.
        MissingExtra: Ray is asked for and not installed.
        RunError: no Ray cluster answers.
    """

    def __init__(self, run: Run, recipe: RunTrial) -> None:
        self._run, self._recipe = run, _packed(recipe)
        run.worked = True
        self._book = _Book(run.folder)
        self._waiting: deque[Job] = deque()
        self._flying: dict[Future[Done | ArchgradError], Job] = {}
        self._deaths: dict[str, int] = {}
        self._pool: _Pool | None = None

    def ahead(self, jobs: Sequence[Job]) -> None:
        """Trials that will be asked for: begin with them."""
        known = {job.name for job in (*self._waiting, *self._flying.values())}
        self._waiting += [job for job in jobs if job.name not in known and self._book.held(job) is None]
        self._fill()

    def result(self, job: Job) -> Done:
        """What a trial found, once it has.

        Raises:
            RunError: workers died in it again and again.
            ArchgradError: what the trial itself raised.
            Stopped: a signal came meanwhile.
        """
        self.ahead([job])
        while (done := self._book.held(job)) is None:
            if self._run.stop_requested:
                self.close()
                self._run.stop_here()
            finished, _ = wait(self._flying, timeout=_GLANCE_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                self._land(future)
            self._fill()
        return done

    def close(self) -> None:
        """Let the workers go, and what they are at."""
        self._flying.clear()
        self._waiting.clear()
        if self._pool:
            self._pool.close()
            self._pool = None

    def _fill(self) -> None:
        while self._waiting and (self._pool is None or len(self._flying) < self._pool.width):
            self._pool = self._pool or _pool(self._run, self._recipe)
            job = self._waiting.popleft()
            try:
                self._flying[self._pool.submit(job)] = job
            except self._pool.deaths:
                self._again([job])

    def _land(self, future: Future[Done | ArchgradError]) -> None:
        if future not in self._flying or self._pool is None:
            return
        job = self._flying.pop(future)
        try:
            found = future.result()
        except self._pool.deaths:
            self._again([job])
            return
        except ModuleNotFoundError as error:
            self.close()
            raise RunError(
                f"A worker cannot import {error.name!r}, which the space, task or optimizer needs. Install it on "
                "every machine, or put its folder on their PYTHONPATH."
            ) from error
        if isinstance(found, ArchgradError):
            self.close()
            raise found
        self._book.write(job, found)

    def _again(self, lost: list[Job]) -> None:
        """Try lost trials once more; a death in a pool of this machine takes along all that are at work."""
        if self._pool and self._pool.together:
            lost, waiting = [*lost, *self._flying.values()], list(self._waiting)
            self.close()
            self._waiting.extend(waiting)
        self._waiting.extendleft(reversed(lost))
        for job in lost:
            self._deaths[job.name] = self._deaths.get(job.name, 0) + 1
            if self._deaths[job.name] > RETRIES:
                self.close()
                raise RunError(
                    f"Workers died {RETRIES + 1} times in trial {job.name!r}, of {_picks(job)}. Memory may have run "
                    "out: give fewer workers or a smaller batch. What was found is kept: run the program again."
                )


class _Pool(Protocol):
    """Where jobs go.

    `width` is how many it takes at once, `deaths` what tells that a worker died, `together` whether all died then.
    """

    width: int
    deaths: tuple[type[Exception], ...]
    together: bool

    def submit(self, job: Job) -> Future[Done | ArchgradError]: ...

    def close(self) -> None: ...


def _pool(run: Run, recipe: bytes) -> _Pool:
    if isinstance(run.workers, str):
        return _Cluster(run.workers, recipe, accelerated=run.device.type == "cuda")
    return _Local(run.workers or 1, recipe)


class _Local:
    """Processes of this machine, by loky."""

    deaths: tuple[type[Exception], ...] = (BrokenProcessPool,)
    together = True

    def __init__(self, workers: int, recipe: bytes) -> None:
        from loky import ProcessPoolExecutor

        self.width, self._recipe = workers, recipe
        threads = max(1, torch.get_num_threads() // workers)
        self._processes = ProcessPoolExecutor(
            workers, timeout=_IDLE_SECONDS, initializer=_settle, initargs=(threads,),
            env={"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def submit(self, job: Job) -> Future[Done | ArchgradError]:
        found: Future[Done | ArchgradError] = self._processes.submit(tried, self._recipe, job)
        return found

    def close(self) -> None:
        self._processes.shutdown(wait=True, kill_workers=True)


class _Cluster:
    """Ray: the cluster at an address, the one that this machine belongs to, or else one of this machine alone."""

    together = False

    def __init__(self, address: str, recipe: bytes, *, accelerated: bool) -> None:
        ray = _ray()
        self._ray, self._mine = ray, not ray.is_initialized()
        if self._mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            where = None if address == "ray" else address
            try:
                ray.init(address=where, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RunError(
                    f"No Ray cluster answers at {address!r} ({error}). Start one with `ray start --head`, or give "
                    "workers=2 for processes of this machine."
                ) from error
        self.deaths: tuple[type[Exception], ...] = (
            ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError,
            ray.exceptions.ObjectLostError, ray.exceptions.LocalRayletDiedError,
        )  # fmt: skip
        self.width = 2 * max(1, int(ray.cluster_resources().get("GPU" if accelerated else "CPU", 1)))
        # Lost tasks come back to us, so that every trial is counted in one place.
        self._task = ray.remote(num_cpus=1, num_gpus=int(accelerated), max_retries=0)(tried)
        self._recipe = ray.put(recipe)
        self._asked: list[Any] = []

    def submit(self, job: Job) -> Future[Done | ArchgradError]:
        self._asked.append(self._task.remote(self._recipe, job))
        found: Future[Done | ArchgradError] = self._asked[-1].future()
        return found

    def close(self) -> None:
        if self._mine:
            self._ray.shutdown()
        else:
            for one in self._asked:
                self._ray.cancel(one, force=True)


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")
    return importlib.import_module("ray")


def _packed(recipe: RunTrial) -> bytes:
    try:
        return bytes(cloudpickle.dumps(recipe))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"workers were asked for, but what the trials share cannot be sent to another process ({error}). The "
            "space, task and optimizer may hold no open files, locks or generators. Mend that, or leave workers out."
        ) from error


def tried(recipe: bytes, job: Job) -> Done | ArchgradError:
    """What a worker does; what goes wrong in the trial itself comes back as a value."""
    began = time.monotonic()
    try:
        figures, weights = cloudpickle.loads(recipe)(job)
    except ArchgradError as error:
        return error
    where = f"process {os.getpid()} of {platform.node()}"
    return Done(figures, weights, where, round(time.monotonic() - began, 3))


def _settle(threads: int) -> None:
    """A new process of this machine: the program above it decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


class _Book:
    """The finished trials, by name: trials.jsonl, with weights in trials/; in memory alone without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._rows: dict[str, dict[str, Any]] = {}
        self._done: dict[str, Done] = {}
        if folder and (path := folder / "trials.jsonl").exists():
            self._rows = dict(_rows(path))
            files.write_text(path, "".join(_line(row) for row in self._rows.values()), RunError)

    def held(self, job: Job) -> Done | None:
        """What is known of a trial; None for one of another architecture, or whose weights are lost."""
        if job.name not in self._done and (row := self._rows.get(job.name)):
            if row["architecture"] != _picks(job):
                return None
            try:
                weights = checkpoint.load(self._weights(job)) if job.keep else {}
            except RunError:
                return None
            self._done[job.name] = Done(row["figures"], weights, row["where"], row["seconds"])
        return self._done.get(job.name)

    def write(self, job: Job, done: Done) -> None:
        """Take in a finished trial; on the disk before anybody builds on it."""
        self._done[job.name] = done
        if not self._folder:
            return
        if job.keep:
            self._weights(job).parent.mkdir(exist_ok=True)
            checkpoint.save(self._weights(job), done.weights)
        row = {
            "trial": job.name, "architecture": _picks(job), "figures": done.figures,
            "where": done.where, "seconds": done.seconds,
        }  # fmt: skip
        path = self._folder / "trials.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"Could not write {path}: {error}. Make room, then run the same program again.") from error

    def _weights(self, job: Job) -> Path:
        assert self._folder
        return self._folder / "trials" / f"{job.name}.safetensors"


def _picks(job: Job) -> dict[str, Any]:
    """The architecture as it reads after a round through JSON."""
    return {name: list(pick) if isinstance(pick, tuple) else pick for name, pick in job.architecture.items()}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file up to the first line that is not whole."""
    found: list[tuple[str, dict[str, Any]]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(_LINE):
            try:
                row = files.parse_json(line, RunError, source="a line", finite=False)
                name, figures = str(row["trial"]), {str(key): float(value) for key, value in row["figures"].items()}
                rest = {"architecture": dict(row["architecture"]), "where": str(row["where"])}
                found.append((name, {"trial": name, "figures": figures, **rest, "seconds": float(row["seconds"])}))
            except (RunError, ValueError, LookupError, TypeError, AttributeError):
                break
    return found

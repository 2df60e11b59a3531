"""Trials in other processes, of this machine or of a Ray cluster; each result is kept as soon as it arrives."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle
import torch

from archgrad.errors import ArchgradError, ConfigError, MissingExtra, RunError
from archgrad.trials.job import Job, Outcome, RunTrial, checked, reason_of_failure
from archgrad.trials.journal import Journal, picks_of

if TYPE_CHECKING:
    from archgrad.run.run import Run

RETRIES = 3  # of a trial whose worker died
_GLANCE_SECONDS = 0.2  # between two looks for a signal
_IDLE_SECONDS = 30  # after which a worker without work ends


class Workers:
    """Tries architectures in several processes, each trial as it would go in this one: see `Run(workers=...)`.

    A trial whose worker dies is tried again. A finished one is appended to trials.jsonl in the run's folder at once;
    a resumed run reads it from there, and only there is it counted.

    Args:
        run: begun, with workers.
        run_trial: what a worker does with a job.

    Raises:
        ConfigError: `run_trial` holds what cannot be sent to another process.
        MissingExtra: Ray is asked for and not installed.
        RunError: no Ray cluster answers.
    """

    def __init__(self, run: Run, run_trial: RunTrial) -> None:
        self._run, self._packed = run, _packed(run_trial)
        run.worked = True
        self._journal = Journal(run.folder)
        self._waiting: deque[Job] = deque()
        self._flying: dict[Future[Outcome | ArchgradError], Job] = {}
        self._deaths: dict[str, int] = {}
        self._pool: _Pool | None = None

    def __repr__(self) -> str:
        return f"<Workers, {len(self._flying)} trials under way, {len(self._waiting)} waiting>"

    def ahead(self, jobs: Sequence[Job]) -> None:
        """Begin with trials that will be asked for."""
        known = {job.name for job in (*self._waiting, *self._flying.values())}
        self._waiting += [job for job in jobs if job.name not in known and self._journal.outcome(job) is None]
        self._fill()

    def result(self, job: Job) -> Outcome:
        """What came of a trial; waits for it.

        Raises:
            RunError: workers died in it again and again.
            ArchgradError: what the trial raised, where that is not a failure of its network.
            Stopped: a signal came meanwhile.
        """
        self.ahead([job])
        while (outcome := self._journal.outcome(job)) is None:
            if self._run.stop_requested:
                self.close()
                self._run.stop_here()
            finished, _ = wait(self._flying, timeout=_GLANCE_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                self._land(future)
            self._fill()
        return outcome

    def close(self) -> None:
        """End the workers and what they are working on."""
        self._flying.clear()
        self._waiting.clear()
        if self._pool:
            self._pool.close()
            self._pool = None

    def _fill(self) -> None:
        while self._waiting and (self._pool is None or len(self._flying) < self._pool.width):
            self._pool = self._pool or _pool(self._run, self._packed)
            job = self._waiting.popleft()
            try:
                self._flying[self._pool.submit(job)] = job
            except self._pool.deaths:
                self._again([job])

    def _land(self, future: Future[Outcome | ArchgradError]) -> None:
        if future not in self._flying or self._pool is None:
            return
        job = self._flying.pop(future)
        try:
            outcome = future.result()
        except self._pool.deaths:
            self._again([job])
            return
        except ModuleNotFoundError as error:
            self.close()
            raise RunError(
                f"A worker cannot import {error.name!r}, which the space, task or optimizer needs. Install it on "
                "every machine, or put its folder on their PYTHONPATH."
            ) from error
        if isinstance(outcome, ArchgradError):
            self.close()
            raise outcome
        self._journal.write(job, outcome)

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
                    f"Workers died {RETRIES + 1} times in trial {job.name!r}, of {picks_of(job)}. Memory may have "
                    "run out: give fewer workers or a smaller batch. Finished trials are kept: run the program again."
                )


class _Pool(Protocol):
    """Where jobs go.

    `width` is how many it takes at once, `deaths` what tells that a worker died, `together` whether all died then.
    """

    width: int
    deaths: tuple[type[Exception], ...]
    together: bool

    def submit(self, job: Job) -> Future[Outcome | ArchgradError]: ...

    def close(self) -> None: ...


def _pool(run: Run, packed: bytes) -> _Pool:
    if isinstance(run.workers, str):
        return _Cluster(run.workers, packed, accelerated=run.device.type == "cuda")
    return _Local(run.workers or 1, packed)


class _Local:
    """Processes of this machine, by loky."""

    deaths: tuple[type[Exception], ...] = (BrokenProcessPool,)
    together = True

    def __init__(self, workers: int, packed: bytes) -> None:
        from loky import ProcessPoolExecutor

        self.width, self._packed = workers, packed
        threads = max(1, torch.get_num_threads() // workers)
        self._processes = ProcessPoolExecutor(
            workers, timeout=_IDLE_SECONDS, initializer=_settle, initargs=(threads, os.getpid()),
            env={"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def submit(self, job: Job) -> Future[Outcome | ArchgradError]:
        future: Future[Outcome | ArchgradError] = self._processes.submit(run_packed, self._packed, job)
        return future

    def close(self) -> None:
        self._processes.shutdown(wait=True, kill_workers=True)


class _Cluster:
    """Ray: the cluster at an address, the one that this machine belongs to, or else one of this machine alone."""

    together = False

    def __init__(self, address: str, packed: bytes, *, accelerated: bool) -> None:
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
        self._task = ray.remote(num_cpus=1, num_gpus=int(accelerated), max_retries=0)(run_packed)
        self._packed = ray.put(packed)
        self._asked: list[Any] = []

    def submit(self, job: Job) -> Future[Outcome | ArchgradError]:
        self._asked.append(self._task.remote(self._packed, job))
        future: Future[Outcome | ArchgradError] = self._asked[-1].future()
        return future

    def close(self) -> None:
        if self._mine:
            self._ray.shutdown()
        else:
            for task in self._asked:
                self._ray.cancel(task, force=True)


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")
    return importlib.import_module("ray")


def _packed(run_trial: RunTrial) -> bytes:
    try:
        return bytes(cloudpickle.dumps(run_trial))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"workers were asked for, but what the trials share cannot be sent to another process ({error}). The "
            "space, task and recipe may hold no open files, locks or generators. Remove these, or leave workers out."
        ) from error


def run_packed(packed: bytes, job: Job) -> Outcome | ArchgradError:
    """What a worker does; what goes wrong in the trial comes back as a value."""
    began, where = time.monotonic(), f"process {os.getpid()} of {platform.node()}"
    try:
        outcome = checked(cloudpickle.loads(packed)(job))
    except Exception as error:  # a user's network may raise anything
        if (reason := reason_of_failure(error)) is None:
            if isinstance(error, ArchgradError):
                return error
            raise
        outcome = Outcome(failed=reason)
    return replace(outcome, where=where, seconds=round(time.monotonic() - began, 3))


def _settle(threads: int, parent: int) -> None:
    """Set up a new process of this machine, which stops when the program that started it says so, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    # A worker holds both ends of its pipe, which therefore does not tell it.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_GLANCE_SECONDS)
    os._exit(1)

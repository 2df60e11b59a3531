"""Energy and power of a forward pass: read off the machine's own counters, or estimated by a model that says so.

Counters are RAPL's, below /sys/class/powercap (the processor packages and their memory), and NVML's of an NVIDIA GPU.
They count everything that the package or the GPU uses, so other programs and an idle machine (`idle_w`) too.

Where there is no counter:   energy = 4.6 pJ * MACs + 160 pJ * bytes moved,   bytes moved = parameters + 2 * outputs
The prices are those of 45 nm technology that are usually quoted from M. Horowitz, "Computing's energy problem",
ISSCC 2014 (a 32-bit multiplication 3.7 pJ, an addition 0.9 pJ, a 32-bit word from DRAM 640 pJ), recalled and not read
again. They rank networks; a real machine takes several times as much.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from archgrad.argument_types import checked
from archgrad.copy_and_run import evaluating, run_on_example, shapes
from archgrad.costs.count import examples_of, macs_by_module
from archgrad.costs.limits import Limit, WithoutGradient, one_bound
from archgrad.costs.memory_watch import Allocations
from archgrad.errors import ConfigError, MissingExtra
from archgrad.tasks.task import Inputs, arguments, first_tensor

POWERCAP = Path("/sys/class/powercap")
PJ_PER_MAC, PJ_PER_BYTE = 4.6, 160.0
ESTIMATED_PASSES = 5
WINDOW_S = 0.02  # over which a power is taken: counters move about once a millisecond
Source = Literal["auto", "measured", "estimated"]


class Meter(Protocol):
    """Something that counts energy."""

    @property
    def provider(self) -> str:
        """Its name for records: "RAPL"."""
        ...

    def joules(self) -> float:
        """What was used since the meter was made."""
        ...


@dataclass(frozen=True)
class Reading:
    """Energy and power of one forward pass of a batch.

    Attributes:
        energy_mj: millijoules a pass, all that the counter saw.
        peak_w: the highest mean power of any 20 ms, in watts; where estimated, energy over the fastest pass of five.
        idle_w: the power before the passes, in watts; None where estimated.
        passes: how many were averaged over.
        provider: "RAPL", "NVML" or "analytic model".
        kind: "measured" or "estimated".
    """

    energy_mj: float
    peak_w: float
    idle_w: float | None
    passes: int
    provider: str
    kind: Literal["measured", "estimated"]


class Rapl:
    """The counters of the processor packages and of their memory, in a tree of files in microjoules.

    Args:
        root: where the tree is; zones are the folders `intel-rapl:N`, memory is a zone named "dram" below one.

    Raises:
        ConfigError: no counter there, or one that cannot be read; the message says which file and permission.
    """

    provider = "RAPL"

    def __init__(self, root: Path = POWERCAP) -> None:
        packages = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        inner = [zone for zone in sorted(root.glob("intel-rapl:*:*")) if self._text(zone / "name") == "dram"]
        # "psys" counts the whole board, packages included.
        self._zones = [zone for zone in packages if not self._text(zone / "name").startswith("psys")] + inner
        if not self._zones:
            raise ConfigError(
                f"no energy counter below {root}: the processor has none, or this is a virtual machine or container "
                f'that does not see it. Run on the machine itself, or take source="estimated"'
            )
        self._ranges = [self._number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [self._number(zone / "energy_uj") for zone in self._zones]
        self._total_uj = 0

    def joules(self) -> float:
        """What was used since the meter was made; a counter that began again at 0 is taken to have done so once."""
        now = [self._number(zone / "energy_uj") for zone in self._zones]
        for before, after, span in zip(self._last, now, self._ranges, strict=True):
            self._total_uj += after - before + (span if after < before else 0)
        self._last = now
        return self._total_uj / 1e6

    def _number(self, path: Path) -> int:
        text = self._text(path)
        try:
            return int(text)
        except ValueError as error:
            raise ConfigError(
                f'{path} holds {text[:40]!r}, which is no whole number of microjoules; take source="estimated"'
            ) from error

    @staticmethod
    def _text(path: Path) -> str:
        try:
            return path.read_text(encoding="ascii").strip()
        except PermissionError as error:
            raise ConfigError(
                f"{path} may not be read: it lacks the read permission for this user (root alone has it by default). "
                f'Run "sudo chmod a+r {path}", or take source="estimated"'
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f'{path} cannot be read ({error}); take source="estimated"') from error


class Nvml:
    """The counter of one NVIDIA GPU.

    Raises:
        MissingExtra: nvidia-ml-py is not installed.
        ConfigError: the GPU has no such counter, or it may not be read.
    """

    provider = "NVML"

    def __init__(self, device: torch.device) -> None:
        if importlib.util.find_spec("pynvml") is None:
            raise MissingExtra("nvidia-ml-py", "energy")
        self._nvml: Any = importlib.import_module("pynvml")
        self._device = device
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        except self._nvml.NVMLError as error:
            raise ConfigError(f'NVML does not open {device} ({error}); take source="estimated"') from error
        self._first = self._millijoules()

    def joules(self) -> float:
        """What was used since the meter was made."""
        return (self._millijoules() - self._first) / 1e3

    def _millijoules(self) -> int:
        torch.cuda.synchronize(self._device)
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError as error:
            raise ConfigError(
                f"NVML gives no total energy of {self._device} ({error}): GPUs have that counter from Volta on, and "
                f'some drivers keep it for root. Take source="estimated"'
            ) from error


def measure(
    network: nn.Module,
    example: Inputs,
    meter: Meter,
    *,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Reading:
    """Energy and power of forward passes on `example`, [B, ...] or a tuple of such, for so many seconds.

    Raises:
        ConfigError: the counter does not move, so that nothing was measured.
        ModelError: the network fails on the example.
    """
    forward = _forward(network, example)
    forward()  # work that is done once, such as choosing kernels, does not count
    began, before = clock(), meter.joules()
    time.sleep(min(0.2, 0.2 * seconds))
    first, start = meter.joules(), clock()
    idle = (first - before) / max(start - began, 1e-9)
    marks, passes = [(start, first)], 0
    while marks[-1][0] - start < seconds or passes < 3:
        forward()
        passes += 1
        if (now := clock()) - marks[-1][0] >= WINDOW_S or passes == 3:
            marks.append((now, meter.joules()))
    # What ran after the last mark is in no window.
    marks.append((clock(), meter.joules()))
    used = marks[-1][1] - first
    if not used > 0.0:
        raise ConfigError(
            f"the energy counter of {meter.provider} did not move in {passes} passes ({marks[-1][0] - start:.3g} s): "
            f'give more seconds, or take source="estimated"'
        )
    windows = [b[1] - a[1] for a, b in itertools.pairwise(marks)]
    spans = [b[0] - a[0] for a, b in itertools.pairwise(marks)]
    powers = [w / s for w, s in zip(windows, spans, strict=True) if s >= WINDOW_S]
    peak = max(powers, default=used / max(marks[-1][0] - start, 1e-9))
    return Reading(1e3 * used / passes, peak, idle, passes, meter.provider, "measured")


def estimate(network: nn.Module, example: Inputs) -> Reading:
    """Energy of a forward pass by the model on top of this file; its peak power is over the fastest of five passes.

    Raises:
        ModelError: the network fails on the example.
    """
    multiplied = sum(macs_by_module(network, example).values()) * examples_of(example)
    forward = _forward(network, example)
    forward()
    marks = [time.perf_counter()]
    for _ in range(ESTIMATED_PASSES):
        forward()
        marks.append(time.perf_counter())
    seconds = min(after - before for before, after in itertools.pairwise(marks))
    with Allocations() as seen:
        forward()
    moved = sum(p.nbytes for p in network.parameters()) + 2 * sum(size for size in seen.events if size > 0)
    joules = 1e-12 * (PJ_PER_MAC * multiplied + PJ_PER_BYTE * moved)
    return Reading(1e3 * joules, joules / max(seconds, 1e-9), None, 1, "analytic model", "estimated")


class _Metered(WithoutGradient):
    """What `Energy` and `PeakPower` share: a counter, or None for the estimate, and its readings."""

    name = ""
    measured: bool = True

    def __init__(self, example: Inputs, source: Source, seconds: float, root: str | Path) -> None:
        if not seconds > 0.0:
            raise ConfigError(f"seconds={seconds}: give a time above 0 to measure for, such as 1.0")
        self.example, self.seconds = example, seconds
        device = first_tensor(example).device
        self._meter = None if source == "estimated" else _meter(device, Path(root), needed=source == "measured")
        self.name = self.name if self._meter else f"estimated_{self.name}"

    def __repr__(self) -> str:
        return f"{self.name}(example {shapes(self.example)})"

    def reading(self, network: nn.Module) -> Reading:
        """A fresh measurement, or the estimate: energy, power, and where they come from."""
        if self._meter is None:
            return estimate(network, self.example)
        return measure(network, self.example, self._meter, seconds=self.seconds)


@checked
class Energy(_Metered):
    """The energy of a forward pass, in millijoules, as a cost.

    Args:
        example: inputs [B, ...], or a tuple or dict of such, on the device that is measured; energy is the batch's.
        source: "measured" by a counter; "estimated" by the model of this file; "auto": measured where the machine has
            a counter (one that may not be read is an error), else estimated.
        seconds: how long each network is measured.
        root: of RAPL's files.

    Attributes:
        name: "energy", or "estimated_energy" where no counter is read, in records and messages too.

    Raises:
        ConfigError: an unknown source, a counter that cannot be read, or none where "measured" was asked for.
        MissingExtra: "measured" on a GPU without nvidia-ml-py.

    Example:
        >>> import torch, archgrad as ag
        >>> cost = ag.energy(torch.zeros(1, 64), source="estimated")
        >>> cost.name, cost.of(torch.nn.Linear(64, 64)) > 0
        ('estimated_energy', True)
        >>> cost.at_most(mj=3.0)
        Limit(estimated_energy at most 3 mJ)
    """

    name, unit = "energy", "mJ"

    def __init__(
        self, example: Inputs, *, source: Source = "auto", seconds: float = 0.5, root: str | Path = POWERCAP
    ) -> None:
        super().__init__(example, source, seconds, root)

    @checked
    def of(self, network: nn.Module) -> float:
        """Millijoules of one forward pass of the example's batch."""
        return self.reading(network).energy_mj

    def at_most(self, bound: float | None = None, *, mj: float | None = None, fraction: float | None = None) -> Limit:
        """A limit in millijoules a pass, or as a fraction of what the unchanged network takes.

        Raises:
            LimitError: not exactly one is given; a number not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound=one_bound(self.name, {"bound": bound, "mj": mj}), fraction=fraction)


@checked
class PeakPower(_Metered):
    """The peak power of forward passes, in watts, as a cost: the highest mean power of any 20 ms while they run.

    A counter sees the whole package or GPU, what idles in it too. Where there is none, the estimate is the modelled
    energy of a pass over the time of the fastest of five,   P = energy / t,   which is as noisy as a latency.

    Args:
        example: inputs [B, ...], or a tuple or dict of such, on the device that is measured.
        source, seconds, root: as of `archgrad.energy`.

    Attributes:
        name: "peak_power", or "estimated_peak_power" where no counter is read, in records and messages too.

    Raises:
        ConfigError, MissingExtra: as of `archgrad.energy`.

    Example:
        >>> import torch, archgrad as ag
        >>> cost = ag.peak_power(torch.zeros(1, 64), source="estimated")
        >>> cost.name, cost.of(torch.nn.Linear(64, 64)) > 0
        ('estimated_peak_power', True)
        >>> cost.at_most(w=15.0)
        Limit(estimated_peak_power at most 15 W)
    """

    name, unit = "peak_power", "W"

    def __init__(
        self, example: Inputs, *, source: Source = "auto", seconds: float = 0.5, root: str | Path = POWERCAP
    ) -> None:
        super().__init__(example, source, seconds, root)

    def of(self, network: nn.Module) -> float:
        """Watts at the peak of passes of the example's batch."""
        return self.reading(network).peak_w

    def at_most(self, bound: float | None = None, *, w: float | None = None, fraction: float | None = None) -> Limit:
        """A limit in watts, or as a fraction of what the unchanged network takes.

        Raises:
            LimitError: not exactly one is given; a number not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound=one_bound(self.name, {"bound": bound, "w": w}), fraction=fraction)


energy, peak_power = Energy, PeakPower


def _meter(device: torch.device, root: Path, *, needed: bool) -> Meter | None:
    if device.type == "cuda":
        return Nvml(device) if needed or importlib.util.find_spec("pynvml") is not None else None
    return Rapl(root) if needed or any(root.glob("intel-rapl:*")) else None


def _forward(network: nn.Module, example: Inputs) -> Callable[[], None]:
    """One pass in eval mode, without gradients, finished when it returns; modes are put back."""
    inputs, device = arguments(example), first_tensor(example).device

    def run() -> None:
        with evaluating(network):
            run_on_example(network, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run

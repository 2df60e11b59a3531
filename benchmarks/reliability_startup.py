"""How long commands take to start: processes of their own, clock and processor time."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "archgrad --help": ["-m", "archgrad", "--help"],
    "import torch": ["-c", "import torch"],
    "import torch and archgrad's main names": ["-c", "import torch, archgrad as ag; ag.slim, ag.dnal, ag.Run"],
}


def children() -> float:
    """Processor time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def startup(times: int = 5) -> list[dict[str, Any]]:
    """A row for each command: medians after a first that warms the caches; the demo once, and its first steps."""
    rows = []
    for name, words in COMMANDS.items():
        clocks, cpus = [], []
        for _ in range(times + 1):
            began, used = time.monotonic(), children()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            clocks.append(time.monotonic() - began)
            cpus.append(children() - used)
        clock, cpu = (round(statistics.median(figures[1:]), 2) for figures in (clocks, cpus))
        rows.append({"what": name, "clock_s": clock, "cpu_s": cpu, "lowest_cpu_s": round(min(cpus), 2)})
    return [*rows, *demo()]


def demo() -> list[dict[str, Any]]:
    """The demo until it has said how far its first training is, and until its end."""
    with tempfile.TemporaryDirectory() as place:
        began, used = time.monotonic(), children()
        words = [sys.executable, "-m", "archgrad", "demo", "--out", f"{place}/demo", "--seed", "0"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("fit "))
            first, ticks = time.monotonic() - began, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]
            process.stderr.read()
        if process.returncode:
            raise RuntimeError(f"the demo ended with {process.returncode}")
        cpu = sum(map(int, ticks)) / 100
        return [
            {"what": "archgrad demo, until its first line on steps", "clock_s": round(first, 2), "cpu_s": cpu},
            {"what": "archgrad demo", "clock_s": round(time.monotonic() - began, 2),
             "cpu_s": round(children() - used, 2)},
        ]  # fmt: skip

"""How benchmarks save their rows: whole or not at all, with the machine, versions and date that they are of."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("archgrad", "torch", "numpy", "torch-pruning", "scikit-learn")


def machine() -> dict[str, Any]:
    """This machine in words, its threads, the versions that a result depends on, and today's date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    return {
        "words": f"{model}, {os.cpu_count()} cores, {threads} threads, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def save_results(path: Path, body: Mapping[str, Any]) -> None:
    """Write a file of results; where it held rows of another machine or other versions, it says so too."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    here, held = machine(), body.get("machine") or before.get("machine") or {}
    made = [one for one in (*held.get("earlier", []), held) if one.get("words")]
    earlier = [{k: v for k, v in one.items() if k != "earlier"} for one in made if _differs(one, here)]
    stamped = {**body, "machine": {**here, **({"earlier": earlier} if earlier else {})}}
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(stamped, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _differs(one: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return any(one.get(key) != here[key] for key in ("words", "versions"))

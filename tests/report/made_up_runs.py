"""Folders of runs as plain files: one that goes on, one that has ended, and one from a stranger."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVIL = "</script><script>window.evil=1</script>\"'><img src=x onerror=window.evil=2>&{{7*7}}"


def rows(start: int, stop: int, *, name: str = "") -> list[dict[str, Any]]:
    """Records of a search: a loss, a limited cost, and the weights of two choices."""
    return [
        {
            "phase": f"search{name}", "step": k, "time": 0.5 * k,
            "loss": 2.0 / (k + 1), "expected_macs": 4e4 - 100 * k,
            f"weight/edge 0{name}/conv": 0.5 + k / 100, f"weight/edge 0{name}/skip": 0.5 - k / 100,
            f"weight/edge 1{name}/conv": 0.4, f"weight/edge 1{name}/skip": 0.6,
        }
        for k in range(start, stop)
    ]  # fmt: skip


def front(found: int = 2) -> dict[str, Any]:
    """A front over eight trials, with random ones beside."""
    costs, scores = [1e4 * k for k in range(1, 9)], [0.5, 0.6, 0.55, 0.7, 0.65, 0.8, 0.75, 0.9]
    random = {"costs": costs, "scores": [one - 0.05 for one in scores], "front": [0, 1, 3, 5, 7]}
    return {
        "cost": "macs", "unit": "MACs", "costs": costs, "scores": scores, "front": [0, 1, 3, 5, 7], "found": found,
        "random": random,
    }  # fmt: skip


def ended(name: str = "", *, evil: str = "") -> dict[str, Any]:
    """A record with all that a search leaves; `evil` is in every name of it."""
    nodes = [{"id": 0, "label": f"input{evil}"}, {"id": 1}, {"id": 2, "label": f"output{evil}"}]
    edges = [{"source": 0, "target": 1, "label": f"conv{evil}"}, {"source": 1, "target": 2, "label": "skip"}]
    return {
        "title": f"A search{name}{evil}",
        "method": f"unas{evil}",
        "device": "cpu",
        "settings": {"search": 0.5, f"key{evil}": evil or 1},
        "run": {"seed": 3, "epochs": 6},
        "versions": {"torch": "2.13"},
        "data": {"train": {"size": 100, "sha": "ab"}, "class_names": [evil]},
        "after": {"accuracy": 0.9, "params": 1234, "macs": 20_000, f"figure{evil}": 1.5},
        "limit": {"cost": f"macs{evil}", "unit": evil, "bound": 25_000, "reached": 20_000},
        "graphs": [{"name": f"cell{evil}", "nodes": nodes, "edges": edges}],
        "architecture_text": f"|conv~0|{evil}",
        "picks": [{"choice": f"edge 0{evil}", "pick": f"conv{evil}", "weight": 0.9}],
        "labels": {"edge": [f"conv{evil}", "skip"]},
        "trials": [
            {"architecture": {"edge": k % 2, f"other{evil}": [0, k]}, "score": front()["scores"][k]} for k in range(8)
        ],
        "fronts": [front()],
        "frozen": [{"name": f"head{evil}", "reason": evil}],
        "layers": [{"name": f"conv{evil}", "before": 8, "after": 4}],
        "baselines": [{"name": f"random{evil}", "accuracy": 0.8}],
        "notes": [f"a note{evil}"],
        "alarms": [f"an alarm{evil}"],
        "load": f"import torch  # {evil}",
        "card": {
            "items": [{"item": f"given{evil}", "count": 2, "what": [f"space{evil}", "data"]}],
            "total": 2, "compute": {"seconds": 3.5, "device": evil or "cpu", "seeds": 1}, "missing_inputs": False,
        },
    }  # fmt: skip


def slim() -> dict[str, Any]:
    """A record of a network that was slimmed: with all that a phone has to show of it."""
    timing = {"median_ms": 0.0339, "low_ms": 0.0336, "high_ms": 0.0348}
    before = {"accuracy": 0.9944, "loss": 0.02916, "params": 136_498, "macs": 2_668_992, "size_bytes": 548_136}
    after = {"accuracy": 0.9972, "loss": 0.0097, "params": 69_554, "macs": 1_268_160, "size_bytes": 280_000}
    kinds = (("conv1", "channels", 96, 64), ("layer1.0.conv2", "stream", 64, 32), ("layer1.1.branch", "block", 1, 0))
    return {
        "title": "MyNetwork slimmed by DNAL", "method": "dnal", "device": "cpu",
        "score": {"name": "accuracy", "higher_is_better": True},
        "before": {**before, "latency_ms": {"eager": timing, "onnx": timing}},
        "after": {**after, "latency_ms": {"eager": timing, "onnx": timing}},
        "limit": {"cost": "macs", "unit": "MACs", "bound": 1_334_496.0, "reached": 1_268_160.0},
        "layers": [{"name": n, "kind": kind, "before": b, "after": a} for n, kind, b, a in kinds]
        + [{"name": "encoder.0.attention.heads", "kind": "heads", "before": 12, "after": 7}],
        "baselines": [{"name": "uniform widths, trained as long", **before, "accuracy": 0.99, "macs": 1_300_000}],
        "notes": [], "frozen": [{"name": "head", "reason": "its channels reach the network's output"}],
    }  # fmt: skip


def of_a_front() -> dict[str, Any]:
    """A record of a front of slimmed networks, one of which has an int8 file."""
    record, names = slim(), ("whole", "macs-0.75", "macs-0.5")
    rows = [
        {
            "name": name,
            "accuracy": 0.99 - k / 100,
            "valid_accuracy": 0.99,
            "params": 10_000 - k,
            "macs": 3e6 - 1e6 * k,
        }
        for k, name in enumerate(names)
    ]
    int8 = {
        "score": "accuracy", "valid": {"float": 0.9, "int8": 0.89}, "float_layers": ["conv1"],
        "latency_ms": {"float": 1.0, "int8": 0.5}, "size_bytes": {"float": 4000, "int8": 1000},
    }  # fmt: skip
    about = {"given": {"part": "valid", "figures": {"accuracy": 0.9}, "normalization": {"mean": [0.5], "std": [1.0]}}}
    return {**record, **about, "baselines": rows, "fronts": [front()], "int8": int8, "finalists": {"gates": 0.9}}


def poisoned(value: Any, evil: str = EVIL, *, key: str = "") -> Any:
    """The same with `evil` in every text, and in the names of figures."""
    if isinstance(value, dict):
        return {
            name if name.isidentifier() else f"{name}{evil}": poisoned(entry, evil, key=name)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [poisoned(entry, evil, key=key) for entry in value]
    return f"{value}{evil}" if isinstance(value, str) and key not in ("phase", "status", "kind") else value


def run_json(status: str = "running", *, evil: str = "") -> dict[str, Any]:
    """What a run writes when it begins."""
    settings = {"limit": {"cost": "macs", "bound": 25_000, "fraction": None}, f"key{evil}": evil}
    return {
        "identity": {"method": f"unas{evil}", "settings": settings, "seed": 3, "epochs": 6, "steps": None},
        "started": "2026-01-02T03:04:05+00:00", "resumed": [], "status": status, "finished": None,
        "made_with": {"archgrad": "0.1.0", "torch": "2.13", "python": "3.11", "device": f"cpu{evil}"},
    }  # fmt: skip


def write(folder: Path, name: str, content: object) -> None:
    """One of the folder's files: text as it is, a list as lines of JSON, anything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(one) + "\n" for one in content)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def finished(folder: Path, *, evil: str = "", steps: int = 30, name: str = "") -> Path:
    """A folder of a run that has ended."""
    write(folder, "record.json", ended(name, evil=evil))
    write(folder, "history.jsonl", rows(0, steps, name=evil))
    write(folder, "run.json", run_json("finished", evil=evil))
    command = {"command": "search", "directory": "/", "options": {"data": "digits", "channels": steps}}
    write(folder, "command.json", {**command, "arguments": ["search", "--method", f"unas{evil}"]})
    return folder


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder's lock, as a run that goes on holds it."""
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield

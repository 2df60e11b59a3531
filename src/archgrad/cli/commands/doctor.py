"""`archgrad doctor`: what this machine offers, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from archgrad.cli.command_output import Outcome
from archgrad.costs.energy import Nvml, Rapl
from archgrad.costs.memory import GIB, available_bytes
from archgrad.errors import ArchgradError

Report = dict[str, Any]
# {extra: (modules that it brings, what for)}
EXTRAS = {
    "export": (("onnx", "onnxscript", "onnxruntime"), "ONNX files, and latency in ONNX Runtime"),
    "openvino": (("openvino",), "latency in OpenVINO"),
    "notebook": (("IPython",), "a run's progress in a notebook, updated in place"),
    "executorch": (("executorch",), "ExecuTorch programs, and latency in ExecuTorch"),
    "data": (("datasets",), "saved Hugging Face data sets"),
    "energy": (("pynvml",), "the energy counter of an NVIDIA GPU"),
    "rl": (("gymnasium", "stable_baselines3"), "gymnasium environments, and supernets in Stable-Baselines3"),
    "procgen": (("procgen",), "the Procgen games"),
    "tensorboard": (("tensorboard",), "Run(output=Output(tensorboard=True))"),
    "lightning": (("lightning",), "gates in Lightning's Trainer"),
    "transformers": (("transformers", "accelerate"), "gates in Hugging Face's Trainer"),
    "ray": (("ray",), 'trials on a cluster, Run(workers="ray")'),
}


def examine() -> Outcome:
    """The report, and as text."""
    report = _examined()
    return Outcome(report, _written(report))


def _examined() -> Report:
    """The report: versions, devices, memory, disk, extras, energy, data, and `missing`, a sentence for each lack."""
    extras = {name: _extra(modules, use) for name, (modules, use) in EXTRAS.items()}
    energy, data = _energy(), _data()
    missing = [
        f"{extra['for']}: pip install 'archgrad[{name}]' ({', '.join(extra['missing'])})"
        for name, extra in extras.items()
        if extra["missing"]
    ]
    missing += [
        f"measured energy ({name}): {meter['why']}" for name, meter in energy.items() if not meter["readable"]
    ]
    missing += [] if data["readable"] else [f"the larger data of slow tests and benchmarks: {data['why']}"]
    return {
        "versions": {
            "archgrad": importlib.metadata.version("archgrad"), "python": platform.python_version(),
            "torch": str(torch.__version__), "numpy": importlib.metadata.version("numpy"),
        },
        "machine": platform.platform(),
        "devices": _devices(),
        "threads": {"torch": torch.get_num_threads(), "cores": _cores()},
        "memory_bytes": available_bytes(torch.device("cpu")),
        "disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "extras": extras,
        "energy": energy,
        "data": data,
        "missing": missing,
    }  # fmt: skip


def _devices() -> list[Report]:
    devices: list[Report] = [
        {"name": "cpu", "what": platform.processor() or platform.machine(), "memory_bytes": None}
    ]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, _ = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            devices.append({"name": f"cuda:{number}", "what": name, "memory_bytes": free})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "what": "Apple GPU", "memory_bytes": None})
    return devices


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _extra(modules: tuple[str, ...], use: str) -> Report:
    return {"for": use, "missing": [name for name in modules if importlib.util.find_spec(name) is None]}


def _energy() -> dict[str, Report]:
    meters: dict[str, Report] = {"RAPL": {"readable": True, "why": None}}
    try:
        Rapl().joules()
    except ArchgradError as error:
        meters["RAPL"] = {"readable": False, "why": str(error)}
    if torch.cuda.is_available():
        meters["NVML"] = {"readable": True, "why": None}
        try:
            Nvml(torch.device("cuda", 0)).joules()
        except ArchgradError as error:
            meters["NVML"] = {"readable": False, "why": str(error)}
    return meters


def _data() -> Report:
    place = os.environ.get("ARCHGRAD_DATA")
    why = None
    if not place:
        why = "ARCHGRAD_DATA is not set; name the folder that holds them"
    elif not Path(place).is_dir():
        why = f"ARCHGRAD_DATA is {place}, which is no folder"
    return {"folder": place, "readable": why is None, "why": why}


def _written(report: Report) -> str:
    """The report as text."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [versions, report["machine"], ""]
    for device in report["devices"]:
        memory = f", {device['memory_bytes'] / GIB:.1f} GiB free" if device["memory_bytes"] else ""
        lines.append(f"device    {device['name']}: {device['what']}{memory}")
    threads, memory = report["threads"], report["memory_bytes"]
    lines.append(f"threads   {threads['torch']} of {threads['cores']} cores")
    lines.append(f"memory    {memory / GIB:.1f} GiB available" if memory else "memory    not known")
    lines.append(f"disk      {report['disk_bytes'] / GIB:.1f} GiB free here")
    for name, extra in report["extras"].items():
        lines.append(f"extra     {name}: {'missing' if extra['missing'] else 'installed'}, for {extra['for']}")
    for name, meter in report["energy"].items():
        lines.append(f"energy    {name}: {'readable' if meter['readable'] else 'not readable'}")
    lines.append(f"data      ARCHGRAD_DATA: {report['data']['folder'] or 'not set'}")
    lines += ["", "missing:" if report["missing"] else "nothing is missing"]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in report["missing"])])

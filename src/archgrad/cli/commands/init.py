"""`archgrad init`: a configuration and a script for one's own model and data, after looking at both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from archgrad.choices.access import choices
from archgrad.cli.inputs import data, models
from archgrad.cli.schemas.commands import InitOptions, is_code
from archgrad.costs.count import macs, params
from archgrad.errors import ConfigError, LimitError, RunError
from archgrad.gates.selection import GateConstraint, WidthRounding
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.tasks import Classification
from archgrad.tasks.task import tensors

_SHARES = (0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True)
class _Seen:
    """What a look at the model and the data gave."""

    options: InitOptions
    task: Classification
    network: nn.Module
    gates: dict[str, int]
    frozen: dict[str, str]
    share: float | None


def init(options: InitOptions) -> dict[str, Any]:
    """Write slim.yaml and slim.py into a folder; returns what was seen.

    Raises:
        ConfigError: one of the files is there already, or the model is one that a script cannot name.
        ModelError, DataError: the model or the data cannot be used.
    """
    out = Path(options.out)
    files = {name: out / name for name in ("slim.yaml", "slim.py")}
    there = [str(path) for path in files.values() if path.exists()]
    if there:
        raise ConfigError(f"{' and '.join(there)}: there already, and nothing is written over. Give another --out.")
    task = data.load(options.data, size=options.size, skip_corrupt=options.skip_corrupt, batch_size=128)
    network = models.load(options.model, classes=task.classes, example=task.example)
    task.check(network)
    space = slim(network, task.example)
    gates = {name: same[0].size for name, same in choices(space).items()}
    seen = _Seen(options, task, network, gates, frozen(space), _share(space, task))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files["slim.yaml"].write_text(_yaml(seen), encoding="utf-8")
        files["slim.py"].write_text(_script(seen), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{out} cannot be written to: {error}. Give another --out.") from error
    return {
        "input": [list(x.shape) for x in tensors(task.example)],
        "classes": task.classes,
        "params": params().of(network),
        "macs": macs(task.example).of(network),
        "gates": gates,
        "frozen": seen.frozen,
        "limit": f"macs={seen.share}" if seen.share else None,
        "written": [str(path) for path in files.values()],
    }


def _share(space: nn.Module, task: Classification) -> float | None:
    """The lowest of some shares of the MACs that rounded widths can reach; None where none of them is."""
    for share in _SHARES:
        try:
            GateConstraint(space, macs(task.example).at_most(fraction=share), WidthRounding())
        except LimitError:
            continue
        return share
    return None


def _yaml(seen: _Seen) -> str:
    options, task = seen.options, seen.task
    shape = " and ".join(str(list(x.shape)) for x in tensors(task.example))
    limit = (
        f"limit: macs={seen.share}" if seen.share else "# limit: macs=0.9   # no usual share of the MACs is reached"
    )
    size = "" if is_code(options.data) else "# size: 64   # resize images to this side\n"
    size = f"size: {options.size}\n" if options.size else size
    return f"""\
# archgrad slim --config {Path(options.out) / "slim.yaml"}
# {type(seen.network).__name__}: {params().of(seen.network):,.0f} parameters, \
{macs(task.example).of(seen.network):,.0f} MACs for an input of {shape}; {task.classes} classes.
# {len(seen.gates)} groups of channels can be slimmed, {len(seen.frozen)} layers are frozen.

model: {options.model}
data: {options.data}
{size}out: {Path(options.out) / "run"}

# What may stay: a share or number of MACs or parameters, or a time on this machine: latency_ms=4.0
{limit}

# weights: trained.safetensors   # begin with trained weights; without, the run trains them
epochs: 60   # of all stages together
batch_size: 128
# augment: flip,crop=4
# round_to: 16   # widths that processors with AVX-512 like; default: 8, less for narrow layers
# joint: false   # gates and weights in turns, as published; default: at once, but for weights that are trained
# keep: [{next(iter(seen.gates), "")}]   # leave these layers as wide as they are
seed: 0
"""


def _script(seen: _Seen) -> str:
    options = seen.options
    imports, size = [_import(options.model)], f", size={options.size}" if options.size else ""
    task = f"task = ag.Classification.load({options.data!r}{size})"
    if is_code(options.data):
        imports.append(_import(options.data))
        task = (
            f"parts = {options.data.rpartition(':')[2]}()\n"
            "task = ag.Classification(**parts) if isinstance(parts, dict) else ag.Classification(parts)"
        )
    named = "\n".join(dict.fromkeys("\n".join(imports).split("\n")))  # no line twice
    limit = f"ag.macs(x).at_most(fraction={seen.share})" if seen.share else "None"
    rows = "".join(f"#   {name}: {size}\n" for name, size in seen.gates.items())
    rows += "".join(f"#   {name}: frozen, {' '.join(reason.split())}\n" for name, reason in seen.frozen.items())
    return f'''\
"""Slim {type(seen.network).__name__} on {options.data}: python {Path(options.out) / "slim.py"}"""

{named}

import archgrad as ag

# What was found in the network, with the entries of each gate:
{rows}
{task}
x = task.example
net = {models.written(options.model, models.told(seen.task.classes, seen.task.example))}
# net.load_state_dict(torch.load("trained.pt", weights_only=True)), and pretrained=True for joint=True

space = ag.slim(net, example=x)
run = ag.Run(epochs=60, seed=0, folder={str(Path(options.out) / "run-of-script")!r})
found = ag.dnal(space, task, run, limit={limit}, joint={bool(seen.share)})
print(found.report())
ag.export_onnx(found.network, x, {str(Path(options.out) / "small.onnx")!r})
'''


def _import(name: str) -> str:
    place, _, attribute = name.rpartition(":")
    if place == "timm":
        return "import timm"
    if not place.endswith(".py"):
        return f"from {place} import {attribute.partition('.')[0]}"
    file, first = Path(place).absolute(), attribute.partition(".")[0]
    return f"import sys\n\nsys.path.insert(0, {str(file.parent)!r})\nfrom {file.stem} import {first}"

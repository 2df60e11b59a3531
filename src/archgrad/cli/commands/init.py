"""`archgrad init`: a configuration and a script for the user's model and data, after looking at both."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from torch import nn

from archgrad import files
from archgrad.choices.access import choices
from archgrad.cli import run_setup
from archgrad.cli.command_output import Outcome
from archgrad.cli.inputs import data, models
from archgrad.cli.schemas.configuration import is_code
from archgrad.cli.schemas.init import InitOptions
from archgrad.cli.schemas.task import TaskOptions, normalization
from archgrad.costs.count import macs, params
from archgrad.errors import ConfigError, LimitError, RunError
from archgrad.gates.selection import GateConstraint
from archgrad.gates.width_rounding import WidthRounding
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.tasks import Classification
from archgrad.tasks.task import tensors

_FRACTIONS = (0.5, 0.7, 0.85, 0.95)
_WEIGHTS = """\
# With trained weights, and pretrained=True in ag.dnal below:
# import torch
# net.load_state_dict(torch.load("trained.pt", weights_only=True))"""


@dataclass(frozen=True)
class _Findings:
    """What the model and the data are like."""

    options: InitOptions
    task: Classification
    network: nn.Module
    gates: dict[str, int]
    frozen: dict[str, str]
    fraction: float | None


def execute(options: InitOptions) -> Outcome:
    """Write slim.yaml and slim.py into a folder; the outcome is what the network has.

    Raises:
        ConfigError: one of the files is there already, or the model is one that a script cannot name.
        ModelError, DataError: the model or the data cannot be used.
    """
    out = Path(options.out)
    paths = {name: out / name for name in ("slim.yaml", "slim.py")}
    if all(path.exists() for path in paths.values()):
        raise _written_over(paths.values())
    task = _task(options)
    network = models.load(options.model, classes=task.classes, example=task.example)
    task.check(network)
    if options.weights:
        models.read_weights(network, options.weights)
        if not options.normalize and (scores := run_setup.scores_of_other_normalizations(network, task)):
            options = _asked(options, scores)
            task = _task(options)
    space = slim(network, task.example)
    gates = {name: same[0].size for name, same in choices(space).items()}
    findings = _Findings(options, task, network, gates, frozen(space), _fraction(space, task))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written to: {error}. Give another --out.") from error
    texts = {paths["slim.yaml"]: _yaml(findings), paths["slim.py"]: _script(findings)}
    # One of the two stays where this command was killed.
    if other := [path for path, text in texts.items() if path.exists() and files.read_text(path, RunError) != text]:
        raise _written_over(other)
    for path, text in texts.items():
        files.write_text(path, text, RunError)
    body = {
        "input": [list(x.shape) for x in tensors(task.example)],
        "classes": task.classes,
        "params": params().of(network),
        "macs": macs(task.example).of(network),
        "gates": gates,
        "frozen": findings.frozen,
        "limit": f"macs={findings.fraction}" if findings.fraction else None,
        "written": [str(path) for path in paths.values()],
    }
    return Outcome(body, _text(body))


def _written_over(paths: Iterable[Path]) -> ConfigError:
    listed = " and ".join(map(str, paths))
    return ConfigError(f"{listed}: there already, and nothing is written over. Give another --out.")


def _task(options: InitOptions) -> Classification:
    given = {"data": options.data, "size": options.size, "skip_corrupt": options.skip_corrupt}
    task = data.load_task(TaskOptions.model_validate({**given, "normalize": options.normalize}))
    assert isinstance(task, Classification)
    return task


def _asked(options: InitOptions, scores: Mapping[str, float]) -> InitOptions:
    """The options with the normalization that the user names; an error where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise run_setup.unknown_normalization(str(options.weights), scores)
    listed = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
    typer.echo(f"By each normalization of their images the weights score: {listed}.", err=True)
    question = "Which one were they trained with? (or MEANS/DEVIATIONS)"
    chosen = typer.prompt(question, err=True, value_proc=_normalization_name)
    return InitOptions.model_validate({**options.model_dump(), "normalize": chosen})


def _normalization_name(text: str) -> str:
    try:
        normalization(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def _text(body: dict[str, Any]) -> str:
    shapes = " and ".join(map(str, body["input"]))
    config, script = body["written"]
    lines = [
        f"inputs {shapes}, {body['classes']} classes; {body['params']:,.0f} parameters, {body['macs']:,.0f} MACs",
        *(f"can be slimmed: {name} ({size})" for name, size in body["gates"].items()),
        *(f"frozen: {name}: {reason}" for name, reason in body["frozen"].items()),
        f"suggested limit: {body['limit'] or 'none; no usual fraction of the MACs can be reached'}",
        f"wrote {config} and {script}. Next: archgrad slim --config {config} --dry-run",
    ]
    return "\n".join(lines)


def _fraction(space: nn.Module, task: Classification) -> float | None:
    """The lowest of some fractions of the MACs that rounded widths can reach; None where none of them is."""
    for fraction in _FRACTIONS:
        try:
            GateConstraint(space, macs(task.example).at_most(fraction=fraction), WidthRounding())
        except LimitError:
            continue
        return fraction
    return None


def _yaml(findings: _Findings) -> str:
    options, task = findings.options, findings.task
    shape = " and ".join(str(list(x.shape)) for x in tensors(task.example))
    limit = (
        f"limit: macs={findings.fraction}"
        if findings.fraction
        else "# limit: macs=0.9   # no usual fraction of the MACs is reached"
    )
    size = "" if is_code(options.data) else "# size: 64   # resize images to this side\n"
    size = f"size: {options.size}\n" if options.size else size
    size += "skip_corrupt: true\n" if options.skip_corrupt else ""
    return f"""\
# archgrad slim --config {Path(options.out) / "slim.yaml"}
# {type(findings.network).__name__}: {params().of(findings.network):,.0f} parameters, \
{macs(task.example).of(findings.network):,.0f} MACs for an input of {shape}; {task.classes} classes.
# Groups of channels that can be slimmed: {len(findings.gates)}. Frozen layers: {len(findings.frozen)}.

model: {options.model}
data: {options.data}
{size}out: {Path(options.out) / "run"}

# What may stay: a fraction or number of MACs or parameters, or a time on this machine: latency_ms=4.0
{limit}

{_given(options)}
epochs: 60   # of all stages together
batch_size: 128
# augment: flip,crop=4
# round_to: 16   # widths that processors with AVX-512 like; default: 8, less for narrow layers; auto: measured
# keep: [{next(iter(findings.gates), "")}]   # leave these layers as wide as they are
seed: 0
"""


def _given(options: InitOptions) -> str:
    """The lines of the configuration on trained weights."""
    weights = f"weights: {options.weights}" if options.weights else "# weights: trained.safetensors   # else trained"
    normalize = (
        f"normalize: {options.normalize}" if options.normalize else "# normalize: imagenet   # as of the weights"
    )
    return f"{weights}\n{normalize}"


def _script(findings: _Findings) -> str:
    options = findings.options
    imports, how = [_import(options.model)], f", size={options.size}" if options.size else ""
    how += ", skip_corrupt=True" if options.skip_corrupt else ""
    constants = normalization(options.normalize)
    normalize = f", normalize={constants!r}" if constants else ""
    # From wherever the script is run.
    place = str(Path(options.data).absolute()) if Path(options.data).exists() else options.data
    task = f"task = ag.Classification.load({place!r}{how}{normalize})"
    if is_code(options.data):
        imports.append(_import(options.data))
        task = (
            f"parts = {options.data.rpartition(':')[2]}()\n"
            f"task = ag.Classification(**parts{normalize}) if isinstance(parts, dict) else "
            f"ag.Classification(parts{normalize})"
        )
    weights, pretrained = _WEIGHTS, ""
    if options.weights:
        imports.append("from archgrad.cli.inputs.models import read_weights")
        weights, pretrained = f"read_weights(net, {str(Path(options.weights).absolute())!r})", ", pretrained=True"
    out = Path(options.out).absolute()
    export = f"ag.export_onnx(found.network, x, {str(out / 'small.onnx')!r})"
    if not run_setup.writes_onnx(None):
        export = f"# pip install 'archgrad[export]', then: {export}"
    named = "\n".join(dict.fromkeys("\n".join(imports).split("\n")))  # no line twice
    limit = f"ag.macs(x).at_most(fraction={findings.fraction})" if findings.fraction else "None"
    rows = "".join(f"#   {name}: {size}\n" for name, size in findings.gates.items())
    rows += "".join(f"#   {name}: frozen, {' '.join(reason.split())}\n" for name, reason in findings.frozen.items())
    return f'''\
"""Slim {type(findings.network).__name__} on {options.data}: python {Path(options.out) / "slim.py"}"""

{named}

import archgrad as ag

# What the network has, with the entries of each gate:
{rows}
{task}
x = task.example
net = {models.as_source(options.model, models.known_of(findings.task.classes, findings.task.example))}
{weights}

space = ag.slim(net, example=x)
run = ag.Run(epochs=60, seed=0, folder={str(out / "run-of-script")!r})
found = ag.dnal(space, task, run, limit={limit}{pretrained})
print(found.report())
{export}
'''


def _import(name: str) -> str:
    place, _, attribute = name.rpartition(":")
    if place == "timm":
        return "import timm"
    if not place.endswith(".py"):
        return f"from {place} import {attribute.partition('.')[0]}"
    file, first = Path(place).absolute(), attribute.partition(".")[0]
    return f"import sys\n\nsys.path.insert(0, {str(file.parent)!r})\nfrom {file.stem} import {first}"

"""int8 with its price: a network's ONNX file quantized, scored, timed and weighed beside the float one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from archgrad import files
from archgrad.copy_and_run import copied, evaluating, in_mode, run_on_example
from archgrad.costs.latency import check_protocol, file_pass, in_turns, timing
from archgrad.errors import ConfigError, LimitError, ModelError, RunError
from archgrad.extract import quantization, runtimes
from archgrad.extract.export import Encoded, encode_executorch, encode_onnx, preprocessed
from archgrad.extract.export_trials import with_batch
from archgrad.extract.onnx_file import Session, named_inputs
from archgrad.extract.preprocessing import Preprocessing
from archgrad.extract.runtimes import Runtime
from archgrad.tasks.task import Task, arguments, evaluate, higher_is_better, require, tensors


@dataclass(frozen=True)
class Quantized:
    """An int8 file beside the float one of the same network.

    Attributes:
        path: of the int8 file.
        score: the name of the score.
        valid: {"float", "int8"}: the score on the validation part, by which layers were left in float.
        test: the same on the test part.
        latency_ms: the same in the file's runtime, as it is written and so with its preprocessing; medians on one
            thread and one batch as in the example.
        size_bytes: the same of the files.
        float_layers: layers that stay in float, since int8 there costs too much of the score.
        runtime: "onnx", or "executorch" for a .pte file.
    """

    path: Path
    score: str
    valid: dict[str, float]
    test: dict[str, float]
    latency_ms: dict[str, float]
    size_bytes: dict[str, int]
    float_layers: tuple[str, ...] = ()
    runtime: str = "onnx"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self) | {"path": str(self.path), "float_layers": list(self.float_layers)}

    def report(self) -> str:
        """A line for each figure, float beside int8."""
        rows: list[tuple[str, Mapping[str, float], str]] = [
            (f"{self.score}, test", self.test, "{:.4g}"), (f"{self.score}, validation", self.valid, "{:.4g}"),
            (f"latency, {self.runtime}", self.latency_ms, "{:.4g} ms"), ("size", self.size_bytes, "{:,} bytes"),
        ]  # fmt: skip
        lines = [f"{'':<24}{'float':>16}{'int8':>16}"]
        for name, figures, form in rows:
            both = [form.format(figures[kind]) for kind in ("float", "int8")]
            lines.append(f"{name:<24}{both[0]:>16}{both[1]:>16}")
        kept = ", ".join(self.float_layers) or "none"
        return "\n".join([*lines, f"layers left in float: {kept}", *self.notes()])

    def notes(self) -> list[str]:
        """What speaks against the int8 file."""
        slower = self.latency_ms["int8"] / self.latency_ms["float"]
        if slower <= 1.0:
            return []
        return [
            f"The int8 file takes {slower:.2f} of the time of the float one here: a network this small or of such "
            f"layers spends more on turning numbers into int8 and back than it saves. Where time counts more than "
            f"size, ship the float file, or measure both on the device."
        ]


def export_int8(
    network: nn.Module,
    task: Task,
    path: Path,
    *,
    max_drop: float = 1.0,
    max_ms: float | None = None,
    max_kb: float | None = None,
    samples: int = 256,
    preprocess: Preprocessing | None = None,
) -> Quantized:
    """Write an int8 file of a network, with its score, latency and size beside the float one.

    Scales come from the inputs of training batches. An ONNX file is quantized by ONNX Runtime; where the validation
    score falls by more than `max_drop`, layers are left in float, the most sensitive first: those that alone in int8
    change the outputs most. A .pte file is an ExecuTorch program for XNNPACK, quantized by PT2E, for the example's
    batch size; there no layer is left in float.

    Args:
        network: a plain network.
        task: whose training batches calibrate, and which scores the file.
        path: of the file, .onnx or .pte.
        max_drop: of the validation score, in points: 1.0 is 0.01 of an accuracy, and one per cent of another score.
        max_ms: that the int8 file may take in its runtime, with what `preprocess` puts into it; nothing is written
            where it takes more.
        max_kb: that the int8 file may have, in kB of 1,024 bytes; nothing is written where it has more.
        samples: training samples to calibrate on.
        preprocess: goes into the file; see `export_onnx`.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed, or for a .pte file executorch.
        ConfigError: preprocessing of a .pte file; a negative `max_drop`; samples below 1; `max_ms` or `max_kb` not
            above 0.
        LimitError: the int8 file takes or has more than it may; the message says by which fraction to slim further.
        ModelError: the network cannot be exported or quantized, or loses too much even with almost all in float.
    """
    runtime: Runtime = "executorch" if path.suffix == ".pte" else "onnx"
    runtimes.require(runtime)
    require(task, method="int8")
    check_protocol(repeats=samples, warmup=0, threads=1, batch=None)
    _check_bounds(max_drop, {"max_ms": max_ms, "max_kb": max_kb})
    if preprocess and runtime == "executorch":
        raise ConfigError(f"{path}: an ExecuTorch program takes what the network takes; leave preprocess out")
    plain, example = in_mode(copied(network).cpu()), _on_cpu(task.example)
    encoded = encode_onnx(plain, example) if runtime == "onnx" else encode_executorch(plain, example)
    batch = None if encoded.dynamic_batch else len(tensors(example)[0])
    inputs = _calibration(plain, task, samples=samples, batch=batch)
    output = run_on_example(plain, arguments(example))

    def held(data: bytes) -> nn.Module:
        return quantization.FileNetwork(data, output, batch=batch, runtime=runtime)

    def valid(data: bytes) -> float:
        return _score(task, held(data), "valid")[1]

    wanted = _score(task, plain, "valid")[1]
    drop = _drop(task, wanted)
    if runtime == "onnx":
        after, kept = _in_onnx(encoded.data, inputs, valid, drop, max_drop)
    else:
        after, kept = _in_executorch(plain, inputs, valid, drop, max_drop), ()
    name, whole = _score(task, plain, "test")
    final = dataclasses.replace(encoded, data=after)
    written, original = (preprocessed(e, preprocess, example) if preprocess else e for e in (final, encoded))
    if max_kb is not None:
        _keep("kB", len(written.data) / 1024, max_kb, "params", kept)
    inputs_of_file = arguments(example)
    if preprocess and preprocess.mean:
        inputs_of_file = tree_map_only(Tensor, lambda x: torch.zeros(x.shape, dtype=torch.uint8), inputs_of_file)
    latency = _times(original, written, inputs_of_file, runtime=runtime)
    if max_ms is not None:
        if latency["int8"] > max_ms:  # once more, for a moment in which the machine was busy
            latency = _times(original, written, inputs_of_file, runtime=runtime)
        _keep("ms", latency["int8"], max_ms, "macs", kept)
    files.write_bytes(path, written.data, RunError)
    return Quantized(
        path, name,
        valid={"float": wanted, "int8": valid(after)},
        test={"float": whole, "int8": _score(task, held(after), "test")[1]},
        latency_ms=latency,
        size_bytes={"float": len(original.data), "int8": len(written.data)},
        float_layers=kept, runtime=runtime,
    )  # fmt: skip


def _check_bounds(max_drop: float, bounds: Mapping[str, float | None]) -> None:
    if not 0 <= max_drop < float("inf"):
        raise ConfigError(f"max_drop={max_drop}: give points of the score that may be lost, from 0")
    for option, bound in bounds.items():
        if bound is not None and not 0 < bound < float("inf"):
            raise ConfigError(f"{option}={bound}: give a number above 0, or leave it out")


def _in_executorch(
    plain: nn.Module, inputs: Sequence[tuple[Any, ...]], valid: Callable[[bytes], float],
    drop: Callable[[float], float], max_drop: float,
) -> bytes:  # fmt: skip
    """An ExecuTorch program in int8."""
    data = quantization.int8_program(plain, inputs)
    if (lost := drop(valid(data))) > max_drop:
        raise ModelError(
            f"int8 loses {lost:.3g} points in ExecuTorch, where no layer is left in float, and max_drop allows "
            f"{max_drop:g}. Ship the float program or an int8 ONNX file, or allow more"
        )
    return data


def _in_onnx(
    data: bytes, inputs: Sequence[tuple[Any, ...]], valid: Callable[[bytes], float], drop: Callable[[float], float],
    max_drop: float,
) -> tuple[bytes, tuple[str, ...]]:  # fmt: skip
    """An ONNX file in int8, and the layers that stay in float."""
    base, names = quantization.prepared(data), Session(data).names
    feeds = [named_inputs(names, part) for part in inputs]
    paths, before = quantization.layers(data), quantization.layers(base)
    nodes, after = _quantized(base, feeds, valid, drop, max_drop)
    return after, tuple(paths.get(node, before[node]) for node in nodes)


def _keep(unit: str, reached: float, bound: float, cost: str, float_layers: Sequence[str]) -> None:
    """Raise LimitError where the int8 file is over a bound, with what would help."""
    if reached > bound:
        drop = f", or let more layers into int8 by a larger max_drop: {len(float_layers)} stay in float"
        raise LimitError(
            f"the int8 file {'has' if unit == 'kB' else 'takes'} {reached:,.4g} {unit}, and at most {bound:,.4g} "
            f"{unit} are allowed; it is not written. Slim the network further, for instance to "
            f"{bound / reached:.2f} of what it has now in {cost}{drop if float_layers else ''}"
        )


def _quantized(
    base: bytes, feeds: Sequence[quantization.Feed], valid: Callable[[bytes], float],
    drop: Callable[[float], float], max_drop: float,
) -> tuple[list[str], bytes]:  # fmt: skip
    """The nodes that stay in float, and the file: as few as the allowed drop needs, in the order of sensitivity."""
    data = quantization.quantize(base, feeds)
    if (lost := drop(valid(data))) <= max_drop:
        return [], data
    order = _by_sensitivity(base, feeds[:4])
    fails, count, works = 0, 1, None
    while works is None and count < len(order):  # doubled, then bisected: a score a trial
        data = quantization.quantize(base, feeds, without=order[:count])
        if (lost := drop(valid(data))) <= max_drop:
            works = count, data
        else:
            fails, count = count, min(2 * count, len(order) - 1) if count < len(order) - 1 else len(order)
    if works is None:
        raise ModelError(
            f"int8 loses {lost:.3g} points even where only {order[-1] if order else 'nothing'} is quantized, and "
            f"max_drop allows {max_drop:g}. Ship the float file, or allow more"
        )
    while works[0] - fails > 1:
        middle = (works[0] + fails) // 2
        data = quantization.quantize(base, feeds, without=order[:middle])
        if drop(valid(data)) <= max_drop:
            works = middle, data
        else:
            fails = middle
    return order[: works[0]], works[1]


def _by_sensitivity(base: bytes, feeds: Sequence[quantization.Feed]) -> list[str]:
    """Nodes of layers, first the one that alone in int8 changes the first output most, in mean squares."""
    session = Session(base)
    wanted = [torch.as_tensor(session.run(dict(feed))[0]).double() for feed in feeds]
    changes = {}
    for node in quantization.layers(base):
        alone = Session(quantization.quantize(base, feeds, only=[node]))
        got = [torch.as_tensor(alone.run(dict(feed))[0]).double() for feed in feeds]
        changes[node] = sum(float((a - b).square().mean()) for a, b in zip(wanted, got, strict=True))
    return sorted(changes, key=lambda node: -changes[node])


def _calibration(network: nn.Module, task: Task, *, samples: int, batch: int | None) -> list[tuple[Any, ...]]:
    """What the network is given by training batches, in parts of one batch size where that is fixed."""
    seen: list[tuple[Any, ...]] = []

    def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(tuple(_on_cpu((named,) if named else args)))

    stream, count = task.stream(seed=0), 0
    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    parts: list[tuple[Any, ...]] = []
    try:
        for step in itertools.count():
            try:
                with evaluating(network):
                    task.loss(network, stream(step))
            except Exception:  # the inputs are all that is needed: a file has no loss of its own, as some networks do
                if not seen:
                    raise
            if not seen:
                raise ModelError(
                    f"the loss of {type(task).__name__} calls a part of {type(network).__name__} and not the network "
                    "itself, whose inputs int8 is calibrated by, and an ONNX file has no parts. Let forward do all "
                    "that the loss calls, or ship the float file"
                )
            for part in quantization.split(seen[0], batch):
                parts.append(part)
                count += len(tensors(part)[0])
                if count >= samples:
                    return parts
            seen.clear()
    finally:
        handle.remove()
    raise AssertionError("the stream has no end")


def _score(task: Task, network: nn.Module, part: str) -> tuple[str, float]:
    return next(iter(evaluate(task, network, part).items()))


def _drop(task: Task, wanted: float) -> Callable[[float], float]:
    """From a score to the points that it is worse: of a share in [0, 1] its difference, else per cent of `wanted`."""
    better = 1.0 if higher_is_better(task) else -1.0

    def drop(score: float) -> float:
        share = better > 0 and 0 <= wanted <= 1 and 0 <= score <= 1
        lost = better * (wanted - score) * 100 / (1.0 if share else max(abs(wanted), 1e-12))
        return lost if lost == lost else float("inf")

    return drop


def _times(encoded: Encoded, int8: Encoded, inputs: tuple[Any, ...], *, runtime: Runtime) -> dict[str, float]:
    inputs = with_batch(inputs, len(tensors(inputs)[0]))
    passes = [file_pass(each.data, runtime, inputs, 1) for each in (encoded, int8)]
    rows = in_turns(passes, repeats=50, warmup=10, threads=1)
    both = [timing(row, runtime=runtime, device="cpu", threads=1).median_ms for row in rows]
    return {"float": both[0], "int8": both[1]}


def _on_cpu(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.detach().cpu(), inputs)

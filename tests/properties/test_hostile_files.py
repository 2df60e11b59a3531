"""Malformed files of every kind: only errors of archgrad come out, in bounded time and memory; nothing is executed.

About 1,100 inputs by default; ARCHGRAD_FUZZ=N tries N of each kind, drawn afresh (`make fuzz`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import resource
import signal
import struct
import tempfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from torch import nn

import archgrad as ag
from archgrad.choices.access import matched
from archgrad.cli import command_file as folder
from archgrad.cli.inputs import models, spaces
from archgrad.cli.schemas.configuration import resolve
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.cli.schemas.train import TrainOptions
from archgrad.costs.table import CostTable, measure_table
from archgrad.errors import ArchgradError
from archgrad.multimodal.av_digits import read_clips
from archgrad.multimodal.modalities import read_wav
from archgrad.run.checkpoint_file import load, save
from archgrad.run.folder import RunFolder
from archgrad.run.output import History
from archgrad.tasks import data_path
from archgrad.tasks.tabular_benchmark import Tabular

EACH = int(os.environ.get("ARCHGRAD_FUZZ", "125"))
CPU_SECONDS, BYTES = 5.0, 2**30
HOSTILE = st.sampled_from(
    [
        None, True, -1, 0, 2**31, 2**63, 10**200, 1e308, float("nan"), float("inf"), "", "nan", "../../../etc/passwd",
        "/dev/zero", "\x00", "a" * 5000, "é\ud800", [], {}, [[]], [0, 0], {"a": {}}, [[[[[[[[[]]]]]]]]],
    ]
)  # fmt: skip
BITS = st.binary(min_size=1, max_size=12)
fuzz = settings(
    max_examples=EACH,
    derandomize="ARCHGRAD_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Five seconds of the processor and one GiB more of memory; what archgrad refuses is fine."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"took more than {CPU_SECONDS} seconds")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    try:
        with contextlib.suppress(ArchgradError, FileNotFoundError):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@st.composite
def damaged(draw: st.DrawFn, good: Sequence[bytes]) -> bytes:
    """Bytes that were good once: cut, flipped, overwritten, doubled, or with a number in them made huge."""
    raw = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        match draw(st.sampled_from(("cut", "flip", "write", "repeat", "huge", "insert"))):
            case "cut":
                del raw[at:]
            case "flip" if raw:
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                put = draw(BITS)
                raw[at : at + len(put)] = put
            case "repeat":
                raw[at:at] = bytes(raw[at : at + 200]) * draw(st.integers(1, 50))
            case "huge":
                raw[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"9999"]))
            case "insert":
                raw[at:at] = draw(BITS)
    return bytes(raw)


@st.composite
def spoilt(draw: st.DrawFn, body: Any) -> Any:
    """A JSON value with hostile values, or keys, in some places of it."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        here = body
        while isinstance(here, dict | list) and here:
            key = draw(st.sampled_from(sorted(here, key=str) if isinstance(here, dict) else range(len(here))))
            below = here[key]
            if not isinstance(below, dict | list) or not below or draw(st.booleans()):
                if isinstance(here, dict) and draw(st.integers(0, 4)) == 0:
                    del here[key]
                    here[str(draw(HOSTILE))] = below
                else:
                    here[key] = copy.deepcopy(draw(HOSTILE))
                break
            here = below
        else:
            body = copy.deepcopy(draw(HOSTILE))
    return body


def text_of(body: Any) -> bytes:
    return json.dumps(body).encode("utf-8")


def spoilt_text(body: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(spoilt(body).map(text_of), damaged([text_of(body)]))


class Space(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = ag.OpChoice({"a": nn.Linear(3, 3), "b": nn.Identity()}, name="op")
        self.inputs = ag.InputChoice(3, keep=2, name="inputs")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inputs([self.op(x), x, x])


SPACE = Space()
ARCHITECTURE = {"format": "archgrad.architecture", "version": 1, "picks": {"op": 1, "inputs": [0, 2]}}
YAML = [
    b"model: net.py:Net\ndata: digits\nlimit: macs=0.5\nepochs: 3\nseed: 1\nkeep: [a, b]\nsparsity: 1.5\n",
    b"network: net.py:Net\ndata: digits\noptimizer: adamw\nclip: 5.0\naugment: flip,crop=4\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    b"model: !!python/object/apply:os.system ['true']\ndata: {a: {b: {c: {d: [[[[[[1]]]]]]}}}}\n",
    b"data: digits\nepochs: 99999999999999999999999999\nseconds: .inf\nout: 2020-99-99\nx: !!binary zz\n? [1]\n: 2",
]
RUN = {
    "identity": {"method": "m", "settings": {"a": {"b": 1}}, "epochs": 3}, "started": "x", "resumed": ["y"],
    "status": "running", "finished": None, "made_with": {"torch": "2"},
}  # fmt: skip
COMMAND = {"command": "slim", "directory": "/", "options": {"model": "net.py:Net", "data": "digits", "keep": ["a"]}}
RECORD = {"space": {"kind": "darts", "cells": 3, "channels": 4, "factorized": True, "example": [1, 3, 8, 8]}}
LINE = {"phase": "search", "step": 3, "time": 0.5, "loss": 0.25}


@given(st.one_of(damaged(YAML), spoilt({"data": "digits", "model": "m:n", "keep": ["a"], "epochs": 3}).map(text_of)))
@fuzz
def test_configurations(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    for schema in (SlimOptions, TrainOptions, SearchOptions):
        with bounded():
            resolve(schema, {}, path)


@given(spoilt_text(ARCHITECTURE))
@fuzz
def test_architectures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(content)
    with bounded():
        matched(SPACE, ag.Architecture.load(path))


@given(spoilt_text(json.loads(measure_table(SPACE, ag.params(), build=ag.build, checks=1).to_json())))
@fuzz
def test_tables_of_prices(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with bounded():
        CostTable.load(path)


@given(st.tuples(*map(spoilt_text, (RUN, COMMAND, RECORD, LINE))))
@fuzz
def test_the_files_of_a_run(tmp_path: Path, contents: tuple[bytes, ...]) -> None:
    for name, content in zip(("run.json", "command.json", "record.json", "history.jsonl"), contents, strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "computed.json").write_bytes(contents[0])
    files = RunFolder(tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: files.read(RUN["identity"]),
        files.computed,
        History(tmp_path, tensorboard=False).recall,
        lambda: folder.read(tmp_path),
        lambda: resolve(SlimOptions, folder.read(tmp_path)["options"]),
        lambda: spaces.recorded(tmp_path / "architecture.json"),
    ]
    for call in calls:
        with bounded():
            call()


def stored(build: Callable[[Path], None]) -> bytes:
    """What a file would hold."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.safetensors"
        build(path)
        return path.read_bytes()


STATE = {
    "parts": {"net": {"w": torch.ones(3, 2), "h": torch.ones(2, dtype=torch.complex64)}},
    "a": np.arange(3),
    1: (2,),
}


def checked(body: Any) -> bytes:
    """A checkpoint whose checksum is right, whatever its JSON says."""
    bodies, text = {"0:w": torch.ones(6)}, json.dumps(body)
    total = zlib.crc32(b"0:w", zlib.crc32(text.encode()))
    total = zlib.crc32(bodies["0:w"].numpy().tobytes(), total)
    metadata = {"format": "archgrad checkpoint 1", "state": text, "checksum": f"{total:08x}"}
    return safetensors.torch.save(bodies, metadata)


TREE = ["dict", ["w", ["tensor", "0:w", "float32", [3, 2]]], ["a", ["array", "0:w", "<f4", [6]]], ["b", ["tuple", 1]]]


@given(st.one_of(damaged([stored(lambda path: save(path, STATE))]), spoilt(TREE).map(checked)))
@fuzz
def test_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with bounded():
        load(path)


def packed(arrays: dict[str, Any], *, squeezed: bool = True) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if squeezed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def lying(shape: str, dtype: str, content: bytes = b"\x00" * 64) -> bytes:
    """A .npz file whose header declares what is not there."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("x", "y", "arch", "audio"):
            member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content
            archive.writestr(f"{name}.npy", member)
    return buffer.getvalue()


CELL = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
ARRAYS = [
    packed({"x": np.zeros((4, 3), np.float32), "y": np.array([0, 1, 0, 1])}, squeezed=False),
    packed({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.array(["a", "b", "a", "b"])}),
    packed({"arch": np.array([CELL]), "cifar10_test_e200": np.array([91.5])}, squeezed=False),
    packed({"audio": np.zeros(9, np.int16), "offsets": np.array([0, 4, 9]), "digit": [1, 2], "take": [0, 7]}),
]
SHAPES = st.sampled_from(
    ["(10**15,)", "(1000000000000, 8)", "(-1, 4)", "(2,)", "()", "(True,)", "'ab'", "(1e9,)", "(" * 90]
)
TYPES = st.sampled_from(["'<f8'", "'|O'", "'<U1000000000'", "[('a', '|O')]", "'V0'", "'>M8[s]'", "'<c16'", "None"])


@given(st.one_of(damaged(ARRAYS), st.builds(lying, SHAPES, TYPES, BITS)))
@fuzz
def test_arrays_and_tables_of_cells(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    calls: list[Callable[[], object]] = [
        lambda: data_path.load(path), lambda: Tabular.load(path, complete=False), lambda: read_clips(path),
    ]  # fmt: skip
    for call in calls:
        with bounded():
            call()


def picture(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = [
    *(picture(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")),
    picture("TIFF", compression="tiff_deflate"), b"P6\n99999 99999\n255\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
]  # fmt: skip


@given(damaged(PICTURES), st.sampled_from([".png", ".jpg", ".gif", ".tif"]))
@fuzz
def test_images(tmp_path: Path, content: bytes, suffix: str) -> None:
    for old in tmp_path.glob("*/*"):
        old.unlink()
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"1{suffix}").write_bytes(content)
        (tmp_path / name / "2.png").write_bytes(PICTURES[0])
    for options in ({"size": 8}, {"skip_corrupt": True}):
        with bounded():
            data_path.load(tmp_path, **options)  # type: ignore[arg-type]


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(400))
    return buffer.getvalue()


@given(damaged([sound()]))
@fuzz
def test_recordings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "1_a_2.wav"
    path.write_bytes(content)
    with bounded():
        read_wav(path)


NET = nn.Linear(3, 2)


def by_torch(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


WEIGHTS = [by_torch(NET.state_dict()), by_torch({"state_dict": NET.state_dict()}, zipped=False), by_torch(NET)]


@given(damaged([*WEIGHTS, safetensors.torch.save(NET.state_dict())]), st.sampled_from([".pt", ".safetensors"]))
@fuzz
def test_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with bounded():
        models.read_weights(copy.deepcopy(NET), path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_way_of_loading_executes_a_pickle(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "executed"
    plain = pickle.dumps(Canary(mark), protocol=protocol)
    objects = io.BytesIO()
    np.savez(objects, allow_pickle=True, **{n: np.array([Canary(mark)], object) for n in ("x", "y", "arch", "audio")})
    network = nn.Linear(1, 1)
    network.canary = Canary(mark)  # type: ignore[assignment]
    contents = {
        "plain": plain, "objects": objects.getvalue(), "whole": by_torch(network),
        "state": by_torch({"w": Canary(mark)}), "legacy": by_torch({"w": Canary(mark)}, zipped=False),
        "yaml": b"out: !!python/object/apply:os.system [id]",
    }  # fmt: skip
    ways: dict[str, Callable[[Path], object]] = {
        ".npz": data_path.load, ".tab": Tabular.load, ".clips": read_clips, ".wav": read_wav, ".pt": weights,
        ".safetensors": weights, ".json": ag.Architecture.load, ".table": CostTable.load, ".ckpt": load,
        ".pt2": program_of, ".yaml": lambda path: resolve(SlimOptions, {}, path),
    }  # fmt: skip
    refused = 0
    for name, content in contents.items():
        for suffix, way in ways.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            with pytest.raises(ArchgradError):
                way(path)
            refused += 1
    assert refused == len(contents) * len(ways)
    assert not mark.exists()
    pickle.loads(plain)
    assert mark.exists(), "the canary works"


def weights(path: Path) -> object:
    return models.read_weights(NET, path)


def program_of(path: Path) -> object:
    from archgrad.cli.inputs.exported_program import load as load_program

    return load_program(path)

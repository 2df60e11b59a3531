"""Bounds on what is read: sizes, depth, numbers, keys, and headers that lie."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import warnings
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from archgrad import files
from archgrad.choices.architecture import Architecture
from archgrad.cli.inputs import exported_program as program, models
from archgrad.cli.schemas.configuration import resolve
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.errors import ArchitectureError, ConfigError, DataError, ModelError, RunError
from archgrad.multimodal.modalities import read_wav
from archgrad.run.checkpoint_file import load
from archgrad.tasks import data_path, images


def test_texts_are_ordinary_files_of_a_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("é" * 50, encoding="utf-8")
    assert files.read_text(path, RunError, most=100) == "é" * 50
    with pytest.raises(RunError, match="is larger than 0 MiB"):
        files.read_text(path, RunError, most=99)
    with pytest.raises(RunError, match="no ordinary file"):
        files.read_text(Path("/dev/zero"), RunError)
    with pytest.raises(RunError, match="cannot read"):
        files.read_text(tmp_path, RunError)
    path.write_bytes(b"\xff")
    with pytest.raises(RunError, match="no text in UTF-8"):
        files.read_text(path, RunError)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ('{"a":' * 100_000, "nested deeper than 64"),
        ("9" * 301, "a number of 301 digits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": 1', "the text is not JSON"),
    ],
)
def test_json_is_refused(content: str, told: str) -> None:
    with pytest.raises(RunError, match=told):
        files.parse_json(content, RunError, source="the text")


def test_json_is_read() -> None:
    for value in ({"a": ["[" * 100, '"', "\\", '\\"']}, [[[1.5, None, True]]], "x", 10**299):
        assert files.parse_json(json.dumps(value), RunError, source="the text") == value
    assert np.isnan(files.parse_json("NaN", RunError, source="the text", finite=False))
    deep = "[" * files.DEPTH + "]" * files.DEPTH
    assert files.parse_json(deep, RunError, source="the text")


def test_a_name_of_a_choice_that_looks_like_a_path_stays_a_name(tmp_path: Path) -> None:
    before = Architecture({"../../outside": 0, "/etc/passwd": 1, "\x00": 0})
    before.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ArchitectureError, match="is there twice"):
        Architecture.from_json('{"format": "archgrad.architecture", "version": 1, "picks": {"a": 1, "a": 2}}')


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(shape: str, dtype: str = "<f4", content: bytes = bytes(64)) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (npy("(10000000000000,)"), "declares 40,000,000,000,000 bytes and holds"),
        (npy("(-3, -3)"), "declares"),
        (npy("(4,)", "|O"), "holds pickled Python objects"),
        (npy("(4,)").replace(b"\x01\x00", b"\x03\x00", 1), "version 3.0 is for arrays of records"),
        (b"", "is damaged or not a .npz file"),
    ],
)
def test_headers_of_arrays_that_lie(tmp_path: Path, member: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        data_path.load(npz(tmp_path / "a.npz", {"x": member, "y": npy("(16,)")}))


def test_an_archive_that_unpacks_to_more_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path / "a.npz", {"x": npy("(4000000,)", content=bytes(16_000_000)), "y": npy("(16,)")})
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(files, "free_memory", lambda: 10_000_000)
    with pytest.raises(DataError, match=r"unpacks to 0\.0 GiB, and 0\.0 GiB of memory are free"):
        data_path.load(path)


def test_an_array_that_is_not_asked_for_is_not_unpacked(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", {"x": npy("(16, 1)"), "y": npy("(16,)"), "z": npy("(4,)", "|O")})
    found = dict(files.read_arrays(path, DataError, wanted={"x"}.__contains__))
    assert (found["x"].shape, found["z"].size) == ((16, 1), 0)


def pictures(folder: Path, content: bytes, suffix: str) -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / "good.png")
        (folder / name / f"odd{suffix}").write_bytes(content)
    return folder


def bomb() -> bytes:
    """A PNG of 9000 x 9000 pixels in some hundred bytes."""
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (bomb(), ".png"),
        (b"P6\n999999 999999\n255\n", ".ppm"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(out) (w) file\n", ".png"),
        (b"not an image", ".jpg"),
        (b"", ".gif"),
    ],
    ids=["bomb", "declared", "postscript", "text", "empty"],
)
def test_images_that_are_refused_by_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    folder = pictures(tmp_path / "data", content, suffix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=rf"2 of 4 images cannot be read.*odd\{suffix}.*of up to 67 million"):
            data_path.load(folder, size=4)
        assert len(data_path.load(folder, size=4, skip_corrupt=True).train) == 2


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "teal").save(buffer, "GIF")
    assert len(data_path.load(pictures(tmp_path / "data", buffer.getvalue(), ".png")).train) == 4
    assert "EPS" not in images.FORMATS


def test_more_pixels_in_all_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "data", (tmp_path / "x").name.encode(), ".txt")
    monkeypatch.setattr(files, "free_memory", lambda: 50)
    with pytest.raises(DataError, match="of memory are free"):
        data_path.load(folder)


def test_a_recording_that_declares_more_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(400))
    good = path.read_bytes()
    for size in (0xFFFFFFFF, 0x7FFFFFFE):
        lying = good[:40] + struct.pack("<I", size) + good[44:]
        path.write_bytes(lying[:4] + struct.pack("<I", size) + lying[8:])
        assert read_wav(path).shape == (1, 200)
    path.write_bytes(good[:22] + b"\x00\x00" + good[24:])
    with pytest.raises(DataError, match="cannot be read as a WAV file"):
        read_wav(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases are not read"),
        ("data: " + "[" * 9 + "]" * 9, "nested deeper than 8"),
        ("data: " + "[" * 200_000, "nested deeper than 8"),
        ("data: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("data: 2020-99-99", "is not YAML"),
        ("epochs: 1\nepochs: 2", "'epochs' is there twice"),
        ("epochs: " + "9" * 5000, "is not YAML"),
        ("out: " + "x" * 2**20, "is larger than 1 MiB"),
        ("model: m:n\ndata: digits\nepochs: 1.5", "epochs .in"),
        ("model: m:n\ndata: [1, 2, 3]", "data .in"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        resolve(SlimOptions, {}, path)
    assert len(str(caught.value)) < 2000


def test_keys_below_the_first_level_may_repeat(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model: m:n\ndata: digits\nkeep: [a, b]\nlimit: {macs: 0.5}\n")
    assert resolve(SlimOptions, {}, path).limit == ["macs=0.5"]


def test_a_whole_network_as_weights_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    network, path = torch.nn.Linear(2, 2), tmp_path / "a.pt"
    torch.save(network, path)
    with pytest.raises(ModelError, match=r"whole networks among them.*weights_only=False\)\.state_dict\(\)"):
        models.read_weights(network, path)
    torch.save({"state_dict": network.state_dict()}, path)
    models.read_weights(torch.nn.Linear(2, 2), path)


def test_a_checkpoint_whose_header_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    large = b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 8]}}'
    headers = [(2**63, b"{}"), (50, b"{}"), (len(large), large + bytes(8)), (len(large) - 1, large)]
    for content in (struct.pack("<Q", size) + rest for size, rest in headers):
        path.write_bytes(content)
        with pytest.raises(RunError, match="damaged, truncated or no safetensors file"):
            load(path)


def test_a_program_that_unpacks_to_more_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/weights/weight_0", bytes(16_000_000))
    monkeypatch.setattr(files, "free_memory", lambda: 10_000_000)
    with pytest.raises(RunError, match="of memory are free"):
        program.load(path)


def test_what_messages_show_is_cut() -> None:
    assert files.shown([1, 2]) == "[1, 2]"
    assert len(files.shown("x" * 10**6)) < 300 and files.shown("x" * 10**6).endswith("(1,000,002 characters)")
    free = files.free_memory()
    assert free is None or 0 < free < 2**60


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*file\.txt: there is no folder .*absent\. Make it"):
        files.write_text(tmp_path / "absent" / "file.txt", "text", RunError)


def test_a_file_has_an_ordinary_mode_and_what_killed_processes_left_goes(tmp_path: Path) -> None:
    def private(partial: Path) -> None:
        partial.write_bytes(b"x")
        partial.chmod(0o600)

    mask = os.umask(0o027)
    try:
        files.replace(tmp_path / "a", private, RunError, size=1)
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    dead = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"], text=True).strip()
    here = files.pid_namespace()
    for pid in (dead, str(os.getpid())):
        (tmp_path / f".b.{here}.{pid}.partial").write_text("half")
    files.write_text(tmp_path / "a", "", RunError)
    assert (tmp_path / f".b.{here}.{dead}.partial").exists(), "what is of another file stays"
    files.remove_partial(tmp_path)
    assert [p.name for p in tmp_path.glob(".*.partial")] == [f".b.{here}.{os.getpid()}.partial"]
    for name in ("b", "b*", "[b]"):  # whoever writes a file anew, a report for instance, finds its remains
        (tmp_path / f".{name}.{here}.{dead}.partial").write_text("half")
        files.write_text(tmp_path / name, "", RunError)
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("name", [".b.00000000.1.partial", ".b.00000000.999999999.partial", ".b.999999999.partial"])
def test_what_is_written_in_another_container_stays_for_a_day(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("half")
    for remains, age in ((True, 0.0), (True, 80_000.0), (False, 90_000.0)):
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
        files.remove_partial(tmp_path)
        assert (tmp_path / name).exists() == remains


@pytest.mark.parametrize("name", ["a" * 255, "\u00e9" * 127, "a" * 200])
def test_a_long_name_is_written_and_one_that_is_too_long_refused(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, "text", RunError)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "text"
    for wrong in (name * 2, "a\ud800"):
        with pytest.raises(RunError, match="cannot write"):
            files.write_text(tmp_path / wrong, "text", RunError)
    assert [path.name for path in tmp_path.iterdir()] == [name]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from archgrad.errors import DataError
from archgrad.tasks.data_path import load
from archgrad.tasks.datasets import digits
from archgrad.tasks.samples import samples

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def write(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_digits() -> None:
    held = digits()
    assert held.x.shape == (1797, 1, 8, 8) and held.x.dtype == torch.uint8
    assert held.x.max() == 255 and len(held.x.unique()) == 17
    assert held.class_names == tuple("0123456789")
    again = load("digits")
    assert torch.equal(again.train.x, held.x) and again.valid is None and again.test is None


@pytest.mark.parametrize(
    ("given", "shape", "dtype"),
    [
        (PIXELS, (12, 3, 6, 5), torch.uint8),
        (PIXELS[..., 0], (12, 1, 6, 5), torch.uint8),
        (PIXELS.transpose(0, 3, 1, 2), (12, 3, 6, 5), torch.uint8),
        (PIXELS.astype(np.int64), (12, 3, 6, 5), torch.uint8),
        (PIXELS.astype(np.int64) - 1, (12, 3, 6, 5), torch.float32),
        (PIXELS.astype(np.float64), (12, 3, 6, 5), torch.float32),
        (PIXELS.astype(">f4"), (12, 3, 6, 5), torch.float32),
        (PIXELS.reshape(12, -1).astype(np.int32), (12, 90), torch.float32),
        (PIXELS[:, :, :3], (12, 3, 6, 3), torch.uint8),
        (torch.zeros(12, 7, 5, 3), (12, 7, 5, 3), torch.float32),
        (torch.zeros(12, 2, dtype=torch.bfloat16), (12, 2), torch.float32),
        ([[0.0, 1.0]] * 12, (12, 2), torch.float32),
    ],
)
def test_inputs_take_one_form(given: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    held = samples(given, LABELS)
    assert tuple(held.x.shape) == shape and held.x.dtype == dtype
    assert held.y.dtype == torch.int64 and held.y.tolist() == LABELS.tolist()


def test_channels_move_with_their_pixels() -> None:
    assert np.array_equal(samples(PIXELS, LABELS).x.numpy(), PIXELS.transpose(0, 3, 1, 2))


def test_read_only_arrays_are_copied() -> None:
    frozen = PIXELS.transpose(0, 3, 1, 2).copy()
    frozen.flags.writeable = False
    assert samples(frozen, LABELS).x.shape == (12, 3, 6, 5)


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        ([0, 1, 2, 0], ("0", "1", "2"), [0, 1, 2, 0]),
        ([5, 30, 7, 5], ("5", "7", "30"), [0, 2, 1, 0]),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1"), [1, 0, 1, 0]),
        ([True, False, True, False], ("0", "1"), [1, 0, 1, 0]),
        (["dog", "cat", "dog", "ant"], ("ant", "cat", "dog"), [2, 1, 2, 0]),
        (np.array([b"b", b"a", b"a", b"b"]), ("a", "b"), [1, 0, 0, 1]),
        (np.array(["b", "a", "a", "b"], dtype=object), ("a", "b"), [1, 0, 0, 1]),
        (np.array([[0], [1], [1], [0]]), ("0", "1"), [0, 1, 1, 0]),
    ],
)
def test_labels_are_mapped_and_the_mapping_kept(labels: object, names: tuple[str, ...], codes: list) -> None:
    held = samples(torch.zeros(4, 2), labels)
    assert held.class_names == names and held.y.tolist() == codes


def test_classes_keep_a_gap() -> None:
    held = samples(torch.zeros(3, 2), [0, 3, 0], classes=5)
    assert held.class_names == ("0", "1", "2", "3", "4") and held.y.tolist() == [0, 3, 0]
    second = samples(torch.zeros(2, 2), [1, 4], class_names=held.class_names, part="valid")
    assert second.y.tolist() == [1, 4]


X = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, [0, 1], {}, "train: 3 inputs but 2 labels"),
        (X[:0], [], {}, "train: no samples at all"),
        (X, [1, 1, 1], {}, r"only one class \(1\) among 3 samples"),
        (X, [0, 1, -1], {}, "label -1 is negative"),
        (X, [0, 1, 2], {"classes": 2}, "label 2 with classes=2; labels are 0..1"),
        (X, ["a", "b", "c"], {"classes": 2}, "classes=2, but the labels name 3: a, b, c"),
        (X, ["a", "b", "z"], {"class_names": ("a", "b"), "part": "valid"}, "valid: labels z are outside"),
        (X, [0, 1, -1], {"class_names": ("0", "1"), "part": "test"}, "test: labels -1 are outside"),
        (X, np.eye(3), {}, r"labels of shape \[3, 3\].*argmax"),
        (X, [0.5, 1, 2], {}, "labels of type float64"),
        (X, [b"a", b"\xff", b"a"], {}, "bytes that are no UTF-8"),
        (X, np.array([0, 1, 2**63], np.uint64), {}, "label 9223372036854775808 is too large"),
        (np.array([[1.0], [1e200], [2.0]]), [0, 1, 0], {}, r"too large for float32 in 1 of 3 .*\[1\]"),
        (X, [0, float("nan"), 1], {}, "labels of type float64"),
        (np.array([[1.0], [np.nan], [2.0]]), [0, 1, 0], {}, r"NaN or infinite numbers in 1 of 3 .*\[1\]"),
        (np.array([[1.0], [np.inf], [2.0]]), [0, 1, 0], {}, "NaN or infinite"),
        (np.zeros(3), [0, 1, 0], {}, r"inputs of shape \[3\]"),
        (np.array([["a"], ["b"]]), [0, 1], {}, "inputs of type <U1"),
        ([[1, 2], [3]], [0, 1], {}, "do not form one array"),
        (torch.zeros(2, 2, dtype=torch.complex64), [0, 1], {}, "complex"),
        (torch.eye(2).to_sparse(), [0, 1], {}, "to_dense"),
    ],
)
def test_bad_samples(x: object, y: object, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        samples(x, y, **options)


def test_npz(tmp_path: Path) -> None:
    whole = load(write(tmp_path / "a.npz", x=PIXELS, y=LABELS))
    assert whole.train.x.shape == (12, 3, 6, 5) and whole.valid is None
    parts = load(
        write(
            tmp_path / "b.npz",
            x_train=PIXELS,
            y_train=LABELS + 4,
            x_valid=PIXELS[:2],
            y_valid=[6, 6],
            x_test=PIXELS[:3],
            y_test=[4, 5, 4],
            note=np.array([None], dtype=object),
        )
    )
    assert parts.valid is not None and parts.test is not None
    assert parts.train.class_names == parts.test.class_names == ("4", "5", "6")
    assert parts.valid.y.tolist() == [2, 2] and parts.test.y.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": PIXELS}, "lacks y_train; it has x_train"),
        ({"images": PIXELS}, "lacks x_train and y_train; it has images"),
        ({"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS}, "lacks y_test"),
        ({"x_train": PIXELS, "y_train": LABELS[:5]}, "12 inputs but 5 labels"),
        ({"x_train": PIXELS, "y_train": LABELS, "x_valid": PIXELS, "y_valid": LABELS + 1}, "valid: labels 3"),
        ({"x": PIXELS, "y": np.array([{}] * 12, dtype=object)}, "y holds pickled Python objects"),
        ({"x": np.array([None, 1], dtype=object), "y": [0, 1]}, "x holds pickled Python objects"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "data.npz", **arrays))


def test_damaged_files(tmp_path: Path) -> None:
    noise = tmp_path / "noise.npz"
    noise.write_bytes(b"not a zip archive")
    with pytest.raises(DataError, match=r"noise.npz is damaged or not a .npz file \(not a zip archive\)"):
        load(noise)
    good = write(tmp_path / "good.npz", x=PIXELS, y=LABELS)
    data = bytearray(good.read_bytes())
    data[300:320] = b"\xff" * 20
    good.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        load(good)


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder. Data may be the word \"digits\""):
        load(tmp_path / "nowhere")
    table = tmp_path / "table.csv"
    table.write_text("1,2")
    with pytest.raises(DataError, match=r"this kind of file \(.csv\) is not read. Data may be .*npz.*CLASS"):
        load(table)
    with pytest.raises(DataError, match="size and skip_corrupt are for folders"):
        load("digits", size=16)

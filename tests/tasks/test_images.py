from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from archgrad.errors import DataError, MissingExtra
from archgrad.tasks.data_path import load


def save(path: Path, value: int = 100, *, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "1", "P") else (value, 0, 255)).save(path)
    return path


def two_classes(root: Path, count: int = 3, *, first: int = 0) -> Path:
    for label, name in enumerate(("cat", "dog")):
        for index in range(count):
            save(root / name / f"{index}.png", first + 10 * label + index)
    return root


def test_flat_folder(tmp_path: Path) -> None:
    two_classes(tmp_path)
    save(tmp_path / "dog" / "deep" / "9.JPG", 200)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / "._0.png").write_text("a shadow file")
    (tmp_path / ".hidden").mkdir()
    held = load(tmp_path).train
    assert held.x.shape == (7, 3, 5, 6) and held.x.dtype == torch.uint8
    assert held.class_names == ("cat", "dog") and held.y.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert held.x[:6, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert held.x[0, 1].unique().tolist() == [0] and held.x[0, 2].unique().tolist() == [255]


@pytest.mark.parametrize("spelling", ["valid", "val", "validation"])
def test_folder_in_parts(tmp_path: Path, spelling: str) -> None:
    two_classes(tmp_path / "train")
    save(tmp_path / spelling / "dog" / "a.png", 50)
    two_classes(tmp_path / "test", 2, first=60)
    parts = load(tmp_path)
    assert parts.valid is not None and parts.test is not None
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (6, 1, 4)
    assert parts.valid.y.tolist() == [1] and parts.valid.x[0, 0, 0, 0] == 50


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    save(tmp_path / "train" / "0.png")
    save(tmp_path / "plane" / "0.png")
    assert load(tmp_path).train.class_names == ("plane", "train")


def test_grey_stays_grey_unless_one_is_colored(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", 30, mode="L")
    save(tmp_path / "b" / "0.png", 1, mode="1")
    held = load(tmp_path).train
    assert held.x.shape == (2, 1, 5, 6) and held.x[:, 0, 0, 0].tolist() == [30, 255]
    save(tmp_path / "b" / "1.png", 7)
    held = load(tmp_path).train
    assert held.x.shape == (3, 3, 5, 6) and held.x[0, :, 0, 0].tolist() == [30, 30, 30]


def test_other_modes(tmp_path: Path) -> None:
    save(tmp_path / "a" / "rgba.png", mode="RGB")
    Image.new("RGBA", (6, 5), (9, 8, 7, 0)).save(tmp_path / "a" / "x.png")
    (tmp_path / "b").mkdir()
    palette = Image.new("P", (6, 5), 1)
    palette.putpalette([0, 0, 0, 40, 50, 60])
    palette.save(tmp_path / "b" / "palette.png", transparency=b"\x00\xff")
    deep = np.full((5, 6), 257 * 77, np.uint16)
    Image.fromarray(deep).save(tmp_path / "b" / "sixteen.png")
    held = load(tmp_path).train
    assert held.x[:, :, 0, 0].tolist() == [[100, 0, 255], [9, 8, 7], [40, 50, 60], [77, 77, 77]]


def test_sizes(tmp_path: Path) -> None:
    two_classes(tmp_path)
    odd = save(tmp_path / "dog" / "odd.png", size=(9, 9))
    with pytest.raises(DataError, match=r"2 different sizes .*5 x 6 .*9 x 9 \(.*odd.png\).*size=64"):
        load(tmp_path)
    assert load(tmp_path, size=8).train.x.shape == (7, 3, 8, 8)
    assert load(tmp_path, size=(4, 7)).train.x.shape == (7, 3, 4, 7)
    with pytest.raises(DataError, match=r"size=\(0, 3\)"):
        load(tmp_path, size=(0, 3))
    odd.unlink()
    assert load(tmp_path, size=(5, 6)).train.x[0, :, 0, 0].tolist() == [0, 0, 255]


def test_corrupt_images_are_named_or_skipped(tmp_path: Path) -> None:
    two_classes(tmp_path, 8)
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    for index in range(6):
        (tmp_path / "cat" / f"bad{index}.png").write_bytes(b"no image at all")
        big = Image.fromarray(np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8))
        big.save(tmp_path / "dog" / "t.png")
        cut = (tmp_path / "dog" / "t.png").read_bytes()[:60]
        (tmp_path / "dog" / f"cut{index}.png").write_bytes(cut)
    (tmp_path / "dog" / "t.png").write_bytes(whole)
    with pytest.raises(DataError, match=r"6 of 29 images cannot be read: .*bad0.png, .*bad5.png\. Repair"):
        load(tmp_path)
    held = load(tmp_path, skip_corrupt=True).train
    assert len(held) == 17
    assert [Path(name).name for name in held.skipped] == [
        *(f"bad{index}.png" for index in range(6)),
        *(f"cut{index}.png" for index in range(6)),
    ]
    for index in range(6):
        (tmp_path / "cat" / f"bad{index}.png").unlink()
    with pytest.raises(DataError, match=r"6 of 23 images cannot be read: .*cut0.png"):
        load(tmp_path)


def test_many_corrupt_images_are_counted(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for index in range(12):
        (tmp_path / "cat" / f"bad{index:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"12 of 18 images .*bad09.png, \.\.\.") as caught:
        load(tmp_path)
    assert "bad10" not in str(caught.value)


def test_a_class_lost_to_corruption(tmp_path: Path) -> None:
    two_classes(tmp_path)
    save(tmp_path / "emu" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="no readable training image is left in emu"):
        load(tmp_path, skip_corrupt=True)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no class folders\. Data may be"):
        load(tmp_path)
    save(tmp_path / "one" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"only one class \(cat\)"):
        load(tmp_path / "one")
    (tmp_path / "one" / "dog").mkdir()
    with pytest.raises(DataError, match="dog: this class folder has no images"):
        load(tmp_path / "one")
    two_classes(tmp_path / "two" / "test")
    with pytest.raises(DataError, match="has test but no train folder"):
        load(tmp_path / "two")
    two_classes(tmp_path / "two" / "train")
    save(tmp_path / "two" / "test" / "emu" / "0.png")
    with pytest.raises(DataError, match="test: labels emu are outside the 2 classes cat, dog"):
        load(tmp_path / "two")
    (tmp_path / "three" / "val").mkdir(parents=True)
    (tmp_path / "three" / "valid").mkdir()
    (tmp_path / "three" / "train").mkdir()
    with pytest.raises(DataError, match="has both valid and val"):
        load(tmp_path / "three")
    with pytest.raises(DataError, match="classes=3, but there are 2 class folders: cat, dog"):
        load(two_classes(tmp_path / "four"), classes=3)


@pytest.fixture
def hugging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return pytest.importorskip("datasets", reason="datasets is not installed (the extra `data`)")


def pictures(count: int, *, grey: bool = False) -> list[Image.Image]:
    return [Image.new("L" if grey else "RGB", (6, 5), index if grey else (index, 0, 0)) for index in range(count)]


@pytest.mark.filterwarnings("default")
def test_hugging_face(tmp_path: Path, hugging) -> None:
    features = hugging.Features(
        {"pic": hugging.Image(), "id": hugging.Value("int64"), "kind": hugging.ClassLabel(names=["x", "a"])}
    )

    def table(count: int):
        columns = {"pic": pictures(count), "id": list(range(count)), "kind": [i % 2 for i in range(count)]}
        return hugging.Dataset.from_dict(columns, features=features)

    hugging.DatasetDict({"train": table(5), "validation": table(2), "test": table(3)}).save_to_disk(
        str(tmp_path / "dict")
    )
    parts = load(tmp_path / "dict")
    assert parts.valid is not None and parts.test is not None
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (5, 2, 3)
    assert parts.train.class_names == ("x", "a") and parts.train.y.tolist() == [0, 1, 0, 1, 0]
    assert parts.train.x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert load(tmp_path / "dict", size=3).train.x.shape == (5, 3, 3, 3)
    hugging.DatasetDict({"test": table(3)}).save_to_disk(str(tmp_path / "lone"))
    with pytest.raises(DataError, match="has the splits test; it needs one called train"):
        load(tmp_path / "lone")
    table(4).remove_columns("kind").save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(DataError, match=r"has the columns pic \(Image\), id \(Value\).*exactly one Image"):
        load(tmp_path / "bare")


@pytest.mark.filterwarnings("default")
def test_hugging_face_plain_labels_and_damage(tmp_path: Path, hugging) -> None:
    kinds = {"image": hugging.Image(), "label": hugging.Value("string")}
    columns = {"image": pictures(4, grey=True), "label": ["b", "a", "b", "a"]}
    hugging.Dataset.from_dict(columns, features=hugging.Features(kinds)).save_to_disk(str(tmp_path / "plain"))
    held = load(tmp_path / "plain").train
    assert held.x.shape == (4, 1, 5, 6) and held.class_names == ("a", "b") and held.y.tolist() == [1, 0, 1, 0]
    numbered = hugging.Features({"image": hugging.Image(), "label": hugging.Value("int64")})
    numbers = {"image": pictures(4), "label": [10, 2, 10, 0]}
    hugging.Dataset.from_dict(numbers, features=numbered).save_to_disk(str(tmp_path / "whole"))
    held = load(tmp_path / "whole").train
    assert held.class_names == ("0", "2", "10") and held.y.tolist() == [2, 1, 2, 0]
    columns["image"] = [*columns["image"][:3], {"bytes": b"broken", "path": None}]  # type: ignore[list-item]
    hugging.Dataset.from_dict(columns, features=hugging.Features(kinds)).save_to_disk(str(tmp_path / "torn"))
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read: train\[3\]"):
        load(tmp_path / "torn")
    assert load(tmp_path / "torn", skip_corrupt=True).train.skipped == ("train[3]",)
    hidden = hugging.Features({"image": hugging.Image(), "label": hugging.ClassLabel(names=["a", "b"])})
    columns = {"image": pictures(3), "label": [0, 1, -1]}  # type: ignore[dict-item]
    hugging.Dataset.from_dict(columns, features=hidden).save_to_disk(str(tmp_path / "hidden"))
    with pytest.raises(DataError, match=r"label -1 is outside 0..1"):
        load(tmp_path / "hidden")
    (tmp_path / "plain" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="damaged Hugging Face data set"):
        load(tmp_path / "plain")


def test_hugging_face_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"datasets is not installed.*archgrad\[data\]"):
        load(tmp_path)


def written(root: Path, write: Callable[[Path, int, int], object], *, suffix: str = ".tif") -> Path:
    """Four images of each of two classes, which differ; `write(path, label, number)` writes one."""
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            write(root / name / f"{number}{suffix}", label, number)
    return root


def values(label: int, number: int) -> np.ndarray[Any, Any]:
    """Numbers in [0, 1], bright in class 1 and dark in class 0."""
    drawn = np.random.default_rng(10 * label + number).random((6, 6))
    return (0.6 * label + 0.4 * drawn).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "scale", "low"),
    [(np.float32, 1.0, 0.0), (np.float32, 255.0, 0.0), (np.float32, 65535.0, 0.0), (np.float32, 2.0, -1.0),
     (np.int32, 255.0, 0.0), (np.int32, 65535.0, 0.0)],
)  # fmt: skip
def test_wide_greys_are_read_by_their_range(tmp_path: Path, form: Any, scale: float, low: float) -> None:
    def write(path: Path, label: int, number: int) -> None:
        Image.fromarray((values(label, number) * scale + low).astype(form)).save(path)

    x = load(written(tmp_path, write)).train.x
    assert x.dtype == torch.uint8
    for label in range(2):
        expected = np.stack([255 * values(label, number) for number in range(4)])
        assert np.abs(x[4 * label : 4 * label + 4, 0].numpy() - expected).max() <= 1.5


def test_a_shape_that_alpha_draws_is_seen(tmp_path: Path) -> None:
    def write(path: Path, label: int, number: int) -> None:
        pixels = np.zeros((6, 6, 4), np.uint8)
        pixels[number, : 3 + label, 3] = 255
        Image.fromarray(pixels).save(path)

    x = load(written(tmp_path, write, suffix=".png")).train.x
    assert int((x[0, 0] == 0).sum()) == 3 and int((x[4, 0] == 0).sum()) == 4


def test_an_image_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    def write(path: Path, label: int, number: int) -> None:
        image = Image.fromarray((255 * values(label, number)[:, :4]).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)

    x = load(written(tmp_path, write, suffix=".png")).train.x
    assert x.shape[2:] == (6, 4)
    assert np.array_equal(x[5, 0].numpy(), (255 * values(1, 1)[:, :4]).astype(np.uint8))


def test_what_is_left_out_and_what_parts_share_is_told(tmp_path: Path) -> None:
    def write(path: Path, label: int, number: int) -> None:
        Image.fromarray((255 * values(label, number)).astype(np.uint8)).save(path)

    root = written(tmp_path / "set" / "train", write, suffix=".png")
    (root / "a" / ".ipynb_checkpoints").mkdir()
    shutil.copy(root / "a" / "0.png", root / "a" / ".ipynb_checkpoints" / "0-checkpoint.png")
    assert len(load(tmp_path / "set").train) == 8
    (root / "a" / "photo.heic").write_bytes(b"x")
    (root / "b" / "linked").symlink_to(root / "a")
    with pytest.warns(UserWarning, match=r"2 files or linked folders .*photo.heic, .*linked"):
        load(tmp_path / "set")
    (root / "a" / "photo.heic").unlink()
    (root / "b" / "linked").unlink()
    shutil.copytree(root, tmp_path / "set" / "test")
    with pytest.warns(UserWarning, match="8 images are in more than one part"):
        load(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "test")
    for number in range(3):
        Image.fromarray(np.full((6, 6), 255, np.uint8)).save(root / "a" / f"flat{number}.png")
    with pytest.warns(UserWarning, match="3 of 11 images are black or white"):
        load(tmp_path / "set")

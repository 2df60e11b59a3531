"""Images read into memory: folders with one sub-folder for each class, and saved Hugging Face data sets."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from archgrad import files
from archgrad.errors import DataError, MissingExtra
from archgrad.tasks.datasets import KINDS, Parts
from archgrad.tasks.samples import Samples, samples

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})
SPELLINGS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F"})
# Images that no decoder of ours reads.
_UNREAD = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".dng", ".psd", ".tga", ".ico", ".exr", ".dcm"}
)
# Greys whose values have no range of their own.
_WIDE = ("I", "F")
# EXIF's tag, and its values for an image that lies on its side.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
# By content, whatever the name says: no other decoder of Pillow is reached, such as the one that calls Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
PIXELS = 2**26  # of one image: 8192 x 8192
# What Pillow raises for files that are cut off, not images, or absurdly large.
UNREADABLE = (
    *files.UNREADABLE, NotImplementedError, Image.DecompressionBombError,
)  # fmt: skip

Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Picture:
    """One image that is still a file (or the bytes of one)."""

    name: str
    part: str
    label: str
    data: Path | bytes

    def open(self) -> Image.Image:
        """The image, its pixels not yet decoded. Raises ValueError for one of more than `PIXELS`."""
        data = io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data
        with _quiet():
            image = Image.open(data, formats=FORMATS)
        if image.width * image.height > PIXELS:
            image.close()
            raise ValueError(f"{image.width} x {image.height} pixels")
        return image


def read_folder(path: Path, *, size: Size, skip_corrupt: bool, classes: int | None) -> Parts:
    """Read ROOT/CLASS/*.png, or ROOT/train/CLASS/*.png with ROOT/valid (val) and ROOT/test beside it."""
    folders = _visible_folders(path)
    spellings = {spelling for names in SPELLINGS.values() for spelling in names}
    roots = {"train": path}
    if folders and {folder.name for folder in folders} <= spellings:
        roots = _part_roots(path, [folder.name for folder in folders])
    pictures = [picture for part, root in roots.items() for picture in _pictures(root, part)]
    names = tuple(sorted({picture.label for picture in pictures if picture.part == "train"}))
    if classes is not None and classes != len(names):
        raise DataError(f"{path}: classes={classes}, but there are {len(names)} class folders: {', '.join(names)}")
    return _decode_all(pictures, place=path, class_names=names, size=size, skip_corrupt=skip_corrupt)


def read_saved(path: Path, *, size: Size, skip_corrupt: bool, classes: int | None) -> Parts:
    """Read a Hugging Face data set written by `save_to_disk`: its one image column, its one label column."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "data") from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is a damaged Hugging Face data set ({error}); write it again") from error
    tables = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    spelling = {part: [name for name in names if name in tables] for part, names in SPELLINGS.items()}
    if not spelling["train"]:
        raise DataError(f"{path} has the splits {', '.join(tables) or '(none)'}; it needs one called train")
    pictures: list[Picture] = []
    names: tuple[str, ...] = ()
    for part, found in spelling.items():
        for name in found[:1]:
            images, labels, given = _columns(tables[name], path)
            names = names or given
            rows = enumerate(zip(images, labels, strict=True))
            pictures += [Picture(f"{name}[{row}]", part, y, _bytes(x, path)) for row, (x, y) in rows]
    if classes is not None and classes != len(names):
        raise DataError(f"{path}: classes={classes}, but its labels name {len(names)}: {', '.join(names[:10])}")
    return _decode_all(pictures, place=path, class_names=names, size=size, skip_corrupt=skip_corrupt)


def _columns(table: Any, path: Path) -> tuple[Iterable[Any], list[str], tuple[str, ...]]:
    """Undecoded images, labels as names, and the classes in order: declared, or those that occur."""
    import datasets

    kinds = dict(table.features)
    images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    if not labels:
        plain = ("int64", "int32", "int16", "int8", "uint8", "string")
        labels = [
            name
            for name, kind in kinds.items()
            if name in ("label", "labels") and isinstance(kind, datasets.Value) and kind.dtype in plain
        ]
    if len(images) != 1 or len(labels) != 1:
        shown = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in kinds.items())
        raise DataError(
            f"{path} has the columns {shown};"
            f" it needs exactly one Image and one ClassLabel (or a whole number or string called label). "
            f"Drop or rename columns with remove_columns and rename_column"
        )
    pictures = table.cast_column(images[0], datasets.Image(decode=False))[images[0]]
    values = list(table[labels[0]])
    kind = kinds[labels[0]]
    if isinstance(kind, datasets.Value) and kind.dtype == "string":
        return pictures, [str(value) for value in values], tuple(sorted({str(value) for value in values}))
    declared = isinstance(kind, datasets.ClassLabel)
    high = len(kind.names) - 1 if declared else max((v for v in values if v is not None), default=0)
    foreign = sorted({value for value in values if value is None or not 0 <= value <= high}, key=str)
    if foreign:
        raise DataError(
            f"{path}: label {foreign[0]} is outside 0..{high}; "
            f"leave such samples out with filter() (-1 often means unlabelled)"
        )
    if declared:
        return pictures, [kind.names[value] for value in values], tuple(kind.names)
    # By number, so that class 10 does not come before class 2.
    return pictures, [str(value) for value in values], tuple(str(value) for value in sorted(set(values)))


def _bytes(image: Any, path: Path) -> Path | bytes:
    if image is None:
        raise DataError(f"{path} has rows without an image; leave them out with filter()")
    data: bytes | None = image["bytes"]
    return data if data is not None else Path(image["path"])


def _visible_folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _part_roots(path: Path, names: list[str]) -> dict[str, Path]:
    roots: dict[str, Path] = {}
    for part, spellings in SPELLINGS.items():
        found = [name for name in spellings if name in names]
        if len(found) > 1:
            raise DataError(f"{path} has both {' and '.join(found)}; keep one of them as the {part} part")
        if found:
            roots[part] = path / found[0]
    if "train" not in roots:
        raise DataError(f"{path} has {', '.join(names)} but no train folder; add {path.name}/train/CLASS/*.png")
    return roots


def _pictures(root: Path, part: str) -> list[Picture]:
    folders = _visible_folders(root)
    if not folders:
        raise DataError(f"{root} has no class folders. Data may be {KINDS}")
    pictures: list[Picture] = []
    left_out: list[Path] = []
    for folder in folders:
        visible = [
            file
            for file in sorted(folder.rglob("*"))
            if not any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(folder).parts)
        ]
        paths = [file for file in visible if file.suffix.lower() in SUFFIXES and file.is_file()]
        taken = set(paths)
        left_out += [f for f in visible if f not in taken and (f.suffix.lower() in _UNREAD or f.is_symlink())]
        if not paths:
            raise DataError(
                f"{folder}: this class folder has no images ({', '.join(sorted(SUFFIXES))}); "
                f"add some or remove the folder"
            )
        pictures += [Picture(str(file), part, folder.name, file) for file in paths]
    if left_out:
        names = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        warnings.warn(
            f"{len(left_out)} files or linked folders below {root} are no images that can be read, and are left out: "
            f"{names}. Read are {', '.join(sorted(SUFFIXES))}",
            stacklevel=4,
        )
    return pictures


def _decode_all(
    pictures: list[Picture], *, place: Path, class_names: tuple[str, ...], size: Size, skip_corrupt: bool
) -> Parts:
    """Decode into one uint8 array [N, C, H, W]; C is 1 where every image is grey, else 3."""
    headers: list[tuple[Picture, str, tuple[int, int]]] = []
    bad: list[str] = []
    extremes: list[tuple[float, float]] = []
    for picture in pictures:
        try:
            with picture.open() as image:
                # Asked for more, a PNG would be decoded.
                has_exif = image.format == "TIFF" or "exif" in image.info
                turned = has_exif and image.getexif().get(_ORIENTATION) in _TURNED
                sides = (image.width, image.height) if turned else (image.height, image.width)
                mode = image.mode
                if mode in _WIDE:
                    extremes.append(_extremes(image))
                headers.append((picture, mode, sides))
        except UNREADABLE:
            bad.append(picture.name)
    _refuse_bad(bad, len(pictures), skip_corrupt)
    height, width = _common_size(headers, size)
    span = _span(extremes)
    grey = all(mode in GREY for _, mode, _ in headers)
    files.refuse_more_than_free(place, len(headers) * height * width * (1 if grey else 3), DataError)
    pixels = np.empty((len(headers), height, width) if grey else (len(headers), height, width, 3), np.uint8)
    kept: list[Picture] = []
    for picture, _, _ in headers:
        try:
            with picture.open() as image, _quiet():
                pixels[len(kept)] = _decode(image, "L" if grey else "RGB", (height, width), span=span)
            kept.append(picture)
        except UNREADABLE:
            bad.append(picture.name)
    _refuse_bad(bad, len(pictures), skip_corrupt)
    pixels = pixels[: len(kept), None] if grey else pixels[: len(kept)].transpose(0, 3, 1, 2)
    _refuse_lost_classes(pictures, kept)
    found: dict[str, Samples] = {}
    for part in SPELLINGS:
        rows = [row for row, picture in enumerate(kept) if picture.part == part]
        if rows or part == "train":
            labels = [kept[row].label for row in rows]
            # Pictures come part by part, so that a part is a slice and nothing is copied twice.
            inputs = pixels[rows[0] : rows[-1] + 1] if rows else pixels[:0]
            found[part] = samples(inputs, labels, class_names=class_names, part=part)
    _warn_of_content(kept, pixels)
    train = replace(found["train"], skipped=tuple(bad))
    return Parts(train, found.get("valid"), found.get("test"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings: an image is read, or named as one that cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _common_size(headers: list[tuple[Picture, str, tuple[int, int]]], size: Size) -> tuple[int, int]:
    if size is not None:
        pair = (size, size) if isinstance(size, int) else size
        if len(pair) != 2 or any(isinstance(side, bool) or side < 1 for side in pair):
            raise DataError(f"size={size!r}: give a side, or height and width, in whole pixels, at least 1")
        return pair
    example: dict[tuple[int, int], str] = {}
    for picture, _, shape in headers:
        example.setdefault(shape, picture.name)
    if not example:
        raise DataError("no image can be read; give at least one for each of two classes")
    if len(example) > 1:
        shown = "; ".join(f"{height} x {width} ({name})" for (height, width), name in list(example.items())[:3])
        raise DataError(
            f"the images have {len(example)} different sizes (height x width): {shown}. "
            f"Give size= to resize them all, e.g. size=64"
        )
    return next(iter(example))


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The lowest and the highest value of an image whose values have no range of their own."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinite pixels")
    return float(values.min()), float(values.max())


def _span(extremes: list[tuple[float, float]]) -> tuple[float, float]:
    """The values that become 0 and 255, for all images alike: of the usual ranges the first that holds them."""
    low, high = min((low for low, _ in extremes), default=0.0), max((high for _, high in extremes), default=1.0)
    whole = next((top for top in (1.0, 255.0, 65535.0) if high <= top), high)
    if low < 0:
        return (-whole, whole) if low >= -whole else (low, high)
    return 0.0, whole


def _decode(
    image: Image.Image, mode: str, shape: tuple[int, int], *, span: tuple[float, float]
) -> np.ndarray[Any, Any]:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE:
        values = (np.asarray(image).astype(np.float64) - span[0]) / (span[1] - span[0])
        image = Image.fromarray((255 * values).round().astype(np.uint8))
    elif image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit greys at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA") and len(set(image.getchannel("A").getextrema())) > 1:
        # What is transparent shows white, so that a shape that alpha alone draws is seen.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert(mode)
    if (image.height, image.width) != shape:
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _warn_of_content(kept: list[Picture], pixels: np.ndarray[Any, Any]) -> None:
    """Warn of images that are black or white all over, and of images that two parts share."""
    flat = sum(bool(image.min() == image.max()) and int(image.flat[0]) in (0, 255) for image in pixels)
    if flat >= 3 and 10 * flat >= len(kept):
        warnings.warn(f"{flat} of {len(kept)} images are black or white all over; look at them", stacklevel=5)
    if len({picture.part for picture in kept}) < 2:
        return
    parts: dict[bytes, set[str]] = {}
    shared = list[str]()
    for picture, image in zip(kept, pixels, strict=True):
        of = parts.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), set())
        of.add(picture.part)
        shared += [picture.name] if len(of) > 1 else []
    if shared:
        more = ", ..." if len(shared) > 5 else ""
        warnings.warn(
            f"{len(shared)} images are in more than one part, so that scores are too good: "
            f"{', '.join(shared[:5])}{more}. Keep each in one part",
            stacklevel=5,
        )


def _refuse_bad(bad: list[str], total: int, skip_corrupt: bool) -> None:
    if bad and not skip_corrupt:
        shown = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
        raise DataError(
            f"{len(bad)} of {total} images cannot be read: {shown}. "
            f"Repair or remove them (allowed are {', '.join(FORMATS)} of up to {PIXELS / 1e6:.0f} million pixels), "
            f"or leave them out with skip_corrupt"
        )


def _refuse_lost_classes(pictures: list[Picture], kept: list[Picture]) -> None:
    before, after = ({p.label for p in some if p.part == "train"} for some in (pictures, kept))
    if lost := sorted(before - after):
        raise DataError(
            f"no readable training image is left in {', '.join(lost[:10])}; add some, or leave the class out"
        )

"""The data that a path names: digits, a `.npz` file, a folder of images, a saved Hugging Face data set."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from archgrad.errors import DataError
from archgrad.tasks import datasets, images


def load(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    skip_corrupt: bool = False,
    classes: int | None = None,
    labels: bool = True,
) -> datasets.Parts:
    """Read the data that a command line's DATA names: see `archgrad.tasks.datasets.KINDS` for what is allowed.

    size: resize all images to this (a side, or height and width, in pixels). skip_corrupt: leave unreadable
    images out and name them in `Samples.skipped`. classes: how many there are, for integer labels of which
    some do not occur. labels: False for a `.npz` file whose targets are of any kind. Raises DataError, and
    MissingExtra for a Hugging Face data set without `datasets`.
    """
    place = Path(path)
    if str(path) != "digits" and not place.exists():
        beside = [one.name for one in place.parent.iterdir()] if place.parent.is_dir() else []
        near = get_close_matches(place.name, ["digits", *beside], n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise DataError(f"{path}: no such file or folder.{meant} Data may be {datasets.KINDS}")
    is_images = place.is_dir() and str(path) != "digits"
    if (size is not None or skip_corrupt) and not is_images:
        raise DataError(
            f"size and skip_corrupt are for folders of images and Hugging Face data sets; {path} is neither"
        )
    if str(path) == "digits":
        return datasets.Parts(datasets.digits())
    if place.is_dir():
        if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            return images.read_saved(place, size=size, skip_corrupt=skip_corrupt, classes=classes)
        return images.read_folder(place, size=size, skip_corrupt=skip_corrupt, classes=classes)
    if place.suffix.lower() == ".npz":
        return datasets.read_npz(place, classes, labels=labels)
    kind = place.suffix or "no suffix"
    raise DataError(f"{path}: this kind of file ({kind}) is not read. Data may be {datasets.KINDS}")

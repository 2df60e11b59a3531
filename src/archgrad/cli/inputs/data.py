"""The task of DATA: a path, or what a callable of the user's gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archgrad.cli.inputs import user_code as usercode
from archgrad.cli.schemas.commands import is_code
from archgrad.errors import ConfigError, DataError
from archgrad.tasks import Classification
from archgrad.tasks.sources import seeded
from archgrad.tasks.supervised import PARTS, Augment


def load(
    name: str,
    *,
    size: int | None,
    skip_corrupt: bool,
    batch_size: int,
    augment: Sequence[Augment] = (),
    smoothing: float = 0.0,
) -> Classification:
    """The task of DATA.

    A callable is called without arguments, the global generators seeded by 0. It gives what `Classification` takes
    as its training part, a Dataset, a DataLoader or a pair of arrays (x, y); or a dict of parts,
    {"train": ..., "valid": ..., "test": ...}, of which the last two may be missing.

    Raises:
        ConfigError: no such module, file or attribute, or options that are for folders of images.
        DataError: data that cannot be used.
        ModelError: the user's code fails.
    """
    if name.endswith(".py"):
        raise ConfigError(
            f"DATA {name!r} is a file of code: name the function in it that gives the data, {name}:FUNCTION"
        )
    if not is_code(name):
        return Classification.load(
            name, size=size, skip_corrupt=skip_corrupt, batch_size=batch_size, augment=augment, smoothing=smoothing
        )
    if size or skip_corrupt:
        raise ConfigError(f"size and skip_corrupt are for folders of images; {name} makes its own data")
    with seeded(0):
        given = usercode.called(usercode.named(name, kind="DATA"), name, {}, kind="DATA")
    parts = dict(given) if isinstance(given, Mapping) else {"train": given}
    if "train" not in parts or not set(parts) <= set(PARTS):
        raise DataError(
            f'DATA {name!r} gives a dict of {sorted(map(str, parts))}. Allowed are "train", "valid" and "test", of '
            f"which the first is needed"
        )
    return Classification(
        parts["train"], parts.get("valid"), parts.get("test"), batch_size=batch_size, augment=augment,
        smoothing=smoothing,
    )  # fmt: skip

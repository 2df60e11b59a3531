"""Charts of an agent: its returns, the cell over the search, and a film of an episode."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from archgrad.errors import RunError
from archgrad.report.charts.axes import FAINT, INK, LINES, Chart, drawn, dress
from archgrad.report.charts.steps import is_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 300_000
_FILM = re.compile(r"data:image/gif;base64,[A-Za-z0-9+/]+={0,2}")
_MOST_CELLS = 12
_RETURNS = {"return_train": "levels trained on", "return_unseen": "unseen levels"}


def encode_gif(frames: NDArray[Any]) -> str:
    """Frames as an animated GIF, a data URI of at most `LARGEST` bytes; of too many frames every n-th.

    Args:
        frames: [n, H, W, C], uint8, or floats in [0, 1]. Where C is not 3, the channels are summed up.
    """
    from PIL import Image

    images = frames if frames.dtype == np.uint8 else (255 * np.clip(frames, 0.0, 1.0)).astype(np.uint8)
    if images.shape[-1] != 3:
        images = np.minimum(images.sum(axis=-1, dtype=int), 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    every = 1
    while True:
        first, *rest = (Image.fromarray(image).quantize(64) for image in images[::every])
        out = io.BytesIO()
        first.save(out, "GIF", save_all=True, append_images=rest, duration=100 * every, loop=0)
        data_uri = f"data:image/gif;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
        if len(data_uri) <= LARGEST or not rest:
            return data_uri
        every *= 2


def film(record: Mapping[str, Any]) -> str | None:
    """The record's film, a data URI.

    Raises:
        RunError: it is not what `encode_gif` returns.
    """
    data_uri = record.get("film")
    if data_uri and not (isinstance(data_uri, str) and _FILM.fullmatch(data_uri)):
        raise RunError("the record is damaged at film: it is a GIF as a data URI. Run again to write it anew.")
    return data_uri or None


def cells(record: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """The last changes of the cell, (environment steps, cell) each, and the number of earlier changes.

    Raises:
        RunError: the part has another form.
    """
    listed = record.get("cells") or []
    if not isinstance(listed, list) or not all(
        isinstance(entry, Mapping) and is_finite(entry.get("environment_steps")) for entry in listed
    ):
        raise RunError(
            "the record is damaged at cells: each has environment_steps and a cell. Run again to write it anew."
        )
    rows = [(f"{entry['environment_steps']:,.0f}", str(entry.get("cell", ""))) for entry in listed]
    return rows[-_MOST_CELLS:], max(0, len(rows) - _MOST_CELLS)


def charts(record: Mapping[str, Any]) -> list[Chart]:
    """Mean returns of the result and its baselines, with the standard deviation over episodes."""
    rows: dict[str, Mapping[str, Any]] = {"this run": record.get("after") or {}}
    rows |= {str(row.get("name")): row for row in record.get("baselines") or []}
    complete = {name: row for name, row in rows.items() if all(is_finite(row.get(key)) for key in _RETURNS)}
    return [_returns(complete)] if "this run" in complete else []


def _returns(rows: Mapping[str, Mapping[str, Any]]) -> Chart:
    def fill(axes: Axes) -> None:
        places = range(len(rows), 0, -1)
        for shift, color, (key, label) in zip((0.12, -0.12), LINES, _RETURNS.items(), strict=False):
            spread = [row.get(f"{key}_std") for row in rows.values()]
            axes.errorbar(
                [row[key] for row in rows.values()], [place + shift for place in places],
                xerr=[value if is_finite(value) else 0.0 for value in spread],
                color=color, linestyle="", marker="o", markersize=4, elinewidth=1, label=label,
            )  # fmt: skip
        dress(axes, x="return of an episode")
        axes.grid(visible=False)
        axes.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.5)
        axes.set_yticks(list(places), list(rows))
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    caption = "Means and standard deviations over episodes; the deviation is not the error of the mean."
    return Chart("Returns", caption, drawn("returns", fill))

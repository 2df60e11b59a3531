"""The parts of a report on an agent: its film, its cells, its returns."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from archgrad.errors import RunError
from archgrad.report.charts.rl import LARGEST, cells, charts, encode_gif, film
from archgrad.report.page import page

ROW = {"return_unseen": 1.0, "return_unseen_std": 0.5, "return_train": 2.0, "return_train_std": 0.25}


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_film_holds_the_images() -> None:
    frames = np.zeros((5, 8, 9, 3), dtype=np.uint8)
    for i in range(5):
        frames[i, i, i] = (250, 40 * i, 10)
    shown = opened(encode_gif(frames))
    assert (shown.size, shown.n_frames) == ((9, 8), 5)
    shown.seek(3)
    assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - frames[3]).max() <= 8


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_floats_are_shown(channels: int) -> None:
    assert opened(encode_gif(np.random.default_rng(0).random((3, 6, 6, channels), dtype=np.float32))).n_frames >= 2


def test_a_film_is_never_large() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 96, 96, 3), dtype=np.uint8)
    assert len(encode_gif(noise)) <= LARGEST


def test_the_page_shows_what_there_is_and_nothing_else() -> None:
    record = {
        "title": "a search", "after": ROW, "baselines": [{"name": "random cell", **ROW}],
        "film": encode_gif(np.zeros((2, 4, 4, 3), dtype=np.uint8)),
        "cells": [{"environment_steps": 1000 * i, "cell": f"cell {i} <b>"} for i in range(15)],
    }  # fmt: skip
    text = page(record)
    assert "data:image/gif;base64," in text and "cell 14 &lt;b&gt;" in text and "cell 2 &lt;" not in text
    assert "3 earlier cells" in text and "Returns" in text
    assert "The agent" not in page({"title": "another", "after": {"accuracy": 0.5}})
    assert not charts({"after": {"accuracy": 0.5}})


@pytest.mark.parametrize("given", ["javascript:alert(1)", 'data:image/gif;base64,x" onload="y', 5, ["x"]])
def test_what_is_no_film_is_refused(given: object) -> None:
    with pytest.raises(RunError, match="damaged at film"):
        film({"film": given})


@pytest.mark.parametrize("given", ["x", [1], [{"cell": "x"}], {"a": 1}])
def test_what_are_no_cells_is_refused(given: object) -> None:
    with pytest.raises(RunError, match="damaged at cells"):
        cells({"cells": given})

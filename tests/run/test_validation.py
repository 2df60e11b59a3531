from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from archgrad.errors import ConfigError
from archgrad.run.output import Output
from archgrad.run.run import Run


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"folder": ""}, 'folder="" was given'),
        ({"folder": "a\0b"}, "No file can be named so"),
        ({"epochs": 0}, "epochs=0 was given. Allowed is a whole number of at least 1"),
        ({"steps": -1}, "steps=-1"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"epochs": True}, "epochs=True"),
        ({"trials": "x"}, "trials='x'"),
        ({"devices": 0}, "devices=0"),
        ({"seconds": 0}, "seconds=0 was given.*greater than 0"),
        ({"seconds": math.nan}, "seconds=nan"),
        ({"seconds": "1"}, "seconds='1'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "4294967295"),
        ({"precision": "fp16"}, "precision='fp16' was given. Allowed are 32-true"),
        ({"precision": "16-mixed"}, "bf16-mixed"),
        ({"precision": "bf16-true"}, "Allowed are 32-true and bf16-mixed"),
        ({"device": "tpu"}, "device='tpu' was given. Available are auto, cpu"),
    ],
)
def test_a_wrong_setting_is_explained(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Run(**({"device": "cpu"} | options))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"checkpoint_seconds": -1}, "checkpoint_seconds=-1 was given.*at least 0"),
        ({"log_every": 0}, "log_every=0 was given. Allowed is a whole number of at least 1"),
    ],
)
def test_a_wrong_output_is_explained(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Output(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_without_cuda_names_the_fix(device: str) -> None:
    with pytest.raises(ConfigError, match='finds no CUDA device here: use device="cpu"'):
        Run(device=device)


@pytest.mark.parametrize("settings", [{"x": object()}, {"x": math.nan}, {"x": {1, 2}}])
def test_settings_must_be_json(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="The settings of test cannot be written as JSON"):
        Run(device="cpu").begin("test", settings)


def test_a_run_says_in_a_line_what_it_is() -> None:
    folder = Path("runs/x").absolute()
    assert repr(Run(steps=5, seed=3, folder="runs/x")) == f"<Run, not begun: steps 5, seed 3, folder {folder}>"


def test_a_folder_at_home_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run(folder="~/runs/x").folder == tmp_path / "runs" / "x"


def test_a_folder_an_output_and_a_callback_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"folder=3\) was given"):
        Run(folder=3)
    with pytest.raises(ConfigError, match=r"output=3\) was given"):
        Run(output=3)
    with pytest.raises(ConfigError, match=r"on_log=3\) was given"):
        Output(on_log=3)

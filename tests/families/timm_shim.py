"""timm and what else imports torchvision, also where that was built for another torch."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import pytest
import torch

_LIBRARIES: list[torch.library.Library] = []  # a definition lives as long as its library


def load_timm() -> ModuleType:
    """The module; skips the test, with the reason, where timm cannot be imported."""
    make_torchvision_importable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import timm
        except ImportError as error:
            pytest.skip(f"timm cannot be imported ({error}); pip install timm")
    return timm


def make_torchvision_importable() -> None:
    """For what imports torchvision only because it is installed: timm, torchmetrics, transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _declare_operators()
        except ImportError:
            pass


def _declare_operators() -> None:
    """torchvision's Python part wants its compiled operators declared; no model here calls them."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)

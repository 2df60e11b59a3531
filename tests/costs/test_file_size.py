"""The size of the file that ships, as a cost and a limit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import ConfigError, LimitError
from archgrad.extract.quantization import int8_onnx

pytest.importorskip("onnxruntime")


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


@pytest.mark.parametrize("named", [False, True])
def test_it_is_the_size_of_what_export_writes(tmp_path: Path, named: bool) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _net()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.inner(pixels)

    x = torch.randn(1, 64)
    network, example = (Named(), {"pixels": x}) if named else (_net(), x)
    written = ag.export_onnx(network, example, tmp_path / "a.onnx").path
    assert ag.file_size(example).of(network) == written.stat().st_size / 1024
    int8 = ag.file_size(example, dtype="int8")
    assert int8.of(network) == len(int8_onnx(written.read_bytes(), [(x,)])) / 1024 < written.stat().st_size / 1024 / 2
    assert (int8.name, ag.file_size(x).name) == ("int8 onnx file size", "onnx file size")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_program_of_executorch_is_weighed(tmp_path: Path, dtype: Literal["float32", "int8"]) -> None:
    pytest.importorskip("executorch")
    x = torch.randn(1, 64)
    size = ag.file_size(x, runtime="executorch", dtype=dtype).of(_net())
    whole = ag.export_executorch(_net(), x, tmp_path / "a.pte").path.stat().st_size / 1024
    assert size == whole if dtype == "float32" else size < whole / 2


class _Weighed(ag.file_size):
    """The bytes of the tensors that differ and of the sizes, as if it were a file: it counts what is asked."""

    def of(self, network: nn.Module) -> float:
        asked.append([float(p.detach().sum()) for p in network.parameters()])
        return 3.0 + sum(4 * t.numel() for t in {str(p.tolist()): p for p in network.parameters()}.values()) / 1024


asked: list[object] = []


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_a_limit_on_the_file_is_used_up_and_weighs_few_files_and_none_twice(fraction: float) -> None:
    asked.clear()
    cost = _Weighed(torch.randn(1, 64))
    net = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 48), nn.LayerNorm(48), nn.Linear(48, 10))
    space = ag.slim(net, example=cost.x)
    whole = cost.once_trained(copy.deepcopy(net))
    scores = ag.importance(space, criterion="magnitude")
    small = ag.cut(space, scores, limit=cost.at_most(kb=fraction * whole), round_to=1)
    assert len(asked) <= 8 and all(asked[i] not in asked[:i] for i in range(2, len(asked)))
    assert 0.97 * fraction * whole < cost.once_trained(small) <= fraction * whole


def test_a_network_is_cut_to_the_size_of_its_file() -> None:
    x = torch.randn(1, 64)
    cost, space = ag.file_size(x), ag.slim(_net(), example=x)
    whole = cost.of(_net())
    scores = ag.importance(space, criterion="magnitude")
    small = ag.cut(space, scores, limit=cost.at_most(kb=0.6 * whole), round_to=1)
    assert 0.97 * 0.6 * whole < cost.once_trained(small) <= 0.6 * whole
    with pytest.raises(LimitError, match=r"lowest reachable is [\d.]+ kB"):
        ag.cut(space, scores, limit=cost.at_most(kb=0.5), round_to=1)


def test_bounds_and_runtimes_that_mean_nothing_are_refused() -> None:
    x = torch.randn(1, 64)
    with pytest.raises(ConfigError, match="eager"):
        ag.file_size(x, runtime="eager")
    with pytest.raises(LimitError, match="one bound"):
        ag.file_size(x).at_most(3.0, kb=2.0)
    with pytest.raises(LimitError):
        ag.file_size(x).at_most(kb=0.0)
    with pytest.raises(ag.ModelError):
        ag.file_size(x).of(nn.Linear(3, 3))

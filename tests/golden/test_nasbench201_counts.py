"""NAS-Bench-201: parameters and MACs against the published table."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from archgrad.choices.access import choices
from archgrad.costs.count import Counter, macs, params
from archgrad.spaces.nasbench201 import EDGES, LABELS, from_string, nasbench201_cells, nasbench201_network

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet16_120": 120}
# index in the published order: cell (its six operations in the order of the string) and parameters for 10 classes
TABLE = {
    0: ((4, 2, 1, 2, 1, 1), 129_306),
    1: ((3, 3, 4, 1, 3, 1), 802_426),
    2: ((4, 3, 3, 4, 4, 4), 559_386),
    7: ((0, 1, 4, 1, 3, 3), 559_386),
    857: ((2, 2, 3, 1, 3, 3), 858_426),
    1462: ((3, 3, 3, 3, 3, 3), 1_531_546),
    1651: ((0, 0, 0, 0, 0, 0), 73_306),
    1835: ((1, 1, 1, 1, 1, 1), 73_306),
    4317: ((2, 2, 2, 2, 2, 2), 241_306),
    6111: ((3, 3, 3, 1, 3, 2), 1_073_466),
    7581: ((4, 4, 4, 4, 4, 4), 73_306),
    9930: ((3, 3, 3, 1, 3, 3), 1_288_506),
}


def string(operations: tuple[int, ...]) -> str:
    words = iter(f"{LABELS[o]}~{e.partition('.')[2]}" for o, e in zip(operations, EDGES, strict=True))
    return "+".join("|" + "".join(f"{next(words)}|" for _ in range(node)) for node in (1, 2, 3))


def conv_macs(network: torch.nn.Module, pixels: int) -> float:
    """MACs of the convolutions, which are all that the table counts."""
    return macs(torch.randn(1, 3, pixels, pixels)).of(network) - 640


def test_the_supernet_has_the_published_number_of_parameters() -> None:
    assert params().of(nasbench201_cells()) == 1_685_562  # 10 classes, BatchNorm without scale and shift
    assert params().of(nasbench201_cells(affine=True)) == 1_699_546


@pytest.mark.parametrize(("operations", "parameters"), TABLE.values(), ids=[f"#{i}" for i in TABLE])
def test_networks_have_the_parameters_and_macs_of_the_table(operations: tuple[int, ...], parameters: int) -> None:
    ones, threes = operations.count(2), operations.count(3)
    network = nasbench201_network(string(operations))
    assert params().of(network) == parameters
    assert conv_macs(network, 16) == pytest.approx(1e6 * (7.7824 + 35.38944 * threes + 3.93216 * ones) / 4, rel=1e-12)


def test_other_data_have_other_sizes() -> None:
    (operations, parameters) = TABLE[0]
    network = nasbench201_network(string(operations), classes=120)
    assert params().of(network) == parameters + 110 * 65
    assert macs(torch.randn(1, 3, 32, 32)).of(network) - 64 * 120 == 15.64672e6


def coefficients(counter: Counter) -> tuple[float, np.ndarray]:
    """Of cost = constant + sum over edges of row[edge][operation], which it is since each edge has one side."""
    entries = torch.zeros(len(EDGES) * len(LABELS), dtype=torch.float64, requires_grad=True)
    constant = counter.at(entries)
    (slope,) = torch.autograd.grad(constant, entries)
    return float(constant.detach()), slope.view(len(EDGES), len(LABELS)).numpy()


def test_the_counter_of_the_supernet_gives_the_table_for_every_cell() -> None:
    folder = os.environ.get("ARCHGRAD_DATA")
    path = Path(folder or ".") / "nasbench201" / "nasbench201.npz"
    if not folder or not path.exists():
        pytest.skip("ARCHGRAD_DATA is not set, or has no nasbench201/nasbench201.npz")
    table = np.load(path)
    cells = [from_string(cell) for cell in table["arch"].astype(str)]
    picks = np.array([[cell[name] for name in EDGES] for cell in cells])
    assert len(np.unique(picks, axis=0)) == 15_625
    for data, classes in CLASSES.items():
        space = nasbench201_cells(classes=classes, affine=True)
        assert tuple(choices(space)) == EDGES
        constant, slope = coefficients(params().counter(space))
        counted = constant + slope[np.arange(6), picks].sum(axis=1)
        np.testing.assert_allclose(counted, 1e6 * table[f"params_m_{data}"].astype(float), atol=0.2)
    for pixels in (32, 16):
        space = nasbench201_cells(affine=True)
        constant, slope = coefficients(macs(torch.randn(1, 3, pixels, pixels)).counter(space))
        counted = constant - 640 + slope[np.arange(6), picks].sum(axis=1)
        np.testing.assert_allclose(counted, 1e6 * table[f"macs_m_{pixels}x{pixels}"].astype(float), rtol=1e-6)
    for index, (operations, parameters) in TABLE.items():
        assert tuple(picks[index]) == operations
        assert round(1e6 * float(table["params_m_cifar10"][index])) == parameters

"""Networks of the DARTS cell space: counts measured on the published cells, and the size of the space."""

from __future__ import annotations

import math

import pytest
import torch

from archgrad.choices.access import choices, logits, relax
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import Open, softmax
from archgrad.costs.count import macs, params
from archgrad.spaces.darts import darts_cells, darts_network

# Cells of the authors of UNAS, per node "source:operation" in the two branches.
UNAS_CIFAR10 = (
    "normal 0:sep_conv_5x5,0:skip_connect | 0:skip_connect,1:dil_conv_3x3 | 0:sep_conv_3x3,1:dil_conv_3x3 | "
    "1:sep_conv_3x3,0:dil_conv_3x3 reduce 0:sep_conv_3x3,0:sep_conv_5x5 | 1:skip_connect,0:sep_conv_3x3 | "
    "1:avg_pool_3x3,0:skip_connect | 3:sep_conv_5x5,1:avg_pool_3x3"
)
UNAS_CIFAR100 = (
    "normal 0:sep_conv_3x3,0:dil_conv_3x3 | 1:dil_conv_3x3,0:sep_conv_3x3 | 0:skip_connect,1:sep_conv_3x3 | "
    "1:sep_conv_5x5,0:sep_conv_3x3 reduce 0:sep_conv_7x7,0:sep_conv_3x3 | 1:sep_conv_3x3,0:sep_conv_5x5 | "
    "1:sep_conv_7x7,0:dil_conv_3x3 | 0:dil_conv_3x3,3:sep_conv_3x3"
)
UNAS_IMAGENET = (
    "normal 0:sep_conv_3x3,0:skip_connect | 0:sep_conv_3x3,1:skip_connect | 1:sep_conv_3x3,0:sep_conv_5x5 | "
    "0:sep_conv_3x3,1:dil_conv_3x3 reduce 0:sep_conv_5x5,1:sep_conv_3x3 | 0:sep_conv_5x5,1:sep_conv_3x3 | "
    "1:sep_conv_5x5,0:dil_conv_3x3 | 3:dil_conv_3x3,1:sep_conv_3x3"
)
# The authors of DARTS, second order; published with 3.3 M parameters.
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
    "reduce_concat=[2, 3, 4, 5])"
)


@pytest.mark.parametrize(
    ("cell", "classes", "parameters", "multiply_adds"),
    [
        (UNAS_CIFAR10, 10, 3_330_766, 516_304_512),
        (UNAS_CIFAR100, 100, 4_067_200, 614_119_680),
        (DARTS_V2, 10, 3_349_342, 528_359_040),
    ],
    ids=("UNAS CIFAR-10", "UNAS CIFAR-100", "DARTS V2"),
)
def test_published_cells_at_twenty_cells_of_36_channels(
    cell: str, classes: int, parameters: int, multiply_adds: int
) -> None:
    network = darts_network(cell, classes=classes)
    assert params().of(network) == parameters
    assert macs(torch.zeros(1, 3, 32, 32)).of(network) == multiply_adds


@pytest.mark.parametrize(
    ("channels", "parameters", "multiply_adds"), [(46, 5_073_949, 548_602_256), (48, 5_478_880, 595_184_256)]
)
def test_published_imagenet_cell_at_fourteen_cells(channels: int, parameters: int, multiply_adds: int) -> None:
    network = darts_network(UNAS_IMAGENET, cells=14, channels=channels, classes=1000, stem="imagenet")
    assert params().of(network) == parameters
    assert macs(torch.zeros(1, 3, 224, 224)).of(network) == multiply_adds


def test_the_published_supernet_and_the_size_of_its_space() -> None:
    space = relax(darts_cells(), softmax)
    relax(space, Open, where=lambda choice: isinstance(choice, InputChoice))
    assert params().of(space) == 1_930_618  # the paper's search network has 1.9 M
    assert [tuple(p.shape) for p in logits(space)] == [(8,)] * 14 * 2
    size = 1
    for name, (choice, *_) in choices(space).items():
        if isinstance(choice, InputChoice) and name.startswith("normal"):
            size *= math.comb(choice.size, choice.keep) * 7**choice.keep
    assert size == 1_037_664_180


def test_the_factorized_supernet_and_the_size_of_its_space() -> None:
    space = relax(darts_cells(factorized=True), softmax)
    assert sum(p.numel() for p in logits(space)) == 168
    kind = [choice for name, (choice, *_) in choices(space).items() if name.startswith("reduce")]
    assert math.prod(choice.size for choice in kind) == (2 * 3 * 4 * 5) ** 2 * 7**8 == 83_013_134_400
    assert sum(isinstance(choice, OpChoice) for choice in kind) == sum(isinstance(c, InputChoice) for c in kind) == 8

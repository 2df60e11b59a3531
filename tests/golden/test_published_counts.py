"""Parameters and MACs of published networks, to the digits that were published."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import networks
from torch import nn

from archgrad.costs.count import macs, params

# network, pixels a side, parameters, MACs, and the last published digit of each
PUBLISHED = {
    "VGG16, CIFAR, head 512-512-10": (lambda: networks.vgg16((512, 10), places=1), 32, 14.99e6, 313.46e6, 1e4, 1e4),
    "ResNet56, CIFAR": (networks.resnet56, 32, 0.853e6, 125.49e6, 1e3, 1e4),
    "ResNet50": (networks.resnet50, 224, 25_557_032, 4089e6, 1, 1e6),
    "MobileNetV2": (networks.mobilenet_v2, 224, 3_504_872, 300.8e6, 1, 1e5),
    "VGG16-BN": (lambda: networks.vgg16((4096, 4096, 1000), places=7), 224, 138_365_992, 15470e6, 1, 1e6),
}


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_counts_are_the_published_ones(
    published: tuple[Callable[[], nn.Module], int, float, float, float, float],
) -> None:
    make, pixels, parameters, multiply_adds, digit_of_parameters, digit_of_macs = published
    with torch.device("meta"):  # counted without computing
        network, example = make(), torch.randn(1, 3, pixels, pixels)
    assert abs(params().of(network) - parameters) <= 0.5 * digit_of_parameters
    assert abs(macs(example).of(network) - multiply_adds) <= 0.5 * digit_of_macs

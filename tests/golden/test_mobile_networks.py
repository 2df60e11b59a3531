"""The mobile space: parameters and MACs of published networks at 224 x 224 pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archgrad.choices.access import choices
from archgrad.costs.count import macs, params
from archgrad.spaces.mobile import PROXYLESS, UNAS, Widths, mobile_backbone, mobile_network

CPU = Widths(40, 24, (32, 48, 88, 104, 216, 360), 1432)
MOBILE = Widths(32, 16, (32, 40, 80, 96, 192, 320), 1280)
MOBILE_14 = Widths(48, 24, (40, 56, 112, 136, 256, 448), 1792)
FOUND_FOR_MOBILE = """
k5e3 k3e3 identity identity  k7e3 k3e3 k5e3 k5e3  k7e6 k5e3 k5e3 k5e3
k5e6 k5e3 k5e3 k5e3          k7e6 k7e6 k7e3 k7e3  k7e6
"""
# widths, architecture, parameters, MACs in millions. MACs of the last three were counted here.
PUBLISHED = {
    "Proxyless-UNAS": (
        UNAS,
        """
        k5e3 k3e3 identity identity  k7e3 identity identity identity  k7e3 k3e3 k3e3 k3e3
        k5e3 k3e3 k3e3 k3e3          k7e6 k7e3 k7e3 k7e3              k7e6
        """,
        5_965_528,
        428.0,
    ),
    "ProxylessNAS-GPU": (
        UNAS,
        """
        k5e3 identity identity identity  k7e3 identity identity k3e3  k7e6 identity identity k5e3
        k5e6 identity k3e3 k5e3          k7e6 k7e6 k7e6 k5e6          k7e6
        """,
        7_119_848,
        465.3,
    ),
    "ProxylessNAS-CPU": (
        CPU,
        """
        k3e6 k3e3 k3e3 k3e3  k3e6 k3e3 k3e3 k5e3  k3e6 identity identity k3e3
        k5e6 k3e3 k3e3 k3e3  k5e6 k5e3 k5e3 k3e3  k5e6
        """,
        4_361_648,
        439.2,
    ),
    "ProxylessNAS-Mobile": (MOBILE, FOUND_FOR_MOBILE, 4_080_512, 320.4),
    "ProxylessNAS-Mobile 1.4": (MOBILE_14, FOUND_FOR_MOBILE, 6_857_568, 580.9),
}


def millions_at_224(network: nn.Module, head: int) -> float:
    """From the count at 32 x 32: convolutions go with the area, the linear layer does not."""
    linear = head * 1000
    return ((macs(torch.randn(1, 3, 32, 32)).of(network) - linear) * 49 + linear) / 1e6


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_published_networks(name: str) -> None:
    widths, string, parameters, millions = PUBLISHED[name]
    network = mobile_network(string, widths=widths)
    assert params().of(network) == parameters
    assert millions_at_224(network, widths.head) == pytest.approx(millions, abs=0.05)
    if name == "Proxyless-UNAS":
        assert macs(torch.randn(1, 3, 224, 224)).of(network) / 1e6 == millions_at_224(network, widths.head)


def test_counts_of_the_summed_supernet() -> None:
    network = mobile_backbone(mixed="sum")
    assert params().of(network) == pytest.approx(16.03e6, abs=0.005e6)
    assert millions_at_224(network, PROXYLESS.head) == pytest.approx(2260, abs=0.5)


def test_the_space_has_its_published_size() -> None:
    with torch.device("meta"):
        found = choices(mobile_backbone(widths=UNAS))
    sizes = [same[0].size for same in found.values()]
    assert len(sizes) == 21 and sum(sizes) == 141
    assert [i + 1 for i, size in enumerate(sizes) if size == 6] == [1, 5, 9, 13, 17, 21]

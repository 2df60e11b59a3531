from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.spaces.operations import LABELS, FactorizedReduce, Zero, operation, sep_conv

SIZES = (1, 2, 7, 8)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("stride", (1, 2))
def test_shapes_at_odd_and_even_sizes_and_an_input_left_alone(label: str, stride: int) -> None:
    op = operation(label, 4, stride=stride, affine=True, pool_norm=True).eval()
    for size in SIZES:
        x = torch.randn(2, 4, size, size + 2)
        before = x.clone()
        assert op(x).shape == (2, 4, math.ceil(size / stride), math.ceil((size + 2) / stride))
        assert torch.equal(x, before)


def test_published_parameter_counts() -> None:
    # Convolutions k*k*C depthwise and C*C pointwise, BatchNorm 2 C; sep_conv twice; C = 6.
    counts = {label: sum(p.numel() for p in operation(label, 6, affine=True).parameters()) for label in LABELS}
    separable = {k: k * k * 6 + 36 + 12 for k in (3, 5, 7)}
    free = dict.fromkeys(("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"), 0)
    assert counts == {
        **free,
        **{f"sep_conv_{k}x{k}": 2 * separable[k] for k in (3, 5, 7)},
        **{f"dil_conv_{k}x{k}": separable[k] for k in (3, 5)},
    }
    assert sum(p.numel() for p in operation("skip_connect", 6, stride=2, affine=True).parameters()) == 36 + 12
    bare = [m for label in LABELS for m in operation(label, 6, stride=2, pool_norm=True).modules()]
    assert not any(m.affine for m in bare if isinstance(m, nn.BatchNorm2d))


def test_factorized_reduction_reads_every_pixel_once() -> None:
    """With weights of one, its halves sum the even and the odd diagonal pixels; beyond the edge there is 0."""
    reduce = FactorizedReduce(1, 2).eval()
    nn.init.ones_(reduce.first.weight)
    nn.init.ones_(reduce.second.weight)
    reduce.norm = nn.Identity()
    for size in (4, 5):
        x = torch.rand(1, 1, size, size)
        even, odd = reduce(x).detach()[0]
        assert torch.equal(even, x[0, 0, ::2, ::2])
        shifted = x[0, 0, 1::2, 1::2]
        assert torch.equal(odd[: size // 2, : size // 2], shifted)
        assert float(odd.sum()) == pytest.approx(float(shifted.sum()))
    assert FactorizedReduce(3, 5)(torch.rand(2, 3, 4, 4)).shape == (2, 5, 2, 2)
    with pytest.raises(ConfigError, match="2 or more"):
        FactorizedReduce(3, 1)


def test_zero_is_zero_whatever_comes_in() -> None:
    assert torch.equal(Zero(2)(torch.full((1, 2, 3, 3), float("nan"))), torch.zeros(1, 2, 2, 2))


def test_average_pool_leaves_its_padding_out_and_pools_are_normed_on_request() -> None:
    assert torch.equal(operation("avg_pool_3x3", 1)(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 3, 3))
    for label in ("avg_pool_3x3", "max_pool_3x3"):
        normed = operation(label, 3, pool_norm=True)
        assert [type(m) for m in normed.children()][1] is nn.BatchNorm2d
        assert not list(operation(label, 3).children())
    assert not isinstance(operation("skip_connect", 3, pool_norm=True), nn.Sequential)


def test_dilation_reaches_twice_as_far() -> None:
    for label, reach in (("dil_conv_3x3", 2), ("dil_conv_5x5", 4)):
        op = operation(label, 1, affine=True).eval()
        nn.init.ones_(op[1].weight)
        nn.init.ones_(op[2].weight)
        x = torch.zeros(1, 1, 11, 11)
        x[0, 0, 5, 5] = 1.0
        rows = op(x)[0, 0].abs().sum(dim=1).nonzero().flatten()
        assert (int(rows.min()), int(rows.max())) == (5 - reach, 5 + reach)
        assert 4 not in rows


def test_the_stride_of_a_separable_convolution_is_in_its_first_half() -> None:
    assert [m.stride for m in sep_conv(4, 3, stride=2) if isinstance(m, nn.Conv2d)] == [
        (2, 2),
        (1, 1),
        (1, 1),
        (1, 1),
    ]


@pytest.mark.parametrize(
    ("label", "options", "said"),
    [
        ("sep_conv_9x9", {}, "sep_conv_7x7"),
        ("", {}, "no operation is labelled ''"),
        ("none", {"stride": 3}, "stride 1 or 2"),
        ("sep_conv_3x3", {"channels": 0}, "1 channel"),
    ],
)
def test_what_there_is_not_is_refused(label: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        operation(label, options.get("channels", 4), stride=options.get("stride", 1))


def test_no_strided_1x1_convolution_whose_gradient_damages_memory() -> None:
    """In channels_last, with few channels, oneDNN's writes beyond its end: torch 2.13 aborts, now and then."""
    for module in (*FactorizedReduce(4, 4).modules(), *ag.darts_cells(channels=2, cells=3).modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            assert module.stride == (1, 1)

"""Published architectures as timm defines them, at random weights: slim, build, compare, export."""

from __future__ import annotations

import pytest
import torch
from families.checks import assert_plain, difference, outputs, stir
from families.timm_shim import load_timm
from torch import nn

from archgrad.choices.access import choices, hold, sample
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import slim

# name -> (pixels a side, number of gates counted by hand from the published tables, whether it takes long)
MODELS = {
    "resnet18": (64, 8 * 2 + 4, True),  # inner width and branch of each block; a trunk for each stage
    "mobilenetv3_small_100": (64, 9 + 10 + 6 + 8, False),  # squeezes, expansions, skips; widths between blocks
    "efficientnet_b0": (64, 16 + 15 + 9 + 9, False),
    "convnext_atto": (64, 12 * 2 + 4, False),  # inner width and branch, a stream for each stage
    "vit_tiny_patch16_224": (
        224,
        12 * 5 + 1,
        True,
    ),  # heads, channels within them and inner width, attention and MLP as a whole, the stream
    "densenet121": (64, 58 * 2 + 3 + 1, True),  # two convolutions a layer, transitions, stem
    "regnetx_002": (64, 13 * 2 + 5, False),
    "mixer_s32_224": (224, 8 * 4 + 1, True),
    "resnext50_32x4d": (64, 16 * 2 + 5, True),
    "swin_tiny_patch4_window7_224": (224, 12 * 5 + 4, True),
    "repvgg_a0": (64, 5 + 5, False),  # a trunk for each stage; the 3x3 where only the 1x1 stands beside it
    "vgg11_bn": (64, 8 + 2, True),
}
CASES = [
    pytest.param(name, size, gates, marks=[pytest.mark.slow] if slow else [], id=name)
    for name, (size, gates, slow) in MODELS.items()
]


def model(name: str) -> nn.Module:
    timm = load_timm()
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=10).eval()


@pytest.mark.filterwarnings("ignore")  # what timm and the exporter warn of is not ours
@pytest.mark.parametrize(("name", "size", "gates"), CASES)
def test_a_timm_model_is_slimmed_exactly(name: str, size: int, gates: int) -> None:
    net, x = model(name), torch.randn(1, 3, size, size)
    space = slim(net, x)
    assert len(choices(space)) == gates
    stir(space)
    architecture = sample(space, generator=torch.Generator().manual_seed(1))
    held, built = hold(space, architecture), build(space, architecture)
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-5
    cost = macs(x)
    assert cost.of(built) < 0.9 * cost.of(net)
    assert params().of(built) < 0.9 * params().of(net)
    assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
    assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
    assert_plain(built)
    program = torch.export.export(built.eval(), (x,))
    with torch.no_grad():
        assert difference([program.module()(x)], outputs(built, (x,))) < 1e-5

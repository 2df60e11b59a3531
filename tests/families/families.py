"""Every family of test networks, with the gates that it must have, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from families import awkward, convolutional, transformers
from torch import Tensor, nn

IMAGE = ((3, 8, 8),)


@dataclass(frozen=True)
class Family:
    """One test network.

    Attributes:
        make: makes it.
        gates: gate -> number of entries.
        frozen: layers that must be reported as frozen.
        more: whether further gates are allowed (where what can be followed is up to the library).
        shapes: of one example's inputs; an int stands for that many tokens.
        steady: whether it computes the same twice in training, once its dropout modules are switched off.
    """

    name: str
    make: Callable[[], nn.Module]
    gates: Mapping[str, int]
    frozen: tuple[str, ...] = ("fc",)
    more: bool = False
    shapes: tuple[tuple[int, ...] | int, ...] = field(default=IMAGE)
    steady: bool = True

    def network(self, *, seed: int = 0) -> nn.Module:
        """A fresh network, the same for the same seed."""
        torch.manual_seed(seed)
        return self.make()

    def example(self, *, batch: int = 2, seed: int = 1) -> tuple[Tensor, ...]:
        """Random inputs [batch, ...]."""
        g = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(0, 20, (batch, s), generator=g)
            if isinstance(s, int)
            else torch.randn(batch, *s, generator=g)
            for s in self.shapes
        )


def _two_outputs() -> nn.Module:
    return awkward.TwoOutputs(named=False)


def _two_named_outputs() -> nn.Module:
    return awkward.TwoOutputs(named=True)


def _spatial_attention() -> nn.Module:
    return awkward.mixing_channels(awkward.SpatialAttention())


def _softmaxed() -> nn.Module:
    return awkward.mixing_channels(awkward.Softmaxed())


def _normalized() -> nn.Module:
    return awkward.mixing_channels(awkward.Normalized())


def _parts(*paths: str) -> dict[str, int]:
    """Gates on whole modules that are added to a stream."""
    return {f"{path}.branch": 1 for path in paths}


MIXED = {"stem.0": 8, "blocks.2.0": 10}
STREAM = {"patches": 12}

CONVOLUTIONAL = [
    Family("plain", convolutional.plain, {"stem.0": 8, "blocks.0.0": 12, "blocks.1.0": 6}),
    Family("no_norm", convolutional.no_norm, {"stem.0": 8, "blocks.0": 12, "blocks.2": 10}),
    Family("active_at_zero", convolutional.active_at_zero, {"stem.0": 8, "blocks.0": 12, "blocks.2": 10}),
    Family("prelu", convolutional.prelu, {"stem.0": 8, "blocks.0": 12}),
    Family("vgg", convolutional.vgg, {"0": 8, "4": 6, "9": 20}, ("12",), shapes=((3, 16, 16),)),
    Family(
        "resnet",
        convolutional.resnet,
        {
            "stem.0": 8,
            "blocks.0.conv1": 8,
            "blocks.1.conv1": 12,
            "blocks.1.conv2": 12,
            "blocks.2.conv1": 12,
            "blocks.0.branch": 1,
            "blocks.1.branch": 1,
            "blocks.2.branch": 1,
        },
    ),
    Family(
        "bottlenecks",
        convolutional.bottlenecks,
        {
            "stem.0": 8,
            "blocks.0.conv1": 6,
            "blocks.0.conv2": 6,
            "blocks.0.conv3": 16,
            "blocks.1.conv1": 6,
            "blocks.1.conv2": 6,
            "blocks.0.branch": 1,
            "blocks.1.branch": 1,
        },
    ),
    Family(
        "resnext",
        convolutional.resnext,
        {
            "stem.0": 8,
            "blocks.0.conv1": 4,
            "blocks.0.conv3": 16,
            "blocks.1.conv1": 4,
            "blocks.0.branch": 1,
            "blocks.1.branch": 1,
        },
    ),
    Family(
        "preact",
        convolutional.preact,
        {"stem": 8, "blocks.0.conv1": 8, "blocks.1.conv1": 8, "blocks.0.branch": 1, "blocks.1.branch": 1},
    ),
    Family(
        "mobilenet",
        convolutional.mobilenet,
        {
            "stem.0": 8,
            "blocks.0.body.0": 16,
            "blocks.0.body.6": 6,
            "blocks.1.body.0": 12,
            "blocks.1.branch": 1,
        },
    ),
    Family(
        "depthwise_separable",
        convolutional.depthwise_separable,
        {"stem.0": 8, "blocks.1.0": 12, "blocks.3.0": 10},
    ),
    Family(
        "squeeze_excite",
        convolutional.squeeze_excite,
        {"stem.0": 8, "blocks.0.reduce": 4, "blocks.1.0": 10, "blocks.2.reduce": 3},
    ),
    Family("densenet", convolutional.densenet, {"stem": 6, "blocks.0.conv": 5, "blocks.1.conv": 5}),
    Family(
        "inception",
        convolutional.inception,
        {
            "stem.0": 8,
            "blocks.0.one.0": 4,
            "blocks.0.three.0.0": 5,
            "blocks.0.three.1.0": 6,
            "blocks.0.pool.1.0": 3,
            "blocks.1.0": 10,
        },
    ),
    Family("group_norm", convolutional.group_norm, {"stem.0": 4, "blocks.0": 3}),
    Family("instance_norm", convolutional.instance_norm, {"stem.0": 8, "blocks.0": 12}),
    Family("conv1d", convolutional.conv1d, {"0": 8, "4": 6}, ("7",), shapes=((2, 20),)),
    Family("conv3d", convolutional.conv3d, {"0": 6, "4": 8}, ("8",), shapes=((1, 6, 6, 6),)),
    Family("autoencoder", convolutional.autoencoder, {"0": 8, "3": 12, "5": 8}, ("9",), shapes=((3, 16, 16),)),
    Family("mlp", convolutional.mlp, {"0": 16, "2": 12}, ("5",), shapes=((10,),)),
    Family(
        "stochastic_depth",
        convolutional.stochastic_depth,
        {
            "stem.0": 8,
            "blocks.0.body.0.0": 10,
            "blocks.1.body.0.0": 10,
            "blocks.0.branch": 1,
            "blocks.1.branch": 1,
        },
    ),
]

TRANSFORMERS = [
    Family(
        "vit_fused",
        transformers.vit_fused,
        {
            **STREAM,
            "blocks.0.attn.heads": 3,
            "blocks.1.attn.heads": 3,
            "blocks.0.attn.qkv.channels": 4,
            "blocks.1.attn.qkv.channels": 4,
            "blocks.0.mlp.0": 20,
            "blocks.1.mlp.0": 16,
            **_parts("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"),
        },
        ("head",),
    ),
    Family(
        "vit_separate",
        transformers.vit_separate,
        {
            **STREAM,
            "blocks.0.attn.heads": 4,
            "blocks.0.attn.query.channels": 3,
            "blocks.0.attn.value.channels": 3,
            "blocks.0.mlp.0": 20,
            **_parts("blocks.0.attn", "blocks.0.mlp"),
        },
        ("head",),
    ),
    Family(
        "vit_packed",
        transformers.vit_packed,
        {
            **STREAM,
            "blocks.0.attn.attention.heads": 4,
            "blocks.0.attn.attention.queries.channels": 3,
            "blocks.0.attn.attention.values.channels": 3,
            "blocks.0.mlp.0": 20,
            **_parts("blocks.0.attn", "blocks.0.mlp"),
        },
        ("head",),
    ),
    Family(
        "encoder_layer",
        transformers.encoder_layer,
        {
            **STREAM,
            "blocks.0.self_attn.heads": 4,
            "blocks.0.self_attn.queries.channels": 3,
            "blocks.0.self_attn.values.channels": 3,
            "blocks.0.linear1": 20,
            **_parts("blocks.0.self_attn", "blocks.0.linear1"),
        },
        ("head",),
    ),
    Family(
        "mixer",
        transformers.Mixer,
        {**STREAM, "block.tokens.0": 8, "block.channels.0": 20, **_parts("block.tokens", "block.channels")},
        ("block.tokens.2", "head"),
    ),
    Family(
        "convnext",
        transformers.ConvNext,
        {"stem": 8, "blocks.0.pw1": 24, "blocks.1.pw1": 16, "blocks.0.branch": 1, "blocks.1.branch": 1},
        ("head",),
    ),
    Family("language", transformers.Language, {"embed": 12, "mlp.0": 16, **_parts("mlp")}, ("head",), shapes=(6,)),
    Family(
        "tied_linears",
        transformers.TiedLinears,
        {"inlet": 8, "middle": 12},
        ("head",),
        shapes=((10,),),
    ),
]

AWKWARD = [
    Family(
        "two_inputs",
        awkward.TwoInputs,
        {"image.0": 8, "vector": 6, "fuse": 10},
        ("head",),
        shapes=(*IMAGE, (4,)),
    ),
    Family("two_outputs", _two_outputs, {"trunk.0.0": 8, "trunk.1.0": 10}, ("mask", "fc")),
    Family("two_named_outputs", _two_named_outputs, {"trunk.0.0": 8, "trunk.1.0": 10}, ("mask", "fc")),
    Family("features_out", awkward.FeaturesOut, {"first.0": 8}, ("second.0", "fc")),
    Family("reused", awkward.Reused, {"last.0": 10}, more=True),
    Family("hard_view", awkward.HardView, {"first.0": 8}, ("second", "fc")),
    Family("spatial_attention", _spatial_attention, MIXED, ("blocks.0.0", "fc")),
    Family("softmaxed", _softmaxed, MIXED, ("blocks.0.0", "fc")),
    Family("normalized", _normalized, {**MIXED, "blocks.0.0": 6}, ("fc",)),
    Family("channel_shuffle", awkward.channel_shuffle, {"blocks.4.0": 10}, more=True),
    Family("pixel_shuffle", awkward.pixel_shuffle, MIXED, more=True),
    Family(
        "parametrized",
        awkward.Parametrized,
        {"first.0": 8, "second": 10, "third.0": 12, "fourth": 10, "fifth": 7},
        ("fc",),
    ),
    Family("hooked_norm", awkward.HookedNorm, {"first.0": 8, "second": 10, "third.0": 12}),
    Family("gated_linear", awkward.gated_linear, MIXED, more=True),
    Family("split", awkward.split, {"blocks.1.0": 10}, more=True),
    Family("scaled", awkward.scaled, {"stem.0": 8, "blocks.1.0": 10}),
    Family("noisy", awkward.Noisy, {"first.0": 8, "second.0": 10}, steady=False),
    Family("recurrent", awkward.Recurrent, {"inlet": 8, "gru": 7, "middle": 12}, ("head",), shapes=((7, 6),)),
]

FAMILIES = [*CONVOLUTIONAL, *TRANSFORMERS, *AWKWARD]

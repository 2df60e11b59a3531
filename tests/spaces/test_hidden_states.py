"""Encoders and decoders that put out their hidden states, and what their modules size by numbers of their own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build
from archgrad.spaces.slim.seeded_run import named_tensors_of, run, tensors_of

WIDTH, HEADS, WORDS = 8, 4, 11


class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's: known by its name."""


class Attention(nn.Module):
    """With a bias for each head, which it makes of zeros where it is given none, and gives on."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.width = HEADS, 3
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * 3, bias=False) for _ in range(3))
        self.o = nn.Linear(HEADS * 3, WIDTH, bias=False)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = (
            f(t).view(*t.shape[:2], -1, self.width).transpose(1, 2)
            for f, t in ((self.q, x), (self.k, y), (self.v, y))
        )
        if bias is None:
            bias = torch.zeros(1, self.n_heads, x.shape[1], y.shape[1], dtype=x.dtype) + mask[:, None, None]
        z = ((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2)
        return self.o(z.reshape(*x.shape[:2], -1)), bias


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.second = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)

    def forward(self, x: Tensor, y: Tensor | None, mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        z = self.first(x)
        z, bias = self.attention(z, z if y is None else y, mask, bias)
        x = x + z
        return x + self.down(F.gelu(self.up(self.second(x)))), bias


class Positions(nn.Embedding):
    def forward(self, like: Tensor) -> Tensor:
        """Of [B, T], whose values it does not read."""
        return super().forward(torch.arange(like.shape[1]).expand(len(like), -1))


class Stack(nn.Module):
    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed, self.positions, self.norm = embed, Positions(16, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, tokens: Tensor, mask: Tensor, y: Tensor | None = None) -> Tensor:
        x, bias = self.embed(tokens), None
        x = x + self.positions(x[:, :, -1])
        for layer in self.layers:
            x, bias = layer(x, y, mask, bias)
        return self.norm(x)


class Translator(nn.Module):
    """Puts out what `parts` names, as the models of Hugging Face do."""

    def __init__(self, *parts: str, reads_last: bool = False) -> None:
        super().__init__()
        embed, self.parts, self.reads_last = nn.Embedding(WORDS, WIDTH), parts, reads_last
        self.encoder, self.decoder, self.head = Stack(embed), Stack(embed), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> ModelOutput:
        y = self.encoder(tokens, mask)
        x = self.decoder(tokens, mask, y)
        more = {
            "logits": self.head(x) if not self.reads_last else self.head(x) * x[:, :, 2].unsqueeze(-1),
            "encoder_last_hidden_state": y, "last_hidden_state": x, "past_key_values": (x, y), "cache": {"a": [y]},
            "text_model_output": ModelOutput(last_hidden_state=y), "text_embeds": self.head(y),
        }  # fmt: skip
        return ModelOutput((name, more[name]) for name in self.parts)


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, WORDS, (2, 6), generator=generator), torch.randn(2, 6, generator=generator).double()


def gates(space: nn.Module) -> dict[str, int]:
    return {name: same[0].size for name, same in choices(space).items()}


INNER = ("encoder_last_hidden_state", "past_key_values", "cache", "text_model_output")


@pytest.mark.parametrize("parts", [("logits",), ("logits", *INNER), (*INNER, "text_embeds", "last_hidden_state")])
def test_states_in_front_of_a_head_shrink_with_the_stream(parts: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    net, x = Translator(*parts).double(), example()
    space = ag.slim(net, x)
    found = gates(space)
    assert found["encoder.embed"] == WIDTH
    assert ag.frozen(space).parameters_fraction < 0.15
    stir(space)
    for architecture in (
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)),
    ):
        built = build(space, architecture)
        held = run(hold(space, architecture), x)
        assert difference(tensors_of(held), tensors_of(run(built, x))) < 1e-9
        for cost in (ag.macs(x), ag.params()):
            assert float(cost.expected(hold(space, architecture))) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)


def test_heads_that_share_a_bias_of_zeros_go_together_with_the_number_that_sizes_it() -> None:
    torch.manual_seed(0)
    net, x = Translator("logits").double(), example()
    space = ag.slim(net, x)
    heads = sorted(name for name, size in gates(space).items() if size == HEADS)
    assert heads == ["decoder.layers.0.attention.q", "encoder.layers.0.attention.q"]
    whole = {name: tuple(range(size)) for name, size in gates(space).items()}
    built = build(space, ag.Architecture({**whole, heads[0]: (1, 2)}))
    assert built.decoder.layers[0].attention.n_heads == 2
    assert (
        built.decoder.layers[1].attention.q.out_features == 6 and built.encoder.layers[0].attention.n_heads == HEADS
    )


@pytest.mark.parametrize("parts", [("last_hidden_state",), ("last_hidden_state", "past_key_values")])
def test_a_stream_that_is_the_output_keeps_its_width_and_the_reason_says_what_would_help(
    parts: tuple[str, ...],
) -> None:
    torch.manual_seed(0)
    space = ag.slim(Translator(*parts).double(), example())
    assert "encoder.embed" not in gates(space)
    assert "output last_hidden_state; slimmed as one network with the head" in ag.frozen(space)["encoder.embed"]


def test_a_channel_that_is_read_by_its_place_freezes_the_stream() -> None:
    torch.manual_seed(0)
    space = ag.slim(Translator("logits", reads_last=True).double(), example())
    assert "encoder.embed" not in gates(space)


def test_only_hugging_faces_outputs_have_parts_that_do_not_count() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    parts = {"logits": x, "encoder_last_hidden_state": y, "past_key_values": {"layers": [y]}}
    assert [n for n, _ in named_tensors_of(parts)] == ["logits", "encoder_last_hidden_state", "past_key_values"]
    assert [n for n, _ in named_tensors_of(ModelOutput(parts))] == ["logits"]
    assert [n for n, _ in named_tensors_of([x, {"a": y}])] == ["", "a"]

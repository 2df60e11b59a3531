"""The space of networks with several inputs: an encoder for each, and where and how their features are fused.

Source: RandomNet (arXiv 2003.01181) searches encoders and fusion together; its space is not known, and this one is
ours, with the fusions of its predecessors, as recalled: at the end; at every block, CentralNet (arXiv 1808.07275); at
chosen blocks, MFAS (arXiv 1903.06496).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import decisions, matched
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.errors import ConfigError, ModelError
from archgrad.multimodal.encoders import WIDTHS, Encoder, InputForm, form_of

RANK = 32  # of the bilinear fusion
HEADS = {"linear": (), "64": (64,), "256": (256,), "64 64": (64, 64), "256 256": (256, 256)}
RATES = (0.0, 0.25, 0.5)


@checked
def fusion(
    inputs: Mapping[str, InputForm | Tensor],
    *,
    classes: int,
    features: int = 64,
    widths: Mapping[str, Sequence[int]] = WIDTHS,
    modality_dropout: float = 0.0,
) -> Fusion:
    """The supernet: {name: [B, ...]} to logits [B, classes].

        f_k = the features of the encoder of input k, [B, features], times 0 where the input is all zeros
        z   = merge(f_1, ..., f_M)   +  the same of the features after earlier blocks, where that is picked
        logits = head(dropout(z))

    Choices, beside those of the encoders (`archgrad.multimodal.encoders.Encoder`): "fusion.where" (late; every: after
    each of the first blocks too; pair: after one block of each input too, "fusion.pair.N"), "fusion.merge", "head"
    (hidden units of its layers), "dropout". A single input is encoded and classified; there is nothing to fuse.

    Give zeros for an input that a sample lacks.

    Args:
        inputs: for each input, in the order of the concatenation, an encoder such as `archgrad.image_encoder(1)`, or
            an example [B, ...] that one is sized by; so a task's `example` will do.
        classes: logits.
        features: d, the number of features of every encoder.
        widths: {label: channels of the blocks}; the last is that of all further blocks.
        modality_dropout: probability that an input of a sample is treated as missing, in training.

    Raises:
        ConfigError: no input, a name with a dot in it, numbers that make no network.
        ModelError: an input that is too small; the message says the least size.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.fusion({"image": ag.image_encoder(1), "age": torch.zeros(1, 3)}, classes=2)
        >>> net = ag.build(space, ag.sample(space))
        >>> net({"image": torch.rand(4, 1, 8, 8), "age": torch.rand(4, 3)}).shape
        torch.Size([4, 2])
    """
    if not inputs or not all(isinstance(name, str) and name and "." not in name for name in inputs):
        raise ConfigError(f'inputs={list(inputs)}: give one or more by name, without dots, such as "image"')
    strange = [n for n, f in inputs.items() if not isinstance(f, InputForm | Tensor)]
    if strange:
        raise ConfigError(
            f"input {strange[0]!r} is a {type(inputs[strange[0]]).__name__}: give an encoder, such as "
            f"archgrad.image_encoder(1), or an example [B, ...]"
        )
    numbers = (classes, features, *(n for each in widths.values() for n in (len(each), *each)))
    if not widths or not all(type(n) is int and n >= 1 for n in numbers) or classes < 2:
        raise ConfigError(
            f"classes={classes}, features={features}, widths={dict(widths)}: give at least two classes, and whole "
            f"numbers from 1"
        )
    if not 0.0 <= modality_dropout < 1.0:
        raise ConfigError(f"modality_dropout={modality_dropout}: give a probability from 0 to below 1")
    forms = {name: x if isinstance(x, InputForm) else form_of(x) for name, x in inputs.items()}
    return Fusion(forms, classes=classes, features=features, widths=widths, modality_dropout=modality_dropout)


class Fusion(nn.Module):
    """Encoders, fusion and head; made by `fusion`.

    Attributes:
        handles_missing: an input of zeros is treated as missing, and is left out.
    """

    handles_missing = True

    def __init__(
        self,
        forms: Mapping[str, InputForm],
        *,
        classes: int,
        features: int,
        widths: Mapping[str, Sequence[int]],
        modality_dropout: float,
    ) -> None:
        super().__init__()
        self.names = tuple(forms)
        several = len(forms) > 1
        self.encoders = nn.ModuleList(
            Encoder(form, name=name, features=features, widths=widths, levels=form.blocks[0] if several else 0)
            for name, form in forms.items()
        )
        self.there = nn.Dropout(modality_dropout)
        self.shared = min(form.blocks[0] for form in forms.values())
        places = {
            "late": _Late(len(forms), features),
            "every": _Every(len(forms), features, levels=self.shared),
            "pair": _Pair({name: form.blocks[0] for name, form in forms.items()}, features),
        }
        self.where = OpChoice(places, name="fusion.where") if several else None
        self.dropout = OpChoice({f"{rate:g}": nn.Dropout(rate) for rate in RATES}, name="dropout")
        heads = {label: _head(features, hidden, classes) for label, hidden in HEADS.items()}
        self.head = OpChoice(heads, name="head")

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, classes] of {name: [B, ...]}."""
        # Tracing gives something else, whose shapes are not known.
        if not isinstance(inputs, torch.fx.Proxy):
            self._check(inputs)
        last, earlier = [], []
        for name, encoder in zip(self.names, self.encoders, strict=True):
            x = inputs[name]
            there = self.there((x.flatten(1).abs().amax(dim=1, keepdim=True) > 0).to(x.dtype)) > 0
            end, *levels = (f * there.to(x.dtype) for f in encoder(x))
            last.append(end)
            earlier.append(levels)
        z = last[0] if self.where is None else self.where(last, earlier)
        return self.head(self.dropout(z))  # type: ignore[no-any-return]

    def _check(self, inputs: Any) -> None:
        missing = [n for n in self.names if n not in inputs] if isinstance(inputs, Mapping) else list(self.names)
        if missing:
            given = list(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ModelError(
                f"the network takes a dict of the inputs {list(self.names)}; given is {given}, without {missing}. "
                f"Where a sample lacks an input, give zeros in its place"
            )
        for name, encoder in zip(self.names, self.encoders, strict=True):
            assert isinstance(encoder, Encoder)
            encoder.form.check(inputs[name], name)

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What scales the work of a module at `path`: that of an encoder's earlier level, by what reads it."""
        parts = path.split(".")
        if self.where is None or parts[0] != "encoders" or parts[2:3] != ["trunks"] or parts[4:5] != ["levels"]:
            return [[]]
        number, level = int(parts[1]), int(parts[5])
        every, pair = (self.where.labels.index(label) for label in ("every", "pair"))
        picked = self.where.candidates[pair].picked[number]  # type: ignore[index]
        assert isinstance(picked, InputChoice)
        read: list[list[tuple[Choice, int]]] = [[(self.where, pair), (picked, level)]]
        return [*read, [(self.where, every)]] if level < self.shared else read

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """The architecture for a report, as `architecture_text`; what it does not use is left out.

        Raises:
            ArchitectureError: the architecture is for another space.
        """
        matched(self, architecture)
        said = {
            name: choice.labels[pick] if isinstance(choice, OpChoice) and isinstance(pick, int) else pick[0]  # type: ignore[index]
            for name, choice in decisions(self).items()
            for pick in [architecture[name]]
        }
        lines = []
        for name, encoder in zip(self.names, self.encoders, strict=True):
            assert isinstance(encoder, Encoder)
            depth = encoder.form.blocks[0] + int(said[f"{name}.depth"])
            row = [str(said[f"{name}.block{i + 1}"]) for i in range(depth)]
            rest = [str(said[f"{name}.{part}"]) for part in ("activation", "shrink") if f"{name}.{part}" in said]
            lines.append(f"{name}: {' '.join(row)}; width {said[f'{name}.width']}, {', '.join(rest)}")
        if self.where is not None:
            taps = [f"{name} after block {int(said[f'fusion.pair.{name}']) + 1}" for name in self.names]
            pair = f" ({', '.join(taps)})" if said["fusion.where"] == "pair" else ""
            lines.append(f"fusion: {said['fusion.where']}{pair}, {said['fusion.merge']}")
        lines.append(f"head: {said['head']}, dropout {said['dropout']}")
        return {"architecture_text": " | ".join(lines)}


def _merge(count: int, features: int) -> OpChoice:
    """Ways from M vectors [B, d] to one; a vector of zeros adds a constant to those that add up."""
    return OpChoice(
        {
            "concat": _Concat(count, features), "sum": _Sum(), "product": _Product(),
            "gated": _Gated(count, features), "bilinear": _Bilinear(count, features),
        },
        name="fusion.merge",
    )  # fmt: skip


class _Late(nn.Module):
    """merge of the last blocks"""

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.merge = _merge(count, features)

    def forward(self, last: Sequence[Tensor], earlier: Sequence[Sequence[Tensor]]) -> Tensor:
        return self.merge(*last)  # type: ignore[no-any-return]


class _Every(nn.Module):
    """merge of the last blocks, and of the first, the second, ... blocks of all"""

    def __init__(self, count: int, features: int, *, levels: int) -> None:
        super().__init__()
        self.merges = nn.ModuleList(_merge(count, features) for _ in range(1 + levels))

    def forward(self, last: Sequence[Tensor], earlier: Sequence[Sequence[Tensor]]) -> Tensor:
        rows = [last, *zip(*earlier, strict=False)]
        return _total([merge(*row) for merge, row in zip(self.merges, rows, strict=True)])


class _Pair(nn.Module):
    """merge of the last blocks, and of one earlier block of each input"""

    def __init__(self, levels: Mapping[str, int], features: int) -> None:
        super().__init__()
        self.picked = nn.ModuleList(_picked(n, name=f"fusion.pair.{name}") for name, n in levels.items())
        self.end = _merge(len(levels), features)
        self.early = _merge(len(levels), features)

    def forward(self, last: Sequence[Tensor], earlier: Sequence[Sequence[Tensor]]) -> Tensor:
        return self.end(*last) + self.early(*(pick(f) for pick, f in zip(self.picked, earlier, strict=True)))  # type: ignore[no-any-return]


class _Concat(nn.Module):
    """A [f_1, ..., f_M] + b"""

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(count * features, features)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.linear(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class _Sum(nn.Module):
    """f_1 + ... + f_M"""

    def forward(self, *parts: Tensor) -> Tensor:
        return _total(parts)


class _Product(nn.Module):
    """(1 + f_1) ... (1 + f_M) - 1, so that an input which is missing changes nothing"""

    def forward(self, *parts: Tensor) -> Tensor:
        return functools.reduce(operator.mul, [1.0 + part for part in parts]) - 1.0


class _Gated(nn.Module):
    """sum of g_k f_k,  g = sigmoid(A [f_1, ..., f_M] + b), [B, M]"""

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.gate = nn.Linear(count * features, count)

    def forward(self, *parts: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate(torch.cat(parts, dim=1)))
        return _total([part * gates[:, k : k + 1] for k, part in enumerate(parts)])


class _Bilinear(nn.Module):
    """A (U_1 f_1 * ... * U_M f_M) + b, with a bias in each U and a low rank"""

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.factors = nn.ModuleList(nn.Linear(features, RANK) for _ in range(count))
        self.linear = nn.Linear(RANK, features)

    def forward(self, *parts: Tensor) -> Tensor:
        inner = [factor(part) for factor, part in zip(self.factors, parts, strict=True)]
        return self.linear(functools.reduce(operator.mul, inner))  # type: ignore[no-any-return]


def _picked(size: int, *, name: str) -> InputChoice:
    return InputChoice(size, name=name, edges=[nn.Identity() for _ in range(size)])


def _total(parts: Sequence[Tensor]) -> Tensor:
    return functools.reduce(operator.add, parts)


def _head(features: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((features, *hidden), hidden, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], classes))

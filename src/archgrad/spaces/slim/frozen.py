"""The layers of a network that cannot be cut, with the reasons, and how much of it no architecture removes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from archgrad.report.numbers import counted
from archgrad.spaces.slim.channel_graph import ChannelGraph
from archgrad.spaces.slim.layer_reasons import UNREAD
from archgrad.spaces.slim.layer_sides import has_sides, sides_of
from archgrad.spaces.slim.numbering import Side
from archgrad.spaces.slim.trial import Removal, Trial
from archgrad.spaces.slim.trial_masks import kept_entries

# What would help against a reason that holds these words; a reason with a ";" says it itself.
ADVICE = (
    (
        "output last_hidden_state",
        "slimmed as one network with the head that reads it, which puts out no hidden states, it would shrink",
    ),
    ("network's output", ""),
    ("at your wish", ""),
    ("makes one channel", ""),
    *(
        (
            f"mixes these channels ({name})",
            "torch.nn.LayerNorm or RMSNorm in its place, or a module of your own that "
            "computes one, knows its channels; another mean can have a linear layer in front of it",
        )
        for name in ("mean", "var", "var_mean", "std")
    ),
    ("normalizes over", "BatchNorm, or GroupNorm of several groups, in its place would leave them apart"),
    ("mixes along", "a linear layer or convolution between the two would let the channels in front of it be cut"),
    ("mixes these", "a linear layer or convolution in front of it would let the channels in front of that be cut"),
    (
        "something mixes them",
        "look for a norm, softmax or mean over channels behind it, a size kept as a number, or parameters that "
        "forward itself adds up",
    ),
    ("adds up", "a linear layer in front of the product would let the channels in front of that be cut"),
    ("not the weight of a layer", "torch.nn.Linear in the place of the bare parameter can carry a gate"),
    ("fixed", "what computes the others has to be free as well, or a linear layer has to stand between"),
    ("that have none", "compute the other values by a layer, or put a linear layer between"),
    ("is shared with", "copy.deepcopy one of the layers if their weights may differ"),
    ("picks rows", "rows that your data never reads go by ag.trim_vocabulary, unless an output layer shares them"),
    ("keeps the width", "torch.nn.Linear layers for queries, keys, values and outputs would let it change"),
    ("is not a layer whose", "write it with torch.nn.Linear layers, whose channels and heads can be removed"),
    ("spectral_norm", "torch.nn.utils.remove_spectral_norm makes a plain parameter of it"),
    ("inputs can be gated", "a linear layer or an ungrouped convolution behind it would carry a gate"),
    ("does not run on the example", "give an example that reaches it"),
    ("cannot be followed", "operations that keep channels apart (slices, torch.cat, reshape) can be followed there"),
    ("draws random numbers", "draw one for each example, or in training alone"),
)


def advised(reason: str) -> str:
    """The reason, and what would help."""
    advice = next((text for words, text in ADVICE if words in reason), "leave it, or put a linear layer behind it")
    return f"{reason}; {advice}" if advice and ";" not in reason else reason


def each_once(reasons: Mapping[str, str]) -> list[str]:
    """Each reason with the first layer that it holds for, those of the most layers first; numbers aside."""
    alike: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        alike.setdefault(re.sub(r"[\w.]*\d[\w.]*", "#", reason), []).append(name)
    groups = sorted(alike.values(), key=lambda names: -len(names))
    others = {1: "", 2: " and one more"}
    return [
        f"{names[0]}{others.get(len(names), f' and {len(names) - 1} more')}: {advised(reasons[names[0]])}"
        for names in groups
    ]


class Frozen(dict[str, str]):
    """Path of a layer -> why its outputs cannot be cut.

    Attributes:
        parameters_fraction: of the parameters, those that no architecture removes, in [0, 1].
        macs_fraction: the same of the multiply-adds with weights of layers on the example; products of activations,
            such as those of attention scores, are left out.
    """

    def __init__(
        self, reasons: Mapping[str, str], *, parameters_fraction: float = 1.0, macs_fraction: float = 1.0
    ) -> None:
        super().__init__(reasons)
        self.parameters_fraction = parameters_fraction
        self.macs_fraction = macs_fraction

    def __repr__(self) -> str:
        return "\n".join([f"<Frozen: {self.summary()}>", *(f"  {path}: {reason}" for path, reason in self.items())])

    def summary(self) -> str:
        """One line: how many layers, and how much is out of reach."""
        return (
            f"{counted(len(self), 'layer')} frozen; {self.parameters_fraction:.0%} of the parameters and "
            f"{self.macs_fraction:.0%} of the MACs are out of reach"
        )


def has_channels(module: nn.Module) -> bool:
    """Whether parameters of its own lie along channels; single numbers, such as a temperature, a scale or the one
    slope of a PReLU, do not."""
    return bool(has_sides(module) and sides_of(module)) or any(
        p.numel() > 1 for p in module.parameters(recurse=False)
    )


def _parted(side: Side) -> tuple[tuple[str, str], str]:
    owner, _, name = side[0].rpartition(".")
    return (owner, name), side[1]


def reach(trial: Trial, removals: Sequence[Removal], graph: ChannelGraph) -> Frozen:
    """Every layer with parameters that has no gate, with its reason, and what the smallest network still takes."""
    read = {(owner, f"param {n} {side.split()[1]}") for (owner, n), side in map(_parted, graph.read)}
    gated = {
        c.module for r in removals for c in r.couplings
        if c.kind not in ("in", "rows", "branch") and (c.module, c.side) not in read
    }  # fmt: skip
    gated |= {r.name.removesuffix(".heads") for r in removals}
    complete, reasons = {}, graph.frozen
    for path, module in trial.network.named_modules():
        if path in gated or "parametrizations" in path.split(".") or not has_channels(module):
            continue
        inner = next((r for p, r in reasons.items() if path and p.startswith(f"{path}.")), "")
        outer = next((r for p, r in reasons.items() if p and path.startswith(f"{p}.")), "")
        complete[path] = advised(reasons.get(path) or outer or inner or UNREAD)
    cut = [r for r in removals if not r.vanishing]
    smallest = trial.removed(cut, kept_entries(cut, "smallest"))
    gone = {c.module for r in removals if r.vanishing for c in r.couplings}
    left = {p for n, m in smallest.named_modules() if n not in gone for p in m.parameters(recurse=False)}
    return Frozen(
        complete,
        parameters_fraction=sum(p.numel() for p in left) / max(sum(p.numel() for p in trial.network.parameters()), 1),
        macs_fraction=graph.macs(smallest, without=gone) / graph.whole if graph.whole else 1.0,
    )

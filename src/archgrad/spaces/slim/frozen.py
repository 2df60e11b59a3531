"""The layers of a network that cannot be cut, with the reasons, and how much of it no architecture removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archgrad.spaces.slim.channel_graph import UNREAD, ChannelGraph
from archgrad.spaces.slim.trial import Removal, Trial


class Frozen(dict[str, str]):
    """Path of a layer -> why its outputs cannot be cut.

    Attributes:
        parameters_fraction: of the parameters, those that no architecture removes, in [0, 1].
        macs_fraction: the same of the multiply-adds of convolutions and linear layers on the example.
    """

    def __init__(
        self, reasons: Mapping[str, str], *, parameters_fraction: float = 1.0, macs_fraction: float = 1.0
    ) -> None:
        super().__init__(reasons)
        self.parameters_fraction = parameters_fraction
        self.macs_fraction = macs_fraction

    def summary(self) -> str:
        """One line: how many layers, and how much is out of reach."""
        return (
            f"{len(self)} layers frozen; {self.parameters_fraction:.0%} of the parameters and "
            f"{self.macs_fraction:.0%} of the MACs are out of reach"
        )


def reach(trial: Trial, removals: Sequence[Removal], graph: ChannelGraph) -> Frozen:
    """Every layer with parameters that has no gate, with its reason, and what the smallest network still takes."""
    gated = {c.module for r in removals for c in r.couplings if c.side != "in" and c.side != "branch"}
    gated |= {r.name.removesuffix(".heads") for r in removals}
    complete, reasons = {}, graph.frozen
    for path, module in trial.network.named_modules():
        if path in gated or not any(True for _ in module.parameters(recurse=False)):
            continue
        inner = next((r for p, r in reasons.items() if path and p.startswith(f"{path}.")), "")
        outer = next((r for p, r in reasons.items() if p and path.startswith(f"{p}.")), "")
        complete[path] = reasons.get(path) or outer or inner or UNREAD
    cut = [r for r in removals if not r.vanishing]
    smallest = trial.removed(cut, trial.kept(cut, "smallest"))
    gone = {c.module for r in removals if r.vanishing for c in r.couplings}
    left = {p for n, m in smallest.named_modules() if n not in gone for p in m.parameters(recurse=False)}
    return Frozen(
        complete,
        parameters_fraction=sum(p.numel() for p in left) / max(sum(p.numel() for p in trial.network.parameters()), 1),
        macs_fraction=graph.macs(smallest, without=gone) / graph.whole if graph.whole else 1.0,
    )

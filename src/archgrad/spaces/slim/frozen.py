"""The layers of a network that cannot be cut, with the reasons, and how much of it no architecture removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from archgrad.spaces.slim.channel_graph import LAYERS, UNREAD
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, plain_kernels, run
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


def reach(trial: Trial, removals: Sequence[Removal], reasons: Mapping[str, str]) -> Frozen:
    """Every layer with parameters that has no gate, with its reason, and what the smallest network still takes."""
    gated = {c.module for r in removals for c in r.couplings if c.side != "in" and c.side != "branch"}
    gated |= {r.name.removesuffix(".heads") for r in removals}
    complete = {}
    for path, module in trial.network.named_modules():
        if path in gated or not any(True for _ in module.parameters(recurse=False)):
            continue
        inner = next((r for p, r in reasons.items() if path and p.startswith(f"{path}.")), "")
        outer = next((r for p, r in reasons.items() if p and path.startswith(f"{p}.")), "")
        complete[path] = reasons.get(path) or outer or inner or UNREAD
    smallest = trial.removed(removals, trial.kept(removals, "smallest"))
    before, after = _macs(trial, trial.network), _macs(trial, smallest)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (smallest, trial.network)]
    return Frozen(
        complete,
        parameters_fraction=sizes[0] / max(sizes[1], 1),
        macs_fraction=after / before if before else 1.0,
    )


def _macs(trial: Trial, network: nn.Module) -> float:
    """Multiply-adds of all convolutions and linear layers on the trial's inputs."""
    total = 0.0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor) and isinstance(module, LAYERS):
            transposed = isinstance(module, _ConvTransposeNd)
            x = inputs[0] if transposed and isinstance(inputs, tuple) else output
            weight = module.weight
            total += x.numel() * weight.numel() / weight.shape[0]

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, LAYERS)]
    try:
        with plain_kernels():
            run(network.eval(), trial.inputs[0])
    except NETWORK_ERRORS:
        return 0.0
    finally:
        for handle in handles:
            handle.remove()
    return total

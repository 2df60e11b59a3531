"""Size as a proxy: the baseline that any other proxy has to beat."""

from __future__ import annotations

from torch import nn

from archgrad.costs import count
from archgrad.proxies.scoring import Batch, inputs_of, scorable
from archgrad.proxies.temporary_state import probe


def params(network: nn.Module, batch: Batch | None = None) -> float:
    """Number of parameters, architecture parameters left out. Needs no data; the batch is not used.

    Spearman with validation accuracy on 491 cells of NAS-Bench-201: 0.693 / 0.689 / 0.673 (CIFAR-10, CIFAR-100,
    ImageNet16-120) [M]; on 500 cells of the DARTS space 0.507, above every other proxy measured there [M].
    """
    scorable(network)
    return count.params().of(network)


def macs(network: nn.Module, batch: Batch) -> float:
    """Multiply-accumulates of one example of the batch's shape. Needs no data.

    Spearman on 491 cells of NAS-Bench-201: 0.663 / 0.663 / 0.649 [M], counted there as FLOPs.

    Raises:
        ConfigError: no inputs.
        ModelError: the network fails on them.
    """
    scorable(network)
    x = inputs_of(batch)[:1].detach()
    like = next((p for p in network.parameters() if p.is_floating_point()), x)
    with probe(network):
        return count.macs(x.to(like.device, like.dtype)).of(network)

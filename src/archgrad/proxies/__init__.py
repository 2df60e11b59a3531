"""Scores of untrained networks: `proxy(network, batch) -> float`, after which the network is what it was.

`batch` is inputs [B, C, H, W], or (inputs, labels [B]); `params`, `macs`, `synflow`, `zen` and `meco` use its
shape alone. A higher score is better but for `ntk_condition`; NaN means undefined. Compare any proxy with
`params` and `macs`: on the DARTS space these correlate better with accuracy than every proxy measured there, and
within the best tenth of NAS-Bench-201 the correlations of all nearly vanish.
"""

from archgrad.proxies.activations import jacob_cov, linear_regions, meco, naswot, swap, zen
from archgrad.proxies.combined import az_nas, rank_vote, te_nas
from archgrad.proxies.counts import macs, params
from archgrad.proxies.gradients import fisher, grad_norm, grasp, ntk_condition, snip, synflow, zico
from archgrad.proxies.progress import expressivity, progressivity, trainability

__all__ = [
    "az_nas",
    "expressivity",
    "fisher",
    "grad_norm",
    "grasp",
    "jacob_cov",
    "linear_regions",
    "macs",
    "meco",
    "naswot",
    "ntk_condition",
    "params",
    "progressivity",
    "rank_vote",
    "snip",
    "swap",
    "synflow",
    "te_nas",
    "trainability",
    "zen",
    "zico",
]

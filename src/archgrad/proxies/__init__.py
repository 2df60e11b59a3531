"""Scores of untrained networks: `proxy(network, batch) -> float`, after which the network is what it was.

`batch` is inputs [B, C, H, W], or (inputs, labels [B]); `params`, `macs`, `synflow`, `zen` and `meco` use its
shape alone. A higher score is better but for `ntk_condition`; NaN means undefined. Compare any proxy with
`params` and `macs`: on the DARTS space these correlate better with accuracy than every proxy measured there, and
within the best tenth of NAS-Bench-201 the correlations of all nearly vanish.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

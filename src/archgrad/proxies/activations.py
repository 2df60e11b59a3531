"""Proxies from what a network computes: codes of its ReLUs, its Jacobian, its feature maps.

Formulas and settings are those read in the code of the source named (S6 SamsungLabs/zero-cost-nas, S7
cvlab-yonsei/AZ-NAS, S8 HamsterMimi/MeCo, S9 pym1024/SWAP, S10 VITA-Group/TENAS, S11 automl/NASLib). [M] is
measured, [RC] recalled and not read again. A higher score is better. None needs labels. Every proxy raises
ConfigError for a batch and ModelError for a network that it cannot use.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from archgrad.copy_and_run import Intercepted
from archgrad.costs import count
from archgrad.errors import ConfigError, ModelError
from archgrad.proxies.scoring import Batch, examples, inputs_of, noise, run, theta, watched
from archgrad.proxies.temporary_state import probe

_RELUS = {F.relu, F.relu6, F.hardtanh, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


def codes(network: nn.Module, x: Tensor) -> list[Tensor]:
    """[B, units] bool of every ReLU that runs.

    Raises:
        ModelError: the network runs no ReLU, or one that mixes the examples.
    """
    collected: list[Tensor] = []

    def recorded(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = function(*args, **kwargs)
        if function in _RELUS:  # as a module or as a function
            collected.append((output.detach() > 0).flatten(1))
        return output

    with torch.no_grad(), Intercepted(recorded):
        run(network, x)
    if not collected or any(len(code) != len(x) for code in collected):
        raise ModelError(f"{type(network).__name__} runs no ReLU on [B, ...]: this proxy reads the signs of ReLUs")
    return collected


def jacob_cov(network: nn.Module, batch: Batch) -> float:
    """Covariance of the input Jacobian across examples; needs inputs [S6].

        -sum_i [log(v_i + k) + 1 / (v_i + k)],   k = 1e-5,
        v the eigenvalues of the correlation matrix of the rows d (sum of logits) / dx_i

    One batch, BatchNorm in train mode. Spearman on NAS-Bench-201: 0.731 / 0.704 / 0.701 [S6]. NaN where a row is
    constant, as in a network that no input reaches.

    Raises:
        ConfigError: fewer than 2 examples.
    """
    x = examples(network, batch, least=2).requires_grad_(True)
    with probe(network, norm="train"):
        total = run(network, x).sum()
        if not total.requires_grad:
            return math.nan
        (slope,) = torch.autograd.grad(total, x, allow_unused=True)
    if slope is None:
        return math.nan
    rows = slope.flatten(1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        return math.nan
    # Rounding makes the least eigenvalues slightly negative; the matrix has none.
    values = torch.linalg.eigvalsh((rows / norms) @ (rows / norms).T).clamp(min=0) + 1e-5
    return -float((values.log() + 1 / values).sum())


def naswot(network: nn.Module, batch: Batch) -> float:
    """Kernel of the codes of ReLUs; needs inputs [S7, S11].

        log |det K|,   K = sum over ReLUs of  c c^T + (1 - c)(1 - c)^T,   c [B, units] in {0, 1}

    Inputs from N(0, 1) in S7; BatchNorm in train mode. Spearman on NAS-Bench-201: 0.702 / 0.738 / 0.749 (200
    cells, 32 random inputs) [M]. -inf where two examples have one code.

    Raises:
        ConfigError: fewer than 2 examples.
    """
    x = examples(network, batch, least=2)
    with probe(network, norm="train"):
        all_codes = codes(network, x)
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for code in all_codes:
        c = code.double()
        kernel += c @ c.T + (1 - c) @ (1 - c).T
    # Equal rows make the determinant 0 exactly, which elimination only comes near.
    if len(torch.unique(kernel, dim=0)) < len(x):
        return -math.inf
    return float(torch.linalg.slogdet(kernel)[1])


def zen(network: nn.Module, batch: Batch, *, features: str | None = None, seed: int = 0) -> float:
    """Zen score; needs no data, of the batch only the shape [S7].

        log mean_x sum |f(x) - f(x + 0.01 e)|  +  sum over BatchNorms of log sqrt(mean of the running variance)

    x and e from N(0, 1), all weights from N(0, 1), BatchNorm in train mode, one pair of passes, f the map before
    global pooling. Spearman on NAS-Bench-201: 0.38 / 0.36 / 0.40 [RC].

    Args:
        network: any network.
        batch: inputs [B, C, H, W]; its values are not used.
        features: path of the module whose output is f; None for the last one that outputs a map [B, C, H, W] of
            more than one pixel, or else the network itself.
        seed: of weights and inputs.

    Raises:
        ConfigError: no module has this path, or it does not run.
    """
    like, generator = theta(network)[0], torch.Generator().manual_seed(seed)
    x = noise(inputs_of(batch).shape, like, generator)
    near = x + 0.01 * noise(x.shape, like, generator)
    with probe(network, weights="normal", biases="zero", norm="train", seed=seed), torch.no_grad():
        maps = [_features(network, inputs, features) for inputs in (x, near)]
        change = float((maps[0] - maps[1]).double().abs().flatten(1).sum(dim=1).mean())
        variances = [m.running_var for m in network.modules() if isinstance(m, _NormBase)]
        scales = [float(v.double().mean()) for v in variances if v is not None]
    if not change > 0 or any(not s > 0 for s in scales):
        return math.nan if math.isnan(change) else -math.inf
    return math.log(change) + sum(0.5 * math.log(s) for s in scales)


def _features(network: nn.Module, x: Tensor, path: str | None) -> Tensor:
    outputs: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    if path is not None and path not in modules:
        raise ConfigError(f"zen: features={path!r} is no module; there are {[n for n in modules if n][:10]}")
    wanted = modules.values() if path is None else [modules[path]]
    with watched(wanted) as seen:
        outputs["network"] = run(network, x)
    for _, output in seen:
        if path is not None or (output.dim() == 4 and output.shape[2] * output.shape[3] > 1):
            outputs["last"] = output
    if path is not None and "last" not in outputs:
        raise ConfigError(f"zen: the module {path!r} does not run; name one that does")
    return outputs.get("last", outputs["network"])


def meco(network: nn.Module, batch: Batch, *, seed: int = 0) -> float:
    """Least eigenvalues of the channels' correlations; needs no data, of the batch only the shape [S8].

        sum over module outputs of  lambda_min (correlation matrix of the map [C, H * W])

    One input from N(0, 1), published 1 x 3 x 64 x 64, BatchNorm in train mode. As published every module counts,
    containers too, so that a map is counted once for each module that ends with it. Channels that do not vary have
    correlation 0 [RC]. Outputs of one channel, or without pixels, are left out.
    """
    like, generator = theta(network)[0], torch.Generator().manual_seed(seed)
    x = noise((1, *inputs_of(batch).shape[1:]), like, generator)
    with probe(network, norm="train"), torch.no_grad(), watched(network.modules()) as seen:
        run(network, x)
    maps = [y[0].flatten(1).double() for _, y in seen if y.dim() > 2]
    score = 0.0
    for rows in maps:
        if rows.shape[0] > 1 and rows.shape[1] > 1:
            centered = rows - rows.mean(dim=1, keepdim=True)
            norms = centered.norm(dim=1, keepdim=True)
            unit = torch.where(norms > 0, centered / norms, 0.0)
            score += float(torch.linalg.eigvalsh(unit @ unit.T)[0])
    return score


def swap(
    network: nn.Module,
    batch: Batch,
    *,
    repeats: int = 32,
    center: float | None = None,
    width: float | None = None,
    seed: int = 0,
) -> float:
    """Sample-wise activation patterns; needs inputs [S9].

        number of distinct columns of the sign matrix [B, ReLU units],
        regularized:  times exp(-(params - center)^2 / width)

    The mean over `repeats` draws of N(0, 1) weights (32 published, with 16 inputs); BatchNorm in train mode.

    Args:
        network: any network that runs ReLUs.
        batch: inputs [B, C, H, W].
        repeats: draws of the weights.
        center: the number of parameters that is not penalized (mu); None for no regularization.
        width: how fast other numbers are (sigma, in parameters squared); goes with `center`.
        seed: of the first draw.

    Raises:
        ConfigError: fewer than 1 repeat, `center` or `width` without the other, or a width that is not above 0.
    """
    x = examples(network, batch)
    if repeats < 1 or (center is None) != (width is None) or (width is not None and not width > 0):
        raise ConfigError(
            f"swap with repeats={repeats}, center={center}, width={width}: give 1 repeat or more, and center and "
            f"a width above 0 together or neither"
        )
    counts = []
    for i in range(repeats):
        with probe(network, weights="normal", biases="zero", norm="train", seed=seed + i):
            counts.append(len({c.tobytes() for code in codes(network, x) for c in _columns(code)}))
    factor = 1.0
    if center is not None and width is not None:
        factor = math.exp(-((count.params().of(network) - center) ** 2) / width)
    return factor * sum(counts) / repeats


def _columns(code: Tensor) -> np.ndarray[Any, Any]:
    """The distinct columns of [B, units] bool, each packed into bytes: [columns, ceil(B / 8)]."""
    packed = np.packbits(code.cpu().numpy(), axis=0)
    return np.unique(np.ascontiguousarray(packed.T), axis=0)


def linear_regions(network: nn.Module, batch: Batch, *, repeats: int = 3, seed: int = 0) -> float:
    """Number of linear regions that the examples fall into, of TE-NAS; needs inputs [S10].

        number of distinct rows of the sign matrix [B, ReLU units]

    The mean over `repeats` draws of Kaiming normal weights (3 published); BatchNorm in train mode. Useful where
    the batch is large and the images small, since otherwise every example is a region of its own.

    Raises:
        ConfigError: fewer than 1 repeat.
    """
    x = examples(network, batch)
    if repeats < 1:
        raise ConfigError(f"linear_regions with repeats={repeats}: give 1 or more")
    total = 0
    for i in range(repeats):
        with probe(network, weights="kaiming", biases="zero", norm="train", seed=seed + i):
            rows = np.concatenate([np.packbits(c.cpu().numpy(), axis=1) for c in codes(network, x)], axis=1)
        total += len({row.tobytes() for row in rows})
    return total / repeats

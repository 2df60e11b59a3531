"""The parts of AZ-NAS: expressivity, progressivity and trainability (S7 cvlab-yonsei/AZ-NAS).

A higher score is better. None needs labels: published on 64 standard normal inputs, with the stem and the cells as
blocks. Images say less, progressivity nearly nothing, since neighboring pixels are alike [M]. A part is a proxy like
any other; `az_nas` joins them over a population. Weights are Kaiming normal, BatchNorm is in train mode. Every proxy
raises ConfigError for a batch and ModelError for a network that it cannot use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.errors import ConfigError, ModelError
from archgrad.proxies.scoring import Batch, examples, gradients, run, unfrozen, watched
from archgrad.proxies.temporary_state import probe

Blocks = Sequence[str] | None


def expressivity(network: nn.Module, batch: Batch, *, blocks: Blocks = None, seed: int = 0) -> float:
    """Sum over blocks of the entropy of the features' principal components.

        sum over blocks of  -sum_i p_i log p_i,   p = eigenvalues of the channels' covariance, normalized

    Args:
        network: any network.
        batch: inputs [B, C, H, W].
        blocks: paths of the modules whose outputs are the features, the cells as published; None for every
            convolution.
        seed: of the weights.

    Raises:
        ConfigError: no module has such a path.
        ModelError: fewer than 1 block outputs a map [B, C, H, W].
    """
    return sum(_entropies(network, examples(network, batch), blocks=blocks, seed=seed, least=1))


def progressivity(network: nn.Module, batch: Batch, *, blocks: Blocks = None, seed: int = 0) -> float:
    """The least increment of the entropy in `expressivity` from a block to the next; arguments as there.

    Raises:
        ConfigError, ModelError: as there, with 2 blocks.
    """
    entropies = _entropies(network, examples(network, batch), blocks=blocks, seed=seed, least=2)
    return min(b - a for a, b in itertools.pairwise(entropies))


def trainability(network: nn.Module, batch: Batch, *, blocks: Blocks = None, seed: int = 0) -> float:
    """How little blocks stretch gradients.

        mean over blocks of  2 - s - 1 / (s + 1e-6),
        s = top singular value of E[g_in g_out^T],  g_out in {-1, 1} at random, g_in = g_out's pullback

    E is over examples and pixels; where a block lowers the resolution by a whole number, the pixels of g_in that fall
    on one of g_out are its channels (`pixel_unshuffle`), else both are averaged to the lower one (ours). s is 0 for a
    block that changes nothing (published: the score is minus infinity). Where a block does not see the one before
    it, s is 0 if the blocks are named; else the pair is left out, since not all convolutions follow each other.
    Arguments as for `expressivity`.

    Raises:
        ConfigError, ModelError: as there, with 2 blocks that follow each other.
    """
    x, generator = examples(network, batch).requires_grad_(True), torch.Generator().manual_seed(seed)
    scores = []
    with probe(network, weights="kaiming", biases="zero", norm="train", seed=seed):
        unfrozen(network)
        maps = _maps(network, x, blocks=blocks, least=2)
        for before, after in itertools.pairwise(maps):
            signs = torch.randint(0, 2, after.shape, generator=generator).to(after) * 2 - 1
            (back,) = gradients((after * signs).sum(), [before], retain_graph=True)
            if blocks or bool(back.any()):
                s = _stretch(back, signs)
                scores.append(2 - s - 1 / (s + 1e-6))
    if not scores:
        raise ModelError(f"no two blocks of {type(network).__name__} follow each other; name them in their order")
    return sum(scores) / len(scores)


def _stretch(back: Tensor, signs: Tensor) -> float:
    """Top singular value of the mean over examples and pixels of g_in g_out^T; 0 where they are the same."""
    if torch.equal(back, signs):
        return 0.0
    times = back.shape[2] // signs.shape[2]
    if times > 1 and back.shape[2:] == (times * signs.shape[2], times * signs.shape[3]):
        back = F.pixel_unshuffle(back, times)
    size = (min(back.shape[2], signs.shape[2]), min(back.shape[3], signs.shape[3]))
    g_in, g_out = (F.adaptive_avg_pool2d(g, size).movedim(1, -1).flatten(0, -2).double() for g in (back, signs))
    return float(torch.linalg.svdvals(g_in.T @ g_out / len(g_in))[0])


def _entropies(network: nn.Module, x: Tensor, *, blocks: Blocks, seed: int, least: int) -> list[float]:
    with probe(network, weights="kaiming", biases="zero", norm="train", seed=seed), torch.no_grad():
        maps = _maps(network, x, blocks=blocks, least=least)
    entropies = []
    for features in maps:
        rows = features.movedim(1, -1).flatten(0, -2).double()
        rows = rows - rows.mean(dim=0)
        values = torch.linalg.eigvalsh(rows.T @ rows / len(rows)).clamp(min=0)
        total = float(values.sum())
        entropies.append(float(torch.special.entr(values / total).sum()) if total > 0 else 0.0)
    return entropies


def _maps(network: nn.Module, x: Tensor, *, blocks: Blocks, least: int) -> list[Tensor]:
    """[B, C, H, W] of each block, in the order in which they run; the caller has entered the probe."""
    modules = dict(network.named_modules())
    unknown = [path for path in blocks or () if path not in modules]
    if unknown:
        raise ConfigError(f"no module has the path {unknown[0]!r}; there are {[n for n in modules if n][:10]}")
    wanted = [modules[p] for p in blocks] if blocks else [m for m in modules.values() if isinstance(m, nn.Conv2d)]
    with watched(wanted) as seen:
        run(network, x)
    maps = [y for _, y in seen if y.dim() == 4]
    if len(maps) < least:
        raise ModelError(
            f"{type(network).__name__}: {len(maps)} blocks output a map [B, C, H, W], {least} are needed; name some"
        )
    if any(not math.isfinite(float(y.detach().sum())) for y in maps):
        raise ModelError(f"the features of {type(network).__name__} overflow; it has no normalization to hold them")
    return maps

"""Proxies from gradients of the weights theta: tensors of two or more dimensions, each a layer l.

Formulas and settings are those read in the code of the source named (S6 SamsungLabs/zero-cost-nas, S7
cvlab-yonsei/AZ-NAS, S10 VITA-Group/TENAS, S15 ganguli-lab/Synaptic-Flow). [M] is measured, [RC] recalled and not
read again. A higher score is better but for `ntk_condition`. Labels are class indices [B]; for others give a `loss`.
Every proxy raises ConfigError for a batch and ModelError for a network that it cannot use.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.errors import ConfigError, ModelError
from archgrad.proxies.scoring import (
    LAYERS,
    SCALES,
    Batch,
    Loss,
    examples,
    gradients,
    inputs_of,
    labelled,
    loss_of,
    run,
    theta,
    unfrozen,
    watched,
)
from archgrad.proxies.temporary_state import probe


def synflow(network: nn.Module, batch: Batch) -> float:
    """Synaptic flow, in logarithm; needs no data, of the batch only the shape of an example [S6].

        log sum |theta * dR/dtheta|,   R = sum f(ones; |theta|)

    One image of ones, float64, biases 0, normalization passed over. -inf where no path reaches the output.
    Spearman on NAS-Bench-201, all 15,625 cells: 0.737 / 0.763 / 0.751 [S6]; within the best tenth 0.18 [read in
    egracheva/epsinas]; on the DARTS space 0.217 [M].

    Raises:
        ConfigError, ModelError: see the module; ModelError also where the sum leaves float64 at every scale.
    """
    shape, like = inputs_of(batch).shape, theta(network)[0]
    with probe(network, weights="absolute", biases="zero", norm="identity", dtype=torch.float64):
        weights = unfrozen(network)
        for scale in SCALES:
            ones = torch.full((1, *shape[1:]), scale, dtype=torch.float64, device=like.device)
            flow = run(network, ones)
            if not flow.requires_grad:
                return -math.inf
            slopes = gradients((flow * scale).sum(), weights)
            total = sum(float((w * g).detach().abs().sum()) for w, g in zip(weights, slopes, strict=True))
            if math.isfinite(total):
                return (math.log(total) if total > 0 else -math.inf) - 2 * math.log(scale)
    raise ModelError(
        f"the synaptic flow of {type(network).__name__} leaves the range of float64: score a network of fewer layers"
    )


def grad_norm(network: nn.Module, batch: Batch, *, loss: Loss = F.cross_entropy) -> float:
    """Sum of the layers' gradient norms; needs labels [S6].

        sum over l of ||dL/dtheta_l||_2

    One batch, BatchNorm in train mode. Spearman on NAS-Bench-201: 0.594 / 0.637 / 0.578 [S6].
    """
    x, labels = labelled(network, batch)
    with probe(network, norm="train"):
        weights = unfrozen(network)
        slopes = gradients(loss_of(network, x, labels, loss=loss), weights)
        return sum(float(g.double().norm()) for g in slopes)


def snip(network: nn.Module, batch: Batch, *, loss: Loss = F.cross_entropy) -> float:
    """Connection sensitivity, the gradient of the loss by a mask of ones on the weights; needs labels [S6].

        sum |theta * dL/dtheta|

    One batch, BatchNorm in train mode. Spearman on NAS-Bench-201: 0.596 / 0.637 / 0.578 [S6].
    """
    x, labels = labelled(network, batch)
    with probe(network, norm="train"):
        weights = unfrozen(network)
        slopes = gradients(loss_of(network, x, labels, loss=loss), weights)
        return sum(float((w * g).detach().double().abs().sum()) for w, g in zip(weights, slopes, strict=True))


def grasp(network: nn.Module, batch: Batch, *, loss: Loss = F.cross_entropy, temperature: float = 1.0) -> float:
    """Gradient signal preservation; needs labels and a second derivative [S6].

        sum -(theta * (H g)),   g = dL/dtheta, H the Hessian, L of the outputs / temperature

    One batch, temperature 1, BatchNorm in train mode; S15 has temperature 200 and no minus. Spearman on
    NAS-Bench-201: 0.514 / 0.547 / 0.549 [S6]; two published tables of it agree to 0.63 only [M].

    Raises:
        ConfigError: the temperature is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(f"grasp with temperature={temperature}: give a number above 0, such as 1.0")
    x, labels = labelled(network, batch)
    with probe(network, norm="train"):
        weights = unfrozen(network)
        value = loss_of(network, x, labels, loss=loss, temperature=temperature)
        slopes = gradients(value, weights, create_graph=True)
        product = sum((g.detach() * g).sum() for g in slopes)
        if not (isinstance(product, Tensor) and product.requires_grad):
            return 0.0
        curved = gradients(product, weights)
        return -sum(float((w * h).detach().double().sum()) for w, h in zip(weights, curved, strict=True))


def fisher(network: nn.Module, batch: Batch, *, loss: Loss = F.cross_entropy) -> float:
    """Channel saliency of every convolution and linear layer; needs labels [S6].

        sum over output channels k of  n_k * 0.5 * mean over examples of (sum over pixels of a_k * dL/da_k)^2

    with a_k the channel's output and n_k the number of weights that make it. One batch, BatchNorm in train mode.
    Spearman on NAS-Bench-201: 0.360 / 0.385 / 0.327 [S6].

    Raises:
        ModelError: the network runs no convolution and no linear module.
    """
    x, labels = labelled(network, batch)
    with probe(network, norm="train"):
        unfrozen(network)
        with watched(m for m in network.modules() if isinstance(m, LAYERS)) as seen:
            value = loss_of(network, x, labels, loss=loss)
        if not seen:
            raise ModelError(f"{type(network).__name__} runs no convolution and no linear module: use another proxy")
        slopes = gradients(value, [y for _, y in seen])
        return sum(_saliency(m, y.detach().double() * g.double()) for (m, y), g in zip(seen, slopes, strict=True))


def _saliency(layer: nn.Module, product: Tensor) -> float:
    """Of one layer from activation times gradient, [B, C, ...] of a convolution or [B, ..., C] of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    channels = product.movedim(-1, 1) if isinstance(layer, nn.Linear) else product
    sums = channels.flatten(2).sum(dim=2) if channels.dim() > 2 else channels
    return float((0.5 * sums.square().mean(dim=0)).sum()) * weight.numel() / channels.shape[1]


def zico(network: nn.Module, batch: Batch, *, loss: Loss = F.cross_entropy, parts: int = 2) -> float:
    """Inverse coefficient of variation of the gradients; needs labels [S7].

        sum over l of log sum over w in l of  mean_b |g_w| / std_b(g_w)

    over `parts` batches b, which the batch is cut into (2 published); entries of standard deviation 0 are left
    out, and so is a layer that has no other. The deviation is that of a population [RC]. Kendall's tau on
    NAS-Bench-201: 0.607 / 0.614 / 0.587 (a weak source).

    Raises:
        ConfigError: fewer than 2 parts, or fewer examples than parts.
    """
    if parts < 2:
        raise ConfigError(f"zico with parts={parts}: a deviation needs 2 or more")
    x, labels = labelled(network, batch, least=parts)
    with probe(network, norm="train"):
        weights = unfrozen(network)
        pieces = zip(x.tensor_split(parts), labels.tensor_split(parts), strict=True)
        slopes = [gradients(loss_of(network, a, b, loss=loss), weights) for a, b in pieces]
    score = 0.0
    for layer in zip(*slopes, strict=True):
        stacked = torch.stack(layer).double()
        deviation = stacked.std(dim=0, unbiased=False)
        total = float((stacked.abs().mean(dim=0) / deviation)[deviation > 0].sum())
        score += math.log(total) if total > 0 else 0.0
    return score


def ntk_condition(network: nn.Module, batch: Batch, *, repeats: int = 3, seed: int = 0) -> float:
    """Condition number of the neural tangent kernel, of TE-NAS; needs inputs; a LOWER one is better [S10].

        kappa = lambda_max / lambda_min  of  J J^T,   J_i = d (sum of the logits of example i) / d theta

    The mean over `repeats` draws of Kaiming normal weights; BatchNorm in train mode. Published: 3 repeats; 72
    examples on NAS-Bench-201, 14 on the DARTS space, 24 on ImageNet. inf where the kernel is singular.

    Raises:
        ConfigError: fewer than 1 repeat or 2 examples.
    """
    x = examples(network, batch, least=2)
    if repeats < 1:
        raise ConfigError(f"ntk_condition with repeats={repeats}: give 1 or more")
    return sum(_condition(network, x, seed + i) for i in range(repeats)) / repeats


def _condition(network: nn.Module, x: Tensor, seed: int) -> float:
    with probe(network, weights="kaiming", biases="zero", norm="train", seed=seed):
        weights = unfrozen(network)
        output = run(network, x).flatten(1).sum(dim=1)
        if not output.requires_grad:
            return math.inf
        rows = []
        for value in output:
            rows.append(torch.cat([g.flatten() for g in gradients(value, weights, retain_graph=True)]))
    jacobian = torch.stack(rows).double()
    values = torch.linalg.eigvalsh(jacobian @ jacobian.T)
    least, most = float(values[0]), float(values[-1])
    # Below this a value is rounding error of float32 gradients, and its sign means nothing.
    return most / least if least > most * 1e-12 else math.inf

"""Importance of gate entries by the one-shot criteria of pruning, and the network that they cut in seconds."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from archgrad.argument_types import checked
from archgrad.choices.access import relax, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.channels import Coupling, open_channels
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.copy_and_run import evaluating, modes_kept
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, LimitError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import SPREAD
from archgrad.gates.selection import FLOOR, GateConstraint, full, gates, uniform as same_share
from archgrad.gates.width_rounding import RoundTo, WidthRounding
from archgrad.report.numbers import amount
from archgrad.run.run import Run
from archgrad.tasks.batch_checks import explained
from archgrad.tasks.task import Batch, Task, require
from archgrad.training.fit import recalibrate

Criterion = Literal["magnitude", "bn_scale", "taylor", "variance", "random"]
_RIDGE = 1e-3  # of the mean square of the channels, so that dead ones do not matter
_ROOM = (1.0, 0.95, 0.85, 0.7, 0.5, 0.0)  # of a uniform width, where what is measured again is over its limit
_WIDEST = 4096  # channels whose products are still kept: 128 MB


@checked
def importance(
    space: nn.Module, task: Task | None = None, *, criterion: Criterion = "taylor", batches: int = 16, seed: int = 0
) -> dict[str, Tensor]:
    """Scores of all gate entries by a one-shot criterion: seconds, and no training.

        magnitude:  mean |w| over the weights that make the entry's channels
        bn_scale:   mean |gamma| of the BatchNorm layers on its channels
        taylor:     mean over batches of (dL/dg)^2 at g = 1, L being the task's loss and g the entry's gate
        variance:   mean variance over examples and positions of its channels, where layers read them
        random:     uniform in [0, 1)

    Each gate's scores are divided by their mean, so that layers are comparable. A gate that a criterion cannot score
    (no BatchNorm, a residual branch) gets 1 for each entry.

    Args:
        space: a network with gates, from `archgrad.slim`, with trained weights; it is not changed.
        task: gives the loss and the batches of "taylor", and the batches of "variance".
        criterion: which.
        batches: of the training part.
        seed: of the order of batches, and of "random".

    Returns:
        For each gate, [entries], float32 on the CPU; the higher stays.

    Raises:
        ChoiceError: the space has choices that are no gates, or none.
        ConfigError: an unknown criterion, no batches, or no task where one is needed.

    Example:
        >>> import torch, archgrad as ag
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> net[0].weight.data = torch.tensor([[3.0, 3.0], [1.0, 1.0]])
        >>> ag.importance(ag.slim(net, torch.randn(4, 2)), criterion="magnitude")
        {'0': tensor([1.5000, 0.5000])}

    Source: magnitude as in Li et al., arXiv 1608.08710; bn_scale: Liu et al., arXiv 1708.06519; taylor: Molchanov
    et al., arXiv 1906.10771.
    """
    if criterion not in get_args(Criterion):
        raise ConfigError(f"criterion={criterion!r} was given. Allowed is one of {', '.join(get_args(Criterion))}.")
    _check_batches(batches)
    by_name = gates(space)
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(gate.size, generator=generator) for name, gate in by_name.items()}
    if criterion in ("taylor", "variance") and task is None:
        raise ConfigError(f"criterion={criterion!r} looks at data, and no task was given: importance(space, task).")
    if criterion == "taylor" and task is not None:
        _require_fitting(space, task, method="importance")
        return _taylor(space, _batches(space, task, batches, seed), task)
    whole = build(space, full(space))
    if criterion == "variance" and task is not None:
        _require_fitting(space, task, method="importance")
        moments = _read_moments(space, whole, task, _batches(space, task, batches, seed))
        return _relative(space, whole, functools.partial(_variance, moments))
    return _relative(space, whole, weight_magnitude if criterion == "magnitude" else _norm_scale)


@checked
def cut(
    space: nn.Module,
    scores: Mapping[str, Tensor],
    *,
    limit: Limit | Sequence[Limit],
    task: Task | None = None,
    round_to: RoundTo = None,
    uniform: bool = False,
    repair: bool = False,
    batches: int = 16,
    seed: int = 0,
) -> nn.Module:
    """The largest network under a limit in the order of scores: a plain module, in seconds, without training.

    Args:
        space: a network with gates, from `archgrad.slim`, with trained weights; it is not changed.
        scores: for each gate a score for each entry, for instance of `archgrad.importance`.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`, or a list of several that all hold.
        task: gives the batches on which BatchNorm's statistics are estimated anew, and those of `repair`.
        round_to: widths are multiples of this; 1 for any width. Default 8, less for narrow layers; under a limit on
            latency "auto", what is measured to suit its runtime here.
        uniform: every layer keeps the same share of its channels, those of its highest scores, and branches stay: the
            control for all scores, and for what is trained.
        repair: each Linear or convolution that reads channels which are gone makes up for them by those that stay.
            With X the channels that it reads in the whole network, one row for each example and position:
            A = argmin |X_gone - X_kept A|^2, and its weight W_kept <- W_kept + A W_gone.
        batches: of the training part, for both.
        seed: of their order.

    Raises:
        ChoiceError: the space has choices that are no gates, or none.
        ModelError: the task's loss fails with the space.
        ConfigError: scores of another space, or `repair` without a task.
        LimitError: no network of the space meets the limit, or with `uniform` none of uniform width.

    Example:
        >>> import torch, archgrad as ag
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> x = torch.randn(4, 8)
        >>> space = ag.slim(net, x)
        >>> scores = ag.importance(space, criterion="magnitude")
        >>> ag.cut(space, scores, limit=ag.macs(x[:1]).at_most(fraction=0.5))[0]
        Linear(in_features=8, out_features=16, bias=True)

    Source: the repair as in He et al., arXiv 1707.06168, for the channels in place of each layer's output.
    """
    _check_batches(batches)
    by_name = gates(space)
    wrong = [n for n, gate in by_name.items() if n not in scores or tuple(scores[n].shape) != (gate.size,)]
    if wrong := wrong or [n for n in scores if n not in by_name]:
        raise ConfigError(
            f"the scores of {wrong[:3]} are missing, or of another space. Allowed is a row of entries for each of "
            f"the space's gates, as archgrad.importance(space) returns them."
        )
    if repair and task is None:
        raise ConfigError("repair=True looks at data, and no task was given: cut(..., task=task, repair=True).")
    constraint = GateConstraint(space, limit, WidthRounding.asked(round_to, space, limit))
    bounds = constraint.parts or [constraint]
    words = " and ".join(f"{each.name} at most {amount(each.bound, each.unit)}" for each in bounds)
    width = constraint.uniform_width()
    if uniform:
        tried = (same_share(space, room * width, constraint.rounding, scores) for room in _ROOM)
        found = next(filter(constraint.is_feasible, tried), None)
        if found is None:
            raise LimitError(
                f"no uniform width keeps {words}: blocks stay, and rounding keeps layers wide. Leave out "
                f"uniform=True, raise the limit, or give round_to=1 where widths are rounded"
            )
        architecture = found
    else:
        architecture = constraint.best_feasible(scores, floor=FLOOR * width)
    if architecture == full(space):
        warnings.warn(f"nothing was cut: the whole network has {words} already", stacklevel=3)
    network = build(space, architecture)
    if task is None:
        return network
    _require_fitting(space, task, method="cut")
    if repair:
        whole = build(space, full(space))
        moments = _read_moments(space, whole, task, _batches(space, task, batches, seed), products=True)
        _repair(network, whole, _open_sides(space, architecture), moments)
    recalibrate(network, task, _run(space, seed), batches=batches)
    return network


def _check_batches(batches: int) -> None:
    if type(batches) is not int or batches < 1:
        raise ConfigError(f"batches={batches!r} was given. Allowed is a whole number from 1 up.")


def _require_fitting(space: nn.Module, task: Task, *, method: str) -> None:
    """Raise ConfigError for a task that lacks what is needed, ModelError where its loss fails with this space."""
    require(task, method=method)
    (batch,) = _batches(space, task, 1, 0)
    with evaluating(space), explained(f"the loss of {type(task).__name__} fails with {type(space).__name__}", batch):
        task.loss(space, batch)


def _run(space: nn.Module, seed: int) -> Run:
    device = next((p.device for p in space.parameters()), torch.device("cpu"))
    return Run(seed=seed, device=str(device), progress=False)


def _batches(space: nn.Module, task: Task, batches: int, seed: int) -> Iterator[Batch]:
    stream, run = task.stream(seed=seed), _run(space, seed)
    return (run.to_device(stream(number)) for number in range(batches))


def _taylor(space: nn.Module, batches: Iterable[Batch], task: Task) -> dict[str, Tensor]:
    """Mean over batches of the squared gradient with respect to each open gate, relative to its gate's mean."""
    by_name = gates(space)
    opened = {n: torch.ones(g.size, device=g.live.device, requires_grad=True) for n, g in by_name.items()}
    squares = {name: torch.zeros_like(row) for name, row in opened.items()}
    with modes_kept(space), using(space, opened):
        space.eval()
        for batch in batches:
            gradients = torch.autograd.grad(task.loss(space, batch), list(opened.values()), allow_unused=True)
            for square, gradient in zip(squares.values(), gradients, strict=True):
                if gradient is not None:
                    square += gradient.detach() ** 2
    means = {name: float(square.mean()) for name, square in squares.items()}
    return {name: (s / means[name] if means[name] > 0 else torch.ones_like(s)).cpu() for name, s in squares.items()}


def _relative(
    space: nn.Module, whole: nn.Module, of_side: Callable[[nn.Module, Coupling], Tensor | None]
) -> dict[str, Tensor]:
    """For each gate the sum over its layers of figures of each channel, each layer's divided by their mean.

    Args:
        space: of gates alone.
        whole: the plain network with every gate open.
        of_side: from a layer and its coupling to [channels of that side], or None where it has nothing to say.
    """
    scores = {}
    for name, gate in gates(space).items():
        total = torch.zeros(gate.size)
        for side in gate.couplings if gate.vanishing is None else ():
            each = of_side(whole.get_submodule(side.module), side)
            if each is None:
                continue
            inside = side.places >= 0
            values = each.detach().float().cpu()[inside]
            sums = torch.zeros(gate.size, dtype=torch.float32).index_add(0, side.places[inside], values)
            if float(sums.mean()) > 0:
                total += sums / sums.mean()
        scores[name] = total / total.mean() if bool(total.any()) else torch.ones(gate.size)
    return scores


def weight_magnitude(layer: nn.Module, side: Coupling) -> Tensor | None:
    """Mean |w| of what makes each channel; where a gate stands on the network's inputs, of what reads it."""
    if not (side.selects or side.kind in ("out", "heads")):
        return None
    named = [(getattr(layer, name, None), dim) for name, dim in side.tensors if "weight" in name]
    # A weight in blocks, as of an LSTM, makes each channel several times.
    means = [
        weight.detach().abs().movedim(dim, 0).flatten(1).mean(1).view(-1, len(side.places)).mean(0)
        for weight, dim in named if isinstance(weight, Tensor) and weight.dim() > 1
    ]  # fmt: skip
    return torch.stack(means).mean(0) if means else None


def _norm_scale(layer: nn.Module, side: Coupling) -> Tensor | None:
    """|gamma| of a BatchNorm."""
    return layer.weight.abs() if isinstance(layer, _BatchNorm) and layer.affine else None


def _variance(moments: Mapping[str, _Moments], layer: nn.Module, side: Coupling) -> Tensor | None:
    """The variance of each channel that a layer reads."""
    return moments[side.module].variance() if side.side == "in" and side.module in moments else None


class _Moments:
    """Of the channels that a layer reads, over examples and positions: their number, sum, squares and products."""

    def __init__(self, channels: int, *, products: bool) -> None:
        self.rows, self.sum, self.squares = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
        self.products = torch.zeros(channels, channels).double() if products else None

    def add(self, rows: Tensor) -> None:
        """Count [rows, channels]."""
        rows = rows.detach().cpu().double()
        self.rows += len(rows)
        self.sum += rows.sum(0)
        self.squares += rows.square().sum(0)
        if self.products is not None:
            self.products += rows.T @ rows

    def variance(self) -> Tensor:
        """[channels]"""
        mean = self.sum / self.rows
        return (self.squares / self.rows - mean.square()).clamp(min=0.0)


def _read_moments(
    space: nn.Module, whole: nn.Module, task: Task, batches: Iterable[Batch], *, products: bool = False
) -> dict[str, _Moments]:
    """By path the moments of what the Linear layers and convolutions behind the gates read, in the whole network."""
    moments: dict[str, _Moments] = {}
    with contextlib.ExitStack() as hooks, evaluating(whole):
        for path in dict.fromkeys(c.module for gate in gates(space).values() for c in gate.couplings):
            layer = whole.get_submodule(path)
            if isinstance(layer, nn.Linear | _ConvNd) and not (products and layer.weight.shape[1] > _WIDEST):
                hook = functools.partial(_collect, moments, path, products)
                hooks.callback(layer.register_forward_pre_hook(hook).remove)
        for batch in batches:
            task.loss(whole, batch)
    return moments


def _collect(moments: dict[str, _Moments], path: str, products: bool, layer: nn.Module, given: tuple[Tensor]) -> None:
    rows = given[0].movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).flatten(0, -2)
    moments.setdefault(path, _Moments(rows.shape[1], products=products)).add(rows)


def _open_sides(space: nn.Module, architecture: Architecture) -> dict[tuple[str, str], Tensor]:
    """By path and side of a layer, [channels] bool: those that stay."""
    sides: dict[tuple[str, str], Tensor] = {}
    for name, gate in gates(space).items():
        for member in gate.couplings:
            stays, key = open_channels(member, architecture[name]), (member.module, member.side)  # type: ignore[arg-type]
            sides[key] = sides[key] & stays if key in sides else stays
    return sides


def _repair(
    network: nn.Module, whole: nn.Module, sides: Mapping[tuple[str, str], Tensor], moments: Mapping[str, _Moments]
) -> None:
    """Let each layer of a cut network read, of the channels that are gone, what those that stay tell of them."""
    layers = dict(network.named_modules())
    for path, found in moments.items():
        before, after = whole.get_submodule(path), layers.get(path)
        assert isinstance(before, nn.Linear | _ConvNd)
        kept = sides.get((path, "in"))
        rows = sides.get((path, "out"), torch.ones(len(before.weight), dtype=torch.bool))
        if kept is None or bool(kept.all()) or not isinstance(after, type(before)) or found.products is None:
            continue
        if after.weight.shape[:2] != (int(rows.sum()), int(kept.sum())):  # grouped, transposed or reading a selection
            continue
        among = found.products[kept][:, kept]
        ridge = _RIDGE * among.diagonal().mean() * torch.eye(len(among)).double()
        told = torch.linalg.solve(among + ridge, found.products[kept][:, ~kept])
        with torch.no_grad():
            gone = before.weight[rows][:, ~kept]
            after.weight += torch.einsum("kg,og...->ok...", told.to(gone), gone)


def begin_by_magnitude(space: nn.Module) -> None:
    """Let the logits begin in the order of the weights' magnitude, spread evenly over [-0.1, 0.1] in each gate.

    On the limit that is uniform width, softly. The largest, 0.1, is what a few steps of clipped gradients move, so
    that the loss can turn the order over.
    """
    relax(space, ScaledSigmoid)
    scores = importance(space, criterion="magnitude")
    for name, gate in gates(space).items():
        assert isinstance(gate.relaxation, ScaledSigmoid)
        places = scores[name].argsort().argsort().to(gate.relaxation.logits)
        gate.relaxation.logits.data.copy_(SPREAD * (places / max(gate.size - 1, 1) - 0.5) * (gate.size > 1))

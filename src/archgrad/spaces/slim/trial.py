"""Try a removal out before promising it: closed channels and removed channels must compute the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.channels import Coupling, Vanishing, open_channels, remove_branch, remove_channels
from archgrad.copy_and_run import copied
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, plain_kernels, run, tensors_of
from archgrad.spaces.slim.trial_inputs import trial_inputs
from archgrad.spaces.slim.width_independent_draws import AlignedDraws

# Relative differences that rounding explains in any network; more is weighed against a measured floor.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
MARGIN = 100.0  # times the measured floor
VAGUE = 1e-2  # where the floor is a larger part of the output than this, a comparison says nothing
MASKS = ("random", "one", "every second", "all but one", "smallest")
LARGE = 20_000_000  # parameters, above which networks are tried in single precision
MIXED = "removing its channels is not the same as closing them: something mixes them"
DRAWN = (
    "the network draws random numbers for each of these channels outside training; with fewer channels it would draw "
    "others"
)


@dataclass(frozen=True, eq=False)
class Removal:
    """What one gate can remove.

    Attributes:
        name: of the gate.
        couplings: what goes with each entry.
        vanishing: for a branch, what stays without it.
        last: for a branch, the path of the layer whose weight and bias the gate scales.
    """

    name: str
    couplings: Sequence[Coupling]
    vanishing: Vanishing | None = None
    last: str = ""

    @property
    def size(self) -> int:
        """Number of entries."""
        return 1 if self.vanishing else 1 + max(int(c.places.max()) for c in self.couplings)


@dataclass(frozen=True)
class Check:
    """One comparison: on which of the trial's inputs, and in which mode."""

    inputs: int
    training: bool


@dataclass(frozen=True)
class Failure:
    """Why closed and removed channels differ, and the comparison that showed it."""

    reason: str
    check: Check | None = None


class Trial:
    """A scrambled copy of a network on which removals are tried.

    The copy's normalization layers get random statistics and its zero parameters random values, so that nothing
    is hidden by a fresh network's zeros and ones. It computes in double precision, unless it is large or insists on
    single precision.
    """

    def __init__(self, network: nn.Module, example: tuple[Any, ...]) -> None:
        large = sum(p.numel() for p in network.parameters()) > LARGE
        self.dtype = torch.float32 if large else torch.float64
        self.network = _scrambled(network, self.dtype)
        try:
            self.inputs = trial_inputs(self.network, example, self.dtype)
        except NETWORK_ERRORS:  # it computes in single precision on its own account
            self.dtype = torch.float32
            self.network = _scrambled(network, self.dtype)
            self.inputs = trial_inputs(self.network, example, self.dtype)
        self.trains = self._runs_in_training()
        self._floors: dict[Check, list[float]] = {}

    def checks(self, mask: str) -> list[Check]:
        """The comparisons made of one kind of mask: each of the inputs, and training, is met by one of the first."""
        count = len(self.inputs)
        if mask == "random":
            return [*(Check(i, False) for i in range(count)), *([Check(0, True)] if self.trains else [])]
        if mask == "one":
            return [Check(0, False), *([Check(count - 1, True)] if self.trains else [])]
        return [Check(MASKS.index(mask) % count, False)]

    def failure(
        self, removals: Sequence[Removal], mask: str = "random", checks: Sequence[Check] | None = None
    ) -> Failure | None:
        """Why removing part of every group is not what closing it computes; None where it is.

        Args:
            removals: tried all together.
            mask: what is kept: "random" entries, "one", "every second", "all but one", or of everything the
                "smallest" network.
            checks: the comparisons to make; default: those that belong to the mask.
        """
        kept = self.kept(removals, mask)
        checks = self.checks(mask) if checks is None else checks
        closed = [self._outputs(net, c) for net in [self.closed(removals, kept)] for c in checks]
        try:
            smaller = self.removed(removals, kept)
        except NETWORK_ERRORS as error:
            return Failure(f"its channels cannot be cut out ({type(error).__name__}: {_line(error)})")
        for check, expected in zip(checks, closed, strict=True):
            try:
                actual = self._outputs(smaller, check)
            except NETWORK_ERRORS as error:
                few = " with one channel left" if mask in ("one", "smallest") else ""
                return Failure(
                    f"the network does not run{few} without its channels ({type(error).__name__}: {_line(error)}); "
                    f"where sizes are written as numbers in forward, take them from the tensors",
                    check,
                )
            reason = self._differ(expected, actual, check, removals, kept)
            if reason == MIXED and self._is_drawn(removals, kept, check):
                reason = DRAWN
            if reason:
                return Failure(reason, check)
        return None

    def kept(self, removals: Sequence[Removal], mask: str) -> dict[str, list[int]]:
        """The entries that stay. Branches all stay at first, then go by halves, and at last all at once."""
        generator = torch.Generator().manual_seed(MASKS.index(mask))
        kept: dict[str, list[int]] = {}
        branches = 0
        for removal in removals:
            size, name = removal.size, removal.name
            if removal.vanishing:
                branches += 1
                goes = {"every second": branches % 2 == 0, "all but one": branches % 2 == 1, "smallest": True}
                kept[name] = [] if goes.get(mask, False) else [0]
                continue
            order = torch.randperm(size, generator=generator)
            fewest = min(2, max(size - 1, 1))
            some = int(torch.randint(fewest, max(size, fewest + 1), (), generator=generator))
            count = {"random": some, "all but one": max(size - 1, 1)}.get(mask, 1)
            kept[name] = list(range(0, size, 2)) if mask == "every second" else sorted(order[:count].tolist())
        return kept

    def closed(self, removals: Sequence[Removal], kept: Mapping[str, list[int]]) -> nn.Module:
        """A copy of the network in which every layer reads zeros from the closed channels."""
        network = copied(self.network, share=True)
        with torch.no_grad():
            for removal in removals:
                if removal.vanishing and not kept[removal.name]:
                    for parameter in ("weight", "bias"):
                        _replace(network.get_submodule(removal.last), parameter, torch.zeros_like)
                for member in removal.couplings:
                    if reads(network, member):
                        ((name, dim),) = member.tensors
                        shut = (~open_channels(member, kept[removal.name])).nonzero().flatten()
                        module = network.get_submodule(member.module)
                        if shut.numel():
                            _replace(module, name, lambda w, d=dim, s=shut: w.index_fill(d, s.to(w.device), 0.0))
        return network

    def removed(self, removals: Sequence[Removal], kept: Mapping[str, list[int]]) -> nn.Module:
        """A copy of the network without the closed channels and branches."""
        network = copied(self.network, share=True)
        remove_channels(network, {r.name: r.couplings for r in removals}, kept)
        for removal in removals:
            if removal.vanishing and not kept[removal.name]:
                remove_branch(network, removal.vanishing)
        return network

    def reference(self, number: int = 0) -> list[Tensor]:
        """The outputs of the network as it stands."""
        return self._outputs(self.network, Check(number, False))

    def floor(self, network: nn.Module, check: Check) -> list[float]:
        """How much each output changes where every layer rounds otherwise; large where the network magnifies it."""
        size = 4 * torch.finfo(self.dtype).eps
        phase = 0.0

        def jitter(_module: nn.Module, _inputs: object, output: object) -> object:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            nonlocal phase
            phase += 1.0
            # Not drawn at random: that would change what the network draws.
            noise = torch.sin(torch.arange(output.numel(), device=output.device) * 12.9898 + phase)
            return output * (1.0 + size * noise.to(output.dtype).view(output.shape))

        first = self._outputs(network, check)
        leaves = [m for m in network.modules() if not any(True for _ in m.children())]
        handles = [m.register_forward_hook(jitter) for m in leaves]
        try:
            again = [self._outputs(network, check) for _ in range(2)]
        finally:
            for handle in handles:
                handle.remove()
        return [max(_difference(a, b) for b in others) for a, *others in zip(first, *again, strict=True)]

    def _outputs(self, network: nn.Module, check: Check, *, aligned: bool = False) -> list[Tensor]:
        network.train(check.training)
        with plain_kernels():
            if check.training or aligned:
                with AlignedDraws():
                    return tensors_of(run(network, self.inputs[check.inputs]))
            return tensors_of(run(network, self.inputs[check.inputs]))

    def _runs_in_training(self) -> bool:
        try:
            self._outputs(copied(self.network, share=True), Check(0, True))
        except NETWORK_ERRORS:  # for instance BatchNorm on a single value
            return False
        return True

    def _differ(
        self, expected: list[Tensor], actual: list[Tensor], check: Check, removals: Sequence[Removal],
        kept: Mapping[str, list[int]],
    ) -> str:  # fmt: skip
        if [x.shape for x in expected] != [x.shape for x in actual]:
            return "its channels reach the network's output"
        suspects = [i for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if not self._is_close(a, b)]
        if not suspects:
            return ""
        if check not in self._floors:
            self._floors[check] = self.floor(copied(self.network, share=True), check)
        floors = self._floors[check]
        if len(floors) != len(expected):
            return MIXED
        suspects = [i for i in suspects if not self._is_close(expected[i], actual[i], floors[i])]
        if not suspects:
            return ""
        if all(_difference(expected[i], actual[i]) < VAGUE * _scale(expected[i]) for i in suspects):
            floors = self.floor(self.closed(removals, kept), check)
            suspects = [i for i in suspects if not self._is_close(expected[i], actual[i], floors[i])]
        if check.training:
            # Where rounding alone changes everything, as in BatchNorm over two values, a difference says nothing.
            suspects = [i for i in suspects if MARGIN * floors[i] < VAGUE * _scale(expected[i])]
        return MIXED if suspects else ""

    def _is_close(self, a: Tensor, b: Tensor, floor: float = 0.0) -> bool:
        tolerance = max(TOLERANCE[self.dtype] * _scale(a), MARGIN * floor)
        return _difference(a, b) <= tolerance

    def _is_drawn(self, removals: Sequence[Removal], kept: Mapping[str, list[int]], check: Check) -> bool:
        """Whether they differ in what the network draws alone."""
        if check.training:
            return False
        a = self._outputs(self.closed(removals, kept), check, aligned=True)
        b = self._outputs(self.removed(removals, kept), check, aligned=True)
        return all(self._is_close(x, y) for x, y in zip(a, b, strict=True))


def reads(network: nn.Module, member: Coupling) -> bool:
    """Whether this side is the input of a layer whose weight has a column for each channel."""
    return (
        member.side == "in"
        and len(member.tensors) == 1
        and getattr(network.get_submodule(member.module), "groups", 1) == 1
    )


def readers(network: nn.Module, removals: Sequence[Removal]) -> Iterator[tuple[Removal, Coupling]]:
    """The sides on which gates stand."""
    for removal in removals:
        for member in removal.couplings:
            if reads(network, member):
                yield removal, member


def _replace(module: nn.Module, name: str, change: Any) -> None:
    parameter = getattr(module, name, None)
    if isinstance(parameter, nn.Parameter):
        setattr(module, name, nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad))


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of finite elements; infinite where others are not the same."""
    a, b = _real(a), _real(b)
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return math.inf
    if not torch.equal(a[~finite].isnan(), b[~finite].isnan()):
        return math.inf
    return float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0


def _scale(a: Tensor) -> float:
    a = _real(a)
    if not a.is_floating_point():
        return 1.0
    finite = a[a.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def changes(trial: Trial, before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether some finite output changed by more than rounding."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return True
    for a, b in zip(before, after, strict=True):
        if a.is_floating_point() or a.is_complex():
            a, b = _real(a), _real(b)
            finite = a.isfinite() & b.isfinite()
            if bool(finite.any()) and float((a - b)[finite].abs().max()) > TOLERANCE[trial.dtype] * _scale(a):
                return True
        elif not torch.equal(a, b):
            return True
    return False


def _scrambled(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    scrambled = copied(network).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for parameter in scrambled.parameters():
            if parameter.is_floating_point() and parameter.numel() and float(parameter.abs().max()) < 1e-3:
                parameter.copy_(0.3 * noise(parameter))
        for module in scrambled.modules():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                mean.copy_(0.1 * noise(mean))
                variance.copy_(1.0 + 0.5 * torch.tanh(noise(variance)))
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.2 * noise(parameter))
    return scrambled


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]

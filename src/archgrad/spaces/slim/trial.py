"""Try a removal out before promising it: closed channels and removed channels must compute the same."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from archgrad.choices.channel_norms import Norm, close
from archgrad.choices.channels import Coupling, Vanishing, open_channels, remove_branches, remove_channels
from archgrad.choices.standardized_weights import StandardizedWeight
from archgrad.copy_and_run import copied
from archgrad.errors import ModelError, one_line
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, plain_kernels, run, tensors_of, without_scripts
from archgrad.spaces.slim.trial_inputs import KeptDouble, calibrate, trial_inputs
from archgrad.spaces.slim.trial_masks import BRANCHLESS, HALVES, MASKS, kept_entries
from archgrad.spaces.slim.value_differences import difference, fingerprint, largest
from archgrad.spaces.slim.width_independent_draws import AlignedDraws
from archgrad.spaces.slim.written_sizes import advice_on, of_outputs

# Relative differences that rounding explains in any network; more is weighed against a measured floor.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
MARGIN = 100.0  # times the measured floor
VAGUE = 1e-2  # where the floor is a larger part of the output than this, a comparison says nothing
LARGE = 5_000_000  # parameters, and
LONG = (
    50_000_000.0  # multiply-adds on the example, above which a network is tried in single precision, and less often
)
MIXED = "removing its channels is not the same as closing them: something mixes them"
DRAWN = (
    "the network draws random numbers for each of these channels outside training; with fewer channels it would draw "
    "others"
)
UPDATED = (
    "there forward writes parameters by others of their shape, as a moving average does; such an update in the "
    "training loop, behind the step, leaves them apart"
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
    is hidden by a fresh network's zeros and ones. It computes in double precision, unless it is large or does not run
    so. What fails for its random statistics is tried with its own.

    Args:
        network: any network; it is left as it is.
        example: its inputs.
        macs: what the network takes on them.

    Raises:
        ModelError: the copy does not run.
    """

    def __init__(self, network: nn.Module, example: tuple[Any, ...], *, macs: float = 0.0) -> None:
        self.large = macs > LONG or sum(p.numel() for p in network.parameters()) > LARGE
        double, ways = (torch.float64, True), [(torch.float32, True), (torch.float32, False)]
        cause: Exception = RuntimeError()
        for number, (dtype, scrambled) in enumerate(ways if self.large else [double, *ways, double]):
            self.dtype = dtype
            self.network = without_scripts(copied(network))
            self.network._apply(lambda x: _in_precision(x, self.dtype))  # type: ignore[no-untyped-call]
            self.network.eval()
            inputs = tree_map_only(Tensor, lambda x: _in_precision(x.detach(), self.dtype), example)
            try:
                if scrambled:
                    _scramble(self.network, inputs)
                self._prints = fingerprint(self.network)
                self.inputs = trial_inputs(self.network, inputs, large=self.large)
                self._rounds = False
                if number == 0 and not self.large:
                    with KeptDouble() as kept:  # type: ignore[no-untyped-call]
                        run(self.network, inputs)
                    self._rounds = kept.seen
            except NETWORK_ERRORS as error:  # it computes in single precision on its own account, say
                cause = error
                continue
            self._floors: dict[Check, list[float]] = {}
            self._trains: dict[int, bool] = {}
            return
        raise ModelError(
            f"a copy of {type(network).__name__} in single precision does not run on the example "
            f"({one_line(cause)}); give a network of float32 and inputs that it takes so"
        ) from cause

    @property
    def masks(self) -> Sequence[str]:
        """What is kept, one after another; of a large network, no halves of the gates."""
        return (*MASKS, *list(BRANCHLESS)[:1]) if self.large else (*MASKS, *HALVES, *BRANCHLESS)

    def checks(self, mask: str) -> list[Check]:
        """The comparisons made of one kind of mask: each of the inputs, and training, is met by one of the first.

        A large network has many blocks alike, whose random masks differ: one comparison a mask has to do, the first
        ones on the last of the inputs, which are the cheapest.
        """
        count = len(self.inputs)
        order = self.masks.index(mask)
        if self.large:
            return [Check((count - 1 - order) % count, mask == "one")]
        if mask == "random":
            return [*(Check(i, False) for i in range(count)), Check(0, True)]
        if mask == "one":
            return [Check(0, False), Check(count - 1, True)]
        return [Check(order % count, mask in HALVES)]

    def failure(
        self, removals: Sequence[Removal], mask: str = "random", checks: Sequence[Check] | None = None,
        kept: Mapping[str, list[int]] | None = None,
    ) -> Failure | None:  # fmt: skip
        """Why removing part of every group is not what closing it computes; None where it is.

        Args:
            removals: tried all together.
            mask: what is kept, see `kept_entries`.
            checks: the comparisons to make; default: those that belong to the mask.
            kept: the entries of these and others; default: those that the mask keeps of these.
        """
        kept = kept_entries(removals, mask) if kept is None else kept
        checks = self.checks(mask) if checks is None else checks
        try:
            smaller = self.removed(removals, kept)
        except NETWORK_ERRORS as error:
            return Failure(f"its channels cannot be cut out ({type(error).__name__}: {_line(error)})")
        results = []
        for check in checks:
            try:
                results.append((check, self.outputs(smaller, check)))
            except NETWORK_ERRORS as error:
                if check.training and not self.trains(check.inputs):
                    continue
                advice = UPDATED if check.training and self._updates else advice_on(error)
                few = " with one channel left" if mask in ("one", "smallest") else ""
                return Failure(
                    f"the network does not run{few} without its channels ({type(error).__name__}: {_line(error)}); "
                    f"{advice}",
                    check,
                )
        del smaller
        network = self.closed(removals, kept)
        for check, actual in results:
            try:
                expected = self.outputs(network, check)
            except NETWORK_ERRORS as error:
                if check.training and not self.trains(check.inputs):
                    continue
                return Failure(f"the network does not run with its channels at zero ({one_line(error)})", check)
            reason = self.differ(expected, actual, check, removals, kept)
            if reason == MIXED and self._is_drawn(removals, kept, check):
                reason = DRAWN
            if reason:
                return Failure(reason, check)
        return None

    def copy(self) -> nn.Module:
        """A copy that has the same parameters, or copies of them where a run changes some in place."""
        return copied(self.network, share=not self._updates)

    def closed(self, removals: Sequence[Removal], kept: Mapping[str, list[int]]) -> nn.Module:
        """A copy of the network in which every layer reads zeros from the closed channels."""
        network = self.copy()
        norms: dict[str, tuple[Norm | StandardizedWeight, Tensor]] = {}
        with torch.no_grad():
            for removal in removals:
                if removal.vanishing and not kept[removal.name]:
                    for parameter in ("weight", "bias"):
                        _replace(network.get_submodule(removal.last), parameter, torch.zeros_like)
                for member in removal.couplings:
                    if member.norm is not None:
                        mask = open_channels(member, kept[removal.name])
                        norms[member.module] = (member.norm, mask & norms.get(member.module, (0, mask))[1])
                    shut = (~open_channels(member, kept[removal.name])).nonzero().flatten()
                    for name, dim in gated_tensors(network, member) if shut.numel() else ():
                        module = network.get_submodule(member.module)
                        _replace(module, name, lambda w, d=dim, s=shut: w.index_fill(d, s.to(w.device), 0.0))
        for path, (norm, mask) in norms.items():
            close(network.get_submodule(path), norm, mask.to(next(iter(network.parameters())).device))
        return network

    def removed(self, removals: Sequence[Removal], kept: Mapping[str, list[int]]) -> nn.Module:
        """A copy of the network without the closed channels and branches."""
        network = self.copy()
        remove_channels(network, {r.name: r.couplings for r in removals}, kept)
        remove_branches(network, [r.vanishing for r in removals if r.vanishing and not kept[r.name]])
        return network

    def reference(self, number: int = 0) -> list[Tensor]:
        """The outputs of the network as it stands."""
        return self.outputs(self.copy(), Check(number, False))

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

        def jittered() -> list[Tensor]:
            own = copied(network) if self._updates else network  # what a run changes is not for the next
            leaves = [m for m in own.modules() if not any(True for _ in m.children())]
            handles = [m.register_forward_hook(jitter) for m in leaves]
            try:
                return self.outputs(own, check)
            finally:
                for handle in handles:
                    handle.remove()

        again = [jittered(), jittered()]
        first = self.outputs(network, check)
        return [max(difference(a, b) for b in others) for a, *others in zip(first, *again, strict=True)]

    def outputs(self, network: nn.Module, check: Check, *, aligned: bool = False) -> list[Tensor]:
        """What a network computes on one of the inputs; random draws are `aligned` in training."""
        network.train(check.training)
        even = AlignedDraws() if check.training or aligned else None  # type: ignore[no-untyped-call]
        with self.precisely(), even or contextlib.nullcontext():
            return tensors_of(run(network, self.inputs[check.inputs]))

    @contextlib.contextmanager
    def precisely(self) -> Iterator[None]:
        """Inside, a network runs layer by layer, and in double precision throughout where the trial is in double."""
        with plain_kernels(), KeptDouble() if self._rounds else contextlib.nullcontext():  # type: ignore[no-untyped-call]
            yield

    def trains(self, number: int) -> bool:
        """Whether the network itself runs in training on one of the inputs; BatchNorm does not on a single value."""
        if number not in self._trains:
            try:
                self.outputs(copied(self.network, share=not self._updates), Check(number, True))
            except NETWORK_ERRORS:
                self._trains[number] = False
            else:
                self._trains[number] = True
        return self._trains[number]

    @functools.cached_property
    def _updates(self) -> bool:
        """Whether a run changes parameters in place, as a teacher's that are averages of its student's."""
        own = copied(self.network, share=True)
        before = fingerprint(own)
        with contextlib.suppress(*NETWORK_ERRORS):
            self.outputs(own, Check((len(self.inputs) - 2) % len(self.inputs) if self.large else 0, True))
        return before != self._prints or before != fingerprint(own)

    def differ(
        self, expected: list[Tensor], actual: list[Tensor], check: Check, removals: Sequence[Removal],
        kept: Mapping[str, list[int]],
    ) -> str:  # fmt: skip
        """How outputs differ, by more than rounding explains; "" where they do not."""
        if [x.shape for x in expected] != [x.shape for x in actual]:
            return of_outputs(expected, actual)
        suspects = [i for i, (a, b) in enumerate(zip(expected, actual, strict=True)) if not self._is_close(a, b)]
        if not suspects:
            return ""
        if check not in self._floors:
            self._floors[check] = self.floor(self.copy(), check)
        floors = self._floors[check]
        if len(floors) != len(expected):
            return MIXED
        suspects = [i for i in suspects if not self._is_close(expected[i], actual[i], floors[i])]
        if not suspects:
            return ""
        if all(difference(expected[i], actual[i]) < VAGUE * largest(expected[i]) for i in suspects):
            floors = self.floor(self.closed(removals, kept), check)
            suspects = [i for i in suspects if not self._is_close(expected[i], actual[i], floors[i])]
        if check.training:
            # Where rounding alone changes everything, as in BatchNorm over two values, a difference says nothing.
            suspects = [i for i in suspects if MARGIN * floors[i] < VAGUE * largest(expected[i])]
        return MIXED if suspects else ""

    def _is_close(self, a: Tensor, b: Tensor, floor: float = 0.0) -> bool:
        tolerance = max(TOLERANCE[self.dtype] * largest(a), MARGIN * floor)
        return difference(a, b) <= tolerance

    def _is_drawn(self, removals: Sequence[Removal], kept: Mapping[str, list[int]], check: Check) -> bool:
        """Whether they differ in what the network draws alone."""
        if check.training:
            return False
        a = self.outputs(self.closed(removals, kept), check, aligned=True)
        b = self.outputs(self.removed(removals, kept), check, aligned=True)
        return all(self._is_close(x, y) for x, y in zip(a, b, strict=True))


def reads(network: nn.Module, member: Coupling) -> bool:
    """Whether this side is the input of a layer whose weight has a column for each channel."""
    return (
        member.kind == "in"
        and member.norm is None
        and len(member.tensors) == 1
        and getattr(network.get_submodule(member.module), "groups", 1) == 1
    )


def gated_tensors(network: nn.Module, member: Coupling) -> tuple[tuple[str, int], ...]:
    """(name, dimension) of the parameters of a side on which a gate stands."""
    if reads(network, member):
        return member.tensors
    return member.gated


def readers(network: nn.Module, removals: Sequence[Removal]) -> Iterator[tuple[Removal, Coupling]]:
    """The sides on which gates stand."""
    for removal in removals:
        for member in removal.couplings:
            if reads(network, member) or isinstance(member.norm, StandardizedWeight):
                yield removal, member


def _replace(module: nn.Module, name: str, change: Any) -> None:
    parameter = getattr(module, name, None)
    if isinstance(parameter, nn.Parameter):
        setattr(module, name, nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad))


def _in_precision(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another precision, complex numbers as such."""
    return x.to(dtype) if x.is_floating_point() else x.to(dtype.to_complex()) if x.is_complex() else x


def _scramble(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and parameter.numel() and float(parameter.abs().max()) < 1e-3:
                parameter.copy_(0.3 * noise(parameter))
        for module in network.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.2 * noise(parameter))
        calibrate(network, inputs)
        for module in network.modules():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                mean.add_(0.1 * noise(mean) * variance.sqrt())
                variance.mul_(1.0 + 0.5 * torch.tanh(noise(variance)))


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]

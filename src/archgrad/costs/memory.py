"""Memory: what a training step takes at its peak, predicted without running it at full size, and measured.

    peak = parameters + buffers + optimizer state + batch + max over a step's moments of what the step holds then

A step allocates and frees in the same order at any batch size B, and each amount is a + b B. The order is traced on 2
and on 3 examples; its amounts, and so the peak, follow for any B. Counted are the tensors that torch allocates, each
storage once; the work space of a kernel and the rounding of an allocator are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from archgrad.argument_types import checked
from archgrad.copy_and_run import modes_kept, shapes
from archgrad.costs.inference_memory import Liveness, expected_peak, liveness, whole_network
from archgrad.costs.limits import Limit, WithoutGradient, one_bound
from archgrad.costs.memory_watch import Allocations, Saved
from archgrad.errors import LimitError, ModelError
from archgrad.files import free_memory
from archgrad.tasks.task import Inputs, batch_size, call, first_tensor, mapped, rows_of, tensors

GIB = 2**30
FEW = (2, 3)  # examples that are traced: BatchNorm refuses a single one
Batch = Any  # a tensor [B, ...], or a nest of tuples, lists and dicts of such
Loss = Callable[[nn.Module, Batch], Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def momentum(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with momentum, which keeps one buffer a parameter: the default optimizer of a prediction."""
    return SGD(parameters, lr=0.1, momentum=0.9)


def summed(network: nn.Module, inputs: Batch) -> Tensor:
    """The sum of the network's first output: a loss that saves almost nothing of its own."""
    return tensors(call(network, inputs))[0].sum()


@dataclass(frozen=True)
class Footprint:
    """What one training step takes, in bytes.

    Attributes:
        parameter_bytes, buffer_bytes, gradient_bytes, optimizer_bytes, batch_bytes: those of the network, its
            optimizer, and the batch.
        saved_bytes: what autograd saves for the backward pass, without parameters, buffers and the batch.
        peak_bytes: the most that is held at once; gradients replace what was saved, so it is usually less than the
            sum of all.
    """

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    saved_bytes: int
    peak_bytes: int

    @property
    def resident_bytes(self) -> int:
        """What is held between two steps."""
        return self.parameter_bytes + self.buffer_bytes + self.optimizer_bytes + self.batch_bytes


@dataclass(frozen=True)
class Prediction:
    """What a training step takes as a function of the batch size; see `predict`."""

    fixed: Footprint
    saved: tuple[int, int]
    events: tuple[Sequence[int], Sequence[int]]
    batch_bytes: int
    largest_bytes: int

    def at(self, batch: int) -> Footprint:
        """The footprint of a step on so many examples."""
        few, more = self.events
        if len(few) == len(more):
            moments = accumulate(_affine(a, b, batch) for a, b in zip(few, more, strict=True))
            step = max(moments, default=0)
        else:  # the order depends on the batch size: the two peaks are extrapolated
            step = _affine(max(accumulate(few)), max(accumulate(more)), batch)
        # The optimizer needs a temporary of one parameter at a time while all gradients are there.
        step = max(step, self.fixed.gradient_bytes + self.largest_bytes)
        fixed = replace(self.fixed, batch_bytes=self.batch_bytes * batch, saved_bytes=_affine(*self.saved, batch))
        return replace(fixed, peak_bytes=fixed.resident_bytes + step)

    def largest_batch(self, bound_bytes: float) -> int:
        """The most examples whose step stays below the bound; 0 where two do not."""
        low, high = 0, FEW[0]
        while high < 2**24 and self.at(high).peak_bytes <= bound_bytes:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).peak_bytes <= bound_bytes else (low, middle)
        return low


def predict_memory(
    network: nn.Module,
    batch: Batch,
    *,
    loss: Loss = summed,
    optimizer: OptimizerFactory = momentum,
    traced: bool = True,
) -> Prediction:
    """What a training step takes, for any batch size, from two steps on 2 and on 3 examples.

    Saved bytes are exact on the CPU for networks that treat every example alike. The network and the random states
    are left as they are. A space is predicted at its present mixing weights.

    Args:
        network: on the device that it is to be trained on, or on the CPU.
        batch: what `loss` takes: a tensor [B, ...], or a nest of such; of any B.
        loss: from (network, batch) to a scalar.
        optimizer: from parameters to their optimizer, whose state is counted.
        traced: whether to trace the order of allocations; without, `peak_bytes` lacks the saved bytes, in half the
            time.

    Raises:
        ModelError: the network fails on the batch.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    saved: list[int] = []
    events: list[list[int]] = []
    for examples in FEW:
        part = with_examples(batch, examples)
        with _undisturbed(network):
            saved.append(_saved(network, part, loss))
            seen = Allocations()
            if traced:
                with seen:
                    _step(network, part, loss, parameters)
            events.append(seen.events)
    fixed = Footprint(
        parameter_bytes=_total(network.parameters()),
        buffer_bytes=_total(network.buffers()),
        gradient_bytes=sum(p.nbytes for p in parameters),
        optimizer_bytes=_state_bytes(parameters, optimizer),
        batch_bytes=0, saved_bytes=0, peak_bytes=0,
    )  # fmt: skip
    each = _total(tensors(with_examples(batch, 3))) - _total(tensors(with_examples(batch, 2)))
    largest = max((p.nbytes for p in parameters), default=0)
    return Prediction(fixed, (saved[0], saved[1]), (events[0], events[1]), each, largest)


def saved_bytes(network: nn.Module, batch: Batch, *, loss: Loss = summed) -> int:
    """What autograd saves for the backward pass of this very batch: counted, not predicted.

    Raises:
        ModelError: the network fails on the batch.
    """
    with _undisturbed(network):
        return _saved(network, batch, loss)


def measured_peak(
    network: nn.Module, batch: Batch, *, loss: Loss = summed, optimizer: OptimizerFactory = momentum
) -> int:
    """The peak of a step on this very batch, in bytes, to compare with `predict_memory(...).at(B).peak_bytes`.

    On a GPU its allocator is asked, on the CPU torch's tensors are watched. The optimizer's state after its first
    step is added; weights are not changed.

    Raises:
        ModelError: the network fails on the batch.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    resident = _total([*network.parameters(), *network.buffers(), *tensors(batch)])
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with _undisturbed(network):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            _step(network, batch, loss, parameters)
            step = torch.cuda.max_memory_allocated(device) - before
        else:
            with Allocations() as seen:
                _step(network, batch, loss, parameters)
            step = seen.peak_bytes
    return resident + _state_bytes(parameters, optimizer) + step


def with_examples(batch: Batch, examples: int) -> Batch:
    """So many examples of a batch, repeated where it has fewer."""
    size = batch_size(batch)
    return mapped(Tensor.contiguous, rows_of(batch, [row % size for row in range(examples)]))


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device, or of the machine and this process's container; None where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    return min((n for n in (free_memory(), _free_of_container(Path("/sys/fs/cgroup"))) if n), default=None)


def _free_of_container(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a bound ("max")
        bound, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        return max(0, bound - used)
    return None


@checked
class PeakMemory(WithoutGradient):
    """The predicted peak of memory in bytes, of a training step or of inference, as a cost.

    Of training: as a method's `limit` it bounds the training of the network found; as `memory` of `archgrad.radars`
    it bounds the search itself. Of inference: activations alone, by the lifetimes of tensors in the exported graph,

        peak = max over operators t of  sum of bytes of the tensors that are alive while t runs

    where reshapes share bytes and elementwise operators write in place. Weights come on top: `archgrad.params`. A
    runtime that runs operators in another order, copies into another layout or keeps a workspace takes more.

    Args:
        example: inputs [B, ...], or a tuple of such; a network of several inputs gets them in order.
        mode: "training" or "inference".
        batch: examples of a batch; default: B.
        optimizer: of training: factory of the optimizer whose state is counted; default: SGD with momentum.
        dtype: of inference: of activations in the runtime, such as "int8" or torch.float16; default: as in PyTorch.

    Raises:
        LimitError: a batch below 1; a dtype that is none, or of training.

    Example:
        >>> import torch, archgrad as ag
        >>> cost = ag.peak_memory(torch.zeros(1, 100), batch=64)
        >>> cost.of(torch.nn.Linear(100, 10)) > 3 * 4 * 1010  # weights, gradients and momentum in float32
        True
        >>> cost.at_most(gib=2.0)
        Limit(peak_memory at most 2,147,483,648 bytes)
        >>> small = ag.peak_memory(torch.zeros(1, 100), mode="inference", dtype="int8")
        >>> small.of(torch.nn.Linear(100, 10))  # 100 inputs and 10 outputs
        110.0
    """

    unit: str = "bytes"
    measured: bool = True

    def __init__(
        self,
        example: Inputs,
        *,
        mode: Literal["training", "inference"] = "training",
        batch: int | None = None,
        optimizer: OptimizerFactory = momentum,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise LimitError(f"peak_memory(..., batch={batch}): give the number of examples of a batch, from 1")
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype is not None and (mode == "training" or not isinstance(kind, torch.dtype)):
            raise LimitError(
                f"peak_memory(..., mode={mode!r}, dtype={dtype!r}): a dtype is one of torch's, such as 'int8' or "
                f"'float16', and goes with mode='inference'"
            )
        self.example, self.optimizer, self.mode, self.dtype = example, optimizer, mode, kind
        self.name = "peak_memory" if mode == "training" else "inference_memory"
        self.batch = batch or len(first_tensor(example))

    def __repr__(self) -> str:
        mode = "" if self.mode == "training" else "inference, "
        return f"peak_memory({mode}batch={self.batch}, example {shapes(self.example)})"

    def footprint(self, network: nn.Module) -> Footprint:
        """All parts of a training step of the network as it stands."""
        return predict_memory(network, self.example, optimizer=self.optimizer).at(self.batch)

    def liveness(self, network: nn.Module) -> Liveness:
        """What inference holds, operator by operator: its peak, and the layer that runs then."""
        return liveness(network, with_examples(self.example, self.batch), dtype=self.dtype)

    @checked
    def of(self, network: nn.Module) -> float:
        """The peak in bytes."""
        if self.mode == "inference":
            return float(self.liveness(network).peak_bytes)
        return float(self.footprint(network).peak_bytes)

    def expected(self, space: nn.Module) -> Tensor:  # type: ignore[override]
        """Of inference, in a space of gates: the peak at the present mixing weights, a scalar [] with a gradient.

            max over operators of  sum over live tensors of  bytes * mean mixing weight of the tensor's channels

        Raises:
            LimitError: of training, which has no such gradient.
            ChoiceError: the space has other choices than gates.
        """
        if self.mode == "training":
            super().expected(space)
        return expected_peak(space, self.liveness(whole_network(space)))

    def at_most(
        self, bound: float | None = None, *, gib: float | None = None, peak_bytes: float | None = None,
        fraction: float | None = None,
    ) -> Limit:  # fmt: skip
        """A limit in bytes, in GiB (2^30 bytes), or as a fraction of what the unchanged network takes.

        Raises:
            LimitError: not exactly one is given; a number not above 0; a fraction outside (0, 1]; a bound without
                a unit below 1024, which may be meant as GiB.
        """
        if isinstance(bound, int | float) and bound < 1024:
            raise LimitError(
                f"peak_memory is counted in bytes, and at_most({bound!r}) may mean GiB or a fraction. Write "
                f"at_most(gib=...), at_most(peak_bytes=...) or at_most(fraction=...)"
            )
        in_bytes = one_bound(self.name, {"bound": bound, "peak_bytes": peak_bytes, "gib": gib})
        return Limit(self, bound=in_bytes if gib is None else gib * GIB, fraction=fraction)


peak_memory = PeakMemory


def _affine(at_two: int, at_three: int, batch: int) -> int:
    return at_two + (batch - FEW[0]) * (at_three - at_two)


def _saved(network: nn.Module, batch: Batch, loss: Loss) -> int:
    with Saved([*network.parameters(), *network.buffers(), *tensors(batch)]) as saved:
        graph = loss(network, batch)
    del graph
    return saved.saved_bytes


def _step(network: nn.Module, batch: Batch, loss: Loss, parameters: Sequence[nn.Parameter]) -> None:
    torch.autograd.grad(loss(network, batch), parameters, allow_unused=True)


def _total(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each once."""
    return sum({id(s): s.nbytes() for s in map(Tensor.untyped_storage, tensors)}.values())


def _state_bytes(parameters: Sequence[nn.Parameter], make: OptimizerFactory) -> int:
    """What the optimizer keeps after its first step: found on two tiny parameters, as a + b * elements."""
    if not parameters:
        return 0
    tiny = [nn.Parameter(torch.zeros(n, dtype=parameters[0].dtype)) for n in FEW]
    optimizer = make(tiny)
    for parameter in tiny:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    few, more = (sum(t.nbytes for t in optimizer.state[p].values() if isinstance(t, Tensor)) for p in tiny)
    return sum(_affine(few, more, p.numel()) for p in parameters)


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Train mode inside the block; buffers, modes and random states are put back; failures are the network's."""
    before = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    devices = sorted({p.device.index or 0 for p in network.parameters() if p.device.type == "cuda"})
    try:
        with modes_kept(network), torch.random.fork_rng(devices=devices), torch.enable_grad():
            network.train()
            yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{type(network).__name__} fails on the batch that its memory is asked for: {error}"
        ) from error
    finally:
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)

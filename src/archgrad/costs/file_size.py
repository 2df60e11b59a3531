"""The size of the file that ships, as a cost: each network is exported, quantized where asked for, and weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.copy_and_run import shapes
from archgrad.costs.latency import encoded_file
from archgrad.costs.limits import Limit, WithoutGradient, one_bound
from archgrad.extract import runtimes
from archgrad.tasks.task import Inputs, arguments, mapped

_WEIGHED = 5  # files are weighed at most to use up a bound
_USED = 0.99  # of a bound: with less, another is weighed
Found = TypeVar("Found")
Point = tuple[float, float]


@checked
@dataclass(frozen=True, repr=False, eq=False)
class FileSize(WithoutGradient):
    """The size of a network's file in kB of 1,024 bytes, as a cost: weights, scales, and what each operator takes.

    Each network is exported, which takes seconds, and with `dtype="int8"` quantized in all layers. Where the download
    or the flash is all that counts, `ag.params()` times the bytes of one is the faster estimate: it leaves out the
    graph, which is most of a small network's file. Preprocessing that `export_onnx` adds comes on top, some kB.

    Args:
        x: input of the network, [B, ...], or a tuple or dict of such.
        runtime: whose file: "onnx" (also OpenVINO's) or "executorch".
        dtype: "float32", as the network is, or "int8".

    Raises:
        ConfigError: a runtime that takes no file, or another type of numbers.
        MissingExtra: a package of the runtime is not installed.

    Example:
        >>> import torch, archgrad as ag
        >>> cost = ag.file_size(torch.zeros(1, 64))
        >>> 16 < cost.of(torch.nn.Linear(64, 64)) < 20
        True
        >>> cost.at_most(kb=12)
        Limit(onnx file size at most 12 kB)
    """

    x: Inputs
    runtime: Literal["onnx", "openvino", "executorch"] = field(default="onnx", kw_only=True)
    dtype: Literal["float32", "int8"] = field(default="float32", kw_only=True)
    unit: ClassVar[str] = "kB"
    measured: ClassVar[bool] = True
    clocked: ClassVar[bool] = False  # twice the same

    def __post_init__(self) -> None:
        runtimes.require(self.runtime)

    def __repr__(self) -> str:
        return f"file_size({self.runtime}, {self.dtype}, example {shapes(self.x)})"

    @property
    def name(self) -> str:
        """What records call it: "onnx file size", also of OpenVINO's, which is the same file; int8 comes first."""
        name = "executorch file size" if self.runtime == "executorch" else "onnx file size"
        return f"int8 {name}" if self.dtype == "int8" else name

    @checked
    def of(self, network: nn.Module) -> float:
        """The size of this network's file.

        Raises:
            ModelError: the network does not run on the example, or cannot be exported or quantized.
        """
        inputs = arguments(mapped(_on_cpu, self.x))
        return len(encoded_file(network, inputs, runtime=self.runtime, dtype=self.dtype)) / 1024

    def once_trained(self, network: nn.Module) -> float:
        """The size of the file once training has told all numbers apart, which changes those of `network`.

        Tensors that are equal, such as those of fresh norms, are written once, and so are fewer bytes.
        """
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                    tensor.mul_(1.0 + 1e-2 * noise).add_(1e-3 * noise)
        return self.of(network)

    def at_most(self, bound: float | None = None, *, kb: float | None = None, fraction: float | None = None) -> Limit:
        """A limit of `kb` kB, which may stand alone, or of a fraction of what the unchanged network has.

        Raises:
            LimitError: not exactly one is given; a bound not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound=one_bound(self.name, {"bound": bound, "kb": kb}), fraction=fraction)


file_size = FileSize


def largest_file(
    bound: float, under: Callable[[float], tuple[Found, Point]], low: Point, high: Point
) -> Found | None:
    """What is found under the limit on parameters that uses most of one on the size of the file, or nothing.

    A file grows with its parameters, nearly in a straight line, which a few files fix.

    Args:
        bound: in kB.
        under: from a limit on parameters to what is found, with its parameters and the kB of its file.
        low: parameters and kB of the smallest network.
        high: of the whole one.
    """
    best, seen = None, set[Point]()
    for _ in range(_WEIGHED):
        fraction = min((bound - low[1]) / max(high[1] - low[1], 1e-9), 1.0)
        found, point = under(low[0] + fraction * (high[0] - low[0]))
        if point in seen:
            break
        seen.add(point)
        if point[1] > bound:
            high = point
            continue
        low, best = point, found
        if point[1] >= _USED * bound:
            break
    return best


def _on_cpu(x: Tensor) -> Tensor:
    return x.detach().cpu()

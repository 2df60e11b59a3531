"""Pixels in, labels out: what stands in front of a network and behind it, inside its ONNX file."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archgrad.errors import ConfigError, ModelError, one_line
from archgrad.extract.onnx_file import Session, require_packages

PIXELS, LABEL = "pixels", "label"
_FRONT = (PIXELS, "pixels_float", "pixels_resized", "pixels_scaled", "pixel_size", "pixel_scale", "pixel_shift")


@dataclass(frozen=True)
class Preprocessing:
    """What an ONNX file does beside its network.

        network input = (pixels / 255 - mean) / std,   label = argmax of the first output

    Attributes:
        mean: of each channel, for uint8 pixels [B, C, H, W]; empty where the network's inputs are taken as they are.
        std: of each channel.
        class_names: of a classification, in the order of the outputs; empty for other tasks.
        task: "classification", or the name of the score.
        size: height and width that pixels of any size are resized to, bilinear with antialiasing, as images of
            folders are, but not rounded; None where they have the network's size.

    Example:
        >>> Preprocessing(mean=(0.5,), std=(0.25,), class_names=("cat", "dog")).input_range
        '0 to 255'
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    task: str = ""
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, data: object) -> Preprocessing:
        """From a task's JSON description (`record["data"]` of a run): its normalization and its class names."""
        constants, score = _entry(data, "normalization"), _entry(data, "score")
        mean, std = (_numbers(_entry(constants, name)) for name in ("mean", "std"))
        mean, std = (mean, std) if len(mean) == len(std) else ((), ())
        names = _entry(data, "class_names")
        names = tuple(map(str, names)) if isinstance(names, list) else ()
        return cls(mean, std, names, "classification" if names else str(_entry(score, "name") or ""))

    @property
    def input_range(self) -> str:
        """What the file's input holds."""
        return "0 to 255" if self.mean else "as the network was trained with"

    def metadata(self) -> dict[str, str]:
        """What the file says of itself; lists as JSON."""
        entries = {
            "archgrad.version": importlib.metadata.version("archgrad"),
            "archgrad.task": self.task,
            "archgrad.class_names": json.dumps(self.class_names) if self.class_names else "",
            "archgrad.input": "uint8 [B, C, H, W]" if self.mean else "as the network's",
            "archgrad.input_range": self.input_range,
            "archgrad.resized_to": json.dumps(self.size) if self.size else "",
            "archgrad.normalization": json.dumps({"mean": self.mean, "std": self.std}) if self.mean else "",
        }
        return {key: value for key, value in entries.items() if value}

    def normalized(self, pixels: Tensor) -> Tensor:
        """What the network takes, from uint8 pixels [B, C, H, W]; inputs without constants are passed on."""
        if not self.mean:
            return pixels
        mean, std = (torch.tensor(constants).view(-1, 1, 1) for constants in (self.mean, self.std))
        floats = pixels.float()
        if self.size is not None:
            floats = torch.nn.functional.interpolate(floats, self.size, mode="bilinear", antialias=True)
        return (floats / 255 - mean) / std


def _entry(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _numbers(values: object) -> tuple[float, ...]:
    numbers = values if isinstance(values, list | tuple) else ()
    return tuple(float(n) for n in numbers) if all(isinstance(n, int | float) for n in numbers) else ()


def with_preprocessing(data: bytes, preprocessing: Preprocessing) -> bytes:
    """An ONNX file's bytes with normalization in front, a label behind, and metadata.

    Raises:
        ConfigError: normalization is asked for, and the file has not one input of floats with that many channels; a
            size without normalization.
    """
    require_packages("onnx")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    if preprocessing.size is not None and not preprocessing.mean:
        raise ConfigError("resizing is of pixels, and there is no normalization that tells how they are scaled")
    if preprocessing.mean:
        (slot, *more), channels = graph.input, len(preprocessing.mean)
        sizes = slot.type.tensor_type.shape.dim
        if more or slot.type.tensor_type.elem_type != TensorProto.FLOAT or len(sizes) != 4:
            raise ConfigError("pixels are for networks with one input of floats, images [B, C, H, W]")
        if sizes[1].dim_value not in (0, channels):
            raise ConfigError(f"the network takes {sizes[1].dim_value} channels, the normalization has {channels}")
        _free(graph, _FRONT)
        constants = (preprocessing.mean, preprocessing.std)
        mean, std = (torch.tensor(c, dtype=torch.float64).view(-1, 1, 1) for c in constants)
        for name, constant in (("pixel_scale", 1 / (255 * std)), ("pixel_shift", -mean / std)):
            graph.initializer.append(numpy_helper.from_array(constant.float().numpy(), name))
        old = slot.name
        slot.name, slot.type.tensor_type.elem_type = PIXELS, TensorProto.UINT8
        front = [helper.make_node("Cast", [PIXELS], ["pixels_float"], "pixels_to_float", to=TensorProto.FLOAT)]
        if preprocessing.size is not None:
            sizes[2].dim_param, sizes[3].dim_param = "pixel_height", "pixel_width"
            size = torch.tensor(preprocessing.size, dtype=torch.int64).numpy()
            graph.initializer.append(numpy_helper.from_array(size, "pixel_size"))
            resize = helper.make_node(
                "Resize", ["pixels_float", "", "", "pixel_size"], ["pixels_resized"], "pixels_resize", mode="linear",
                antialias=1, exclude_outside=1, axes=[2, 3], coordinate_transformation_mode="half_pixel",
            )  # fmt: skip
            front.append(resize)
        front += [
            helper.make_node("Mul", [front[-1].output[0], "pixel_scale"], ["pixels_scaled"], "pixels_scale"),
            helper.make_node("Add", ["pixels_scaled", "pixel_shift"], [old], "pixels_shift"),
        ]
        for node in reversed(front):
            graph.node.insert(0, node)
    if _gives_classes(graph.output, len(preprocessing.class_names)):
        _free(graph, [LABEL])
        first = graph.output[0]
        graph.node.append(helper.make_node("ArgMax", [first.name], [LABEL], "label_of_outputs", axis=1, keepdims=0))
        label = helper.make_tensor_value_info(LABEL, TensorProto.INT64, [None])
        label.type.tensor_type.shape.dim[0].CopyFrom(first.type.tensor_type.shape.dim[0])
        graph.output.append(label)
    helper.set_model_props(model, preprocessing.metadata())
    written: bytes = model.SerializeToString()
    return written


def _free(graph: Any, names: Sequence[str]) -> None:
    """Give what a graph has by these names others, so that they can be given anew."""
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    taken |= {name for node in graph.node for name in node.output}
    changed = {}
    for name in taken.intersection(names):
        fresh = (f"{name}_{number}" for number in itertools.count(1))
        changed[name] = next(new for new in fresh if new not in taken and new not in names)
    _rename(graph, changed)


def _rename(graph: Any, changed: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = changed.get(value.name, value.name)
    for node in graph.node:
        for slots in (node.input, node.output):
            slots[:] = [changed.get(name, name) for name in slots]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):  # of If and Loop, which read names from around them
                _rename(body, changed)


def _gives_classes(outputs: Sequence[Any], classes: int) -> bool:
    """Whether the first output is scores of classes, [B, classes]."""
    if not classes or not outputs:
        return False
    sizes = outputs[0].type.tensor_type.shape.dim
    return len(sizes) == 2 and sizes[1].dim_value == classes


def check_preprocessing(
    data: bytes, plain: bytes, preprocessing: Preprocessing, *, shape: Sequence[int], batches: Sequence[int]
) -> float:
    """The largest relative difference between a file with preprocessing and its network's, on random pixels.

    Args:
        data: of the file with preprocessing.
        plain: of the network's own file.
        preprocessing: of `data`.
        shape: of the input, [1, ...].
        batches: sizes to try.

    Raises:
        ModelError: the file does not run, or differs by more than 1e-4, or its labels are wrong.
    """
    largest, generator = 0.0, torch.Generator().manual_seed(0)
    factors = (1.0, 0.6, 1.7, 4.0) if preprocessing.size else (1.0,)
    for batch, factor in itertools.product(batches, factors):
        sizes = [*shape[1:2], *(max(1, round(factor * n) + (factor > 1)) for n in shape[2:])]
        sizes = sizes if preprocessing.size else [*shape[1:]]
        pixels = torch.randint(0, 256, (batch, *sizes), dtype=torch.uint8, generator=generator)
        given = pixels if preprocessing.mean else torch.randn((batch, *shape[1:]), generator=generator)
        try:
            network, file = Session(plain), Session(data)
            wanted = network.outputs(preprocessing.normalized(given))
            got = file.outputs(given)
        except RuntimeError as error:
            raise ModelError(f"the file with preprocessing does not run: {one_line(error)}") from error
        for expected, output in zip(wanted, got, strict=False):
            scale = max(1.0, float(expected.double().abs().max()))
            difference = float((expected.double() - output.double()).abs().max()) / scale
            largest = difference if not difference <= largest else largest
        labels = got[len(wanted) :]
        if not largest <= 1e-4 or (labels and not torch.equal(labels[0], got[0].argmax(1))):
            raise ModelError(f"the file with preprocessing is off by {largest:.2g}; it is not written")
    return largest

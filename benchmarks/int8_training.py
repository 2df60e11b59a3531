"""Is an int8 file better if the network was trained with the file's roundings (quantization-aware training)?

    python benchmarks/int8_training.py --out benchmarks/results/int8_training.json

Small depthwise networks on the digits of scikit-learn, chosen because static int8 costs most in deep and narrow ones.
Each is trained, then for the same few epochs more by the same recipe in float, or with roundings in its forward pass
and straight-through gradients (Jacob et al., 2018), by torch's `fake_quantize_*`. All are quantized by ONNX Runtime
with scales from the same samples, to weights of 8 bits, and of 7 as on processors without VNNI.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from saving import save_results
from torch import Tensor, fx, nn

import archgrad as ag

_aten = torch.ops.aten
quantization = importlib.import_module(".quantization", "archgrad.extract")  # whose own parts are measured here
MORE = ag.Recipe(optimizer_factory=functools.partial(ag.sgd, learning_rate=0.005), best_epoch=True)


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al., 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.widen = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.hardsigmoid(self.widen(torch.relu(self.narrow(x.mean((2, 3), keepdim=True)))))


def depthwise(depth: int, act: type[nn.Module], *, squeeze: bool = False, width: int = 12) -> nn.Module:
    """Depthwise separable blocks of one width."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), act()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), act()]
        layers += [Squeeze(width)] if squeeze else []
        layers += [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


NETWORKS = {
    "eight blocks, ReLU": functools.partial(depthwise, 8, nn.ReLU),
    "six blocks, hard swish and squeezing": functools.partial(depthwise, 6, nn.Hardswish, squeeze=True),
}


class Rounded(nn.Module):
    """A network's graph that rounds what its int8 file rounds; its parameters have the network's names.

    Activations are found by the names that they have in the file too, and have its scales. Weights have a scale for
    each output channel, of what they are at the time; BatchNorm keeps its statistics, and a factor of its on a
    channel changes the scale and not the rounding.
    """

    def __init__(self, network: nn.Module, x: Tensor, inputs: list[tuple[Tensor]]) -> None:
        super().__init__()
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network, (torch.cat([x, x]),), dynamic_shapes=shapes)
        exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
        assert exported is not None and exported.exported_program is not None
        self.file = quantization.int8_onnx(exported.model_proto.SerializeToString(), inputs)
        module = exported.exported_program.module(check_guards=False)
        self.graph = fx.GraphModule(module, module.graph)
        rules, largest = _rules(self.file), 64 if quantization._adds_in_16_bits() else 127
        graph, first = self.graph.graph, next(iter(self.graph.graph.find_nodes(op="placeholder")))
        names = {first.name: str(exported.exported_program.graph_signature.user_inputs[0])}
        for node in list(graph.nodes):
            if node.target in (_aten.conv2d.default, _aten.linear.default):
                with graph.inserting_before(node):
                    node.update_arg(1, graph.call_function(_rounded, (node.args[1], largest)))
            if rule := rules.pop(names.get(node.name, node.name), None):
                with graph.inserting_after(node):
                    new = graph.call_function(torch.fake_quantize_per_tensor_affine, (node, *rule, 0, 255))
                node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        assert not rules, f"the graph has no tensors {[*rules]}"
        self.graph.recompile()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.graph(x)  # type: ignore[no-any-return]


def _rules(file: bytes) -> dict[str, tuple[float, int]]:
    """{tensor: (scale, zero point)} of the activations that an int8 file rounds."""
    graph = onnx.load_from_string(file).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor).item(0) for tensor in graph.initializer}
    nodes = [node.input for node in graph.node if node.op_type == "QuantizeLinear"]
    return {name.removesuffix("_QuantizeLinear_Input"): (held[scale], held[zero]) for name, scale, zero in nodes}


def _rounded(weight: Tensor, largest: int) -> Tensor:
    scale = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12) / largest
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -largest, largest)


def rows_of(name: str, task: ag.Classification, seed: int, *, epochs: int, more: int) -> list[dict[str, Any]]:
    """Error on the validation and test part of a network and its files, in 8 and in 7 bits."""
    rows: list[dict[str, Any]] = []
    inputs = [(task.stream(seed=0)(step)[0],) for step in range(4)]
    run = functools.partial(ag.Run, seed=seed, progress=False)

    def scored(method: str, bits: int, network: nn.Module) -> None:
        figures = {part: task.evaluate(network, part) for part in ("valid", "test")}
        errors = {f"{part}_error": 1 - each["accuracy"] for part, each in figures.items()}
        rows.append({"network": name, "seed": seed, "method": method, "bits": bits, **errors})

    def filed(method: str, bits: int, network: nn.Module) -> Rounded:
        rounded = Rounded(network.eval(), task.example, inputs)
        scored(method, bits, quantization.FileNetwork(rounded.file, network(task.example)))
        rows[-1]["in_torch"] = 1 - task.evaluate(rounded, "test")["accuracy"]
        return rounded

    torch.manual_seed(seed)
    network = NETWORKS[name]()
    recipe = ag.Recipe(optimizer_factory=functools.partial(ag.adamw, learning_rate=5e-3))
    ag.fit(network, task, run(epochs=epochs), recipe=recipe)
    longer = copy.deepcopy(network)
    ag.fit(longer, task, run(epochs=more), recipe=MORE)
    scored("float", 32, network)
    scored("float, trained on", 32, longer)
    for bits in (8, 7):
        quantization._adds_in_16_bits = lambda bits=bits: bits == 7
        rounded = filed("int8", bits, network)
        filed("int8 of float, trained on", bits, longer)
        ag.fit(rounded, task, run(epochs=more), recipe=MORE)
        tuned = copy.deepcopy(network)
        tuned.load_state_dict(dict(rounded.graph.named_parameters()), strict=False)
        filed("int8, trained on with roundings", bits, tuned)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--more", type=int, default=6, help="epochs of training after those")
    parser.add_argument("--out", type=Path, required=True, help="rows that it holds are not made again")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch's own, in its exporter
    task = ag.Classification.load("digits", batch_size=64)
    rows = json.loads(chosen.out.read_text())["rows"] if chosen.out.exists() else []
    settings = {"seeds": chosen.seeds, "epochs": chosen.epochs, "more": chosen.more}
    for seed in range(chosen.seeds):
        for name in NETWORKS:
            if not any(row["network"] == name and row["seed"] == seed for row in rows):
                rows += rows_of(name, task, seed, epochs=chosen.epochs, more=chosen.more)
                save_results(chosen.out, {"settings": settings, "rows": rows})
                print(*rows[-8:], sep="\n", flush=True)


if __name__ == "__main__":
    main()

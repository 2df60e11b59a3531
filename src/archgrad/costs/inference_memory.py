"""Memory of inference: the most that activations hold at once, by the lifetimes of tensors in the exported graph.

    peak = max over operators t of  sum of bytes of the tensors that are alive while t runs

A tensor is alive from the operator that makes it to the last one that reads it; inputs from the start, outputs to the
end. Reshapes share their input's bytes, and an elementwise operator writes over an input that nothing else reads, as
runtimes do. Weights are left out. Operators run in the order of the network's own code.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.errors import ChoiceError
from archgrad.extract.discretize import build
from archgrad.extract.export import traced
from archgrad.extract.runtimes import silence
from archgrad.tasks.task import Inputs

_ATEN = torch.ops.aten
_SHARING = {
    _ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims,
    _ATEN.squeeze.default, _ATEN.unsqueeze.default, _ATEN.alias.default, _ATEN.detach.default,
    _ATEN.flatten.using_ints, _ATEN.dropout.default,
}  # fmt: skip
# Elementwise with constants of the network, though torch does not tag them so.
_IN_PLACE = {
    _ATEN.batch_norm.default, _ATEN._native_batch_norm_legit_no_training.default, _ATEN.hardtanh.default,
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """One tensor of a network's inference.

    Attributes:
        elements: how many numbers.
        bytes_each: of one number.
        layer: path of the module that made it; "" of the network itself, None for an input.
        channels: path of the layer whose output channels it has, where one has made them.
    """

    elements: int
    bytes_each: int
    layer: str | None
    channels: str | None


@dataclass(frozen=True)
class Liveness:
    """What a network's inference holds, operator by operator.

    Attributes:
        tensors: all that are held at some time.
        moments: for each operator the places in `tensors` of what is alive while it runs.
        layers: for each operator the path of the module that runs it.
    """

    tensors: Sequence[Held]
    moments: Sequence[tuple[int, ...]]
    layers: Sequence[str] = field(default=())

    def bytes_at(self, moment: int) -> int:
        """What is alive while an operator runs."""
        return sum(self.tensors[i].elements * self.tensors[i].bytes_each for i in self.moments[moment])

    @property
    def peak_bytes(self) -> int:
        """The most at once."""
        return max(map(self.bytes_at, range(len(self.moments))), default=0)

    @property
    def peak_layer(self) -> str:
        """The module that runs at the peak."""
        return self.layers[max(range(len(self.moments)), key=self.bytes_at)] if self.moments else ""


def liveness(network: nn.Module, example: Inputs, *, dtype: torch.dtype | None = None) -> Liveness:
    """The lifetimes of all tensors of one forward pass on the example.

    Args:
        network: a plain network.
        example: inputs [B, ...]; memory is that of this batch size.
        dtype: of activations in the runtime, such as `torch.int8`; None: as in PyTorch.

    Raises:
        ModelError: the network does not run on the example, or cannot be exported.
    """
    program = traced(network, example)
    with silence():
        program = program.run_decompositions()
    constants = {
        spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is not InputKind.USER_INPUT
    }
    return _lifetimes(program.graph, constants, dtype)


def _lifetimes(graph: fx.Graph, constants: set[str], dtype: torch.dtype | None) -> Liveness:
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    fixed: set[fx.Node] = set()
    storage: dict[fx.Node, list[int]] = {}
    tensors: list[Held] = []
    born: list[int] = []
    last: list[int] = []

    def read(node: fx.Node, at: int) -> None:
        for i in storage.get(node, []):
            last[i] = max(last[i], at)

    for at, node in enumerate(nodes):
        inputs = [n for n in node.all_input_nodes if n not in fixed]
        for given in inputs:
            read(given, at)
        made = [x for x in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]
        if node.name in constants or (node.op == "call_function" and not inputs) or node.op == "get_attr":
            fixed.add(node)
        elif node.op == "call_function" and inputs and (shared := _shared(node, inputs, place, storage)) is not None:
            storage[node] = shared
        elif node.op in ("placeholder", "call_function"):
            storage[node] = []
            for x in made:
                storage[node].append(len(tensors))
                tensors.append(_held(node, x, inputs, tensors, storage, dtype))
                born.append(0 if node.op == "placeholder" else at)
                last.append(at)
        elif node.op == "output":
            for given in inputs:
                read(given, len(nodes))
    runs = [at for at, node in enumerate(nodes) if node.op == "call_function" and node not in fixed]
    moments = [tuple(i for i in range(len(tensors)) if born[i] <= at <= last[i]) for at in runs]
    return Liveness(tensors, moments, [_path(nodes[at]) for at in runs])


def _shared(
    node: fx.Node, inputs: Sequence[fx.Node], place: dict[fx.Node, int], storage: dict[fx.Node, list[int]]
) -> list[int] | None:
    """The storage that an operator's result takes over from an input; None where it needs its own."""
    first = inputs[0]
    if node.target is operator.getitem:
        index = node.args[1]
        mine = storage.get(first, [])
        return [mine[index]] if isinstance(index, int) and index < len(mine) else mine
    if node.target in _SHARING:
        return storage.get(first)
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    if not pointwise and node.target not in _IN_PLACE:
        return None
    out = node.meta.get("val")
    out = out[0] if isinstance(out, tuple | list) else out
    for given in inputs:
        x = given.meta.get("val")
        same = isinstance(x, Tensor) and isinstance(out, Tensor) and (x.shape, x.dtype) == (out.shape, out.dtype)
        if same and given.op != "placeholder" and _dies(given, place[node], place, storage):
            return storage.get(given)
    return None


def _dies(given: fx.Node, at: int, place: dict[fx.Node, int], storage: dict[fx.Node, list[int]]) -> bool:
    """Whether nothing reads a tensor's storage after this operator."""
    mine = {*storage.get(given, [])}
    return all(
        place[user] <= at for other, owned in storage.items() if mine & {*owned} for user in other.users
    )  # fmt: skip


def _held(
    node: fx.Node, x: Tensor, inputs: Sequence[fx.Node], tensors: Sequence[Held],
    storage: dict[fx.Node, list[int]], dtype: torch.dtype | None,
) -> Held:  # fmt: skip
    each = dtype.itemsize if dtype is not None and x.is_floating_point() else x.element_size()
    if node.op == "placeholder":
        return Held(x.numel(), each, None, None)
    path, before = _path(node), [tensors[i] for given in inputs for i in storage.get(given, [])]
    name = str(node.target)
    own = path if any(word in name for word in ("convolution", "conv", "addmm", "linear", "mm")) else None
    known = next((h.channels for h in before if h.channels is not None), None)
    return Held(x.numel(), each, path, own or known)


def _path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    entries = [value[0] for value in stack.values() if isinstance(value, tuple)]
    return str(entries[-1]) if entries else ""


def expected_peak(space: nn.Module, held: Liveness) -> Tensor:
    """The peak of a space of gates at its present mixing weights, a float64 scalar [] with a gradient.

        max over operators of  sum over live tensors of  bytes * mean mixing weight of the tensor's channels

    It is exact where all weights are 0 or 1, up to work that vanishes with a whole branch.

    Raises:
        ChoiceError: a choice is no gate.
    """
    fractions: dict[str, Tensor] = {}
    alive: dict[str, Tensor] = {}
    for choice in _gates(space):
        mixing = choice.mixing()
        weights = (choice.live if mixing is None else mixing).to("cpu", torch.float64)
        for coupling in choice.couplings:
            if coupling.kind == "out":
                places, path = coupling.places, coupling.module
                mine = places.clamp_min(0)
                fractions[path] = fractions.get(path, 1.0) * torch.where(places >= 0, weights[mine], 1.0)
                alive[path] = alive.get(path, 1.0) * torch.where(places >= 0, choice.live.cpu()[mine].double(), 1.0)
    means = {path: (open_ * alive[path]).sum() / alive[path].sum() for path, open_ in fractions.items()}
    one = torch.ones((), dtype=torch.float64)
    sizes = torch.stack([
        each.elements * each.bytes_each * (one if each.channels is None else means.get(each.channels, one))
        for each in held.tensors
    ])  # fmt: skip
    return torch.stack([sizes[list(moment)].sum() for moment in held.moments]).max()


def whole_network(space: nn.Module) -> nn.Module:
    """A space of gates with all open that are alive, as a plain network; raises as `expected_peak`."""
    _gates(space)
    alive = {name: tuple(gate.live.nonzero().flatten().tolist()) for name, gate in decisions(space).items()}
    return build(space, Architecture(alive))


def _gates(space: nn.Module) -> list[Gate]:
    found: list[Gate] = []
    for name, choice in decisions(space).items():
        if not isinstance(choice, Gate):
            raise ChoiceError(f"{name} is no gate: expected memory is for spaces that archgrad.slim makes")
        found.append(choice)
    return found

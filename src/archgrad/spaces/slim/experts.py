"""Whole experts of a mixture: modules of one list whose outputs are weighted and added up.

An expert that is gone puts out zeros. Its router stays as it is: softmax and ranks are over all experts, so that what
the others add is the same as with the last layer of that expert at zero.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from archgrad.choices.channels import Vanishing
from archgrad.choices.graph_numbers import stand_in
from archgrad.copy_and_run import copied, in_mode
from archgrad.spaces.slim.branches import silencer
from archgrad.spaces.slim.layer_sides import NORMS, is_layer
from archgrad.spaces.slim.parted_branches import SCALING, Use, keeps_states, lower, removal_of, replacement
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, OperatorMode, plain_kernels, run, tensors_in
from archgrad.spaces.slim.trial import Removal, Trial

PRODUCTS = ("mul", "div", "bmm", "mm", "mv", "addmm", "baddbmm", "addcmul")
SUMS = ("add", "sub", "sum", "mean", "bmm", "mm", "mv", "addmm", "baddbmm", "addcmul", "index_add", "index_put",
        "index_put_impl", "scatter_add", "scatter")  # fmt: skip
MOVES = ("stack", "cat", "index", "select", "unbind", "split", "copy", "where", "masked_fill", "gather")


class _Mixtures(OperatorMode):
    """Notes which modules' outputs are multiplied by activations and then added to one another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins: Any = WeakIdKeyDictionary()  # tensor -> paths whose outputs it is made of, and whether weighted
        self.added: set[frozenset[str]] = set()
        self.inside = 0  # layers that run

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].strip("_")
        given = tensors_in((args, kwargs or {}))
        known = [self.origins[x] for x in given if x in self.origins]
        product = name in PRODUCTS
        if (
            self.inside
            or not known
            or (product and len(known) > 1)
            or name not in (*SCALING, *PRODUCTS, *SUMS, *MOVES)
        ):
            return result
        weighted = product and len(given) > 1 and not any(isinstance(x, nn.Parameter) for x in given)
        paths = frozenset[str]().union(*(own for own, _ in known))
        weighted = weighted or all(already for _, already in known)
        if name in SUMS and weighted and len(paths) > 1:
            self.added.add(paths)
        for made in tensors_in(result):
            self.origins[made] = paths, weighted
        return result


def experts(trial: Trial) -> tuple[list[Removal], set[str]]:
    """The removals of all experts of each mixture but the smallest, which stays, and the paths of all of them.

    Those that are built alike are looked at once, on the call of one that was sent something.
    """
    removals, members = list[Removal](), set[str]()
    uses, added = _followed(trial)
    last: dict[object, str | None] = {}
    for path, container in trial.network.named_modules():
        if not isinstance(container, (nn.ModuleList, nn.ModuleDict)):
            continue
        own = [f"{path}.{name}".lstrip(".") for name, _ in container.named_children()]
        own = [
            p for p in own if p in uses and any(p in paths and len(paths.intersection(own)) > 1 for paths in added)
        ]
        sizes = {p: sum(w.numel() for w in trial.network.get_submodule(p).parameters()) for p in own}
        members.update(own)
        kinds = {p: (repr(trial.network.get_submodule(p)), uses[p].made.shape[1:]) for p in own}
        for expert, kind in kinds.items():
            if kind not in last and uses[expert].made.numel():
                last[kind] = _last_layer(trial.network.get_submodule(expert), uses[expert])
        for expert in sorted(own, key=sizes.__getitem__)[1:]:
            module, use, end = trial.network.get_submodule(expert), uses[expert], last.get(kinds[expert])
            if end is None:
                continue
            final = f"{expert}.{end}".rstrip(".")
            for lowered in (True, False):
                rest, width = _zeros(module, use, trial.network.get_submodule(final), lowered=lowered), final
                if rest is None:
                    rest, width = replacement(module, use, lowered=lowered), ""
                if rest is not None and _agree(module, rest, use) and _agree_in_autocast(module, rest, use):
                    removals.append(removal_of(trial.network, final, Vanishing(expert, (rest,), width=width)))
                    break
    return removals, members


def _last_layer(module: nn.Module, use: Use) -> str | None:
    if is_layer(module):
        return ""
    return silencer(copied(module), use) or None


def _zeros(module: nn.Module, use: Use, last: nn.Module, *, lowered: bool) -> nn.Module | None:
    """What puts out zeros as wide as a layer, where one input is like the output but for its width."""
    (x, *others), made = use.args or (None,), use.output
    alike = isinstance(x, Tensor) and isinstance(made, Tensor) and x.dim() == made.dim() and x.dtype == made.dtype
    if not alike or others or use.kwargs:
        return None
    axis = 1 if isinstance(last, (_ConvNd, *NORMS)) else made.dim() - 1
    graph = fx.Graph()
    given = graph.placeholder("input")
    width = graph.create_node("get_attr", "channels")
    one = graph.call_function(torch.zeros_like, (graph.call_function(torch.narrow, (given, axis, 0, 1)),))
    every = graph.call_method("repeat", (one, *(width if a == axis else 1 for a in range(made.dim()))))
    graph.output(lower(graph, every) if lowered else every)
    root = nn.Module()
    root.channels = made.shape[axis]
    zeros = fx.GraphModule(root, graph)
    if not made.is_floating_point() or zeros(x).shape != made.shape:
        return None
    stand_in(zeros, module)
    return zeros


def _agree(module: nn.Module, rest: nn.Module, use: Use) -> bool:
    """Whether zeros have the shape of what the expert puts out for inputs of other sizes too, along any axis.

    Sizes that the expert does not take, such as other numbers of channels, tell nothing.
    """
    sizes = [x.dim() for x in tensors_in((use.args, use.kwargs))]
    for axis, grown in itertools.product(range(max(sizes, default=0)), (1, 2, 3)):

        def larger(x: Tensor, axis: int = axis, grown: int = grown) -> Tensor:
            added = [grown if a == axis else size for a, size in enumerate(x.shape)]
            return x if x.dim() <= axis else torch.cat((x, x.new_zeros(added)), axis)

        args, kwargs = tree_map_only(Tensor, larger, (use.args, dict(use.kwargs)))
        if not _have_one_form(in_mode(copied(module)), rest, Use(args, kwargs, None)):
            return False
    return True


def _agree_in_autocast(module: nn.Module, rest: nn.Module, use: Use) -> bool:
    """Whether zeros have the precision of what the expert puts out under `torch.autocast` too, so that they can be
    written beside the outputs of the others."""
    single = in_mode(copied(module)).float()
    for dtype in (torch.float32, torch.bfloat16):

        def given(x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        args, kwargs = tree_map_only(Tensor, given, (use.args, dict(use.kwargs)))
        with torch.autocast(use.made.device.type, dtype=torch.bfloat16):
            if not _have_one_form(single, rest, Use(args, kwargs, None)):
                return False
    return True


def _have_one_form(module: nn.Module, rest: nn.Module, use: Use) -> bool:
    """Whether shapes and types of two modules' outputs are the same; what the first does not take tells nothing."""
    with torch.no_grad(), plain_kernels():
        try:
            made = module(*use.args, **use.kwargs)
        except NETWORK_ERRORS:
            return True
        try:
            return bool(
                tree_map_only(Tensor, _form, rest(*use.args, **use.kwargs)) == tree_map_only(Tensor, _form, made)
            )
        except NETWORK_ERRORS:
            return False


def _form(x: Tensor) -> tuple[torch.Size, torch.dtype]:
    return x.shape, x.dtype


def _followed(trial: Trial) -> tuple[dict[str, Use], set[frozenset[str]]]:
    """Members of lists that are called once and put out a tensor, by path; and which of them are added up."""
    mixtures, calls, handles = _Mixtures(), dict[str, list[Use]](), list[Any]()
    for path, module in trial.network.named_modules():

        def enter(_m: nn.Module, _args: tuple[Any, ...]) -> None:
            mixtures.inside += 1

        def leave(_m: nn.Module, _args: tuple[Any, ...], _out: object) -> None:
            mixtures.inside -= 1

        def note(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, path: str = path) -> None:
            calls.setdefault(path, []).append(Use(args, kwargs, out))
            if isinstance(out, Tensor):
                mixtures.origins[out] = frozenset((path,)), False

        if is_layer(module):
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        parent = trial.network.get_submodule(path.rpartition(".")[0])
        listed = isinstance(parent, (nn.ModuleList, nn.ModuleDict)) and any(p.dim() > 1 for p in module.parameters())
        if listed and not any(keeps_states(m) for m in module.modules()):
            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with plain_kernels(), mixtures:
            run(in_mode(trial.network), trial.inputs[-1 if trial.large else 0])
    finally:
        for handle in handles:
            handle.remove()
    once = {path: seen[0] for path, seen in calls.items() if len(seen) == 1 and isinstance(seen[0].output, Tensor)}
    return once, mixtures.added

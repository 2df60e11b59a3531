"""torch's attention module: its heads, and the channels that it reads and puts out, as removable units.

It keeps the number of its heads and the width of what it reads in one attribute, so what was cut is replaced by a
plain module, see `with_fewer_heads`; that knows the ways in which the example called it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from archgrad.choices.channels import Coupling
from archgrad.choices.fewer_heads import AttentionCall
from archgrad.spaces.slim.dependency import Labels, Walk
from archgrad.spaces.slim.recurrent import Cut, tie_features
from archgrad.spaces.slim.seeded_run import computed_weights
from archgrad.spaces.slim.trial import Removal, Trial

_MASKS = ("key_padding_mask", "attn_mask")
_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_HEADS, _QUERIES, _VALUES = ".heads", ".queries.channels", ".values.channels"  # as gates are called
Calls = dict[str, set[AttentionCall | str]]  # by path, the ways in which a module is called


def is_torch_attention(module: nn.Module) -> bool:
    """Whether this is torch's attention module in a form for which there is a replacement."""
    own = isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward
    if not own or computed_weights("", module) or parametrize.is_parametrized(module.out_proj):  # type: ignore[arg-type]
        return False
    return module.bias_k is None and not module.add_zero_attn


def attention_sides(module: nn.Module) -> dict[str, Cut]:
    """By side what is cut along the channels that the module reads."""
    names = [n for n in ("in_proj_weight", *_PROJECTIONS) if getattr(module, n, None) is not None]
    return {f"in {name}": (getattr(module, name).shape[1], ((name, 1),), ()) for name in names}


def attention_hooks(path: str, module: nn.Module, sides: Mapping[str, Labels], walk: Walk, calls: Calls) -> list[Any]:
    """Follow channels through an attention module as a whole; note how it is called.

    Args:
        path: of the module.
        module: the module.
        sides: labels of what it reads, and as "out" of what it puts out.
        walk: the run; it looks at no operator inside the module.
        calls: takes the way in which it is called.
    """
    where = f"{path or 'forward'} ({type(module).__name__})"

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        walk.paused += 1

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        walk.paused -= 1
        bound = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs)
        bound.apply_defaults()
        way = call_of(bound.arguments)
        calls.setdefault(path, set()).add(way)
        several = "it is called in several ways" if len(calls[path]) > 1 else way if isinstance(way, str) else ""
        for labels in sides.values() if several else ():
            walk.components.freeze(labels, f"{where} keeps the width of what it reads and puts out: {several}")
        inputs = [bound.arguments[name] for name in ("query", "key", "value")]
        read = [labels for side, labels in sides.items() if side != "out"]
        for x, labels in zip(inputs, read * (3 // len(read)), strict=True):
            walk.freeze(x, f"{where} takes these channels for steps or examples", axes=range(x.dim() - 1))
            tie_features(walk, x, labels, f"{where} reads a fixed number of channels")
        for x in [bound.arguments[name] for name in _MASKS]:
            if x is not None:
                walk.freeze(x, f"{where} adds these to the scores of attention")
        walk.note(output[0], {output[0].dim() - 1: [sides["out"]]})

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]


def keep_places(path: str, module: nn.Module, walk: Walk) -> Any:
    """A hook on attention for which there is no replacement: steps and examples, which its work goes with, stay."""

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where = f"{path or 'forward'} ({type(module).__name__})"
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                walk.freeze(x, f"{where} takes these channels for steps or examples", axes=range(x.dim() - 1))

    return module.register_forward_pre_hook(enter, with_kwargs=True)


def torch_heads(trial: Trial, calls: Calls, frozen: dict[str, str], is_kept: Callable[[str], bool]) -> list[Removal]:
    """Removals of the heads of torch's own attention modules, to be tried with all others.

    Args:
        trial: where they will be tried.
        calls: how each is called.
        frozen: the reason of each; that of one with a removal is taken out.
        is_kept: whether a module stays as it is.
    """
    removals = []
    for path, ways in calls.items():
        module = trial.network.get_submodule(path)
        assert isinstance(module, nn.MultiheadAttention)
        fused, lone = module._qkv_same_embed_dim, module.num_heads < 2
        if is_kept(path) or (lone and not (fused and module.head_dim > 1)):
            frozen[path] = "kept at your wish (keep=)" if is_kept(path) else "it has one head, which has to stay"
            continue
        if not path:
            frozen[path] = "it is the whole network; as a part of one its heads can be removed"
            continue
        way = next(iter(ways))
        if isinstance(way, str) or len(ways) > 1:
            several = "it is called in several ways" if len(ways) > 1 else way
            frozen[path] = f"its heads cannot be removed: {several}"
            continue
        if _is_shared(trial.network, module) or _is_shared(trial.network, module.out_proj):
            continue
        weights = ("in_proj_weight",) if fused else _PROJECTIONS
        places = torch.arange(module.num_heads).repeat_interleave(module.head_dim)
        makes = tuple((name, 0) for name in (*weights, "in_proj_bias") if getattr(module, name) is not None)
        heads = Removal(f"{path}{_HEADS}", [
            Coupling(path, "heads", places.repeat(3) if fused else places, makes, attention=way),
            Coupling(path, "param num_heads", torch.arange(module.num_heads), (), ("num_heads",)),
            Coupling(f"{path}.out_proj", "in", places, (("weight", 1),), ("in_features",)),
        ])  # fmt: skip
        removals += [] if lone else [heads]
        if fused and module.head_dim > 1:
            removals += _within_heads(path, module, makes, way)
        frozen.pop(path, None)
    return removals


def _within_heads(
    path: str, module: nn.MultiheadAttention, makes: tuple[tuple[str, int], ...], way: AttentionCall
) -> list[Removal]:
    """Removals of places within heads: of queries and keys together, and of values."""
    every, inner = torch.arange(module.head_dim), torch.arange(module.head_dim).repeat(module.num_heads)
    none = torch.full_like(inner, -1)
    paired = [
        Coupling(path, "param channels", torch.cat([inner, inner, none]), makes, attention=way),
        Coupling(path, "param product", torch.cat([inner, none, none]), gated=makes),
        *(Coupling(path, f"rows {w}", every, work=(f"in_proj_weight {w}", 1.0)) for w in ("queries", "keys")),
        Coupling(path, "rows scores", every, work=("product scores", 0.5)),
    ]
    values = [
        Coupling(path, "param channels", torch.cat([none, none, inner]), makes, attention=way),
        Coupling(f"{path}.out_proj", "in", inner, (("weight", 1),), ("in_features",)),
        Coupling(path, "rows values", every, work=("in_proj_weight values", 1.0)),
        Coupling(path, "rows sums", every, work=("product sums", 0.5)),
    ]
    return [Removal(f"{path}{_QUERIES}", paired), Removal(f"{path}{_VALUES}", values)]


def named_again(network: nn.Module, removals: Sequence[Removal]) -> list[Removal]:
    """Removals of attention that lost heads or channels before, named as those of torch's own module."""
    cut = [p for p, m in network.named_modules() if isinstance(m, fx.GraphModule) and hasattr(m, "in_proj_weight")]
    named = []
    for removal in removals:
        for path in cut:
            if removal.name.startswith(f"{path}.in_proj_weight"):
                reads = any(c.module == f"{path}.out_proj" for c in removal.couplings)
                lone = network.get_submodule(path).num_heads == 1
                within = _VALUES if reads else _QUERIES
                removal = replace(removal, name=path + (within if lone or ".channels" in removal.name else _HEADS))
        named.append(removal)
    return named


def _is_shared(network: nn.Module, module: nn.Module) -> bool:
    """Whether the network has this module, or one of its own parameters, in another place too."""
    own = {id(p) for p in module.parameters(recurse=False)}
    places = [m for _, m in network.named_modules(remove_duplicate=False)]
    return sum(m is module or any(id(p) in own for p in m.parameters(recurse=False)) for m in places) > 1


def call_of(given: Mapping[str, Any]) -> AttentionCall | str:
    """How an attention module is called, or why that cannot be written for fewer heads."""
    kinds = ["" if given[n] is None else "bool" if given[n].dtype == torch.bool else "float" for n in _MASKS]
    if given["query"].dim() != 3:
        return "its inputs have no batch dimension"
    if given["attn_mask"] is not None and given["attn_mask"].dim() != 2:
        return "it is given a mask for each head"
    weights = "none" if not given["need_weights"] else "mean" if given["average_attn_weights"] else "each"
    return AttentionCall(kinds[0], kinds[1], weights)

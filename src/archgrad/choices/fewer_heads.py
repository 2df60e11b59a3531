"""torch's attention module with fewer heads, or channels in them, than its width allows, in torch's operators."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from archgrad.choices.graph_numbers import stand_in

_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
WEIGHTS = ("in_proj_weight", *_APART, "bias_k", "bias_v")


@dataclass(frozen=True)
class AttentionCall:
    """How a network calls its `nn.MultiheadAttention`, which its replacement is written for.

    Attributes:
        padding: whether it gives a `key_padding_mask`: "", "bool" or "float".
        mask: the same of `attn_mask`, [T, S].
        weights: what it takes of the weights: "none", "mean" over heads, or "each" head's.
    """

    padding: str = ""
    mask: str = ""
    weights: str = "none"


def with_fewer_heads(attention: nn.MultiheadAttention, call: AttentionCall) -> fx.GraphModule:
    """A plain module that computes what `attention` does with the heads, and channels in them, of its cut weights.

        head_h = softmax(q_h k_h' / sqrt(d) + masks) v_h,   y = W_out [head_1 ... head_H] + b_out

    torch's own takes H * d for the width of its inputs, and the scale from it; here d in the scale stays what it was.
    The replacement has the same parameters by the same names and
    takes the same arguments, masks only where `call` has them.

    Args:
        attention: with cut weights, and `num_heads` the heads that are left.
        call: how it is called; other ways raise an AssertionError.
    """
    root = nn.Module()
    for name, parameter in attention._parameters.items():
        root.register_parameter(name, parameter)
    root.out_proj = nn.Linear(1, 1, bias=attention.out_proj.bias is not None, device="meta")
    root.out_proj.weight, root.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias
    root.out_proj.out_features, root.out_proj.in_features = attention.out_proj.weight.shape
    root.drop, root.num_heads = nn.Dropout(attention.dropout), attention.num_heads
    vars(root)["rows"] = tuple(attention.num_heads * w for w in _widths(attention))
    graph = fx.Graph()
    query, key, value = (graph.placeholder(name) for name in ("query", "key", "value"))
    padding = graph.placeholder("key_padding_mask", default_value=None)
    graph.placeholder("need_weights", default_value=True)
    mask = graph.placeholder("attn_mask", default_value=None)
    graph.placeholder("average_attn_weights", default_value=True)
    graph.placeholder("is_causal", default_value=False)
    q, k, v = _projections(graph, attention, (query, key, value))
    added = _added(graph, call, (padding, mask), q)
    if call.weights == "none" and not attention.dropout:
        scale = {} if _widths(attention)[0] == attention.head_dim else {"scale": attention.head_dim**-0.5}
        heads = graph.call_function(F.scaled_dot_product_attention, (q, k, v, added), scale)
        given = None
    else:
        scores = graph.call_function(torch.matmul, (q, graph.call_method("transpose", (k, -2, -1))))
        scores = graph.call_function(operator.mul, (scores, attention.head_dim**-0.5))
        scores = scores if added is None else graph.call_function(operator.add, (scores, added))
        softmax = torch._safe_softmax if call.weights == "none" else torch.softmax  # as torch's module does
        each = graph.call_module("drop", (graph.call_function(softmax, (scores, -1)),))
        heads = graph.call_function(torch.matmul, (each, v))
        given = each if call.weights == "each" else None
        given = graph.call_method("mean", (each, 1)) if call.weights == "mean" else given
    joined = graph.call_method("flatten", (graph.call_method("transpose", (heads, 1, 2)), 2))
    y = graph.call_module("out_proj", (joined,))
    y = y if attention.batch_first else graph.call_method("transpose", (y, 0, 1))
    graph.output((y, given))
    module = fx.GraphModule(root, graph)
    stand_in(module, attention)
    return module.train(attention.training)


def draw_anew(attention: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Draw an attention module's own weights (those of `WEIGHTS` that it has) as torch does, and zero its biases."""
    for name, weight in weights.items():
        (nn.init.xavier_normal_ if name.startswith("bias") else nn.init.xavier_uniform_)(weight)
    biases = (getattr(attention, "in_proj_bias", None), getattr(getattr(attention, "out_proj", None), "bias", None))
    for bias in biases:
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            nn.init.zeros_(bias)


def _projections(
    graph: fx.Graph, attention: nn.MultiheadAttention, inputs: tuple[fx.Node, fx.Node, fx.Node]
) -> list[fx.Node]:
    """Queries, keys and values, [B, H, T, d]."""
    # Numbers of the module's own, so that heads and channels can go again.
    rows, heads = (graph.create_node("get_attr", name) for name in ("rows", "num_heads"))
    if attention._qkv_same_embed_dim:
        weight = graph.call_function(torch.split, (graph.get_attr("in_proj_weight"), rows))
        weights = [graph.call_function(operator.getitem, (weight, i)) for i in range(3)]
    else:
        weights = [graph.get_attr(name) for name in _APART]
    biases: list[fx.Node | None] = [None] * 3
    if attention.in_proj_bias is not None:
        bias = graph.call_function(torch.split, (graph.get_attr("in_proj_bias"), rows))
        biases = [graph.call_function(operator.getitem, (bias, i)) for i in range(3)]
    made = []
    for x, w, b in zip(inputs, weights, biases, strict=True):
        x = x if attention.batch_first else graph.call_method("transpose", (x, 0, 1))
        y = graph.call_function(F.linear, (x, w, b))
        apart = graph.call_method("unflatten", (y, -1, (heads, -1)))
        made.append(graph.call_method("transpose", (apart, 1, 2)))
    return made


def _widths(attention: nn.MultiheadAttention) -> tuple[int, int, int]:
    """Channels of a head of queries, keys and values."""
    values = attention.out_proj.weight.shape[1] // attention.num_heads
    if not attention._qkv_same_embed_dim:
        return values, values, values
    keys = (attention.in_proj_weight.shape[0] // attention.num_heads - values) // 2
    return keys, keys, values


def _added(graph: fx.Graph, call: AttentionCall, given: tuple[fx.Node, fx.Node], like: fx.Node) -> fx.Node | None:
    """What the masks add to the scores, or None."""
    total: fx.Node | None = None
    names = ("key_padding_mask", "attn_mask")
    for name, node, kind in zip(names, given, (call.padding, call.mask), strict=True):
        if not kind:
            absent = graph.call_function(operator.eq, (node, None))  # `is` is lost when a module is loaded again
            graph.call_function(torch._assert, (absent, f"{name} was not given when the heads were removed"))
            continue
        dtype = graph.call_function(getattr, (like, "dtype"))
        if kind == "bool":
            zeros = graph.call_function(torch.zeros_like, (node,), {"dtype": dtype})
            part = graph.call_method("masked_fill", (zeros, node, float("-inf")))
        else:
            floats = graph.call_function(torch.is_floating_point, (node,))
            graph.call_function(torch._assert, (floats, f"{name} held floats when the heads were removed"))
            part = graph.call_method("to", (node, dtype))
        if name == "key_padding_mask":
            part = graph.call_method("unsqueeze", (graph.call_method("unsqueeze", (part, 1)), 1))
        total = part if total is None else graph.call_function(operator.add, (total, part))
    return total

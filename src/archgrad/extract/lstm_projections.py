"""LSTM with projections, which ONNX does not have, written as LSTM without."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

_LSTM = torch.ops.aten.lstm.input
_ZEROS = (torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default)


def without_projections(program: ExportedProgram) -> ExportedProgram:
    """The same program, where an LSTM with projections has become one without.

        u_t = o_t tanh(c_t),  h_t = R u_t,   so that   W_hh h_(t-1) = (W_hh R) u_(t-1)

    The LSTM of u has the recurrent weights W_hh R, and R stands behind it. A first state h_0 that is not zero comes
    in as an input at the first step, weighted by W_hh. Other programs are returned as they are.
    """
    nodes = [node for node in program.graph.nodes if node.target is _LSTM]
    if not any(_projected(node.args) for node in nodes):
        return program
    from_zero = all(_is_zero(node.args[1][0]) for node in nodes)
    plain: ExportedProgram = program.run_decompositions({_LSTM: functools.partial(_plain, from_zero=from_zero)})
    return plain


def _projected(arguments: Sequence[Any]) -> bool:
    _, _, parameters, biases, layers, _, _, both, _ = arguments
    return bool(len(parameters) == layers * (2 if both else 1) * (5 if biases else 3))


def _is_zero(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and node.target in _ZEROS


def _plain(*arguments: Any, from_zero: bool) -> Any:
    """What `aten.lstm.input` computes, without projections; in place of torch's own decomposition."""
    if not _projected(arguments):
        return NotImplemented
    x, (h_first, c_first), parameters, biases, layers, _, _, both, batch_first = arguments
    ways, each = (2 if both else 1), (5 if biases else 3)
    last_h, last_c = [], []
    for layer in range(layers):
        mine = slice(layer * ways, (layer + 1) * ways)
        sets = [parameters[i * each : (i + 1) * each] for i in range(*mine.indices(layers * ways))]
        h, c = h_first[mine], c_first[mine].clone()
        flat: list[Tensor] = []
        for way, (w_in, w_hidden, *bias, projection) in enumerate(sets):
            first = [] if from_zero else [w_hidden if way == other else 0 * w_hidden for other in range(ways)]
            flat += [torch.cat([w_in, *first], 1), w_hidden @ projection, *bias]
        zeros = c.new_zeros(ways, c.shape[1], c.shape[2])
        given = x if from_zero else _with_first_state(x, h, batch_first=batch_first)
        y, u, c = _LSTM(given, [zeros, c], flat, biases, 1, 0.0, False, both, batch_first)
        x = torch.cat([part @ s[-1].T for part, s in zip(y.chunk(ways, -1), sets, strict=True)], -1)
        last_h += [u[way] @ s[-1].T for way, s in enumerate(sets)]
        last_c.append(c)
    return x, torch.stack(last_h), torch.cat(last_c)


def _with_first_state(x: Tensor, h: Tensor, *, batch_first: bool) -> Tensor:
    """The inputs with columns for the first states: of the way back they stand at the last step."""
    steps = 1 if batch_first else 0
    columns = []
    for way, state in enumerate(h):
        state = state.unsqueeze(steps)
        rest = torch.zeros_like(state).repeat_interleave(x.shape[steps] - 1, steps)
        columns.append(torch.cat([rest, state] if way else [state, rest], steps))
    return torch.cat([x, *columns], -1)

"""Rows of embeddings that the user's data never reads, removed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from archgrad.argument_types import checked
from archgrad.choices.gate import Gate
from archgrad.copy_and_run import copied, evaluating
from archgrad.errors import DataError, ModelError, one_line
from archgrad.tasks.task import Inputs, call, tensors

Network = TypeVar("Network", bound=nn.Module)
log = logging.getLogger(__name__)


@checked
def trim_vocabulary(
    network: Network, batches: Iterable[Inputs], *, tables: Sequence[str] = (), unseen: int | None = None
) -> Network:
    """A copy of a network whose embeddings have only the rows that some batch reads.

    It takes the same ids as before: in the place of an embedding stands a plain module with the buffer `rows` [V],
    the row of each id, and the smaller embedding `table`. For ids that some batch holds it computes exactly what
    `network` computes.

    Args:
        network: any network with `torch.nn.Embedding` layers; it is not changed.
        batches: all inputs that it is to be used on, each what the network takes: a tensor, a tuple, or a dict by
            name. The network runs on every one of them.
        tables: paths of the embeddings to trim. Default: those that are called with an input of the network as it
            stands, and whose weight no other layer shares. Tables of positions are not among them.
        unseen: the id whose row ids read that no batch holds, such as that of the unknown word. Without it they raise
            an `IndexError` on a CPU.

    Raises:
        ModelError: the network has gates or is an embedding; there is no such table, or another layer shares its
            weight, as an output layer does, which needs all rows; its weight is computed from others; or the smaller
            network does not compute the same on the batches.
        DataError: there is no batch, or the network does not run on one.

    Example:
        >>> import torch, archgrad as ag
        >>> net = torch.nn.Sequential(torch.nn.Embedding(100, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> small = ag.trim_vocabulary(net, [torch.tensor([[3, 98, 5]]), torch.tensor([[5, 7, 3]])])
        >>> ids = torch.tensor([[7, 7, 98]])
        >>> small[0].table.weight.shape, torch.equal(small(ids), net(ids))
        (torch.Size([4, 4]), True)
    """
    if isinstance(batches, Tensor):
        raise DataError("batches is one tensor; give a list of inputs, such as [ids]")
    if any(isinstance(module, Gate) for module in network.modules()):
        raise ModelError(f"{type(network).__name__} has gates: trim the vocabulary first, then slim")
    if isinstance(network, nn.Embedding):
        raise ModelError("the network is an embedding itself; trim it inside the network that reads it")
    batches = list(batches)
    network = copied(network)  # an embedding with max_norm changes its weight when it is read
    read = _read(network, batches)
    modules, shared = dict(network.named_modules()), _shared(network)
    absent = [path for path in tables if not _is_plain(modules.get(path))]
    if absent:
        known = [path for path, module in modules.items() if _is_plain(module)]
        raise ModelError(
            f"tables names {absent}; the torch.nn.Embedding layers of {type(network).__name__} are {known}"
        )
    tied = [path for path in tables if path in shared]
    if tied:
        raise ModelError(
            f"another layer shares the weight of {tied} and needs all its rows; leave it out of tables=, or give the "
            f"embedding a weight of its own"
        )
    chosen = tables or [path for path, (_, given) in read.items() if given and path not in shared]
    if not chosen:
        raise ModelError(
            f"{type(network).__name__} has no torch.nn.Embedding that reads an input as it stands and shares its "
            f"weight with no other layer; name those to trim in tables="
        )
    computed = [
        p for p in chosen if parametrize.is_parametrized(modules[p]) or "weight" not in modules[p]._parameters
    ]
    if computed:
        raise ModelError(
            f"the weight of {computed} is computed from other parameters, by weight_norm or a parametrization; make "
            f"it plain first with torch.nn.utils.remove_weight_norm(module) or "
            f'torch.nn.utils.parametrize.remove_parametrizations(module, "weight"), or leave it out of tables='
        )
    smaller = copied(network)
    for path in chosen:
        ids, _ = read.get(path, (set(), False))
        table = smaller.get_submodule(path)
        assert isinstance(table, nn.Embedding)
        parent, _, child = path.rpartition(".")
        setattr(smaller.get_submodule(parent), child, _trimmed(table, ids, unseen))
        log.info("%s: %d of %d rows are read", path, len(ids), table.num_embeddings)
    _compare(network, smaller, batches)
    return smaller


def _compare(network: nn.Module, smaller: nn.Module, batches: Sequence[Inputs]) -> None:
    """Raise ModelError where the smaller network does not compute the same, bit for bit."""
    reason = "it gives other outputs"
    with evaluating(network), evaluating(smaller):
        for batch in batches:
            try:
                with torch.random.fork_rng():
                    wanted = tree_leaves(call(network, batch))
                with torch.random.fork_rng():
                    got = tree_leaves(call(smaller, batch))
                same = len(wanted) == len(got) and all(
                    a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
                    for a, b in zip(wanted, got, strict=True)
                    if isinstance(a, Tensor) and isinstance(b, Tensor)
                )
            except Exception as error:  # noqa: BLE001 - a user's forward may raise anything
                same, reason = False, one_line(error)
            if not same:
                raise ModelError(
                    f"with fewer rows {type(network).__name__} does not compute the same on the batches ({reason}). "
                    f"Its forward may read an embedding's weight or size itself; leave that embedding out of tables="
                )


def _is_plain(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward


def _read(network: nn.Module, batches: Iterable[Inputs]) -> dict[str, tuple[set[int], bool]]:
    """By path of an embedding the rows that batches read, and whether the ids are always an input as it stands."""
    read: dict[str, tuple[set[int], bool]] = {}
    inputs: list[Tensor] = []
    handles = []
    for path, module in network.named_modules():
        if _is_plain(module):

            def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                ids = args[0] if args else kwargs["input"]
                known, given = read.get(path, (set(), True))
                known.update(ids.unique().tolist())
                read[path] = known, given and any(x.shape == ids.shape and torch.equal(x, ids) for x in inputs)

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    ran = False
    try:
        with evaluating(network):
            for batch in batches:
                ran = True
                try:
                    inputs[:] = tensors(batch)
                    call(network, batch)
                except Exception as error:  # a user's forward may raise anything
                    raise DataError(
                        f"{type(network).__name__} does not run on a batch ({one_line(error)}). A batch is what the "
                        f"network takes, inputs alone: batches=[x for x, _ in loader], say, with ids as integers"
                    ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise DataError("batches is empty: give all inputs on which the network is to be used")
    return read


def _shared(network: nn.Module) -> set[str]:
    """Paths of embeddings whose weight stands elsewhere too."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name.removesuffix(".weight") for same in names.values() if len(same) > 1 for name in same}


def _trimmed(table: nn.Embedding, ids: set[int], unseen: int | None) -> fx.GraphModule:
    """A plain module that reads what is left of the table."""
    if unseen is not None and not 0 <= unseen < table.num_embeddings:
        raise ModelError(f"unseen={unseen} was given. Allowed is an id from 0 to {table.num_embeddings - 1}.")
    fixed = {i for i in (table.padding_idx, unseen) if i is not None}
    kept = torch.tensor(sorted(ids | fixed), dtype=torch.long, device=table.weight.device)
    rows = kept.new_full((table.num_embeddings,), len(kept))  # past the end, so that reading it fails
    rows[kept] = torch.arange(len(kept), device=kept.device)
    if unseen is not None:
        rows[rows == len(kept)] = int(rows[unseen])
    root, left = nn.Module(), copy.copy(table)
    left._parameters = {"weight": nn.Parameter(table.weight.detach()[kept], requires_grad=table.weight.requires_grad)}
    left.num_embeddings = len(kept)
    left.padding_idx = None if table.padding_idx is None else int(rows[table.padding_idx])
    root.table = left
    root.register_buffer("rows", rows)
    graph = fx.Graph()
    # As an embedding reads its rows, so that negative ids are refused as before.
    rows_of = graph.call_method("unsqueeze", (graph.get_attr("rows"), 1))
    read = graph.call_function(torch.embedding, (rows_of, graph.placeholder("input")))
    places = graph.call_method("squeeze", (read, -1))
    graph.output(graph.call_module("table", (places,)))
    return fx.GraphModule(root, graph).train(table.training)

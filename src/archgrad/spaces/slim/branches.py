"""Branches that can be removed: those of residual blocks, terms of a list of modules, and modules that are added."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from archgrad.choices.channels import Vanishing
from archgrad.choices.standardized_weights import standardized_weight
from archgrad.copy_and_run import copied, in_mode
from archgrad.spaces.slim.parted_branches import SCALING, Use, keeps_states, parted_branches, removal_of, replacement
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, OperatorMode, plain_kernels, run
from archgrad.spaces.slim.trial import Removal, Trial

# What a block may apply to the sum of its branch and its skip, besides its own activation modules.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)

PLACES = 8  # along each spatial axis, or of a sequence, that are enough to compare a block with and without
MOST_LAYERS = 16  # a block with more is a whole stage
# Layers whose output is scaled by scaling their weight and bias.
SCALABLE = (_ConvNd, nn.Linear, _NormBase, nn.GroupNorm)


def branches(trial: Trial, gated: set[str], experts: Collection[str] = ()) -> Iterator[Removal]:
    """The branches that may vanish, for the trial to try in the whole network.

    A residual block qualifies if, with one layer's weight and bias at zero, it equals the identity, a shortcut
    inside it, an activation, or a shortcut and an activation, on random inputs. A module in a `ModuleList` or
    `ModuleDict` qualifies if the block around it computes the same without it as with its last layer at zero. In a
    sum that nothing else is added to, the smallest term stays. Any other module inside a block whose output is added
    to something else, such as the attention and the MLP of a transformer block, may become zeros. Blocks that are
    built alike are looked at once.

    Args:
        trial: a scrambled copy of the network.
        gated: paths of the layers that have gates; a residual block without any is left alone.
        experts: paths of modules that become zeros by themselves, and are no terms that a list can do without.
    """
    taken: list[str] = []
    known: dict[object, tuple[tuple[str, tuple[str | nn.Module, ...]] | None, dict[str, str]]] = {}
    for path, x in _block_inputs(trial).items():
        block = trial.network.get_submodule(path)
        inside = [g.removeprefix(f"{path}.") for g in gated if g.startswith(f"{path}.")]
        if not path or not inside or any(t.startswith(f"{path}.") or path.startswith(f"{t}.") for t in taken):
            continue
        key = (repr(block), tuple(x.shape), frozenset(inside))
        if key not in known:
            with plain_kernels():
                x = _noise_for(in_mode(block), x)
                branch = _branch(block, x)
                known[key] = (
                    branch,
                    {} if branch else _terms(block, x, inside, [e.removeprefix(f"{path}.") for e in experts]),
                )
        branch, terms = known[key]
        if branch:
            last, parts = branch
            taken.append(path)
            yield removal_of(trial.network, f"{path}.{last}", Vanishing(path, parts))
        for term, last in terms.items():
            taken.append(path)
            yield removal_of(trial.network, f"{path}.{last}", Vanishing(f"{path}.{term}", (), term=True))
    yield from _addends(trial, taken, experts)
    yield from parted_branches(trial, [*taken, *experts])


def _noise_for(block: nn.Module, x: Tensor) -> Tensor:
    """Noise that a block runs on like x: of fewer places, where it takes that."""
    shape = [*x.shape[:1], *(min(n, PLACES) if 0 < axis < x.dim() - 1 and x.dim() == 3 else n
                             for axis, n in enumerate(x.shape[1:], 1))]  # fmt: skip
    shape = [*x.shape[:2], *(min(n, PLACES) for n in x.shape[2:])] if x.dim() > 3 else shape
    for size in (shape, x.shape):
        noise = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x)
        if _output(block, noise) is not None:
            break
    return noise


def _block_inputs(trial: Trial) -> dict[str, Tensor]:
    """The input of every block that is called once, with one tensor, and keeps the number of axes."""
    calls: dict[str, list[Tensor | None]] = {}
    handles = []
    for path, module in trial.network.named_modules():
        # A plain Sequential adds nothing to anything; it has no skip of its own.
        if any(True for _ in module.children()) and type(module).forward is not nn.Sequential.forward:

            def note(
                _m: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object, path: str = path
            ) -> None:
                x = args[0] if len(args) == 1 and not kwargs else None
                alike = isinstance(x, Tensor) and isinstance(out, Tensor) and x.dim() == out.dim()
                calls.setdefault(path, []).append(x if alike and isinstance(x, Tensor) else None)

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with plain_kernels():
            run(in_mode(trial.network), trial.inputs[-1 if trial.large else 0])  # the cheapest
    finally:
        for handle in handles:
            handle.remove()
    return {path: seen[0] for path, seen in calls.items() if len(seen) == 1 and seen[0] is not None}


def _is_scalable(module: nn.Module) -> bool:
    """Whether a layer's output is proportional to its parameters; a standardized weight alone is not."""
    if not isinstance(module, SCALABLE) or module.weight is None:
        return False
    how = standardized_weight(module)
    return how is None or bool(how.gain)


def _branch(block: nn.Module, x: Tensor) -> tuple[str, tuple[str | nn.Module, ...]] | None:
    """(last layer of the branch, what stays), if the block is one branch beside a skip."""
    leaves = [n for n, m in block.named_modules() if n and _is_scalable(m)]
    if len(leaves) > MOST_LAYERS:
        return None
    rests = list(_rests(block, x))
    for name in leaves[::-1]:
        with _at_zero(block.get_submodule(name)):
            y = _output(block, x)
        if y is None:
            return None
        for parts, rest in rests:
            belongs = any(isinstance(p, str) and (name == p or name.startswith(f"{p}.")) for p in parts)
            if not belongs and rest.shape == y.shape and torch.equal(rest, y):
                return name, parts
    return None


def _rests(block: nn.Module, x: Tensor) -> Iterator[tuple[tuple[str | nn.Module, ...], Tensor]]:
    """What may stay of a block, with its output on x: the simplest first."""
    children = dict(block.named_children())
    acts: list[str | nn.Module] = [n for n, m in children.items() if isinstance(m, ACTIVATIONS)]
    acts += [a() for a in ACTIVATIONS]
    shortcuts: list[tuple[tuple[str, ...], Tensor]] = [((), x)]
    with torch.no_grad():
        for name, child in children.items():
            if isinstance(child, ACTIVATIONS):
                continue
            try:
                y = child(x.clone())
            except NETWORK_ERRORS:
                continue
            if isinstance(y, Tensor):
                shortcuts.append(((name,), y))
        for parts, y in shortcuts:
            yield parts, y
            for act in acts:
                module = block.get_submodule(act) if isinstance(act, str) else act
                yield (*parts, act), module(y.clone())


def _terms(block: nn.Module, x: Tensor, gated: list[str], experts: Collection[str]) -> dict[str, str]:
    """{term: its last layer}, paths inside the block, for the terms of a sum that it can do without all together."""
    sizes = {
        f"{name}.{child}": sum(p.numel() for p in term.parameters())
        for name, container in block.named_children()
        if isinstance(container, (nn.ModuleList, nn.ModuleDict))
        for child, term in container.named_children()
        if f"{name}.{child}" not in experts
    }
    found: dict[str, str] = {}
    left, whole = copied(block), _output(block, x)
    for term in sorted(sizes, key=lambda t: -sizes[t]):
        layers = [n for n, m in block.named_modules() if n.startswith(f"{term}.") and _is_scalable(m)]
        if len(layers) > MOST_LAYERS or not any(g.startswith(f"{term}.") for g in gated):
            continue
        without = copied(left)
        parent, _, child = term.rpartition(".")
        delattr(without.get_submodule(parent), child)
        y = _output(without, x)
        if y is None or whole is None or torch.equal(y, whole):
            continue
        last = next((n for n in layers[::-1] if _silences(left.get_submodule(n), left, x, y)), None)
        if last is not None:
            found[term], left, whole = last, without, y
    return found


def _silences(layer: nn.Module, block: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether the block computes y with this layer at zero."""
    with _at_zero(layer):
        silent = _output(block, x)
    return silent is not None and torch.equal(silent, y)


@contextlib.contextmanager
def _at_zero(layer: nn.Module) -> Iterator[None]:
    """Inside, a layer's parameters are zero."""
    kept = [parameter.detach().clone() for parameter in layer.parameters()]
    with torch.no_grad():
        try:
            for parameter in layer.parameters():
                parameter.zero_()
            yield
        finally:
            for parameter, values in zip(layer.parameters(), kept, strict=True):
                parameter.copy_(values)


def _output(block: nn.Module, x: Tensor) -> Tensor | None:
    """What the block computes; None if it fails."""
    try:
        with torch.no_grad():
            y = block(x.clone())
    except NETWORK_ERRORS:
        return None
    return y if isinstance(y, Tensor) else None


class _Sums(OperatorMode):
    """Notes which tensors of some modules are added, as they are or scaled, to no parameter, and which are read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins: dict[int, tuple[Tensor, str]] = {}  # by identity: the tensor, which lives on, and its module
        self.added: set[str] = set()
        self.read: set[str] = set()  # by anything else

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].strip("_")
        given = [x for x in args if isinstance(x, Tensor)]
        known = [self.origins[id(x)][1] for x in given if id(x) in self.origins]
        if name == "add" and len(given) == 2 and given[0].shape == given[1].shape and len(set(known)) == len(known):
            plain = not any(isinstance(x, nn.Parameter) for x in given)
            self.added.update(known if plain else ())
        elif name in SCALING and len(known) == 1 and isinstance(result, Tensor):
            self.origins[id(result)] = (result, known[0])
        else:
            self.read.update(known)
        return result


def _addends(trial: Trial, taken: list[str], experts: Collection[str]) -> Iterator[Removal]:
    """Modules that are added to what passes them by, the outermost first."""
    known: dict[object, str] = {}
    for path, use in _added_modules(trial).items():
        if path in experts or any(t == path or t.startswith(f"{path}.") or path.startswith(f"{t}.") for t in taken):
            continue
        module, rest = trial.network.get_submodule(path), replacement(trial.network.get_submodule(path), use)
        key = (repr(module), use.made.shape)
        if key not in known:
            known[key] = silencer(copied(module), use)
        if rest is not None and known[key]:
            taken.append(path)
            yield removal_of(trial.network, f"{path}.{known[key]}", Vanishing(path, (rest,)))


def _added_modules(trial: Trial) -> dict[str, Use]:
    """Modules of several layers that are called once and whose output is added to something else."""
    sums = _Sums()
    calls: dict[str, list[Use]] = {}
    handles = []
    for path, module in trial.network.named_modules():
        # With one layer alone, as the ways of RepVGG have, it is no depth of its own. One that knows its number keeps
        # states of earlier tokens by it, from the first of which generation reads how many there were.
        if path and sum(p.dim() > 1 for p in module.parameters()) > 1 and not keeps_states(module):

            def note(
                _m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, path: str = path
            ) -> None:
                calls.setdefault(path, []).append(Use(args, kwargs, out))
                made = out[0] if isinstance(out, tuple) and out else out
                if isinstance(made, Tensor):
                    sums.origins[id(made)] = (made, path)

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with plain_kernels(), sums:
            run(in_mode(trial.network), trial.inputs[-1 if trial.large else 0])
    finally:
        for handle in handles:
            handle.remove()
    return {path: uses[0] for path, uses in calls.items() if len(uses) == 1 and path in sums.added - sums.read}


def silencer(module: nn.Module, use: Use) -> str:
    """The last of a module's layers that makes its output zeros when its own weight and bias are; "" for none."""
    layers: list[str] = [n for n, m in module.named_modules() if _is_scalable(m)]
    for name in layers[::-1] if len(layers) <= MOST_LAYERS else ():
        try:
            with _at_zero(module.get_submodule(name)), torch.no_grad(), plain_kernels():
                made = module(*use.args, **use.kwargs)
        except NETWORK_ERRORS:
            return ""
        made = made[0] if isinstance(made, tuple) else made
        if isinstance(made, Tensor) and made.numel() and not bool(made.any()):
            return name
    return ""

"""Places where a network may vary: `OpChoice`, `InputChoice`, `Gate`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from archgrad.choices.architecture import Pick
from archgrad.choices.channels import Coupling, Vanishing
from archgrad.errors import ArchitectureError, ChoiceError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Choice(nn.Module):
    """What all choices share: a name, a size, a live support and, once relaxed, a relaxation.

    Choices of one name are one decision: they share one relaxation and one support.

    Attributes:
        live: [size] bool, the support: candidates still alive. A dead candidate is never executed, nor is one
            whose weight is 0 and has no gradient.
        relaxation: from logits to mixing weights, or None before `relax` or `hold`.
        override: mixing weights used in place of the relaxation's inside a block of `archgrad.using`, else None.
    """

    live: Tensor

    def __init__(self, size: int, *, name: str) -> None:
        super().__init__()
        if size < 1:
            raise ChoiceError(f"choice {name!r} has {size} candidates; a choice has at least one")
        if not name:
            raise ChoiceError("a choice needs a name: its key in every Architecture")
        self.name = name
        self.size = size
        self.relaxation: nn.Module | None = None
        self.override: Tensor | None = None
        self.register_buffer("live", torch.ones(size, dtype=torch.bool))

    def mixing(self) -> Tensor | None:
        """[size] mixing weights ([B, size], a row an example, where `using` gave such); None without relaxation."""
        if self.override is not None:
            return self.override
        return None if self.relaxation is None else self.relaxation(self.live)

    def extra_repr(self) -> str:
        """Name and candidates, for the printed network."""
        return f"{self.name!r}, {int(self.live.sum())} of {self.size} alive"

    @property
    def pickable(self) -> Tensor:
        """[size] bool: what an architecture may pick by itself: the live candidates that are not barred."""
        return self.live

    @abstractmethod
    def picked(self, pick: Pick) -> Tensor:
        """[size] bool: what this pick keeps.

        Raises:
            ArchitectureError: the pick is none of this choice's.
        """

    @abstractmethod
    def sampled(self, generator: torch.Generator | None) -> Pick:
        """A pick drawn uniformly from the live candidates."""

    def _entries(self, pick: Pick) -> Tensor:
        """[size] bool from a tuple of indices."""
        if isinstance(pick, int) or not pick or max(pick) >= self.size:
            raise ArchitectureError(
                f"choice {self.name!r}: the pick is {pick!r}; allowed is a tuple of one or more different "
                f"indices from 0 to {self.size - 1}; was the architecture made for another space?"
            )
        kept = torch.zeros(self.size, dtype=torch.bool)
        kept[list(pick)] = True
        return kept

    def ready(self) -> Tensor:
        """`mixing()`, once it is sure that there is one.

        Raises:
            ChoiceError: the choice is neither relaxed nor held.
        """
        weights = self.mixing()
        if weights is None:
            raise ChoiceError(
                f"choice {self.name!r} is undecided: relax the space (archgrad.relax(space, archgrad.softmax)) "
                f"or hold it at an architecture (archgrad.hold(space, architecture)) before running it"
            )
        return weights


def _listed(given: Iterable[object], name: str) -> nn.ModuleList:
    found = nn.ModuleList()
    for one in given:
        if not isinstance(one, nn.Module):
            kind = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            raise ChoiceError(
                f"choice {name!r} holds {kind}; give torch.nn.Modules (for a function, one whose forward calls it)"
            )
        found.append(one)
    return found


class OpChoice(Choice):
    """One of several operations on the same input.

        y = sum over live candidates o of  w_o * op_o(x)

    Args:
        candidates: modules with the same input and output shapes, or {label: module}; their pick is an index.
            Or labels alone, for a decision whose operations another module owns and runs by `ready()`.
        name: key of the choice in an architecture.
        barred: labels of candidates that take part in a mixture but are never sampled or decided for, such as
            the operation "none" of the DARTS space.

    A candidate with an attribute `always_zero` that is True puts out zeros whatever it is given; it is not run
    beside others. For `scaling_norm` see `scaled`.
    """

    def __init__(
        self,
        candidates: Iterable[nn.Module] | Mapping[str, nn.Module] | Sequence[str],
        *,
        name: str,
        barred: Sequence[str] = (),
    ) -> None:
        listed = list(candidates)
        modules = list(candidates.values()) if isinstance(candidates, Mapping) else listed
        super().__init__(len(listed), name=name)
        alone = all(isinstance(entry, str) for entry in modules)
        self.candidates = _listed([] if alone else modules, name)
        self.labels = tuple(entry if isinstance(entry, str) else type(entry).__name__ for entry in listed)
        if strange := [label for label in barred if label not in self.labels]:
            raise ChoiceError(f"choice {name!r} bars {strange}, which it does not have; it has {list(self.labels)}")
        self.barred = tuple(barred)
        if len(set(self.barred)) == self.size:
            raise ChoiceError(f"choice {name!r} bars all its candidates; leave at least one to pick")

    def forward(self, *inputs: Tensor) -> Tensor:
        """The mixture of the live candidates; a candidate of constant weight 1 runs unscaled."""
        if not len(self.candidates):
            raise ChoiceError(f"choice {self.name!r} has labels alone; the module that owns its operations runs them")

        def run(i: int, weight: Tensor | float) -> Tensor:
            return scaled(self.candidates[i], inputs, weight)

        zeros = [i for i, candidate in enumerate(self.candidates) if getattr(candidate, "always_zero", None) is True]
        return mixture(
            self.ready(), run, live=self.live, labels=self.labels, name=f"choice {self.name!r}", zeros=zeros
        )

    @property
    def pickable(self) -> Tensor:
        """[size] bool: live and not barred; all that live where nothing else does."""
        allowed = self.live.clone()
        allowed[[self.labels.index(label) for label in self.barred]] = False
        return allowed if bool(allowed.any()) else self.live

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What scales the work of a module at `path` below this one: a sum of products of (choice, entry)."""
        return _own_share(self, path, "candidates")

    def picked(self, pick: Pick) -> Tensor:
        """[size] bool with one true entry."""
        if not isinstance(pick, int) or pick >= self.size:
            raise ArchitectureError(
                f"choice {self.name!r}: the pick is {pick!r}; allowed is an index from 0 to {self.size - 1}; "
                f"was the architecture made for another space?"
            )
        kept = torch.zeros(self.size, dtype=torch.bool)
        kept[pick] = True
        return kept

    def sampled(self, generator: torch.Generator | None) -> int:
        """One live candidate that is not barred, uniformly."""
        alive = self.pickable.nonzero().flatten().cpu()
        return int(alive[torch.randint(len(alive), (), generator=generator)])


class InputChoice(Choice):
    """Some of several inputs, each through an edge of its own if wanted, summed.

        y = sum over live inputs i of  w_i * edge_i(x_i)

    Args:
        size: number of inputs.
        keep: how many inputs an architecture keeps.
        name: key of the choice in an architecture.
        edges: one module an input; those of inputs that are dead or have weight 0 are not run.
    """

    def __init__(self, size: int, *, name: str, keep: int = 1, edges: Iterable[nn.Module] | None = None) -> None:
        super().__init__(size, name=name)
        if not 1 <= keep <= size:
            raise ChoiceError(f"choice {name!r} keeps {keep} of {size} inputs; allowed is 1 to {size}")
        # `archgrad.choices.subsets.topology` may leave the number free between the two.
        self.fewest = self.keep = keep
        self.edges = None if edges is None else _listed(edges, name)
        if self.edges is not None and len(self.edges) != size:
            raise ChoiceError(f"choice {name!r} has {size} inputs and {len(self.edges)} edges; give one an input")

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The mixture of the live inputs, all of one shape behind their edges."""
        if len(inputs) != self.size:
            raise ChoiceError(f"choice {self.name!r} takes {self.size} inputs, given {len(inputs)}")

        def run(i: int, weight: Tensor | float) -> Tensor:
            return scaled(nn.Identity() if self.edges is None else self.edges[i], (inputs[i],), weight)

        labels = [f"input {i}" for i in range(self.size)]
        return mixture(self.ready(), run, live=self.live, labels=labels, name=f"choice {self.name!r}")

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What scales the work of a module at `path` below this one: a sum of products of (choice, entry)."""
        return _own_share(self, path, "edges")

    def picked(self, pick: Pick) -> Tensor:
        """[size] bool with `fewest` to `keep` true entries."""
        kept = self._entries(pick)
        if not self.fewest <= int(kept.sum()) <= self.keep:
            allowed = self.keep if self.fewest == self.keep else f"{self.fewest} to {self.keep}"
            raise ArchitectureError(f"choice {self.name!r} keeps {allowed} inputs; the pick {pick!r} does not")
        return kept

    def sampled(self, generator: torch.Generator | None) -> tuple[int, ...]:
        """`keep` live inputs, uniformly; where their number is free, first that."""
        alive = self.live.nonzero().flatten().cpu()
        count = self.keep
        if self.fewest < self.keep:
            most = min(self.keep, len(alive))
            count = int(torch.randint(self.fewest, most + 1, (), generator=generator))
        order = torch.randperm(len(alive), generator=generator)[:count]
        return tuple(sorted(alive[order].tolist()))


class Gate(Choice):
    """One factor a channel (or attention head, or residual branch): what is closed can be removed.

        y = x * w[places]   along dimension `dim`

    A gate may stand in a network's forward on an activation [B, C, ...], or parametrize a weight: scaling the
    input columns of a layer's weight is the same function as scaling its input, at no cost per image.
    Without a relaxation a gate is open: y = x where all entries are live.

    Args:
        size: number of entries; the pick is the tuple of those that stay.
        name: key of the choice in an architecture.
        places: [x.shape[dim]], the entry that each channel belongs to, -1 for none; default: one each.
        dim: the dimension that is gated.
        couplings: what goes with each entry when the gate is closed for good.
        vanishing: for a gate over a residual branch: what stays without the branch.
    """

    places: Tensor | None

    def __init__(
        self,
        size: int,
        *,
        name: str,
        places: Tensor | None = None,
        dim: int = 1,
        couplings: Sequence[Coupling] = (),
        vanishing: Vanishing | None = None,
    ) -> None:
        super().__init__(size, name=name)
        self.dim = dim
        self.couplings = tuple(couplings)
        self.vanishing = vanishing
        # Entry `size` stands for "not of this gate": the vector of factors is extended by a 1.
        index = None if places is None else torch.where(places < 0, size, places)
        self.register_buffer("places", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x with its channels scaled."""
        weights = self.mixing()
        if weights is None:
            if bool(self.live.all()):
                return x
            weights = self.live.to(x.dtype)
        if self.places is not None:
            weights = torch.cat([weights, weights.new_ones(1)])[self.places]
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return x * weights.to(x.dtype).view(shape)

    def picked(self, pick: Pick) -> Tensor:
        """[size] bool; only the gate of a residual branch may close altogether."""
        if self.vanishing is not None and pick == ():
            return torch.zeros(self.size, dtype=torch.bool)
        return self._entries(pick)

    def sampled(self, generator: torch.Generator | None) -> tuple[int, ...]:
        """A uniform number of live entries, then which; at least one unless the branch may vanish."""
        alive = self.live.nonzero().flatten().cpu()
        least = 0 if self.vanishing is not None else 1
        count = int(torch.randint(least, len(alive) + 1, (), generator=generator))
        return tuple(sorted(alive[torch.randperm(len(alive), generator=generator)[:count]].tolist()))


def mixture(
    weights: Tensor,
    run: Callable[[int, Tensor | float], Tensor],
    *,
    live: Tensor,
    labels: Sequence[str],
    name: str,
    zeros: Sequence[int] = (),
) -> Tensor:
    """Sum of weight * output over the live entries, without those of constant weight 0.

    Args:
        weights: [size], or [B, size] with a row for each example of the batch.
        run: the output [B, ...] of an entry times a weight: a number where that is constant, else () or [B];
            see `scaled`.
        live: [size] bool.
        labels: what the entries are called in errors.
        name: what the mixture is called in errors.
        zeros: entries whose output is 0 in any case; they run only where no other does.

    Raises:
        ChoiceError: nothing is alive, or outputs differ in shape.
    """
    alive = live.nonzero().flatten().tolist()
    if not alive:
        raise ChoiceError(f"no candidate of {name} is alive: restrict it to at least one")
    factors = _factors(weights, alive)
    entries = [i for i in factors if i not in zeros] or list(factors)[:1]
    total: Tensor | None = None
    for i in entries:
        factor = factors[i]
        y = run(i, weights[..., i] if factor is None else factor)
        if isinstance(y, Tensor) and isinstance(total, Tensor) and y.shape != total.shape:
            raise ChoiceError(
                f"candidates of {name} differ in output shape ({labels[entries[0]]}: {tuple(total.shape)}, "
                f"{labels[i]}: {tuple(y.shape)}); make them equal"
            )
        total = y if total is None else total + y
    assert total is not None
    return total


def _factors(weights: Tensor, alive: list[int]) -> dict[int, float | None]:
    """For each entry that is to run its constant weight, or None if it has a gradient or varies over the batch."""
    if weights.requires_grad:
        return dict.fromkeys(alive)
    top = (weights if weights.dim() == 1 else weights.abs().amax(dim=0)).tolist()
    return {i: top[i] if weights.dim() == 1 else None for i in alive if top[i] != 0.0} or {alive[0]: 0.0}


def scaled(module: nn.Module, inputs: Sequence[Any], weight: Tensor | float) -> Tensor:
    """weight * module(*inputs), for a number, a weight (), or weights [B], one an example; a 1 scales nothing.

    A weight () of a module that ends in a BatchNorm scales that BatchNorm in place of its output, which saves a
    copy of the output, also for the backward pass. A module that is no `nn.Sequential` says so by an attribute
    `scaling_norm`, the path of the BatchNorm whose output it returns.
    """
    found = _scaling_norm(module) if isinstance(weight, Tensor) and not weight.dim() else None
    if found is None or not isinstance(weight, Tensor):
        y: Tensor = module(*inputs)
        factor = _spread(weight, y) if isinstance(weight, Tensor) else weight
        return y if isinstance(factor, float) and factor == 1.0 else y * factor
    path, norm, kept = found
    # Kernels read the vector as dense memory: an expanded number would not do.
    each = weight.to(kept.dtype).expand(norm.num_features).contiguous()
    given = {f"{path}.weight": each if norm.weight is None else each * norm.weight}
    if norm.bias is not None:
        given[f"{path}.bias"] = each * norm.bias
    return torch.func.functional_call(module, given, tuple(inputs), tie_weights=False)  # type: ignore[no-any-return]


def _scaling_norm(module: nn.Module) -> tuple[str, _BatchNorm, Tensor] | None:
    """Path, module and running mean of the BatchNorm whose output is the module's; None if none is sure to be."""
    path = str(len(module) - 1) if type(module) is nn.Sequential else getattr(module, "scaling_norm", None)
    if not isinstance(path, str) or path == "-1":
        return None
    norm = module.get_submodule(path)
    # Somebody's hook gets the output as it is; and outside training a norm may be passed by (`proxies/probe.py`).
    hooked = module._forward_hooks or norm._forward_hooks
    if not isinstance(norm, NORMS) or not norm.training or norm.running_mean is None or hooked:
        return None
    return path, norm, norm.running_mean


def _spread(weight: Tensor, like: Tensor) -> Tensor:
    """A weight (), or one an example [B], in the type of `like` [B, ...] and with as many dimensions."""
    return weight.to(like.dtype).view(-1, *[1] * (like.dim() - 1)) if weight.dim() else weight.to(like.dtype)


def _own_share(choice: Choice, path: str, container: str) -> list[list[tuple[Choice, int]]]:
    first, _, rest = path.partition(".")
    return [[(choice, int(rest.partition(".")[0]))]] if first == container else [[]]

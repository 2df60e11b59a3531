"""Choices of operations and of inputs, and the mixture that they compute, without running what has weight 0."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from archgrad.argument_types import checked
from archgrad.choices.architecture import Pick
from archgrad.choices.relaxations import read_values, true_places
from archgrad.errors import ArchitectureError, ChoiceError
from archgrad.files import shown

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Choice(nn.Module):
    """What all choices share: a name, a size, a support and, once relaxed, a relaxation.

    Choices of one name are one decision: they share one relaxation and one support.

    Attributes:
        live: [size] bool, the support: candidates still alive. A dead candidate is never run, nor is one whose
            weight is 0 and has no gradient.
        relaxation: from logits to mixing weights, or None before `relax` or `hold`.
        override: mixing weights used in place of the relaxation's inside a block of `archgrad.using`, else None.
        settled: the indices of what is alive, as read before a compiled pass; None outside of one.
    """

    live: Tensor
    settled: tuple[int, ...] | None = None

    def __init__(self, size: int, *, name: str) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ChoiceError(f"a choice needs a name, its key in every Architecture; name={name!r} was given")
        if type(size) is not int or size < 1:
            raise ChoiceError(f"choice {name!r} has {size!r} candidates; a choice has at least one")
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

    def alive(self) -> Sequence[int]:
        """The indices of the live candidates."""
        return true_places(self.live) if self.settled is None else self.settled

    def extra_repr(self) -> str:
        """Name and candidates, for the printed network."""
        return f"{self.name!r}, {int(self.live.sum())} of {self.size} alive"

    @property
    def pickable(self) -> Tensor:
        """[size] bool: what an architecture may pick: the live candidates that are not barred."""
        return self.live

    def pickable_places(self) -> list[int]:
        """The indices of what is `pickable`."""
        return true_places(self.live)

    @abstractmethod
    def picked(self, pick: Pick) -> Tensor:
        """[size] bool: the entries that this pick keeps.

        Raises:
            ArchitectureError: this choice has no such pick.
        """

    @abstractmethod
    def sampled(self, generator: torch.Generator | None) -> Pick:
        """A pick drawn uniformly from the live candidates."""

    def _entries(self, pick: Pick) -> Tensor:
        """[size] bool from a tuple of indices."""
        if isinstance(pick, int) or not pick or max(pick) >= self.size:
            raise ArchitectureError(
                f"choice {self.name!r}: the pick is {shown(pick)}; allowed is {self._allowed()}"
                + (f", such as ({pick},)" if isinstance(pick, int) and pick < self.size else "")
                + "; was the architecture made for another space?"
            )
        kept = torch.zeros(self.size, dtype=torch.bool)
        kept[list(pick)] = True
        return kept

    def _allowed(self) -> str:
        """Which picks there are, in words."""
        return f"a tuple of one or more different indices from 0 to {self.size - 1}"

    def ready(self) -> Tensor:
        """`mixing()`, where there is one.

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


def _module_list(candidates: Iterable[object], name: str) -> nn.ModuleList:
    modules = nn.ModuleList()
    for candidate in candidates:
        if not isinstance(candidate, nn.Module):
            kind = (
                f"the class {candidate.__name__}" if isinstance(candidate, type) else f"a {type(candidate).__name__}"
            )
            raise ChoiceError(
                f"choice {name!r} holds {kind}; give torch.nn.Modules (for a function, one whose forward calls it)"
            )
        modules.append(candidate)
    return modules


@checked
class OpChoice(Choice):
    """One of several operations on the same input.

        y = sum over live candidates o of  w_o * op_o(x)

    Inputs and outputs are tensors [B, ...]; all candidates put out the same shape. A candidate whose attribute
    `always_zero` is True puts out zeros for every input; it is not run beside others.

    Args:
        candidates: modules with the same input and output shapes, or {label: module}; their pick is an index.
            Or labels alone, for a decision whose operations another module owns and runs by `ready()`.
        name: key of the choice in an architecture.
        barred: labels of candidates that take part in a mixture but are never sampled or decided for, such as
            the operation "none" of the DARTS space.

    Raises:
        ChoiceError: no candidate, one that is no module, or a barred label that there is not.

    Example:
        >>> import torch, archgrad as ag
        >>> conv = torch.nn.Conv2d(8, 8, 3, padding=1)
        >>> layer = ag.OpChoice({"conv": conv, "skip": torch.nn.Identity()}, name="layer")
        >>> ag.relax(layer, ag.softmax)(torch.ones(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
        >>> ag.build(layer, ag.Architecture({"layer": 1}))
        Identity()
    """

    def __init__(
        self,
        candidates: Iterable[nn.Module] | Mapping[str, nn.Module] | Sequence[str],
        *,
        name: str,
        barred: Sequence[str] = (),
    ) -> None:
        entries = list(candidates)
        modules = list(candidates.values()) if isinstance(candidates, Mapping) else entries
        super().__init__(len(entries), name=name)
        only_labels = all(isinstance(entry, str) for entry in modules)
        self.candidates = _module_list([] if only_labels else modules, name)
        self.labels = tuple(entry if isinstance(entry, str) else type(entry).__name__ for entry in entries)
        if unknown := [label for label in barred if label not in self.labels]:
            raise ChoiceError(f"choice {name!r} bars {unknown}, which it does not have; it has {list(self.labels)}")
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
            self.ready(),
            run,
            alive=self.alive(),
            labels=self.labels,
            name=lambda: f"choice {self.name!r}",
            zeros=zeros,
        )

    @property
    def pickable(self) -> Tensor:
        """[size] bool: live and not barred; all live ones where only barred ones live."""
        if not self.barred:
            return self.live
        allowed = torch.zeros(self.size, dtype=torch.bool)
        allowed[self.pickable_places()] = True
        return allowed.to(self.live.device)

    def pickable_places(self) -> list[int]:
        """The indices of what is `pickable`."""
        alive = super().pickable_places()
        return [place for place in alive if self.labels[place] not in self.barred] or alive

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What the work of the module at `path` is multiplied by: a sum of products of weights (choice, entry)."""
        return _own_weight(self, path, "candidates")

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
        alive = self.pickable_places()
        return alive[int(torch.randint(len(alive), (), generator=generator))]


@checked
class InputChoice(Choice):
    """The sum of some of several inputs [B, ...], each through an edge of its own if wanted.

        y = sum over live inputs i of  w_i * edge_i(x_i)

    Args:
        size: number of inputs.
        keep: how many inputs an architecture keeps.
        name: key of the choice in an architecture.
        edges: one module an input; those of inputs that are dead or have weight 0 are not run.

    Raises:
        ChoiceError: `keep` is out of range, or there are more or fewer edges than inputs.

    Example:
        >>> import torch, archgrad as ag
        >>> node = ag.InputChoice(3, keep=2, name="node")
        >>> x = [torch.full((1, 2), float(i)) for i in (1, 10, 100)]
        >>> ag.hold(node, ag.Architecture({"node": (0, 2)}))(x)
        tensor([[101., 101.]])
    """

    def __init__(self, size: int, *, name: str, keep: int = 1, edges: Iterable[nn.Module] | None = None) -> None:
        super().__init__(size, name=name)
        if not 1 <= keep <= size:
            raise ChoiceError(f"choice {name!r} keeps {keep} of {size} inputs; allowed is 1 to {size}")
        # `archgrad.choices.subsets.topology` may leave the number free between the two.
        self.fewest = self.keep = keep
        self.edges = None if edges is None else _module_list(edges, name)
        if self.edges is not None and len(self.edges) != size:
            raise ChoiceError(f"choice {name!r} has {size} inputs and {len(self.edges)} edges; give one an input")

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The mixture of the live inputs, which have the same shape behind their edges."""
        if len(inputs) != self.size:
            raise ChoiceError(f"choice {self.name!r} takes {self.size} inputs, given {len(inputs)}")

        def run(i: int, weight: Tensor | float) -> Tensor:
            return scaled(nn.Identity() if self.edges is None else self.edges[i], (inputs[i],), weight)

        labels = [f"input {i}" for i in range(self.size)]
        return mixture(self.ready(), run, alive=self.alive(), labels=labels, name=lambda: f"choice {self.name!r}")

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        """What the work of the module at `path` is multiplied by: a sum of products of weights (choice, entry)."""
        return _own_weight(self, path, "edges")

    def picked(self, pick: Pick) -> Tensor:
        """[size] bool with `fewest` to `keep` true entries."""
        kept = self._entries(pick)
        if not self.fewest <= int(kept.sum()) <= self.keep:
            allowed = self.keep if self.fewest == self.keep else f"{self.fewest} to {self.keep}"
            raise ArchitectureError(f"choice {self.name!r} keeps {allowed} inputs; the pick {pick!r} does not")
        return kept

    def sampled(self, generator: torch.Generator | None) -> tuple[int, ...]:
        """`keep` live inputs, uniformly; where their number is free, a uniform number first."""
        alive = true_places(self.live)
        count = self.keep
        if self.fewest < self.keep:
            most = min(self.keep, len(alive))
            count = int(torch.randint(self.fewest, most + 1, (), generator=generator))
        order = torch.randperm(len(alive), generator=generator)[:count].tolist()
        return tuple(sorted(alive[place] for place in order))


def _own_weight(choice: Choice, path: str, container: str) -> list[list[tuple[Choice, int]]]:
    first, *below = path.split(".")
    return [[(choice, int(below[0]))]] if first == container else [[]]


def mixture(
    weights: Tensor,
    run: Callable[[int, Tensor | float], Tensor],
    *,
    alive: Sequence[int],
    labels: Sequence[str],
    name: Callable[[], str],
    zeros: Sequence[int] = (),
) -> Tensor:
    """The sum of weight * output over the live entries; those of constant weight 0 are not run.

    Args:
        weights: [size], or [B, size] with a row for each example of the batch.
        run: the output [B, ...] of an entry times a weight: a number where that is constant, else () or [B];
            see `scaled`.
        alive: the live entries.
        labels: what the entries are called in errors.
        name: what the mixture is called in errors; asked for there alone, since torch compiles anew for each name
            that it reads.
        zeros: entries whose output is 0 in any case; they run only where no other does.

    Raises:
        ChoiceError: nothing is alive, or outputs differ in shape.
    """
    if not alive:
        raise ChoiceError(f"no candidate of {name()} is alive: restrict it to at least one")
    factors = _factors(weights, alive)
    entries = [i for i in factors if i not in zeros] or list(factors)[:1]
    total: Tensor | None = None
    for i in entries:
        factor = factors[i]
        y = run(i, weights[..., i] if factor is None else factor)
        if isinstance(y, Tensor) and isinstance(total, Tensor) and y.shape != total.shape:
            raise ChoiceError(
                f"candidates of {name()} differ in output shape ({labels[entries[0]]}: {tuple(total.shape)}, "
                f"{labels[i]}: {tuple(y.shape)}); make them equal"
            )
        total = y if total is None else total + y
    assert total is not None
    return total


def _factors(weights: Tensor, alive: Sequence[int]) -> dict[int, float | None]:
    """For each entry that is to run its constant weight, or None if it has a gradient or varies over the batch."""
    if weights.requires_grad or torch.compiler.is_compiling():  # what is compiled can read no weight
        return dict.fromkeys(alive)
    top = read_values(weights if weights.dim() == 1 else weights.abs().amax(dim=0))
    return {i: top[i] if weights.dim() == 1 else None for i in alive if top[i] != 0.0} or {alive[0]: 0.0}


def scaled(module: nn.Module, inputs: Sequence[Any], weight: Tensor | float) -> Tensor:
    """weight * module(*inputs), for a number, a weight (), or weights [B], one an example; a 1 scales nothing.

    A weight () of a module that ends in a BatchNorm scales that BatchNorm in place of its output, which saves a
    copy of the output, also for the backward pass. A module that is no `nn.Sequential` says so by an attribute
    `scaling_norm`, the path of the BatchNorm whose output it returns.
    """
    ends_in = _scaling_norm(module) if isinstance(weight, Tensor) and not weight.dim() else None
    if ends_in is None or not isinstance(weight, Tensor):
        y: Tensor = module(*inputs)
        if not isinstance(weight, Tensor) and weight == 1.0:
            return y
        if y is None or isinstance(y, (tuple, list, dict)):
            kinds = f"a candidate, {type(module).__name__}, returns a {type(y).__name__}"
            raise ChoiceError(f"{kinds}; where candidates are mixed, each has to return one tensor")
        return y * (_spread(weight, y) if isinstance(weight, Tensor) else weight)
    path, norm, running_mean = ends_in
    # Kernels read the vector as dense memory: an expanded number would not do.
    factors = weight.to(running_mean.dtype).expand(norm.num_features).contiguous()
    parameters = {f"{path}.weight": factors if norm.weight is None else factors * norm.weight}
    if norm.bias is not None:
        parameters[f"{path}.bias"] = factors * norm.bias
    return torch.func.functional_call(module, parameters, tuple(inputs), tie_weights=False)  # type: ignore[no-any-return]


def _scaling_norm(module: nn.Module) -> tuple[str, _BatchNorm, Tensor] | None:
    """Path, module and running mean of the BatchNorm whose output the module returns; None if it may not be one."""
    path = str(len(module) - 1) if type(module) is nn.Sequential else getattr(module, "scaling_norm", None)
    if not isinstance(path, str) or path == "-1":
        return None
    norm = module.get_submodule(path)
    # A hook has to see the unscaled output, and outside of training a norm may be
    # skipped (`proxies/temporary_state.py`).
    hooked = module._forward_hooks or norm._forward_hooks
    if not isinstance(norm, NORMS) or not norm.training or norm.running_mean is None or hooked:
        return None
    return path, norm, norm.running_mean


def _spread(weight: Tensor, like: Tensor) -> Tensor:
    """A weight (), or one an example [B], in the type of `like` [B, ...] and with as many dimensions."""
    if not weight.dim():
        return weight.to(like.dtype)
    if like.shape[:1] != weight.shape:
        raise ChoiceError(f"weights for {len(weight)} examples: an output {tuple(like.shape)} has to be [B, ...]")
    return weight.to(like.dtype).view(-1, *[1] * (like.dim() - 1))

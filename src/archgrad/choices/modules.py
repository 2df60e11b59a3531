"""Places where a network may vary: `OpChoice`, `InputChoice`, `Gate`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.architecture import Pick
from archgrad.choices.channels import Coupling, Vanishing
from archgrad.choices.mixture import mixture, scaled
from archgrad.errors import ArchitectureError, ChoiceError


class Choice(nn.Module):
    """What all choices share: a name, a size, a support and, once relaxed, a relaxation.

    Choices of one name are one decision: they share one relaxation and one support.

    Attributes:
        live: [size] bool, the support: candidates still alive. A dead candidate is never run, nor is one whose
            weight is 0 and has no gradient.
        relaxation: from logits to mixing weights, or None before `relax` or `hold`.
        override: mixing weights used in place of the relaxation's inside a block of `archgrad.using`, else None.
    """

    live: Tensor

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

    def extra_repr(self) -> str:
        """Name and candidates, for the printed network."""
        return f"{self.name!r}, {int(self.live.sum())} of {self.size} alive"

    @property
    def pickable(self) -> Tensor:
        """[size] bool: what an architecture may pick: the live candidates that are not barred."""
        return self.live

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
                f"choice {self.name!r}: the pick is {pick!r}; allowed is a tuple of one or more different "
                f"indices from 0 to {self.size - 1}; was the architecture made for another space?"
            )
        kept = torch.zeros(self.size, dtype=torch.bool)
        kept[list(pick)] = True
        return kept

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
            self.ready(), run, live=self.live, labels=self.labels, name=f"choice {self.name!r}", zeros=zeros
        )

    @property
    def pickable(self) -> Tensor:
        """[size] bool: live and not barred; all live ones where only barred ones live."""
        allowed = self.live.clone()
        allowed[[self.labels.index(label) for label in self.barred]] = False
        return allowed if bool(allowed.any()) else self.live

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
        alive = self.pickable.nonzero().flatten().cpu()
        return int(alive[torch.randint(len(alive), (), generator=generator)])


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
        return mixture(self.ready(), run, live=self.live, labels=labels, name=f"choice {self.name!r}")

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
        alive = self.live.nonzero().flatten().cpu()
        count = self.keep
        if self.fewest < self.keep:
            most = min(self.keep, len(alive))
            count = int(torch.randint(self.fewest, most + 1, (), generator=generator))
        order = torch.randperm(len(alive), generator=generator)[:count]
        return tuple(sorted(alive[order].tolist()))


@checked
class Gate(Choice):
    """One factor a channel (or attention head, or residual branch): closed channels can be removed.

        y = x * w[places]   along dimension `dim`

    A gate may stand in a network's forward on an activation [B, C, ...], or parametrize a weight: scaling the
    input columns of a layer's weight is the same function as scaling its input, at no cost per example.
    Without a relaxation a gate is open: y = x where all entries are live. `archgrad.slim` puts gates on any network.

    Args:
        size: number of entries; the pick is the tuple of those that stay.
        name: key of the choice in an architecture.
        places: [x.shape[dim]], the entry that each channel belongs to, -1 for none; default: one each.
        dim: the dimension that is gated.
        couplings: which channels of which layers are removed with each entry.
        vanishing: for a gate over a residual branch: what stays without the branch.

    Example:
        >>> import torch, archgrad as ag
        >>> gate = ag.relax(ag.Gate(3, name="gate"), ag.scaled_sigmoid)  # sigmoid(0) = 1/2
        >>> gate(torch.ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]], grad_fn=<MulBackward0>)
        >>> ag.hold(gate, ag.Architecture({"gate": (0, 2)}))(torch.ones(1, 3))
        tensor([[1., 0., 1.]])
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
        """A uniform number of live entries, then a uniform set; at least one unless the branch may vanish."""
        alive = self.live.nonzero().flatten().cpu()
        least = 0 if self.vanishing is not None else 1
        count = int(torch.randint(least, len(alive) + 1, (), generator=generator))
        return tuple(sorted(alive[torch.randperm(len(alive), generator=generator)[:count]].tolist()))


def _own_weight(choice: Choice, path: str, container: str) -> list[list[tuple[Choice, int]]]:
    first, *below = path.split(".")
    return [[(choice, int(below[0]))]] if first == container else [[]]

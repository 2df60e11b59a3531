"""A supernet of which only some candidates are in memory; weights and momentum of the others lie in files."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, restrict
from archgrad.choices.lazy_candidates import Lazy, emptied
from archgrad.choices.modules import OpChoice
from archgrad.errors import ChoiceError
from archgrad.run.checkpoint_file import load, save
from archgrad.tasks.task import stable_seed

Support = Mapping[str, Sequence[int]]


class OffloadedSupernet:
    """A space whose candidates are built only while they are needed, and are kept in files in between.

    A file is never written twice: what a checkpoint of a run refers to stays as it was. What was replaced is deleted
    at the third `state_dict` after, unless it was there when `pin` was called.

    Args:
        space: any network with `OpChoice`s; it is not changed, and of its candidates only those asked for are copied.
        device: where the space is to be.
        folder: of the files; None: a temporary one.
        seed: fresh weights of a `Lazy` candidate are a function of the seed, its choice and its label.

    Attributes:
        sites: {choice name: its number of candidates}.
        space: what is in memory: everything but the offloaded candidates.

    Raises:
        ChoiceError: a choice of operations has labels alone, so that another module owns its candidates, or a
            candidate holds choices.
    """

    def __init__(self, space: nn.Module, *, device: torch.device, folder: Path | None, seed: int) -> None:
        _refuse_nested(space)
        self._seed, self.device = seed, device
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.space = emptied(space).to(device)
        self._places = _places(self.space)
        self.sites = {name: self._choice(paths[0]).size for name, paths in self._places.items()}
        self._lazy = {
            (path, i): candidate
            for paths in self._places.values()
            for path in paths
            for i, candidate in enumerate(self._choice(path).candidates)
        }
        self._files: dict[str, int] = {}
        self._written = 0
        self._fixed: set[int] = set()
        # Replaced since the last `state_dict`, and before it: a run may fall back to the last but one.
        self._old: list[set[int]] = [set(), set(), set()]

    def __repr__(self) -> str:
        return f"<OffloadedSupernet, {len(self.sites)} choices on {self.device}>"

    def _choice(self, path: str, space: nn.Module | None = None) -> OpChoice:
        choice = (space or self.space).get_submodule(path)
        assert isinstance(choice, OpChoice)
        return choice

    def labels(self, site: str) -> tuple[str, ...]:
        """What the candidates of a site are called."""
        return self._choice(self._places[site][0]).labels

    def barred(self, site: str) -> list[int]:
        """The candidates of a site that no architecture may pick."""
        return (~self._choice(self._places[site][0]).pickable).nonzero().flatten().tolist()

    def taken(self, support: Support) -> nn.Module:
        """A copy of the space with these candidates alive and built, and no others; all must be offloaded before."""
        # What builds candidates is shared: there may be thousands of them.
        space = copy.deepcopy(self.space, {id(lazy): lazy for lazy in self._lazy.values()})
        self._fill(space, support, {})
        restrict(space, support)
        return space

    def put_back(self, space: nn.Module, support: Support) -> None:
        """Take back the weights of a space that `taken` made, or of a copy of it: to files, the shared ones here."""
        self._write(space, support, {})
        tensors = dict(space.named_parameters()) | dict(space.named_buffers())
        with torch.no_grad():
            for name, tensor in (*self.space.named_parameters(), *self.space.named_buffers()):
                if name in tensors and not name.endswith(".live"):  # the method may have relaxed its copy otherwise
                    tensor.copy_(tensors[name])

    def load(self, support: Support, states: dict[Tensor, Any]) -> None:
        """Build these candidates in the space itself; their optimizer's state is added to `states`."""
        self._fill(self.space, support, states)

    def offload(self, support: Support, states: Mapping[Any, Any]) -> None:
        """Write these candidates of the space to files, with their optimizer's state, and free their memory."""
        self._write(self.space, support, states)
        self.empty(support)

    def empty(self, support: Support) -> None:
        """Free the memory of these candidates of the space without writing them."""
        for _, path, i in self._each(support):
            self._choice(path).candidates[i] = self._lazy[path, i]

    def _each(self, support: Support) -> list[tuple[str, str, int]]:
        return [(site, path, i) for site, some in support.items() for path in self._places[site] for i in some]

    def _build(self, site: str, path: str, i: int) -> nn.Module:
        """A candidate with its initial weights, on the device."""
        candidate = self._lazy[path, i]
        assert isinstance(candidate, Lazy)
        module = candidate.build(seed=stable_seed(self._seed, path, self.labels(site)[i])).to(self.device)
        _refuse_choices_in(module, site=site, label=self.labels(site)[i])
        return module

    def _fill(self, space: nn.Module, support: Support, states: dict[Tensor, Any]) -> None:
        for site, path, i in self._each(support):
            candidate, number = self._build(site, path, i), self._files.get(f"{path}.{i}")
            if number is not None:
                saved = load(self._path(number))
                candidate.load_state_dict({name: tensor.to(self.device) for name, tensor in saved["weights"].items()})
                for name, parameter in candidate.named_parameters():
                    if name in saved["momentum"]:
                        states[parameter] = moved(saved["momentum"][name], self.device)
            self._choice(path, space).candidates[i] = candidate

    def _write(self, space: nn.Module, support: Support, states: Mapping[Any, Any]) -> None:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="archgrad-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        for _, path, i in self._each(support):
            candidate = self._choice(path, space).candidates[i]
            momentum = {n: dict(states[p]) for n, p in candidate.named_parameters() if p in states}
            if (before := self._files.get(f"{path}.{i}")) is not None:
                self._replaced(before)
            self._files[f"{path}.{i}"] = self._written
            save(self._path(self._written), {"weights": candidate.state_dict(), "momentum": momentum})
            self._written += 1

    def _replaced(self, number: int) -> None:
        if self._temporary:  # nothing will be resumed from it
            self._path(number).unlink()
        else:
            self._old[-1].add(number)

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:08d}.safetensors"

    def pin(self) -> None:
        """Never delete what is on file now: a phase of the run that begins here may have to begin again."""
        self._fixed |= set(self._files.values())

    def state_dict(self) -> dict[str, Any]:
        """Which files count; what is in memory is the caller's to save."""
        for number in self._old.pop(0) - self._fixed - set(self._files.values()):
            self._path(number).unlink(missing_ok=True)
        self._old.append(set())
        return {"files": dict(self._files), "written": self._written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._files, self._written = dict(state["files"]), state["written"]

    def __enter__(self) -> OffloadedSupernet:
        return self

    def __exit__(self, *_: object) -> None:
        # A run's own folder keeps its files: a run that is resumed reads them.
        if self._temporary:
            self._temporary.cleanup()


def _places(space: nn.Module) -> dict[str, list[str]]:
    """For each choice of operations the paths at which it stands."""
    places: dict[str, list[str]] = {}
    for path, module in space.named_modules():
        if isinstance(module, OpChoice):
            if not len(module.candidates):
                raise ChoiceError(
                    f"choice {module.name!r} has only labels: the module that owns its operations runs them, so that "
                    f"they cannot be offloaded; give a space of OpChoices with candidates of their own, such as "
                    f"archgrad.mobile_backbone() or archgrad.nasbench201_cells()"
                )
            places.setdefault(module.name, []).append(path)
    if not places:
        raise ChoiceError(f"{type(space).__name__} has no choice of operations; put OpChoice modules in it")
    return places


def _refuse_nested(space: nn.Module) -> None:
    for module in space.modules():
        if isinstance(module, OpChoice):
            for label, candidate in zip(module.labels, module.candidates, strict=False):
                _refuse_choices_in(candidate, site=module.name, label=label)


def _refuse_choices_in(candidate: nn.Module, *, site: str, label: str) -> None:
    """What lies in a file cannot be decided."""
    if inner := choices(candidate):
        raise ChoiceError(
            f"candidate {label!r} of choice {site!r} holds choices of its own, {[*inner][:3]}; RADARS keeps "
            f"candidates in files: make one choice of all combinations, or take a method that keeps the space in "
            f"memory, such as archgrad.darts"
        )


def moved(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """An optimizer's state of one parameter, on the device."""
    # A step count stays on the CPU, where the optimizer made it.
    return {k: v.to(device) if isinstance(v, Tensor) and v.dim() else v for k, v in state.items()}

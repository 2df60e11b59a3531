"""All randomness of a run: the global generators and the run's own, as one state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Any]


class Randomness:
    """The global generators of torch (CPU, CUDA), numpy and `random`, and generators of its own by name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._own: dict[str, torch.Generator] = {}
        # States of generators that the resumed program has not asked for yet.
        self._waiting: dict[str, Tensor] = {}

    def seed_all(self) -> None:
        """Seed the global generators."""
        _seed_all(self.seed)

    def generator(self, name: str) -> torch.Generator:
        """The CPU generator of that name, seeded from (seed, name)."""
        if name not in self._own:
            generator = torch.Generator()
            generator.manual_seed(self._derived(name))
            if name in self._waiting:
                generator.set_state(self._waiting[name])
            self._own[name] = generator
        return self._own[name]

    @contextlib.contextmanager
    def isolated(self, name: str) -> Iterator[None]:
        """Inside, the global generators are seeded from (seed, name); afterwards they are as they were before."""
        before = self.state()
        _seed_all(self._derived(name) % 2**32)
        try:
            yield
        finally:
            self._set_global(before)

    def _derived(self, name: str) -> int:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def state(self) -> State:
        """The states of all of them, CUDA's only where CUDA is in use."""
        return {
            "torch": torch.get_rng_state(),
            # Asking for it would start CUDA on every device of a machine where this run uses none.
            "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
            "numpy": np.random.get_state(legacy=False),
            "python": _as_array(random.getstate()),
            "own": self._waiting | {name: generator.get_state() for name, generator in self._own.items()},
        }

    def set_state(self, state: State) -> None:
        """Put them into a state that `state` returned."""
        self._set_global(state)
        self._waiting = dict(state["own"])
        for name, generator in self._own.items():
            if name in self._waiting:
                generator.set_state(self._waiting[name])
            else:  # made after the state was taken
                generator.manual_seed(self._derived(name))

    def _set_global(self, state: State) -> None:
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(state["numpy"])
        random.setstate(_from_array(state["python"]))


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _as_array(state: tuple[Any, ...]) -> State:
    """The state of `random`, whose hundreds of numbers take less time to save as an array."""
    version, numbers, gauss = state
    return {"version": version, "numbers": np.array(numbers, np.uint32), "gauss": gauss}


def _from_array(state: State) -> tuple[Any, ...]:
    return state["version"], tuple(int(number) for number in state["numbers"]), state["gauss"]

"""Terms that pull mixing weights to discrete ones; `regularized` adds one to the architecture gradient of a search.

Written a for the mixing weights of all choices of one kind of cell, and disc(a) for the zeros and ones of the
architecture that they point at.

Source: DARTS-PRIME (arXiv 2106.11655) and the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions, logits
from archgrad.choices.decide import nearest_discrete
from archgrad.errors import ConfigError
from archgrad.run.nonfinite import joined
from archgrad.supernets.bilevel import ArchitectureLoss
from archgrad.tasks.task import Batch

Rows = dict[str, Tensor]


def regularized(compute: ArchitectureLoss, term: Callable[[], Tensor], space: nn.Module) -> ArchitectureLoss:
    """A search's architecture loss, or its gradient, with a term of `logits(space)` added to it.

    Args:
        compute: the `architecture_loss` of `alternate`.
        term: a scalar, such as `Proximity` or `Admm`; called once in each architecture step.
        space: relaxed.
    """

    def both(train: Batch, valid: Batch) -> tuple[Tensor, list[Tensor | None]]:
        computed, more = compute(train, valid), term()
        if isinstance(computed, Tensor):
            computed = computed, torch.autograd.grad(computed, logits(space), allow_unused=True)
        loss, gradients = computed
        added = torch.autograd.grad(more, logits(space), allow_unused=True)
        pairs = zip(gradients, added, strict=True)
        return joined({"loss": loss, "pull": more}), [g if a is None else a if g is None else g + a for g, a in pairs]

    return both


class Proximity:
    """The distance of the weights from discrete ones, with a weight that grows along the search.

        sum over kinds t of  c (rho / 2) | a_t - disc(a_t) |            c in [0, 1] the progress of the search
        adjusted:  (rho / 2) | s (a_t - disc(a_t)) |,   s = (1 - c) 4 (a^(ln 2 / ln K) - 1/2)^2 + c  for each entry

    The norm is not squared; its gradient where a is discrete is 0. An even mixture of K has an adjusted s of c.

    Args:
        space: relaxed.
        rho: 0 or above.
        progress: c, such as `lambda: run.progress`.
        adjusted: the second form.
        through: whether its gradient goes through s too.

    Raises:
        ConfigError: rho is negative or not finite.
    """

    def __init__(
        self, space: nn.Module, *, rho: float, progress: Callable[[], float], adjusted: bool = False,
        through: bool = False,
    ) -> None:  # fmt: skip
        self.space, self.rho, self.progress = space, _checked(rho), progress
        self.adjusted, self.through = adjusted, through

    def __repr__(self) -> str:
        return f"<Proximity, rho {self.rho:g}>"

    def __call__(self) -> Tensor:
        """The term, a scalar with gradient to the logits."""
        weights, c = weighed(self.space), self.progress()
        away = differences(weights, discrete(self.space, weights))
        if not self.adjusted:
            return c * self.rho / 2.0 * norms(away)
        scales = {name: _adjusted(row if self.through else row.detach(), c) for name, row in weights.items()}
        return self.rho / 2.0 * norms({name: scales[name] * row for name, row in away.items()})

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what it needs is in the space and the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class Admm:
    """The alternating direction method of multipliers, in its scaled form, with a target that is always discrete.

        sum over kinds t of  (rho / 2) | (a_t - Z_t + U_t) m_t |        m the live support
        every so many calls:  Z <- disc(a + U),   then  U <- (discount U + a - Z) m;   at first Z = a, U = 0

    Args:
        space: relaxed.
        rho: 0 or above.
        every: architecture steps between two updates.
        discount: of U, in [0, 1].
        on: "activated": U follows the weights a, as the penalty does; "logits": Z and U follow the logits, as in the
            authors' code.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(
        self, space: nn.Module, *, rho: float, every: int = 10, discount: float = 0.2,
        on: Literal["activated", "logits"] = "activated",
    ) -> None:  # fmt: skip
        if type(every) is not int or every < 1 or not 0.0 <= discount <= 1.0 or on not in ("activated", "logits"):
            raise ConfigError(
                f"every={every!r}, discount={discount!r}, on={on!r} were given; allowed are a whole number from 1, a "
                f"number from 0 to 1, and 'activated' or 'logits'"
            )
        self.space, self.rho, self.every, self.discount, self.on = space, _checked(rho), every, discount, on
        self.calls = 0
        self.target: Rows = {}
        self.dual: Rows = {}

    def __repr__(self) -> str:
        return f"<Admm on {self.on}, rho {self.rho:g}, {self.calls} calls>"

    def __call__(self) -> Tensor:
        """The term, a scalar with gradient to the logits; counts the step."""
        weights = weighed(self.space)
        if self.calls == 0:
            self.target = self._followed()
            self.dual = {name: torch.zeros_like(row) for name, row in self.target.items()}
        elif self.calls % self.every == 0:
            self._update()
        self.calls += 1
        away = {name: row - self.target[name] + self.dual[name] for name, row in weights.items()}
        return self.rho / 2.0 * norms({name: row * self._live(name) for name, row in away.items()})

    def _update(self) -> None:
        with torch.no_grad():
            now = self._followed()
            moved = {name: row + self.dual[name] for name, row in now.items()}
            if self.on == "logits":
                moved = _activated(self.space, moved)
            self.target = discrete(self.space, moved)
            self.dual = {
                name: (self.discount * self.dual[name] + row - self.target[name]) * self._live(name)
                for name, row in now.items()
            }

    def _followed(self) -> Rows:
        rows = weighed(self.space) if self.on == "activated" else _logits(self.space)
        return {name: row.detach().clone() for name, row in rows.items()}

    def _live(self, name: str) -> Tensor:
        return decisions(self.space)[name].live

    def state_dict(self) -> dict[str, Any]:
        """Targets, duals and the number of calls: what exact resume needs."""
        return {"calls": self.calls, "target": dict(self.target), "dual": dict(self.dual)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        devices = {name: choice.live.device for name, choice in decisions(self.space).items()}
        self.calls = state["calls"]
        self.target, self.dual = (
            {name: row.to(devices[name]) for name, row in state[kind].items()} for kind in ("target", "dual")
        )


def weighed(space: nn.Module) -> Rows:
    """The mixing weights, [size], of every choice that has logits, with gradient."""
    return {
        name: choice.ready()
        for name, choice in decisions(space).items()
        if choice.relaxation is not None and list(choice.relaxation.parameters())
    }


def discrete(space: nn.Module, weights: Mapping[str, Tensor]) -> Rows:
    """disc of such weights: 0 and 1, without gradient."""
    target = nearest_discrete(space, weights)
    return {name: target[name].to(row.dtype) for name, row in weights.items()}


def differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Rows:
    """first - second, choice by choice."""
    return {name: row - second[name] for name, row in first.items()}


def norms(rows: Mapping[str, Tensor]) -> Tensor:
    """The sum over kinds of cells of the Euclidean norm of all their rows; the gradient at 0 is 0."""
    kinds: dict[str, list[Tensor]] = {}
    for name, row in rows.items():
        # "normal.2.0" is of the normal cell; choices of a space with one cell are of one kind.
        head, dot, _ = name.partition(".")
        kinds.setdefault(head if dot and head.isidentifier() else "", []).append(row)
    return torch.stack([torch.linalg.vector_norm(torch.cat(same)) for same in kinds.values()]).sum()


def _adjusted(weights: Tensor, c: float) -> Tensor:
    exponent = math.log(2.0) / math.log(len(weights)) if len(weights) > 1 else 1.0
    # The root of 0 has no gradient: the authors' code bounds the weights below alike.
    return (1.0 - c) * 4.0 * (weights.clamp_min(1e-4).pow(exponent) - 0.5).square() + c


def _logits(space: nn.Module) -> Rows:
    return {name: next(_relaxation(space, name).parameters()) for name in weighed(space)}


def _activated(space: nn.Module, moved: Rows) -> Rows:
    """The weights that the relaxations would give at other logits."""
    relaxations = {name: _relaxation(space, name) for name in moved}
    return {
        name: torch.func.functional_call(relaxation, {parameter: moved[name]}, (decisions(space)[name].live,))
        for name, relaxation in relaxations.items()
        for parameter, _ in relaxation.named_parameters()
    }


def _relaxation(space: nn.Module, name: str) -> nn.Module:
    relaxation = decisions(space)[name].relaxation
    assert relaxation is not None
    return relaxation


def _checked(rho: float) -> float:
    if not 0.0 <= rho < math.inf:
        raise ConfigError(f"rho={rho!r} was given; allowed is a number from 0 up, such as 0.1")
    return rho

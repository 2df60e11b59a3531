"""Surrogate: a linear model with a gradient, in place of a cost that has none, such as a measured latency.

Source: UNAS (arXiv 1912.07651), after its code: ridge regression with coefficient 1 on the one-hot picks of sampled
architectures, 8,000 to fit and 2,000 to test. UNAS fits it once, on the first, nearly uniform policy; here it may be
fitted again as the policy moves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.costs.limits import Cost, Limitable
from archgrad.costs.prediction_error import PredictionError, prediction_error
from archgrad.costs.table import CostTable, device_name, labels_of
from archgrad.errors import ArchitectureError, ChoiceError, ConfigError, DataError

FEWEST = 5  # different architectures: one of them is held out
Vector = NDArray[np.float64]


class Surrogate(Limitable):
    """Ridge regression of a cost on which entries of which choices an architecture picks.

        price = b + sum over choices d and entries k of  theta_dk * w_dk

    fitted to minimize  sum over samples of (price - value)^2 + ridge * |theta|^2.  One entry in each choice is
    always picked, so only differences of coefficients within a choice have a meaning. An entry that no sample picks
    gets 0, the middle of its choice. The surrogate is a cost itself: `of` asks the cost that it models, `expected`
    and `predict` ask the model.

    Args:
        space: whose choices the architectures pick from; weights and relaxations do not matter.
        cost: what the values are; gives the name, the unit, and `of`.
        ridge: the coefficient; 1 as published. The published code penalizes b like the rest; here b is free, which
            is the same for thousands of samples and better for tens.
        capacity: samples kept; of more, the oldest are dropped, so that the model follows a policy that moves.

    Raises:
        ChoiceError: the space has no choice.
        ConfigError: a ridge that is not above 0, or too small a capacity.
    """

    measured = False

    def __init__(self, space: nn.Module, cost: Cost, *, ridge: float = 1.0, capacity: int = 10_000) -> None:
        self.cost = cost
        self.name, self.unit = cost.name, cost.unit
        self._choices = decisions(space)
        if not self._choices:
            raise ChoiceError(f"{type(space).__name__} has no choice, so that its {cost.name} is one number")
        if not 0 < ridge < math.inf or capacity < FEWEST:
            raise ConfigError(
                f"ridge={ridge}, capacity={capacity}: allowed are a finite ridge above 0 and a capacity of "
                f"{FEWEST} samples or more"
            )
        self.ridge = ridge
        self.capacity = capacity
        self._rows = torch.zeros(0, sum(choice.size for choice in self._choices.values()), dtype=torch.uint8)
        self._values = torch.zeros(0, dtype=torch.float64)
        self._coefficients: Tensor | None = None
        self._table: CostTable | None = None

    def __repr__(self) -> str:
        return f"Surrogate({self.name}, {len(self)} samples)"

    def __len__(self) -> int:
        """Samples kept."""
        return len(self._values)

    @property
    def table(self) -> CostTable:
        """The model as a table: its bias and coefficients; to save, or to use without the samples.

        Raises:
            DataError: not fitted yet.
        """
        if self._table is None:
            raise DataError(
                f"the surrogate of {self.name} is not fitted yet; call fit(architectures, values) with {FEWEST} or "
                f"more different architectures"
            )
        return self._table

    @property
    def error(self) -> PredictionError:
        """Of a model fitted to four fifths of the different architectures, on the last fifth.

        Raises:
            DataError: not fitted yet.
        """
        error = self.table.error
        assert error is not None
        return error

    def add(self, architectures: Sequence[Architecture], values: Sequence[float]) -> None:
        """Add samples; the model does not change until `fit`.

        Args:
            architectures: of the space.
            values: what each takes, as measured.

        Raises:
            DataError: the two differ in number, or a value is not finite; nothing is added.
            ArchitectureError: an architecture is for another space; nothing is added.
        """
        if len(architectures) != len(values):
            raise DataError(f"{len(architectures)} architectures and {len(values)} values; give one value for each")
        new = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if not bool(new.isfinite().all()):
            place = int((~new.isfinite()).nonzero()[0])
            raise DataError(
                f"value {place} of {len(values)} is {new[place]}; a {self.name} is a finite number of {self.unit}. "
                f"Leave that architecture out"
            )
        rows = [self._row(architecture) for architecture in architectures]
        self._rows = torch.cat([self._rows, *rows])[-self.capacity :]
        self._values = torch.cat([self._values, new])[-self.capacity :]

    def fit(self, architectures: Sequence[Architecture] = (), values: Sequence[float] = ()) -> PredictionError:
        """Fit the model to all samples kept, these included; returns its error, see `error`.

        Raises:
            DataError: as `add`, or fewer than 5 different architectures.
            ArchitectureError: as `add`.
        """
        self.add(architectures, values)
        rows, prices = self._rows.numpy(), self._values.numpy()
        _, architecture = np.unique(rows, axis=0, return_inverse=True)
        different = int(architecture.max(initial=-1)) + 1
        if different < FEWEST:
            raise DataError(
                f"{len(rows)} samples of {different} different architectures are too few to fit the {self.name} of "
                f"{rows.shape[1]} entries; give {FEWEST} different ones at the least, better several times as many "
                f"as there are entries"
            )
        # Architectures are held out, not samples: a policy that narrows draws the same ones again and again.
        order = np.random.default_rng(0).permutation(different)
        held_out = (order % 5 == 0)[architecture]
        trial = _ridge(rows[~held_out], prices[~held_out], self.ridge)
        predicted = rows[held_out] @ trial[1:] + trial[0]
        error = prediction_error(predicted.tolist(), prices[held_out].tolist(), fitted_on=int((~held_out).sum()))
        self._set_model(torch.from_numpy(_ridge(rows, prices, self.ridge)), error)
        return error

    def at(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The modelled price at relaxed or one-hot weights, differentiable: [], or [B] for rows [B, size].

        Raises:
            DataError: not fitted yet.
            ChoiceError: weights that do not fit the space.
        """
        return self.table.at(weights)

    def expected(self, space: nn.Module) -> Tensor:
        """The modelled price at the space's present mixing weights, differentiable.

        Raises:
            DataError: not fitted yet.
            ChoiceError: another space, or an undecided one.
        """
        return self.table.expected(space)

    def predict(self, architecture: Architecture) -> float:
        """The modelled price of an architecture.

        Raises:
            DataError: not fitted yet.
            ArchitectureError: the architecture is for another space.
        """
        return self.table.predict(architecture)

    @checked
    def of(self, network: nn.Module) -> float:
        """The true price of a network, from the cost that the surrogate models."""
        return self.cost.of(network)

    def state_dict(self) -> dict[str, Any]:
        """Samples, coefficients and error: tensors, numbers and None."""
        return {
            "rows": self._rows.clone(),
            "values": self._values.clone(),
            "coefficients": None if self._coefficients is None else self._coefficients.clone(),
            "error": None if self._table is None else asdict(self.error),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from the state of a surrogate of the same space.

        Raises:
            ChoiceError: the state is for another space, or damaged; the surrogate does not change.
        """
        rows, values, coefficients, error = (state_dict[n] for n in ("rows", "values", "coefficients", "error"))
        entries = self._rows.shape[1]
        fits = rows.dim() == 2 and rows.shape[1] == entries and values.shape == (len(rows),)
        if not fits or not (coefficients is None or coefficients.shape == (entries + 1,)):
            raise ChoiceError(
                f"the state of a surrogate has samples of shape {tuple(rows.shape)}; this space has {entries} "
                f"entries, so use the space that the surrogate was fitted on"
            )
        self._rows, self._values = rows.to(torch.uint8).clone(), values.to(torch.float64).clone()
        self._coefficients, self._table = None, None
        if coefficients is not None:
            self._set_model(coefficients.to(torch.float64).clone(), PredictionError(**error))

    def _row(self, architecture: Architecture) -> Tensor:
        """[1, entries] of 0 and 1."""
        if architecture.keys() != self._choices.keys():
            foreign = sorted(architecture.keys() ^ self._choices.keys())
            raise ArchitectureError(
                f"the architecture is for another space than this surrogate of {self.name}: they differ at "
                f"{foreign[:5]} ({len(foreign)} in all); use the space that the surrogate was made with"
            )
        picked = [choice.picked(architecture[name]) for name, choice in self._choices.items()]
        return torch.cat(picked).to("cpu", torch.uint8)[None]

    def _set_model(self, coefficients: Tensor, error: PredictionError) -> None:
        base, *theta = coefficients.tolist()
        ends = itertools.accumulate(choice.size for choice in self._choices.values())
        self._coefficients = coefficients
        self._table = CostTable(
            name=self.name,
            unit=self.unit,
            base=base,
            prices={
                n: tuple(theta[end - c.size : end]) for (n, c), end in zip(self._choices.items(), ends, strict=True)
            },
            labels={name: labels_of(choice) for name, choice in self._choices.items()},
            device=device_name(self.cost),
            error=error,
        )


def _ridge(rows: NDArray[np.uint8], values: Vector, ridge: float) -> Vector:
    """[1 + entries]: bias, then coefficients."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=ridge).fit(rows.astype(np.float64), values)
    return np.concatenate([[model.intercept_], model.coef_])

"""A column of a table of cells as a cost: latency or energy of another machine, looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, Protocol

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.costs.limits import Limitable, WithoutGradient
from archgrad.errors import LimitError

_UNITS = {"lat_ms": "ms", "energy_mj": "mJ", "params_m": "M parameters", "macs_m": "M MACs"}


class Columns(Protocol):
    """A table that knows what architectures take: `archgrad.Tabular`."""

    def cost(self, cell: Mapping[str, object], column: str | None = None) -> float:
        """The architecture's entry of a column."""
        ...


@dataclass(frozen=True)
class TableColumn(Limitable, WithoutGradient):
    """A column of a table as a cost: exact for the table's cells, and without a network.

    Attributes:
        table: where it is looked up: `archgrad.Tabular`.
        name: the column's, which is the cost's, such as "lat_ms_hw360_pi5_litert_cifar100".
        unit: of its figures; default: what the name begins with says.
    """

    table: Columns = field(repr=False)
    name: str
    unit: str = ""
    measured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        units = [unit for prefix, unit in _UNITS.items() if self.name.startswith(prefix)]
        object.__setattr__(self, "unit", self.unit or "".join(units))

    def predict(self, architecture: Architecture) -> float:
        """The entry of this architecture; raises as `Tabular.cost`."""
        return self.table.cost(architecture, self.name)

    def of(self, network: nn.Module) -> NoReturn:
        """Raises LimitError: a network does not say which cell of the table it is."""
        raise LimitError(
            f"{self.name} is looked up by architecture, not measured on a {type(network).__name__}; use it in a "
            f"search of archgrad.nasbench201_cells(), or measure with archgrad.latency"
        )

"""A column of a table of cells as a cost: latency or energy of another machine, looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.costs.limits import Limit, refuse_gradient
from archgrad.errors import LimitError

_UNITS = {"lat_ms": "ms", "energy_mj": "mJ", "params_m": "M parameters", "macs_m": "M MACs"}


class Columns(Protocol):
    """A table that knows what architectures take: `archgrad.Tabular`."""

    def cost(self, cell: Mapping[str, object], column: str | None = None) -> float:
        """The architecture's entry of a column."""
        ...


@dataclass(frozen=True)
class TableColumn:
    """What architectures take by one column of a table; exact for the table's cells, and without a network.

    Attributes:
        table: where it is looked up.
        name: the column's, which is the cost's.
        unit: of its figures.
        measured: False: nothing is read off a clock.
    """

    table: Columns = field(repr=False)
    name: str
    unit: str
    measured: bool = False

    def predict(self, architecture: Architecture) -> float:
        """The entry of this architecture; raises as `Tabular.cost`."""
        return self.table.cost(architecture, self.name)

    def of(self, network: nn.Module) -> NoReturn:
        """Raises LimitError: a network does not say which cell of the table it is."""
        raise LimitError(
            f"{self.name} is looked up by architecture, not measured on a {type(network).__name__}; use it in a "
            f"search of archgrad.nasbench201_cells(), or measure with archgrad.latency"
        )

    def expected(self, space: nn.Module) -> NoReturn:
        """Raises LimitError: a table has no gradient with respect to the mixing weights."""
        refuse_gradient(self, space)

    def at_most(self, bound: float | None = None, *, fraction: float | None = None) -> Limit:
        """A limit in the column's unit, or as a fraction of the dearest cell's."""
        return Limit(self, bound, fraction)


def column(table: Columns, name: str, *, unit: str | None = None) -> TableColumn:
    """A column of a table as a cost.

    Args:
        table: `archgrad.Tabular`.
        name: such as "lat_ms_hw360_pi5_litert_cifar100".
        unit: of its figures; default: what its name begins with says.
    """
    known = next((one for start, one in _UNITS.items() if name.startswith(start)), "")
    return TableColumn(table, name, known if unit is None else unit)

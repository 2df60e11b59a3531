"""Graphs whose adjacency is a sparse tensor, given or made by the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from families.checks import difference, extremes, outputs
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import slim

DOUBLE = torch.float64
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "coordinates": lambda x: x.to_sparse(),
    "rows": lambda x: x.to_sparse_csr(),
    "columns": lambda x: x.to_sparse_csc(),
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@": lambda adjacency, x: adjacency @ x,
    "spmm": torch.spmm,
    "sparse.mm": torch.sparse.mm,
    "matmul": torch.matmul,
    "sparse.addmm": lambda adjacency, x: torch.sparse.addmm(x, adjacency, x),
}


class GraphConvolution(nn.Module):
    """As of Kipf and Welling: what a layer makes, over what each node is joined to."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 3)
        self.product = PRODUCTS[product]

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        y = self.product(adjacency, self.first(x)).relu()
        return self.last(self.product(adjacency, self.second(y)).relu())


class Joined(GraphConvolution):
    """Makes its adjacency of edges."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        values = torch.ones(edges.shape[1], dtype=x.dtype)
        return super().forward(x, torch.sparse_coo_tensor(edges, values, (len(x), len(x)), check_invariants=True))


def _cut_exactly(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    space = slim(net.double(), inputs)
    assert list(choices(space)) == ["first", "second"]
    assert difference(outputs(net, inputs), outputs(space, inputs)) < 1e-9
    drawn: list[Architecture] = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for architecture in (*extremes(space), *drawn):
        pair = hold(space, architecture), build(space, architecture)
        assert difference(*(outputs(one, inputs) for one in pair)) < 1e-9


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_sparse_adjacencies_are_as_good_as_dense_ones(product: str, layout: str) -> None:
    dense = (torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) < 0.4).to(DOUBLE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # layouts of rows and columns are in beta
        inputs = torch.randn(10, 6, dtype=DOUBLE), LAYOUTS[layout](dense)
        try:
            GraphConvolution(product).double()(*inputs)
        except RuntimeError as error:
            pytest.skip(f"torch does not multiply so: {error}")
        _cut_exactly(GraphConvolution(product), inputs)


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_adjacency_may_be_made_of_edges(product: str) -> None:
    edges = (torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) < 0.4).nonzero().T
    _cut_exactly(Joined(product), (torch.randn(10, 6, dtype=DOUBLE), edges))

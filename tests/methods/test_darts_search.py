"""DARTS: the second-order gradient against the closed form, the published decoding, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.relaxations import Softmax
from archgrad.errors import LimitError
from archgrad.methods.darts import unrolled


class Scaled(nn.Module):
    """y = (softmax(alpha) . (w0 x, w1 x^2)): small enough to differentiate by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        self.choice = ag.OpChoice({"x": self.one, "square": nn.Sequential(Square(), self.two)}, name="c")

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(x)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_second_order_gradient_is_that_of_the_loss_one_step_ahead(momentum: float) -> None:
    """Against automatic differentiation through the step, in float64."""
    torch.manual_seed(0)
    space = ag.relax(Scaled(), Softmax).double()
    alpha, weights = ag.logits(space), ag.weights(space)
    with torch.no_grad():
        alpha[0].copy_(torch.tensor([0.3, -0.2]))
    x, y, vx, vy = (torch.randn(8, n, dtype=torch.float64) for n in (3, 1, 3, 1))
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=momentum, weight_decay=0.01)

    def loss(at: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
        return (at(data[0]) - data[1]).square().mean()

    loss(space, (x, y)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [w.detach().clone() for w in weights]
    found_loss, (found,) = unrolled(space, lambda: loss(space, (x, y)), lambda: loss(space, (vx, vy)), optimizer)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))

    (first_order,) = torch.autograd.grad(loss(space, (vx, vy)), alpha)
    gradients = torch.autograd.grad(loss(space, (x, y)), weights, create_graph=True)
    buffers = [optimizer.state[w].get("momentum_buffer") for w in weights]
    names = {id(p): n for n, p in space.named_parameters()}
    ahead = {
        names[id(w)]: w - 0.05 * (g + 0.01 * w + (0.0 if b is None else momentum * b))
        for w, g, b in zip(weights, gradients, buffers, strict=True)
    }

    def call(data: Tensor) -> Tensor:
        return torch.func.functional_call(space, ahead, (data,), tie_weights=True)

    exact = (call(vx) - vy).square().mean()
    (wanted,) = torch.autograd.grad(exact, alpha)
    assert torch.allclose(found_loss, exact)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-8)
    assert not torch.allclose(found, first_order, rtol=1e-3)


def task() -> ag.Classification:
    g = torch.Generator().manual_seed(0)
    return ag.Classification((torch.randn(80, 1, 8, 8, generator=g), torch.arange(80) % 3), batch_size=8)


def test_a_measured_limit_is_refused_and_the_fix_named() -> None:
    x = torch.zeros(1, 1, 8, 8)
    space = ag.darts_cells(channels=2, cells=3, in_channels=1, classes=3)
    with pytest.raises(LimitError, match=r"archgrad\.unas"):
        ag.darts(space, task(), ag.Run(steps=4), limit=ag.latency(x).at_most(ms=5.0))


def test_a_published_cell_keeps_two_inputs_a_node_and_no_none() -> None:
    space = ag.darts_cells(channels=2, cells=3, in_channels=1, classes=3, nodes=2)
    run = ag.Run(steps=8, seed=0, device="cpu", progress=False)
    found = ag.darts(space, task(), run, limit=ag.macs(torch.zeros(1, 1, 8, 8)).at_most(fraction=0.7))
    assert "none" not in found.record["architecture_text"]
    inputs = [pick for name, pick in found.architecture.items() if name.endswith("inputs")]
    assert [len(pick) for pick in inputs] == [2] * 4
    assert found.costs["macs"] <= found.record["limit"]["bound"]
    assert [graph["name"] for graph in found.record["graphs"]] == ["normal", "reduce"]
    larger = ag.build(space, found.architecture, cells=5, channels=4)
    assert larger(torch.zeros(2, 1, 8, 8)).shape == (2, 3)

"""Gates on input features: which layers have them, and that what is left takes the full input."""

from __future__ import annotations

import pytest
import torch
from families.checks import assert_plain
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices

torch.set_num_threads(1)


class TwoHeads(nn.Module):
    """Two layers read the input, one of them twice, on what was computed from it without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.left(x * 2) + self.left(x - 1) + self.right(x.cumsum(1))))


class Again(nn.Module):
    """The first layer also reads what it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(torch.relu(self.first(x)))))))


def images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 3)
    )  # fmt: skip


def grouped() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 3))


MADE = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), (1, 4, 4),
        {"1.inputs": 16},
    ),
    "two": (TwoHeads, (6,), {"left.inputs": 6, "right.inputs": 6}),
    "images": (images, (4, 5, 5), {"0.inputs": 4}),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(42, 3)), (4, 5),
        {"0.inputs": 4},
    ),
}  # fmt: skip


def features(space: nn.Module) -> dict[str, int]:
    return {name: same[0].size for name, same in choices(space).items() if name.endswith(".inputs")}


@pytest.mark.parametrize("name", MADE)
def test_what_is_left_takes_the_full_input_and_computes_the_same(name: str) -> None:
    make, shape, expected = MADE[name]
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    network = make()
    space = ag.slim(network, x, inputs=True)
    assert features(space) == expected
    assert features(ag.slim(network, x)) == {}
    assert torch.equal(space.eval()(x), network.eval()(x))
    for seed in range(3):
        architecture = ag.sample(space, generator=torch.Generator().manual_seed(seed))
        held, built = ag.hold(space, architecture), ag.build(space, architecture)
        for training in (False, True):
            assert torch.allclose(held.train(training)(x), built.train(training)(x), atol=1e-5)
        assert_plain(built)
        for cost in (ag.macs(x), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built))


def test_what_is_gone_is_not_read() -> None:
    make, shape, _ = MADE["mlp"]
    x = torch.randn(3, *shape)
    built = ag.build(ag.slim(make(), x, inputs=True), ag.Architecture({"1": (0, 3), "1.inputs": (1, 5, 6)}))
    gone, kept = x.clone(), x.clone()
    gone.flatten(1)[:, [0, 2, 15]] += 5.0
    kept.flatten(1)[:, 5] += 5.0
    assert torch.equal(built(x), built(gone)) and not torch.equal(built(x), built(kept))


def test_it_exports_and_survives_a_round_trip_of_its_weights() -> None:
    make, shape, _ = MADE["mlp"]
    x = torch.randn(3, *shape)
    space = ag.slim(make(), x, inputs=True)
    architecture = ag.Architecture({"1": (0, 3), "1.inputs": (1, 5, 6)})
    built, again = (ag.build(space, architecture, weights=w) for w in ("inherit", "fresh"))
    assert not torch.equal(built(x), again(x))
    again.load_state_dict(built.state_dict())
    assert torch.equal(built(x), again(x))
    program = torch.export.export(built, (x,)).module()
    assert torch.allclose(program(x), built(x), atol=1e-6)


def test_what_cannot_be_selected_has_no_gate() -> None:
    assert features(ag.slim(grouped(), torch.randn(2, 4, 5, 5), inputs=True)) == {}
    assert features(ag.slim(Again(), torch.randn(2, 6), inputs=True)) == {}


def test_a_network_of_one_layer_may_lose_inputs_alone() -> None:
    x = torch.randn(2, 6)
    assert features(ag.slim(nn.Sequential(nn.Linear(6, 3)), x, inputs=True)) == {"0.inputs": 6}

"""First states and canvases: what a forward makes out of nothing, as long as a number of a module says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from families.checks import assert_plain, difference, extremes, outputs, stir, swapped
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build

UNITS, STEPS = 6, 3
MAKERS: dict[str, Callable[..., Tensor]] = {
    "zeros": lambda x, *sizes: torch.zeros(*sizes, dtype=x.dtype),
    "zeros of a tuple": lambda x, *sizes: torch.zeros(sizes, dtype=x.dtype),
    "zeros by keyword": lambda x, *sizes: torch.zeros(size=sizes, dtype=x.dtype),
    "new_zeros": lambda x, *sizes: x.new_zeros(*sizes),
    "new_zeros of a tuple": lambda x, *sizes: x.new_zeros(sizes),
    "ones": lambda x, *sizes: torch.ones(*sizes, dtype=x.dtype),
    "new_ones": lambda x, *sizes: x.new_ones(*sizes),
    "full": lambda x, *sizes: torch.full(sizes, 0.3, dtype=x.dtype),
    "new_full": lambda x, *sizes: x.new_full(sizes, 0.3),
    "empty": lambda x, *sizes: torch.empty(*sizes, dtype=x.dtype).fill_(0.2),
    "new": lambda x, *sizes: x.new(*sizes).zero_(),
    "new of data": lambda x, *sizes: x.data.new(*sizes).fill_(0.1),
    "moved": lambda x, *sizes: (torch.zeros(*sizes) + 1).to(x),
}
NUMBERS = ("own", "listed", "of the layer", "several")


class States(nn.Module):
    """What has units, and a number of them that what it starts from is made of."""

    def __init__(self, maker: str, number: str) -> None:
        super().__init__()
        self.maker, self.number, self.units, self.sizes = maker, number, UNITS, [3, UNITS]
        self.last: nn.Module = nn.Identity()

    def start(self, x: Tensor, *places: int) -> Tensor:
        if self.number == "several":
            both = MAKERS[self.maker](x, len(x), 2 * self.units, *places)
            return both.chunk(2, 1)[0]
        size = {"own": self.units, "listed": self.sizes[1]}.get(self.number)
        if size is None:
            size = next(getattr(self.last, n) for n in ("out_channels", "out_features") if hasattr(self.last, n))
        return MAKERS[self.maker](x, len(x), size, *places)


class Convolutional(States):
    """The usual ConvLSTM, with peepholes, which reads its state beside its input."""

    def __init__(self, maker: str, number: str) -> None:
        super().__init__(maker, number)
        self.gates = nn.Conv2d(2 + UNITS, 4 * UNITS, 3, padding=1)
        self.peep = nn.Parameter(torch.randn(1, UNITS, 1, 1))
        self.last = nn.Conv2d(UNITS, UNITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = self.start(x, 4, 4)
        for step in range(STEPS):
            i, f, o, g = self.gates(torch.cat([x[:, :, step], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + (i + self.peep * c).sigmoid() * g.tanh()
            h = self.last(o.sigmoid() * c.tanh())
        return h.mean((2, 3))


class ByHand(States):
    """A GRU on bare parameters."""

    def __init__(self, maker: str, number: str) -> None:
        super().__init__(maker, number)
        self.read = nn.Parameter(torch.randn(2, 3 * UNITS))
        self.again = nn.Parameter(torch.randn(UNITS, 3 * UNITS) / 3)
        self.last = nn.Linear(UNITS, UNITS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for step in range(STEPS):
            (a, b, c), (d, e, f) = (x[:, :, step].mean((2, 3)) @ self.read).chunk(3, 1), (h @ self.again).chunk(3, 1)
            z = (b + e).sigmoid()
            h = self.last((1 - z) * (c + (a + d).sigmoid() * f).tanh() + z * h)
        return h


class Canvas(States):
    """Writes parts into a whole, as spectral convolutions do with the modes that they keep."""

    def __init__(self, maker: str, number: str) -> None:
        super().__init__(maker, number)
        self.lift, self.last = nn.Conv1d(2, 5, 1), nn.Conv1d(5, UNITS, 1)
        self.modes = nn.Parameter(torch.randn(5, UNITS, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.flatten(2)[:, :, :16]).relu()
        canvas, spectrum = self.start(x, 16), torch.fft.rfft(x)
        canvas[:, :, 4:] = self.last(x)[:, :, 4:]
        modes = self.start(x, 9).to(spectrum.dtype)
        modes[:, :, :4] = torch.einsum("bix,iox->box", spectrum[:, :, :4], self.modes.to(spectrum.dtype))
        return (canvas + torch.fft.irfft(modes, n=16)).relu().mean(2)


class Net(nn.Module):
    def __init__(self, states: nn.Module) -> None:
        super().__init__()
        self.states, self.head = states, nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x))


KINDS = (Convolutional, ByHand, Canvas)
X = torch.randn(2, 2, STEPS, 4, 4, generator=torch.Generator().manual_seed(0)).double()


def drawn() -> list[tuple[type[States], str, str]]:
    """Each maker with two kinds, so that each number and kind comes several times."""
    draw = random.Random(0)
    return [(kind, maker, draw.choice(NUMBERS)) for maker in MAKERS for kind in draw.sample(KINDS, 2)]


def assert_same(space: nn.Module, x: Tensor) -> None:
    """Held and built agree in both modes, in cost, and the built network is another one for other channels."""
    stir(space)
    two = ag.Architecture({name: (0, gate[0].size - 1) for name, gate in choices(space).items()})
    for architecture in (*extremes(space), two, sample(space, generator=torch.Generator().manual_seed(1))):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-9
        several = all(len(picked) > 1 for picked in architecture.values())
        for cost in (ag.params(), ag.macs(x)) if several else (ag.params(),):  # einsum multiplies by one elementwise
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)
    sizes = {name: gate[0].size for name, gate in choices(space).items()}
    most = ag.Architecture({name: tuple(range(size - 1)) for name, size in sizes.items()})
    wrong = build(space, swapped(most, sizes))
    assert difference(outputs(hold(space, most), (x,)), outputs(wrong, (x,))) > 1e-6


@pytest.mark.parametrize(("kind", "maker", "number"), drawn())
def test_numbers_that_states_are_made_of_shrink_with_what_they_start(
    kind: type[States], maker: str, number: str
) -> None:
    torch.manual_seed(0)
    space = ag.slim(Net(kind(maker, number)).double(), X)
    sizes = {name: gate[0].size for name, gate in choices(space).items()}
    assert UNITS in sizes.values() and ag.frozen(space).parameters_fraction < 0.15, dict(ag.frozen(space))
    assert_same(space, X)
    built = build(space, extremes(space)[1]).states
    counted = {"own": built.units, "several": built.units, "listed": built.sizes[1]}.get(number, 1)
    assert (counted, built.sizes[0]) == (1, 3)


class Ways(nn.Module):
    """Reads a sequence both ways, by two cells whose one number of units is the network's."""

    def __init__(self, cell: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.hidden_size, self.there, self.back = UNITS, cell(32, UNITS), cell(32, UNITS)
        self.head = nn.Linear(2 * UNITS, 3)

    def last(self, cell: nn.Module, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.hidden_size, dtype=x.dtype)
        for step in range(STEPS):
            h = cell(x[:, :, step].flatten(1), h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.last(self.there, x), self.last(self.back, x.flip(2))], 1))


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell])
def test_cells_that_start_from_one_number_go_together(cell: Callable[[int, int], nn.Module]) -> None:
    torch.manual_seed(0)
    space = ag.slim(Ways(cell).double(), X)
    assert {name: gate[0].size for name, gate in choices(space).items()} == {"there": UNITS}
    assert_same(space, X)
    built = build(space, extremes(space)[1])
    assert built.hidden_size == built.there.hidden_size == built.back.hidden_size == 1


class Similar(States):
    def __init__(self, maker: str) -> None:
        super().__init__(maker, "own")
        self.last, self.head = nn.Linear(32, UNITS), nn.Linear(STEPS, 3)

    def forward(self, x: Tensor) -> Tensor:
        canvas = self.start(x, STEPS).transpose(1, 2)
        canvas = canvas + self.last(x.transpose(1, 2).flatten(2))
        return self.head(canvas @ canvas.mT)


@pytest.mark.parametrize("maker", ["zeros", "new_zeros", "ones", "full"])
def test_what_activations_are_multiplied_over_may_be_written_into_zeros_alone(maker: str) -> None:
    torch.manual_seed(0)
    if maker in ("ones", "full"):  # a closed channel would still be one
        with pytest.raises(ag.ModelError):
            ag.slim(Similar(maker).double(), X)
    else:
        space = ag.slim(Similar(maker).double(), X)
        assert [gate[0].size for gate in choices(space).values()] == [UNITS]
        assert_same(space, X)


def test_a_number_that_something_else_depends_on_stays() -> None:
    class Sums(Convolutional):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(self.units, dtype=x.dtype).sum()

    space = ag.slim(nn.Sequential(nn.Conv3d(2, 2, 1), Net(Sums("zeros", "own"))).double(), X)
    assert list(choices(space)) == ["0"] and "1.states.gates" in ag.frozen(space)

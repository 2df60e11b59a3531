"""A `forward` that takes weights otherwise than as attributes of their layers, or that writes them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from families.checks import difference, extremes, outputs, stir
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from archgrad.choices.access import choices, hold, sample
from archgrad.errors import ModelError
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64
Part = nn.Sequential
Way = Callable[[Part, Tensor], Tensor]


def _named(part: Part, x: Tensor) -> Tensor:
    return sum((p.norm() for n, p in part.named_parameters() if n.endswith("weight")), torch.zeros((), dtype=DOUBLE))


def _linear(part: Part, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return F.linear(part[0](x).relu(), weights["weight"], weights["bias"])


INEXACT: dict[str, Way] = {
    "parameters": lambda part, x: torch.stack([p.pow(2).sum() for p in part.parameters()]).sum(),
    "parameters of a layer": lambda part, x: torch.stack([p.abs().sum() for p in part[2].parameters()]).sum(),
    "foreach": lambda part, x: torch.stack(torch._foreach_norm(list(part.parameters()))).sum(),
    "names": _named,
    "state": lambda part, x: _linear(part, x, part[2].state_dict(keep_vars=True)),
    "by name": lambda part, x: _linear(part, x, dict(part[2].named_parameters())),
    "own dictionary": lambda part, x: _linear(part, x, part[2]._parameters),  # type: ignore[arg-type]
    "get_parameter": lambda part, x: _linear(
        part, x, {n: part.get_parameter(f"2.{n}") for n in dict(part[2].named_parameters())}
    ),
    "type of a layer": lambda part, x: part(x) * (2.0 if type(part[2]) is nn.Linear else 1.0),
}
EXACT: dict[str, Way] = {
    "functional_call": lambda part, x: functional_call(part, dict(part.named_parameters()), x),
    "functional_call of a layer": lambda part, x: functional_call(
        part[2], dict(part[2].named_parameters()), part[0](x).relu()
    ),
    "precision": lambda part, x: part(x.to(next(part.parameters()).dtype)),
    "attribute": lambda part, x: part(x) + part[2].weight.pow(2).sum(),
}


class Reading(nn.Module):
    """A part that is read in some way, perhaps in training alone, and another one that is not concerned."""

    def __init__(self, way: Way, *, training: bool = False) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        self.other = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
        self.way, self.alone = way, training

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        own = () if self.alone and not self.training else (self.way(self.part, x),)
        return (*own, self.part(x), self.other(x))


def _exact(net: nn.Module, space: nn.Module, x: Tensor) -> None:
    """The space computes what the network does, and what is held in it what is built of it, in both modes."""
    for training in (False, True):
        assert difference(*(outputs(one, (x,), training=training) for one in (net, space))) < 1e-9
    stir(space)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for architecture in (extremes(space)[1], *draws):
        pair = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(*(outputs(one, (x,), training=training) for one in pair)) < 1e-9


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", INEXACT)
def test_weights_that_are_read_past_their_gates_have_none(way: str, training: bool) -> None:
    net, x = Reading(INEXACT[way], training=training).double(), torch.randn(4, 6, dtype=DOUBLE)
    space = slim(net, x)
    assert list(choices(space)) == ["other.0"]
    # What the graph or the trial of removals refuses before has its own reason.
    others = ("foreach_norm in forward", "parameters that forward itself adds up")
    assert any(words in frozen(space)["part.0"] for words in ("as attributes, such as layer.weight", *others))
    _exact(net, space, x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", EXACT)
def test_weights_that_are_listed_and_read_through_their_gates_keep_them(way: str, training: bool) -> None:
    net, x = Reading(EXACT[way], training=training).double(), torch.randn(4, 6, dtype=DOUBLE)
    space = slim(net, x)
    assert list(choices(space)) == ["part.0", "other.0"]
    _exact(net, space, x)


def test_where_all_parameters_are_read_the_error_says_so() -> None:
    class Decayed(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), torch.stack([p.pow(2).sum() for p in self.parameters()]).sum()

    with pytest.raises(ModelError, match=r"gate computes 0\.weight.*parameters\(\)"):
        slim(Decayed(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), torch.randn(4, 6))


def _assign(student: Tensor, teacher: Tensor) -> None:
    teacher.data = 0.9 * teacher.data + 0.1 * student.data


UPDATES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "in place": lambda student, teacher: teacher.mul_(0.9).add_(student, alpha=0.1),
    "lerp": lambda student, teacher: teacher.lerp_(student, 0.1),
    "data": lambda student, teacher: teacher.data.mul_(0.9).add_(student.data, alpha=0.1),
    "assigned": _assign,
    "copied": lambda student, teacher: teacher.copy_(0.9 * teacher + 0.1 * student),
}


class Averaged(nn.Module):
    """A teacher that is a moving average of its student, which `forward` updates, and parts that have none of it."""

    def __init__(self, update: str, *, always: bool) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 7))
        self.other = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
        self.update, self.always = update, always

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.training or self.always:
            with torch.no_grad():
                for pair in zip(self.online.parameters(), self.target.parameters(), strict=True):
                    UPDATES[self.update](*pair)
        return self.predictor(self.online(x)), self.target(x), self.other(x)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("update", UPDATES)
def test_an_average_of_parameters_in_forward_leaves_others_free(update: str, always: bool) -> None:
    net, x = Averaged(update, always=always).double(), torch.randn(4, 6, dtype=DOUBLE)
    stir(net)  # the teacher differs from its student
    before = copy.deepcopy(net.state_dict())
    space = slim(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {"predictor.0", "other.0"} <= set(choices(space)) <= {"online.0", "predictor.0", "other.0"}
    assert not [reason for reason in frozen(space).values() if "random" in reason]
    for path in ("online.0", "target.0") if not always else ():
        assert "moving average" in frozen(space)[path]
    _exact(net, space, x)


class Masked(nn.Conv2d):
    """A convolution that writes into its own weight in each call, as those of PixelCNN do."""

    mask: Tensor

    def __init__(self, way: str, channels: int, made: int) -> None:
        super().__init__(channels, made, 3, padding=1)
        self.way = way
        self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]).expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "in place":
            self.weight.data *= self.mask
        elif self.way == "new data":
            self.weight.data = self.weight.data * self.mask
        else:
            with torch.no_grad():
                self.weight.mul_(self.mask)
        return super().forward(x)


@pytest.mark.parametrize("way", ["in place", "new data", "no grad"])
def test_weights_that_a_layer_writes_into_have_no_gate(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    masked = Masked(way, 8, 10)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), masked, nn.ReLU(), nn.Conv2d(10, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    net = net.to(DOUBLE)
    before = masked.weight.detach().clone()
    space = slim(net, x)
    assert torch.equal(masked.weight, before)
    assert ("writes into a weight" if way != "no grad" else "computes its weight") in frozen(space)["0"]
    assert sorted(same[0].size for same in choices(space).values()) == [6, 10]
    for architecture in extremes(space):
        held = hold(copy.deepcopy(space), architecture)
        assert difference(outputs(held, (x,)), outputs(build(space, architecture), (x,))) < 1e-9


class Causal(nn.Module):
    """A convolution whose directions are masked in each call, as in PixelSNAIL."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.conv = nn.utils.weight_norm(nn.Conv2d(1, 6, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight_v.data[:, :, -1, 1:].zero_()  # type: ignore[operator, index]
        return self.conv(x)


def test_parts_of_a_weight_norm_that_forward_reads_stay_where_it_finds_them() -> None:
    net, x = nn.Sequential(Causal(), nn.Conv2d(6, 7, 1), nn.ReLU(), nn.Conv2d(7, 2, 1)), torch.randn(2, 1, 5, 5)
    space = slim(net, x)
    assert set(choices(space)) == {"1"} and "weight_norm" in frozen(space)["0.conv"]
    stir(space)
    held, built = (make(space, extremes(space)[1]) for make in (hold, build))
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-5


class OwnSpectral(nn.Module):
    """A spectral norm by hand, whose vectors are parameters that each call writes into, as in copies of SAGAN."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, weight = layer, layer.weight
        del layer._parameters["weight"]
        self.u = nn.Parameter(F.normalize(torch.randn(len(weight)), dim=0), requires_grad=False)
        self.v = nn.Parameter(F.normalize(torch.randn(weight.shape[1]), dim=0), requires_grad=False)
        self.bar = nn.Parameter(weight.data)

    def forward(self, x: Tensor) -> Tensor:
        self.v.data = F.normalize(torch.mv(self.bar.data.t(), self.u.data), dim=0)
        self.u.data = F.normalize(torch.mv(self.bar.data, self.v.data), dim=0)
        self.layer.weight = self.bar / self.u.dot(self.bar.mv(self.v))  # type: ignore[assignment]
        return self.layer(x)


def test_what_a_call_writes_into_a_weight_and_the_next_reads_has_no_gate() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), OwnSpectral(nn.Linear(16, 12)), nn.ReLU(), nn.Linear(12, 9),
                        nn.ReLU(), nn.Linear(9, 4)).double().eval()  # fmt: skip
    x = torch.randn(2, 6, dtype=DOUBLE)
    space = slim(net, x).eval()
    assert "4" in choices(space)
    for seed in range(3):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        held, built = hold(space, architecture).eval(), build(space, architecture).eval()
        for _ in range(4):
            with torch.no_grad():
                assert torch.allclose(held(x), built(x), atol=1e-9)

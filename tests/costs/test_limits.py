"""Limits, absolute or a fraction; a function of one's own as a cost; what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.cli.schemas.limits import parse
from archgrad.costs.count import macs, params
from archgrad.costs.energy import energy
from archgrad.costs.latency import latency
from archgrad.costs.limits import Cost, Limit, Predicts, black_box
from archgrad.costs.memory import peak_memory
from archgrad.errors import LimitError, MissingExtra, ModelError
from archgrad.gates.selection import GateConstraint
from archgrad.gates.width_rounding import WidthRounding
from archgrad.report.numbers import amount


def test_a_bound_is_absolute_and_a_fraction_is_of_the_reference() -> None:
    assert params().at_most(1000).resolve(5000.0) == 1000
    assert params().at_most(fraction=0.25).resolve(5000.0) == 1250
    assert macs(torch.ones(1, 3)).at_most(fraction=1.0).resolve(7.0) == 7
    limit = macs(torch.ones(1, 3)).at_most(2.5e6)
    assert isinstance(limit, Limit)
    assert (limit.cost.name, limit.cost.unit, limit.cost.measured) == ("macs", "MACs", False)
    assert (params().name, params().unit, params().measured) == ("params", "parameters", False)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, 50, float("nan"), float("inf")])
def test_a_fraction_is_above_zero_and_at_most_one(fraction: float) -> None:
    with pytest.raises(LimitError, match=r"fraction=.* of params: .* give for instance 0.5"):
        params().at_most(fraction=fraction)


@pytest.mark.parametrize("bound", [0, -3.0, float("inf"), float("nan")])
def test_a_bound_is_finite_and_above_zero(bound: float) -> None:
    with pytest.raises(LimitError, match="parameters: give a finite number above 0"):
        params().at_most(bound)


def test_exactly_one_of_both_is_given() -> None:
    for given in ({}, {"bound": 10.0, "fraction": 0.5}):
        with pytest.raises(LimitError, match="not both and not neither"):
            params().at_most(**given)


def test_a_limit_is_frozen() -> None:
    limit = params().at_most(10)
    with pytest.raises(AttributeError):
        limit.bound = 20


def test_a_function_of_ones_own_is_a_measured_cost() -> None:
    cost: Cost = black_box(lambda network: torch.tensor([network.out_features / 4]), name="energy", unit="mJ")
    assert (cost.name, cost.unit, cost.measured) == ("energy", "mJ", True)
    assert cost.of(nn.Linear(3, 6)) == 1.5
    assert not isinstance(cost, Predicts)
    limit = black_box(lambda network: 1, name="error", unit="of 1").at_most(0.25)
    assert (limit.resolve(1.0), limit.cost.of(nn.Identity())) == (0.25, 1.0)
    with pytest.raises(LimitError, match=r"energy is measured.*mixing weights of Linear.*score-function.*Surrogate"):
        cost.expected(nn.Linear(3, 6))
    with pytest.raises(LimitError, match="not both"):
        black_box(lambda network: 1, name="error", unit="of 1").at_most()


@pytest.mark.parametrize("given", [None, "many", math.nan, math.inf, torch.ones(2), [1.0], 10**400])
def test_a_function_that_returns_no_number_is_named(given: object) -> None:
    with pytest.raises(ModelError, match=r"the cost 'energy' of Linear is .* one finite number"):
        black_box(lambda network: given, name="energy", unit="mJ").of(nn.Linear(3, 6))


def test_an_error_of_the_function_is_the_user_s_own() -> None:
    def fails(network: nn.Module) -> float:
        raise ValueError("the device is off")

    with pytest.raises(ValueError, match="the device is off") as raised:
        black_box(fails, name="energy", unit="mJ").of(nn.Identity())
    assert not isinstance(raised.value, ModelError)


def test_what_is_no_black_box_is_refused() -> None:
    for function, name in ((3.0, "energy"), (len, "")):
        with pytest.raises(LimitError, match="black_box takes a function"):
            black_box(function, name=name, unit="mJ")


class Nested(nn.Module):
    """Takes and gives nests: what a network of several named inputs does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, batch: dict[str, object], doubled: bool) -> dict[str, object]:
        y = self.layer(batch["x"]) + batch["more"]["shift"][0]
        return {"y": 2 * y if doubled else y, "nothing": None}


@pytest.mark.parametrize("batch", [1, 3])
def test_every_cost_takes_nests_of_tensors_and_flags(batch: int) -> None:
    example = ({"x": torch.randn(batch, 4), "more": {"shift": [torch.randn(batch, 3)]}}, True)
    network = Nested()
    assert macs(example).of(network) == 12 and params().of(network) == 15
    timed = [latency(example, repeats=2, warmup=0, runtime=runtime) for runtime in ("eager", "onnx")]
    rough = [energy(example, source="estimated"), peak_memory(example, batch=5)]
    for cost in (*timed, *rough):
        assert cost.of(network) > 0 and cost.at_most(fraction=0.5).cost is cost
        with pytest.raises(LimitError, match="no gradient"):
            cost.expected(network)
    assert peak_memory(example, batch=10).of(network) > peak_memory(example, batch=5).of(network)


@pytest.mark.parametrize("given", ["half", True, [1]])
def test_what_is_no_number_is_no_bound(given: object) -> None:
    with pytest.raises(LimitError, match=r"a limit of .*: give a finite number above 0"):
        params().at_most(given)
    with pytest.raises(LimitError, match="a fraction is above 0 and at most 1"):
        params().at_most(fraction=given)


def test_every_cost_takes_its_bound_by_place_and_by_its_unit() -> None:
    x = torch.zeros(1, 4)
    for cost, unit in (
        (ag.latency(x), "ms"),
        (ag.energy(x, source="estimated"), "mj"),
        (ag.peak_power(x, source="estimated"), "w"),
        (ag.peak_memory(x), "peak_bytes"),
    ):
        assert cost.at_most(4096.0) == cost.at_most(**{unit: 4096.0})
        for wrong in ({"bound": 4096.0, unit: 4096.0}, {"bound": 4096.0, "fraction": 0.5}, {}):
            with pytest.raises(ag.LimitError, match="takes"):
                cost.at_most(**wrong)
    for cost in (ag.macs(x), ag.params(), ag.black_box(lambda net: 1.0, name="a", unit="b")):
        assert cost.at_most(4096.0).bound == 4096.0
    for bound in (0.5, 2.0, 1023):
        with pytest.raises(ag.LimitError, match=r"may mean GiB or a fraction. Write at_most\(gib="):
            ag.peak_memory(x).at_most(bound)


TINY = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
X = torch.ones(1, 3)
COSTS: list[tuple[str, Callable[[float], Limit]]] = [
    ("macs", lambda bound: macs(X).at_most(bound)),
    ("params", lambda bound: params().at_most(bound)),
    *(
        (f"{runtime} latency", lambda bound, runtime=runtime: latency(X, runtime=runtime).at_most(ms=bound))
        for runtime in ("eager", "onnx", "openvino", "executorch", "compile")
    ),
    ("int8 latency", lambda bound: latency(X, runtime="onnx", dtype="int8").at_most(ms=bound)),
    ("file size", lambda bound: ag.file_size(X).at_most(kb=bound)),
    ("memory", lambda bound: peak_memory(X).at_most(gib=bound)),
    ("energy", lambda bound: energy(X).at_most(mj=bound)),
    ("own", lambda bound: black_box(lambda net: 1.0, name="macs", unit="MACs").at_most(bound)),
]


@pytest.mark.parametrize(("name", "make"), COSTS, ids=[name for name, _ in COSTS])
def test_a_bound_that_may_be_a_fraction_is_asked_about_where_it_is_counted_alone(
    name: str, make: Callable[[float], Limit]
) -> None:
    for bound, share in ((0.004, "0.4 %"), (0.5, "50 %"), (1.0, "100 %"), (35, "35 %")):
        try:
            asked = make(bound).meant()
        except MissingExtra as error:
            pytest.skip(str(error))
        if name not in ("macs", "params"):
            assert asked == "", "0.5 ms and 0.5 GiB are what they say"
            continue
        assert f"for {share} of the whole network" in asked
        (option,) = re.findall(r"--limit (\S+)", asked)
        given = parse(option)
        assert (given.cost, given.fraction) == (name, pytest.approx(float(share.removesuffix(" %")) / 100))
    assert make(1e6).meant() == ""


@pytest.mark.parametrize(
    ("value", "written"),
    [(7679696.5, "7,679,696"), (1.53594e7, "15,359,400"), (1000, "1,000"), (0.004, "0.004"), (12.3456789, "12.3457"),
     (999, "999"), (4.0, "4"), (1e-7, "1e-07"), (math.inf, "inf")],
)  # fmt: skip
def test_amounts_are_written_in_full_with_the_unit_once(value: float, written: str) -> None:
    assert amount(value, "MACs") == f"{written} MACs" and amount(value) == written


@pytest.mark.parametrize("rounding", [1, 8])
def test_an_impossible_limit_says_what_would_help(rounding: int) -> None:
    space = ag.slim(nn.Sequential(nn.Linear(3, 4000), nn.ReLU(), nn.Linear(4000, 2)), X)
    with pytest.raises(LimitError) as raised:
        GateConstraint(space, macs(X).at_most(4), WidthRounding(rounding))
    told = str(raised.value)
    assert f"is {5 * rounding} " in told and "of 20,000)" in told and "e+" not in told
    assert ("round_to=1" in told) == (rounding > 1)

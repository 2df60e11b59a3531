"""Units of recurrent layers: closing a gate is removing the unit, whatever reads the layer and whoever feeds it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, swapped
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import archgrad as ag
from archgrad.choices.access import choices, hold, sample, weights
from archgrad.choices.architecture import Architecture
from archgrad.extract.discretize import build

pytestmark = [  # both are said of a plain layer of torch's too
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights"),
]
UNITS, STEPS = 6, 5
X = torch.randn(3, STEPS, 4, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A linear layer, a recurrent one, a reader of what it puts out, a linear layer."""

    def __init__(self, rnn: nn.Module, read: Callable[[nn.Module, Tensor], Tensor], *, width: int = UNITS) -> None:
        super().__init__()
        self.inlet, self.rnn, self.read, self.head = nn.Linear(4, 5), rnn, read, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.rnn, F.relu(self.inlet(x))))


def last_output(rnn: nn.Module, x: Tensor) -> Tensor:
    return rnn(x)[0][:, -1]


def all_outputs(rnn: nn.Module, x: Tensor) -> Tensor:
    return rnn(x)[0].tanh().mean(1)


def every_step(rnn: nn.Module, x: Tensor) -> Tensor:
    return rnn(x)[0]


def steps_first(rnn: nn.Module, x: Tensor) -> Tensor:
    return rnn(x.transpose(0, 1))[0].amax(0)


def last_state(rnn: nn.Module, x: Tensor) -> Tensor:
    state = rnn(x)[1]
    return state[0][-1] if isinstance(state, tuple) else state[-1]


def last_states(rnn: nn.Module, x: Tensor) -> Tensor:
    state = rnn(x)[1]
    state = state[0] if isinstance(state, tuple) else state
    return torch.cat([state[-2], state[-1]], 1)


def cells_and_outputs(rnn: nn.Module, x: Tensor) -> Tensor:
    out, (_, cells) = rnn(x)
    return torch.cat([out[:, -1], cells[-1].sigmoid()], 1)


def both_ways_added(rnn: nn.Module, x: Tensor) -> Tensor:
    out = rnn(x)[0]
    forwards, backwards = out.chunk(2, -1)
    return (forwards + backwards).mean(1)


def packed(rnn: nn.Module, x: Tensor) -> Tensor:
    out, _ = rnn(pack_padded_sequence(x, torch.tensor([2, 5, 3])[: len(x)], batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(out, batch_first=True)[0].sum(1)


def stepwise(cell: nn.Module, x: Tensor) -> Tensor:
    state = None
    for step in x.unbind(1):
        state = cell(step, state)
    assert state is not None
    return state[0] if isinstance(state, tuple) else state


def one_at_a_time(rnn: nn.Module, x: Tensor) -> Tensor:
    state = None
    for step in x.split(1, 1):
        out, state = rnn(step, hx=state)
    return out[:, 0]


def by_itself(rnn: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([rnn(one)[0][-1] for one in x])


def layer(kind: type[nn.RNNBase], *args: int, first: bool = True, **options: bool | int | float | str) -> nn.RNNBase:
    return kind(5, UNITS, *args, batch_first=first, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Around(layer(nn.LSTM), last_output),
    "gru": lambda: Around(layer(nn.GRU), last_output),
    "rnn": lambda: Around(layer(nn.RNN, nonlinearity="relu"), all_outputs),
    "without biases": lambda: Around(layer(nn.GRU, bias=False), all_outputs),
    "every step": lambda: Around(layer(nn.LSTM), every_step),
    "steps first": lambda: Around(layer(nn.LSTM, first=False), steps_first),
    "last state": lambda: Around(layer(nn.LSTM, 2), last_state),
    "stacked": lambda: Around(layer(nn.GRU, 3, dropout=0.2), last_state),
    "both ways": lambda: Around(layer(nn.LSTM, 2, bidirectional=True), all_outputs, width=2 * UNITS),
    "both last states": lambda: Around(layer(nn.GRU, bidirectional=True), last_states, width=2 * UNITS),
    "both ways added": lambda: Around(layer(nn.RNN, bidirectional=True), both_ways_added),
    "cells": lambda: Around(layer(nn.LSTM), cells_and_outputs, width=2 * UNITS),
    "projected": lambda: Around(layer(nn.LSTM, proj_size=3), all_outputs, width=3),
    "projected, stacked both ways": lambda: Around(
        layer(nn.LSTM, 2, proj_size=2, bidirectional=True), last_states, width=4
    ),
    "projected, with cells": lambda: Around(layer(nn.LSTM, proj_size=3), cells_and_outputs, width=3 + UNITS),
    "packed": lambda: Around(layer(nn.LSTM, 2, bidirectional=True), packed, width=2 * UNITS),
    "lstm cell": lambda: Around(nn.LSTMCell(5, UNITS), stepwise),
    "gru cell": lambda: Around(nn.GRUCell(5, UNITS), stepwise),
    "rnn cell": lambda: Around(nn.RNNCell(5, UNITS, bias=False), stepwise),
    "states handed on": lambda: Around(layer(nn.LSTM), one_at_a_time),
    "without a batch": lambda: Around(layer(nn.GRU), by_itself),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def architectures(space: nn.Module) -> list[Architecture]:
    return [*extremes(space), *(sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3))]


@pytest.mark.parametrize("name", NETWORKS)
def test_closing_is_removing_in_eval_and_train_and_costs_are_those_of_the_built_network(name: str) -> None:
    net = made(name)
    space = ag.slim(net, X)
    gates = {n: same[0].size for n, same in choices(space).items()}
    assert gates["inlet"] == 5 and gates["rnn"] == (UNITS if "projected" not in name else net.rnn.proj_size), gates
    assert set(ag.frozen(space)) == {"head"}
    assert difference(outputs(net, (X,)), outputs(space, (X,))) < 1e-6
    for architecture in architectures(space):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            for module in (*held.modules(), *built.modules()):
                if isinstance(module, nn.RNNBase):
                    module.dropout = 0.0
            expected = outputs(held, (X,), training=training)
            assert difference(expected, outputs(built, (X,), training=training)) < 1e-5
        for cost in (ag.macs(X), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)
        assert type(built.rnn) is type(net.rnn) and built.rnn.input_size == built.inlet.out_features
    wrong = build(space, swapped(architecture, gates))
    assert difference(expected, outputs(wrong, (X,), training=True)) > 1e-6


@pytest.mark.parametrize("name", ["stacked", "projected, stacked both ways", "lstm cell"])
def test_the_built_layer_is_exported_and_takes_the_weights_of_another_build(name: str) -> None:
    space = ag.slim(made(name), X)
    architecture = sample(space, generator=torch.Generator().manual_seed(1))
    built, other = build(space, architecture).eval(), build(space, architecture, weights="fresh").eval()
    assert difference(outputs(built, (X,)), outputs(other, (X,))) > 1e-4
    other.load_state_dict(built.state_dict())
    assert difference(outputs(built, (X,)), outputs(other, (X,))) == 0
    exported = torch.export.export(built, (X,)).module()
    with torch.no_grad():
        assert difference([exported(X)], outputs(built, (X,))) < 1e-6


def test_gates_follow_training_copies_and_moves_of_the_weights() -> None:
    space = ag.relax(ag.slim(made("both ways"), X), ag.scaled_sigmoid)
    before = space(X)
    before.square().mean().backward()
    assert all(w.grad is not None and bool(w.grad.any()) for w in [*weights(space), *ag.logits(space)])
    with torch.no_grad():
        for parameter in weights(space):
            parameter += 0.1
    twin = copy.deepcopy(space)
    assert difference([space(X).detach()], [before.detach()]) > 1e-3
    assert difference([space(X).detach()], [twin(X).detach()]) == 0
    assert difference([space(X).detach().double()], [twin.double()(X.double()).detach()]) < 1e-6
    twin.float().load_state_dict(space.state_dict())
    assert difference([space(X).detach()], [twin(X).detach()]) == 0


class Translates(nn.Module):
    """Its decoder starts from the states of its encoder, which starts from states that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, UNITS))
        self.encoder, self.decoder = nn.LSTM(4, UNITS, batch_first=True), nn.LSTM(4, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(-1, len(x), -1).contiguous()
        _, states = self.encoder(x, (start, torch.zeros_like(start)))
        return self.head(self.decoder(x.flip(1), states)[0])


def test_states_tie_the_layers_that_hand_them_on() -> None:
    space = ag.slim(Translates(), X)
    assert {n: same[0].size for n, same in choices(space).items()} == {"encoder": UNITS}
    for architecture in architectures(space):
        built = build(space, architecture)
        assert difference(outputs(hold(space, architecture), (X,)), outputs(built, (X,))) < 1e-5
        assert built.start.shape[-1] == built.encoder.hidden_size == built.decoder.hidden_size


@pytest.mark.parametrize("name", ["hidden_size", "n_hidden"])
def test_numbers_of_units_that_first_states_are_made_of_shrink_with_them(name: str) -> None:
    class Zeros(Around):
        def forward(self, x: Tensor) -> Tensor:
            start = torch.zeros(2, len(x), getattr(self, name), dtype=x.dtype)
            return self.head(self.rnn(F.relu(self.inlet(x)), (start, start.clone()))[0][:, -1])

    net = Zeros(layer(nn.LSTM, 2), last_output)
    setattr(net, name, UNITS)
    space = ag.slim(net, X)
    assert {n: same[0].size for n, same in choices(space).items()} == {"inlet": 5, "rnn": UNITS}
    for architecture in architectures(space):
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (X,)), outputs(built, (X,))) < 1e-5
        assert getattr(built, name) == built.rnn.hidden_size == len(architecture["rnn"])
        assert float(ag.macs(X).expected(held)) == pytest.approx(ag.macs(X).of(built))


def test_units_that_the_network_puts_out_or_sizes_written_as_numbers_stay() -> None:
    class Numbers(Around):
        def forward(self, x: Tensor) -> Tensor:
            start = x.new_zeros(1, len(x), UNITS)
            return self.head(self.rnn(F.relu(self.inlet(x)), start)[0])

    space = ag.slim(Numbers(layer(nn.GRU), last_output), X)
    assert {n: same[0].size for n, same in choices(space).items()} == {"inlet": 5}
    assert "forward takes sizes, or groups=, from numbers" in ag.frozen(space)["rnn"]
    space = ag.slim(nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, UNITS)), X)
    assert list(choices(space)) == ["0"] and "output" in ag.frozen(space)["1"]
    with pytest.raises(ag.ModelError, match="rnn are parametrized already"):
        ag.slim(Around(nn.utils.parametrizations.weight_norm(layer(nn.GRU), "weight_hh_l0"), last_output), X)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "variance"])
def test_weak_units_score_low(criterion: str) -> None:
    net = made("stacked")
    with torch.no_grad():
        for parameter in net.rnn.parameters():
            parameter.view(3, UNITS, -1)[:, :2] *= 0.01
        net.head.weight[:, :2] *= 0.01
        for k in range(3):
            net.rnn.get_parameter(f"weight_hh_l{k}")[:, :2] *= 0.01
    parts = [(torch.randn(4, STEPS, 4), torch.randn(4, 3)) for _ in range(3)]
    task = ag.Supervised(*parts, batch_size=4, loss=F.mse_loss, metrics={"mse": F.mse_loss}, score=ag.lower("mse"))
    space = ag.slim(net, X)
    scores = ag.importance(space, task, criterion=criterion)["rnn"]  # type: ignore[arg-type]
    assert set(scores.topk(4).indices.tolist()) == {2, 3, 4, 5}
    small = ag.cut(space, ag.importance(space, task, criterion="magnitude"), limit=ag.macs(X).at_most(fraction=0.5))
    assert small.rnn.hidden_size < UNITS and ag.macs(X).of(small) <= 0.5 * ag.macs(X).of(net)


class Rows(nn.Module):
    """Reads the rows of an image as steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[:, 0])[0].mean(1))


def test_dnal_slims_a_recurrent_network_under_a_limit() -> None:
    torch.manual_seed(0)
    task = ag.Classification.load("digits", batch_size=64)
    space = ag.slim(Rows(), task.example)
    limit = ag.macs(task.example).at_most(fraction=0.4)
    run, recipe = ag.Run(epochs=12, seed=0, progress=False), ag.Recipe(optimizer_factory=ag.adam)
    found = ag.dnal(space, task, run, limit=limit, recipe=recipe)
    assert ag.macs(task.example).of(found.network) <= 0.4 * ag.macs(task.example).of(Rows())
    assert found.network.rnn.hidden_size < 24 and found.score > 0.6

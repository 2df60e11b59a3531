"""Compiled steps of gates and supernets: the gradients as written, few compilations, exact resume."""

from __future__ import annotations

import functools
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices import Open
from archgrad.choices.access import decisions, logits, weights
from archgrad.choices.clipped_relaxation import Clipped
from archgrad.choices.subsets import topology
from archgrad.methods import PruningTerms
from archgrad.run.run import Run, Stopped
from archgrad.tasks.task import Batch
from archgrad.training import compiled_steps as module
from archgrad.training.compiled_steps import compiled

pytestmark = [  # both by torch's compiler itself, which shows the second to nobody
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _no_code_is_written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch captures is run by its own operators, which compiles in a tenth of the time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.back = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c)
        x = x + self.out(y)
        return x + self.back(self.inner(x))


class Rows(nn.Module):
    """Digits as sequences of rows, [B, 8, 8], or of patches."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(8, width), body, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.first(x.view(-1, 8, 8)))
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))


class Nodes(nn.Module):
    """A node of three inputs, each through a choice of operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        ops = [ag.OpChoice([nn.Linear(width, width), nn.Identity()], name=f"op{i}") for i in range(3)]
        self.first, self.node = nn.Linear(64, width), ag.InputChoice(3, keep=2, name="node", edges=ops)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.head(self.node([x, x.tanh(), x.sin()]))


def _convolutions(width: int) -> nn.Module:
    layers = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def _gated(network: nn.Module) -> nn.Module:
    return ag.relax(ag.slim(network, torch.randn(2, 1, 8, 8)), ag.scaled_sigmoid)


def _operations(width: int) -> nn.Module:
    def candidate(kernel: int) -> nn.Module:
        conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)) if kernel == 5 else (
            nn.Sequential(conv, nn.BatchNorm2d(width))
        )  # fmt: skip

    choices = [ag.OpChoice([candidate(1), candidate(3), nn.Identity()], name=f"layer{i}") for i in range(2)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    return nn.Sequential(nn.Conv2d(1, width, 3), *choices, *ends)


def _nodes(width: int, *, subsets: bool) -> nn.Module:
    space = topology(Nodes(width), keep=2) if subsets else Nodes(width)
    ag.relax(space, ag.softmax, where=lambda choice: isinstance(choice, ag.OpChoice))
    return space if subsets else ag.relax(space, Open, where=lambda choice: isinstance(choice, ag.InputChoice))


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "gated convolutions": lambda width: _gated(_convolutions(width)),
    "gated transformer": lambda width: _gated(Rows(Attention(4 * width, 2), 4 * width)),
    "gated LSTM": lambda width: _gated(Rows(nn.LSTM(width, width, batch_first=True), width)),
    "mixture of operations": lambda width: ag.relax(_operations(width), ag.softmax),
    "draws of Gumbel": lambda width: ag.relax(_operations(width), ag.gumbel_softmax),
    "mixture of inputs": lambda width: _nodes(width, subsets=False),
    "distribution over subsets": lambda width: _nodes(width, subsets=True),
}


def _run(folder: Path | None = None, *, steps: int = 6) -> Run:
    return Run(steps=steps, device="cpu", folder=folder, progress=False, compile=True)


def _change(space: nn.Module) -> None:
    """What methods change between steps."""
    for part in space.modules():
        for name in ("scale", "temperature"):
            if isinstance(value := getattr(part, name, None), Tensor):
                value.mul_(1.25)
    ag.choices.access.draw(space, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for logit in logits(space):
            logit.add_(0.05 * torch.randn_like(logit))


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        *zip(KINDS, itertools.cycle(["both", "logits", "weights"]), strict=False),
        ("gated convolutions", "logits"),
        ("mixture of operations", "weights"),
    ],
)
def test_compiled_gradients_are_those_as_written(kind: str, trained: str) -> None:
    torch.manual_seed(len(kind))
    space = KINDS[kind](int(torch.randint(4, 7, ()))).train()
    parameters = {"weights": weights(space), "logits": logits(space), "both": [*weights(space), *logits(space)]}
    task = ag.Classification.load("digits", batch_size=16)
    of = parameters[trained]
    loss_of = compiled(task.loss, space, _run(), of)
    stream, stats = task.stream(seed=0), torch._dynamo.utils.counters["stats"]
    graphs = []
    for step in range(5):
        results = []
        for objective in (task.loss, loss_of):
            torch.manual_seed(step)
            loss = objective(space, stream(step))
            results.append((loss.detach(), torch.autograd.grad(loss, of, allow_unused=True)))
        (loss, gradients), (other, others) = results
        torch.testing.assert_close(loss, other)
        for mine, theirs in zip(gradients, others, strict=True):
            if mine is None or theirs is None:  # what does not run has no gradient, or one of zeros
                assert all(g is None or not g.any() for g in (mine, theirs))
            else:
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        graphs.append(stats["unique_graphs"])
        _change(space)
    assert graphs[0] > 0
    assert graphs[-1] == graphs[0], "what changes from step to step compiles nothing anew"
    assert all(p.requires_grad for p in space.parameters())
    assert all(c.override is None and c.settled is None for c in decisions(space).values())


def test_a_narrower_support_is_compiled_anew_and_sampled_paths_run_as_written() -> None:
    space, task = KINDS["mixture of operations"](4).train(), ag.Classification.load("digits", batch_size=16)
    stats, batch = torch._dynamo.utils.counters["stats"], task.stream(seed=0)(0)
    loss_of = compiled(task.loss, space, _run())
    for seed in range(3):
        path = ag.sample(space, generator=torch.Generator().manual_seed(seed))
        held = {name: choice.picked(path[name]).float() for name, choice in decisions(space).items()}
        before = stats["unique_graphs"]
        with ag.using(space, held):
            assert torch.equal(loss_of(space, batch), task.loss(space, batch))
        assert stats["unique_graphs"] == before
    for support in ([0, 1, 2], [0, 2], [2]):
        ag.restrict(space, {"layer1": support})
        torch.testing.assert_close(loss_of(space, batch), task.loss(space, batch))
        assert stats["unique_graphs"] == (before := before + 1)


@pytest.mark.parametrize("most", [32, 5])
def test_weights_that_are_frozen_between_steps_stay_frozen(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(module, "MOST", most)
    space, task = KINDS["mixture of operations"](4).train(), ag.Classification.load("digits", batch_size=16)
    loss_of, batch = compiled(task.loss, space, _run(), logits(space)), task.stream(seed=0)(0)
    for parameter in weights(space)[::2]:
        loss_of(space, batch)
        parameter.requires_grad_(False)
    loss_of(space, batch)
    assert [p.requires_grad for p in weights(space)] == [bool(i % 2) for i in range(len(weights(space)))]


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook", "forward_hook", "forward_pre_hook"])
def test_hooks_of_layers_are_called_whenever_they_come(kind: str) -> None:
    network, calls = _convolutions(4).train(), []
    task = ag.Classification.load("digits", batch_size=16)
    loss_of, batch = compiled(task.loss, network, _run()), task.stream(seed=0)(0)
    for _ in range(2):
        loss_of(network, batch).backward()
    getattr(network[2], f"register_{kind}")(lambda *given: calls.append(kind))
    for _ in range(2):
        loss_of(network, batch).backward()
    assert calls == [kind] * 2


def test_what_would_be_compiled_again_and_again_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    task, space = ag.Classification.load("digits"), _operations(4)
    assert compiled(task.loss, ag.relax(space, Clipped), _run()) == task.loss
    monkeypatch.setattr(module, "MOST", 5)
    shared = ag.relax(ag.darts_cells(channels=2, cells=1, nodes=2, factorized=True), ag.softmax)
    assert compiled(task.loss, shared, _run()) == task.loss, "its nodes run operations, and no choice does"
    assert compiled(task.loss, ag.relax(space, ag.softmax), _run()) != task.loss


@pytest.mark.parametrize("trained", ["weights", "logits"])
def test_choices_alike_are_compiled_once_by_region(trained: str) -> None:
    torch.manual_seed(0)
    space = ag.relax(ag.nasbench201_cells(channels=2, cells=1, in_channels=1), ag.softmax).train()
    assert sum(part.size for part in space.modules() if isinstance(part, ag.OpChoice)) > module.MOST
    task, of = ag.Classification.load("digits", batch_size=16), {"weights": weights(space), "logits": logits(space)}
    loss_of, stats = compiled(task.loss, space, _run(), of[trained]), torch._dynamo.utils.counters["stats"]
    before, batch = stats["unique_graphs"], task.stream(seed=0)(0)
    for step in range(3):
        results = []
        for objective in (task.loss, loss_of):
            loss = objective(space, batch)
            results.append((loss.detach(), torch.autograd.grad(loss, of[trained], allow_unused=True)))
        torch.testing.assert_close(*(loss for loss, _ in results))
        for mine, theirs in zip(*(gradients for _, gradients in results), strict=True):
            if mine is not None and theirs is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        _change(space)
        # Three widths, and the first edges of the first cell, whose input has no gradient where weights rest.
        assert stats["unique_graphs"] - before == (3 if trained == "weights" else 4), step
    assert not any("forward" in vars(part) for part in space.modules())
    assert all(c.override is None and c.settled is None for c in decisions(space).values())
    graphs = stats["unique_graphs"]
    path = ag.sample(space, generator=torch.Generator().manual_seed(1))
    held = {name: choice.picked(path[name]).float() for name, choice in decisions(space).items()}
    with ag.using(space, held):
        assert torch.equal(loss_of(space, batch), task.loss(space, batch))
    calls: list[int] = []
    space.body[0].edges[0].candidates[3].register_forward_hook(lambda *_: calls.append(1))
    loss_of(space, batch)
    assert len(calls) == 1
    assert stats["unique_graphs"] == graphs


class Unfollowed(nn.Linear):
    """What torch.compile captures in two graphs."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch._dynamo.graph_break()
        return y.tanh()


def test_a_region_that_is_no_single_graph_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    task, stats = ag.Classification.load("digits", batch_size=16), torch._dynamo.utils.counters["stats"]
    layer = ag.OpChoice([Unfollowed(64, 10), nn.Linear(64, 10)], name="layer")
    space, before = ag.relax(nn.Sequential(nn.Flatten(), layer), ag.softmax), stats["unique_graphs"]
    loss_of, batch = compiled(task.loss, space, _run()), task.stream(seed=0)(0)
    for _ in range(2):
        assert torch.equal(loss_of(space, batch), task.loss(space, batch))
    assert stats["unique_graphs"] == before


class StopsIn:
    """A task that sends its process a signal in a phase of a run, in the first loss of its third step."""

    def __init__(self, task: Any, run: Run, phase: str) -> None:
        self.task, self.run, self.phase = task, run, phase
        self.steps_per_epoch, self.example = task.steps_per_epoch, task.example
        self.stream, self.evaluate = task.stream, task.evaluate

    def split(self, fraction: float) -> tuple[Any, Any]:
        return tuple(StopsIn(part, self.run, self.phase) for part in self.task.split(fraction))  # type: ignore[return-value]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        if self.run.location == f"in phase {self.phase!r} at step 2" and not self.run.stop_requested:
            signal.raise_signal(signal.SIGTERM)
        return self.task.loss(network, batch)  # type: ignore[no-any-return]


RECIPE = ag.Recipe(average=0.7, accumulate=2)


def _fitted(task: Any, run: Run) -> nn.Module:
    torch.manual_seed(0)
    network = ag.build(space := _operations(4), ag.sample(space, generator=torch.Generator().manual_seed(0)))
    ag.fit(network, task, run, recipe=RECIPE)
    return network


def _slimmed(task: Any, run: Run) -> nn.Module:
    torch.manual_seed(0)
    space, limit = ag.slim(_convolutions(6), task.example), ag.macs(task.example).at_most(fraction=0.6)
    return ag.dnal(space, task, run, limit=limit, gate_epochs=None, recipe=RECIPE).network


def _pruned(task: Any, run: Run) -> nn.Module:
    torch.manual_seed(0)
    terms = PruningTerms(weight_steps=3, gate_steps=2)
    return ag.pruning_transfer(ag.slim(_convolutions(6), task.example), task, run, terms=terms).network


def _searched(task: Any, run: Run) -> nn.Module:
    torch.manual_seed(0)
    return ag.darts(_operations(4), task, run, finalists=None, recipe=RECIPE).network


@pytest.mark.parametrize(
    ("method", "steps", "phases", "most"),
    [
        (_fitted, 6, ["fit"], 32), (_slimmed, 40, ["weights", "gates", "finetune"], 32),
        (_pruned, 12, ["gates"], 32), (_searched, 12, ["search", "train"], 32), (_searched, 12, ["search"], 5),
    ],
)  # fmt: skip
def test_a_compiled_run_with_averages_and_accumulation_resumes_exactly_in_each_phase(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Callable[[Any, Run], nn.Module],
    steps: int,
    phases: list[str],
    most: int,
) -> None:
    monkeypatch.setattr(module, "MOST", most)
    task, stats = ag.Classification.load("digits", batch_size=64), torch._dynamo.utils.counters["stats"]

    def trained(folder: str, stop: str = "") -> nn.Module:
        torch._dynamo.reset()  # as in a new process
        run, before = _run(tmp_path / folder, steps=steps), stats["unique_graphs"]
        try:
            return method(StopsIn(task, run, stop), run)
        finally:
            assert stats["unique_graphs"] > before

    whole = trained("whole")
    for phase in phases:
        with pytest.raises(Stopped, match=phase):
            trained("stopped", phase)
    resumed = trained("stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

"""What a run says of NaN and infinity: the term, the module, the parameter, the choice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import archgrad as ag
from archgrad.choices.access import logits, relax, weights
from archgrad.choices.relaxations import Softmax
from archgrad.errors import NonFiniteError
from archgrad.run import nonfinite as diagnosis
from archgrad.run.run import Run
from archgrad.supernets.bilevel import alternate
from archgrad.training.fit import optimize
from archgrad.training.step import take_step


class Root(nn.Module):
    """sqrt(x - edge): NaN for x below it."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.edge).sqrt()


class Space(nn.Module):
    def __init__(self, edge: float = -100.0) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.op = ag.OpChoice({"plain": nn.Linear(4, 4), "root": Root(edge)}, name="middle")
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.stem(x)))


def data() -> ag.Classification:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    return ag.Classification((x, (x.sum(1) > 0).long()), batch_size=10)


def run_of(folder: Path | None = None, **parts: nn.Module) -> Run:
    run = Run(folder=folder, device="cpu", progress=False, output=ag.Output(checkpoint_seconds=0))
    run.begin("test", {})
    run.register_state(**parts)
    return run


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_finite(value: float) -> None:
    large = torch.full((3,), 3e38)
    assert diagnosis.finite([]) and diagnosis.finite([None, torch.zeros(0), torch.tensor([1, 2])])
    assert diagnosis.finite([large, large.double()]), "its squares overflow, it does not"
    assert not diagnosis.finite([large, torch.tensor([0.0, value])])
    assert not diagnosis.finite([torch.ones(2, dtype=torch.bfloat16), torch.tensor(value, dtype=torch.float64)])


def test_the_term_of_a_loss_is_named() -> None:
    w = torch.ones(2, requires_grad=True)
    run = run_of(net=nn.Linear(1, 1))
    limit, pull = diagnosis.term("limit", (w - 1).sum().log()), diagnosis.term("pull", w.sum())
    with pytest.raises(NonFiniteError, match=r"Of the terms of the loss, 'limit' is -inf\."):
        run.check_finite({"loss": w.sum() + 0.5 * limit + pull})
    with pytest.raises(NonFiniteError, match=r"'pull' \(2\) is finite: it is the rest"):
        run.check_finite({"loss": w.sum() * math.nan + pull})
    joined = diagnosis.joined({"loss": torch.tensor(1.0), "pull": torch.tensor(math.inf)})
    with pytest.raises(NonFiniteError, match="'pull' is inf"):
        run.check_finite({"architecture loss": joined})


def test_the_module_is_named_with_its_choice() -> None:
    space = Space(edge=100.0)
    relax(space, Softmax)
    run, task = run_of(space=space), data()
    told = r"first output that is not finite is that of space\.op\.candidates\.1 \(Root, candidate 'root' of choice "
    with pytest.raises(NonFiniteError, match=told + r"'middle'\), from finite inputs"):
        optimize(space, task, run, optimizer=SGD(weights(space), lr=0.1), steps=3, phase="fit")


def test_a_parameter_and_the_logits_are_named() -> None:
    space = Space()
    relax(space, Softmax)
    run = run_of(space=space)
    given = list(space.parameters())
    gradients: list[Tensor | None] = [torch.zeros_like(p) for p in given]
    run.check_gradients(given, gradients)
    names = {p: n for n, p in space.named_parameters()}
    for place, told in (
        ("stem.weight", r"of space\.stem\.weight is infinite\."),
        (
            "op.candidates.0.bias",
            r"of space\.op\.candidates\.0\.bias \(candidate 'plain' of choice 'middle'\) is inf",
        ),
        ("op.relaxation.logits", "of the logits of choice 'middle' is infinite"),
    ):
        wrong = [
            g if names[p] != place else torch.full_like(p, math.inf) for p, g in zip(given, gradients, strict=True)
        ]
        before = [p.detach().clone() for p in given]
        with pytest.raises(NonFiniteError, match=told):
            take_step(SGD(given, lr=1.0), run, lambda: (torch.tensor(1.0), wrong))  # noqa: B023
        assert all(torch.equal(p, b) for p, b in zip(given, before, strict=True)), "no step is taken on it"
    every = [torch.full_like(p, math.nan) for p in given]
    with pytest.raises(NonFiniteError, match=rf"space\.head\.bias is NaN, as are those of {len(given) - 1} more of"):
        run.check_gradients(given, every)


def test_an_architecture_step_is_looked_at_too() -> None:
    space = Space()
    relax(space, Softmax)
    run, task = run_of(space=space), data()
    decided = logits(space)

    def gradient(train: object, valid: object) -> tuple[Tensor, list[Tensor | None]]:
        return torch.tensor(1.0), [torch.full_like(p, math.nan) for p in decided]

    with pytest.raises(NonFiniteError, match="the logits of choice 'middle' is NaN"):
        alternate(
            space, task.split(), run, weights=SGD(weights(space), lr=0.1), architecture=SGD(decided, lr=0.1),
            steps=3, weight_loss=task.loss, architecture_loss=gradient,
        )  # fmt: skip


@pytest.mark.parametrize("how", ["step", "end"])
def test_no_state_with_nan_is_saved(tmp_path: Path, how: str) -> None:
    network = nn.Linear(2, 2)
    run = run_of(tmp_path / "run", network=network)
    with pytest.raises(NonFiniteError, match=r"network\.weight.*holds NaN.*0000-fit-0000000002.*is not saved"):
        for step in run.steps(3 if how == "end" else 9, phase="fit"):
            if step == 2:
                network.weight.data[0, 0] = math.nan
    run.close()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["0000-fit-0000000001.safetensors", "0000-fit-0000000002.safetensors"]
    again = nn.Linear(2, 2)
    steps = run_of(tmp_path / "run", network=again).steps(3 if how == "end" else 9, phase="fit")
    assert next(steps) == 2
    assert bool(again.weight.isfinite().all())


def test_weights_that_are_nan_from_the_first_are_told(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    network.bias.data.fill_(math.inf)
    with pytest.raises(NonFiniteError, match=r"network\.bias holds NaN or infinity in 2 of 2 values"):
        next(run_of(tmp_path / "run", network=network).steps(3))

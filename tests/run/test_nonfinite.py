"""What a run says of NaN and infinity: the term, the module, the parameter, the choice."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import archgrad as ag
from archgrad.choices.access import logits, relax, weights
from archgrad.choices.relaxations import Softmax
from archgrad.errors import NonFiniteError
from archgrad.run import nonfinite as diagnosis
from archgrad.run.nonfinite import FiniteChecks
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


def test_a_loss_that_divides_by_zero_is_told_from_outputs_that_are_not_finite() -> None:
    def nothing_to_learn(output: Tensor, target: Tensor) -> Tensor:
        chosen = (target > 5).float()  # of which there are none
        return (output.sum(1) * chosen).sum() / chosen.sum()

    x = torch.randn(40, 3)
    task = ag.Supervised((x, x[:, 0]), loss=nothing_to_learn, batch_size=10)
    with pytest.raises(NonFiniteError, match="outputs of all modules are finite and the loss is not"):
        ag.fit(nn.Linear(3, 2), task, ag.Run(steps=4, progress=False))


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


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are looked at as on an accelerator: where a step is logged, or before something is kept."""
    monkeypatch.setattr(FiniteChecks, "_later", property(lambda self: self._log.interval > 1))


def infinite_from(calls: int, *, only: bool = False) -> Callable[[nn.Module, Any], Tensor]:
    """A loss that is infinite, with finite gradients, from its so-many-th computation on, or in that one alone."""
    computed = [0]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        computed[0] += 1
        wrong = computed[0] == calls if only else computed[0] >= calls
        return nn.functional.cross_entropy(network(batch[0]), batch[1]) + (math.inf if wrong else 0.0)

    return loss


def trained(
    run: Run, net: nn.Module, loss: Callable[[nn.Module, Any], Tensor], *, phase: str | None, steps: int
) -> None:
    optimize(net, data(), run, optimizer=SGD(net.parameters(), lr=0.1), steps=steps, phase=phase, objective=loss)


def test_training_without_a_phase_is_looked_at_before_its_figures_are_kept(late: None, tmp_path: Path) -> None:
    net = nn.Linear(4, 2)
    run = run_of(tmp_path, net=net)
    trained(run, net, infinite_from(99), phase="first", steps=3)
    with pytest.raises(NonFiniteError, match="between phases, or in one of the steps"):
        trained(run, net, infinite_from(2, only=True), phase=None, steps=4)

    def figures() -> float:
        take_step(SGD(net.parameters(), lr=0.1), run, lambda: net(torch.ones(1, 4)).sum() + math.inf)
        return 0.5

    with pytest.raises(NonFiniteError, match="between phases"):
        run.compute_once("figures", figures)
    assert run.compute_once("figures", lambda: 0.25) == 0.25, "what the fault gave is not kept"
    take_step(SGD(net.parameters(), lr=0.1), run, lambda: net(torch.ones(1, 4)).sum() + math.inf)
    with pytest.raises(NonFiniteError, match="between phases"):
        run.finish()


@pytest.mark.parametrize("way", ["end", "periodic", "signal"])
def test_nothing_is_saved_after_a_loss_that_was_not_looked_at(late: None, tmp_path: Path, way: str) -> None:
    """Each program meets the fault again; with each step looked at, its place is named."""

    def program(**output: Any) -> Run:
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        run = Run(folder=tmp_path / "run", device="cpu", progress=False, output=ag.Output(**output))
        run.begin("test", {})
        run.register_state(net=net)
        made = SGD(net.parameters(), lr=0.1)
        for step in run.steps(8 if way == "end" else 60, phase="fit"):
            wrong = math.inf if step == 7 else 0.0
            loss = take_step(made, run, lambda: net(torch.ones(1, 4)).square().sum() + wrong)  # noqa: B023
            run.log_step({"loss": loss}, step=step)
            if step == 7 and way == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if step == 7 and way == "periodic":
                run._checkpoints.due_at = -math.inf
        return run

    for _ in range(2):
        with pytest.raises(NonFiniteError, match="in phase 'fit' at step 8, or in one of the steps") as caught:
            program()
        assert "The last good state is" in str(caught.value)
        assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*-fit-0000000008*")] == []
        assert not list((tmp_path / "run" / "checkpoints").glob("*-end*"))
    history = (tmp_path / "run" / "history.jsonl").read_text()
    assert "inf" not in history.lower()
    with pytest.raises(NonFiniteError, match="loss became NaN or infinite in phase 'fit' at step 7"):
        program(log_every=1)


def test_a_loop_that_is_left_after_such_a_loss_has_no_end(late: None, tmp_path: Path) -> None:
    net = nn.Linear(4, 2)
    run = run_of(tmp_path, net=net)
    run._checkpoints._every_seconds = 99.0
    for step in run.steps(60, phase="left"):
        wrong = math.inf if step == 3 else 0.0
        take_step(SGD(net.parameters(), lr=0.1), run, lambda: net(torch.ones(1, 4)).sum() + wrong)  # noqa: B023
        if step == 3:
            break
    assert any("'left' was not saved" in note for note in run.notes)
    with pytest.raises(NonFiniteError, match="between phases"):
        run.steps(5, phase="next")
    assert [path.name[:12] for path in (tmp_path / "checkpoints").iterdir()] == ["0000-left-00"]


def test_a_wrong_number_of_one_process_is_told_in_all() -> None:
    class Two:
        """The other process of two, on accelerators, has a number that is wrong."""

        alone, device = False, torch.device("cuda", 0)

        def greatest(self, number: int) -> int:
            return max(number, 1)

    run = run_of(net=nn.Linear(1, 1))
    run._log.interval = 10
    run._checks._machine = Two()  # type: ignore[assignment]
    run.check_finite({"loss": torch.tensor(1.0)})
    with pytest.raises(NonFiniteError, match=r"norm became NaN or infinite .*, in another process"):
        run.check_finite({"loss": torch.tensor(1.0), "norm": 1.0})

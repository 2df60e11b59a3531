"""Training a plain network: recipes, their formulas, and exact resume with all of them on."""

from __future__ import annotations

import copy
import dataclasses
import functools
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim import SGD, Optimizer

import archgrad as ag
from archgrad.errors import ConfigError, ModelError, RunError
from archgrad.run.output import Output
from archgrad.run.run import Run, Stopped
from archgrad.tasks.classification import Classification
from archgrad.tasks.supervised import Supervised
from archgrad.tasks.task import Batch
from archgrad.training.fit import fit, recalibrate, seconds_per_step
from archgrad.training.recipe import Recipe, adamw, sgd
from archgrad.training.schedules import constant, cosine, warm_up_cosine


class Block(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.drop_path = drop
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(self.drop_path, nn.Dropout3d):
            self.seen.append(self.drop_path.p)
        y = torch.relu(self.norm(self.conv(x)))
        return x + (self.drop_path(y.unsqueeze(1)).squeeze(1) if isinstance(self.drop_path, nn.Dropout3d) else y)


class Net(nn.Module):
    """With drop-path, a head for auxiliary logits in training mode, and a table of indices."""

    def __init__(self, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, 4, 3, padding=1), Block(nn.Dropout3d(0.05))
        self.other = Block(nn.Identity())
        self.head = nn.Linear(4, 3)
        self.auxiliary = nn.Linear(4, 3) if auxiliary else None
        self.register_buffer("index", torch.arange(5000))

    def forward(self, x: Tensor) -> Any:
        y = self.block(self.stem(x))
        logits = self.head(self.other(y).mean((2, 3)))
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary(y.mean((2, 3)))


def task(batch_size: int = 8) -> Classification:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(60) % 3
    x = torch.randn(60, 1, 5, 5, generator=generator)
    x[torch.arange(60), 0, y] += 1.5
    return Classification((x, y), batch_size=batch_size)


def run(**options: Any) -> Run:
    return Run(**({"steps": 9, "seed": 3, "device": "cpu", "progress": False} | options))


def net(**options: bool) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def plain_sgd(parameters: Iterable[nn.Parameter], rate: float = 1.0) -> Optimizer:
    return SGD(parameters, lr=rate)


def test_the_plain_recipe_is_the_plain_loop() -> None:
    data, network = task(), net()
    by_hand = copy.deepcopy(network)
    figures = fit(network, data, run())
    torch.manual_seed(3)
    optimizer, batches = sgd(by_hand.parameters()), data.stream(seed=3)
    for step in range(9):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * cosine(step / 9)
        optimizer.zero_grad()
        data.loss(by_hand.train(), batches(step)).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), by_hand.parameters(), strict=True))
    assert figures == data.evaluate(by_hand)


def test_adamw_decays_matrices_alone() -> None:
    network = net()
    decayed, other = adamw(network.parameters(), learning_rate=0.01, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], other["weight_decay"], decayed["lr"]) == (0.1, 0.0, 0.01)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)] for p in other["params"]} == {
        "stem.bias", "head.bias", *(f"{b}.norm.{n}" for b in ("block", "other") for n in ("weight", "bias"))
    }  # fmt: skip
    assert len(decayed["params"]) + len(other["params"]) == len(names)
    assert len(adamw([nn.Parameter(torch.zeros(3))]).param_groups) == 1
    before = task().evaluate(network)["loss"]
    assert (
        fit(network, task(), run(steps=40), recipe=Recipe(functools.partial(adamw, learning_rate=0.02)))["loss"]
        < before
    )


def test_clip_bounds_the_norm_over_all_groups() -> None:
    def two_groups(parameters: Iterable[nn.Parameter]) -> Optimizer:
        first, *rest = parameters
        return SGD([{"params": [first]}, {"params": rest}], lr=1.0)

    def moved(clip: float | None) -> float:
        network = net()
        before = nn.utils.parameters_to_vector(network.parameters()).clone()
        fit(network, task(), run(steps=1), recipe=Recipe(two_groups, constant, clip=clip))
        return float((nn.utils.parameters_to_vector(network.parameters()) - before).detach().norm())

    free = moved(None)
    assert free > 0.2
    assert moved(0.1) == pytest.approx(0.1, rel=1e-4)
    assert moved(10.0) == free


def test_auxiliary_logits_are_weighed() -> None:
    data, network = task(), net(auxiliary=True)
    start = copy.deepcopy(network).train()
    fit(network, data, run(steps=1), recipe=Recipe(plain_sgd, constant), auxiliary=0.4)
    x, y = data.stream(seed=3)(0)
    torch.manual_seed(3)
    logits, others = start(x)
    loss = functional.cross_entropy(logits, y) + 0.4 * functional.cross_entropy(others, y)
    gradients = torch.autograd.grad(loss, list(start.parameters()))
    for after, before, gradient in zip(network.parameters(), start.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - gradient)
    assert start.auxiliary is not None and network.auxiliary is not None
    unweighed = copy.deepcopy(start)
    fit(unweighed, data, run(steps=1))
    assert unweighed.auxiliary is not None
    assert torch.equal(unweighed.auxiliary.weight, start.auxiliary.weight)


def test_auxiliary_with_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 2), nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.left(a) + self.right(b), self.right(b)

    items = [((torch.randn(2), torch.randn(3)), i % 2) for i in range(20)]
    assert "accuracy" in fit(Two(), Classification(items_dataset(items), batch_size=4), run(), auxiliary=0.1)


def test_auxiliary_with_batches_of_another_form() -> None:
    items = [{"image": torch.randn(1, 4, 4), "label": i % 3} for i in range(20)]
    data = ag.Supervised(
        items_dataset(items), batch_size=4,
        batch_loss=lambda network, batch: functional.cross_entropy(network(batch["image"]), batch["label"]),
    )  # fmt: skip
    network = net(auxiliary=True)
    before = copy.deepcopy(network.auxiliary)
    fit(network, data, run(steps=1), auxiliary=0.4)
    assert not torch.equal(network.auxiliary.weight, before.weight)


def items_dataset(items: list[Any]) -> torch.utils.data.Dataset[Any]:
    class Items(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    return Items()


class Odd(Net):
    """In training mode its second output is not logits of the same classes."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits[:, :2]) if self.training else logits


@pytest.mark.parametrize(("made", "error"), [(Net, ConfigError), (Odd, ModelError)])
def test_auxiliary_without_a_head_is_refused_before_training(
    made: type[Net], error: type[Exception], tmp_path: Path
) -> None:
    network = made()
    state, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with pytest.raises(error, match=r"logits|output"):
        fit(network, task(), run(folder=tmp_path / "run"), auxiliary=0.4)
    assert not (tmp_path / "run").exists()
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(state.values(), network.state_dict().values(), strict=True))


def test_drop_path_grows_linearly() -> None:
    network, data = net(), task(batch_size=12)
    fit(network, data, run(steps=11), recipe=Recipe(drop_path=0.2))
    assert network.block.seen[1:] == pytest.approx([0.2 * step / 11 for step in range(11)]), "the first is a trial"
    assert isinstance(network.block.drop_path, nn.Dropout3d) and network.block.drop_path.p == 0.05


def test_drop_path_of_other_kinds() -> None:
    class DropPath(nn.Module):  # named and held as timm does
        def __init__(self) -> None:
            super().__init__()
            self.drop_prob = 0.3
            self.seen: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen += [self.drop_prob] if self.training else []
            return x

    class Timm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_path1, self.drop_path2 = DropPath(), nn.Identity()
            self.dropout, self.head = nn.Dropout(0.25), nn.Linear(25, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop_path2(self.dropout(self.drop_path1(x.flatten(1)))))

    network = Timm()
    fit(network, task(), run(steps=8), recipe=Recipe(drop_path=0.1))
    assert network.drop_path1.seen[0] == 0.3, "tried before the training"
    assert network.drop_path1.seen[1:9] == pytest.approx([0.1 * step / 8 for step in range(8)])
    assert (network.drop_path1.drop_prob, network.dropout.p) == (0.3, 0.25)


def test_drop_path_without_a_place_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(25, 3))
    with pytest.raises(ConfigError, match=r"no module named drop_path.*leave drop_path at 0"):
        fit(network, task(), run(folder=tmp_path / "run"), recipe=Recipe(drop_path=0.2))
    assert not (tmp_path / "run").exists()


def test_average_is_the_moving_average_and_its_norms_are_calibrated() -> None:
    steps: list[Tensor] = []

    def recording(parameters: Iterable[nn.Parameter]) -> Optimizer:
        made = sgd(parameters)
        made.register_step_post_hook(lambda *_: steps.append(nn.utils.parameters_to_vector(network.parameters())))
        return made

    network, data, training = net(), task(), run()
    fit(network, data, training, recipe=Recipe(recording, average=0.6))
    expected = steps[0].detach()
    for weights in steps[1:]:
        expected = 0.6 * expected + 0.4 * weights.detach()
    got = nn.utils.parameters_to_vector(network.parameters())
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, steps[-1])
    assert torch.equal(network.index, torch.arange(5000))
    statistics = network.block.norm.running_mean
    assert statistics is not None
    kept = statistics.clone()
    recalibrate(network, data, training)
    assert torch.equal(kept, statistics)
    assert training.notes == []


@pytest.mark.parametrize("replaces", [True, False])
def test_parameters_that_a_network_replaces_while_it_is_trained_are_noted(replaces: bool) -> None:
    class Replacing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if replaces and self.training:
                self.weight = nn.Parameter(self.weight.detach().clone())
            return super().forward(x.flatten(1))

    x = torch.randn(24, 3)
    taken = run(steps=4)
    fit(Replacing(3, 2), Classification((x, (x[:, 0] > 0).long()), batch_size=8), taken)
    assert any("replaced weight by other parameters" in note for note in taken.notes) == replaces


def test_an_average_over_more_steps_than_there_are_is_noted() -> None:
    training = run()
    fit(net(), task(), training, recipe=Recipe(average=0.999))
    assert len(training.notes) == 1 and "weight of 0.99 on the first weights: give at most 0.599" in training.notes[0]


RECIPE = Recipe(
    functools.partial(adamw, learning_rate=0.01), warm_up_cosine(0.2, last=0.1), clip=0.5, drop_path=0.3, average=0.8
)


class Terminated(Classification):
    """Receives SIGTERM, or fails, while it computes its n-th loss."""

    left = 10**6
    fails = False

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        self.left -= 1
        if self.left == 0:
            if self.fails:
                raise FloatingPointError("interrupted")
            signal.raise_signal(signal.SIGTERM)
        return super().loss(network, batch)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("after", [1, 6, 9])
def test_resume_is_exact_with_everything_on(tmp_path: Path, after: int, precision: str) -> None:
    def trained(folder: Path, stop: int | None) -> tuple[Net, dict[str, float], list[Any]]:
        data = task()
        data.__class__ = Terminated
        data.left = 2 * stop + 2 if stop else 10**6  # type: ignore[attr-defined]  # two losses a step, two tried
        network = net(auxiliary=True)
        training = run(
            folder=folder,
            steps=10,
            precision=precision,
            output=Output(log_every=1, checkpoint_seconds=0.0 if after == 6 else 99.0),
        )
        figures = fit(network, data, training, recipe=RECIPE, auxiliary=0.4)
        return network, figures, [{k: v for k, v in r.items() if k != "time"} for r in training.history]

    network, figures, history = trained(tmp_path / "whole", None)
    with pytest.raises(Stopped, match=f"after {after} steps"):
        trained(tmp_path / "cut", after)
    torch.rand(7)
    again, figures_again, history_again = trained(tmp_path / "cut", None)
    assert figures_again == figures and history_again == history
    state, state_again = network.state_dict(), again.state_dict()
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    finished, figures_finished, _ = trained(tmp_path / "cut", None)
    assert figures_finished == figures
    assert all(torch.equal(value, finished.state_dict()[name]) for name, value in state.items())


def test_resume_is_exact_after_an_error_inside_a_step(tmp_path: Path) -> None:
    def trained(folder: Path, *, fails: bool) -> dict[str, Tensor]:
        data, network = task(), net(auxiliary=True)
        data.__class__ = Terminated
        data.fails, data.left = fails, 13 if fails else 10**6  # type: ignore[attr-defined]
        training = run(folder=folder, steps=10, output=Output(checkpoint_seconds=0.0))
        try:
            fit(network, data, training, recipe=RECIPE, auxiliary=0.4)
        finally:
            training.close()
        return network.state_dict()

    whole = trained(tmp_path / "whole", fails=False)
    with pytest.raises(FloatingPointError):
        trained(tmp_path / "cut", fails=True)
    again = trained(tmp_path / "cut", fails=False)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


OTHER: dict[str, Any] = {
    "clip": 1.0,
    "drop_path": 0.2,
    "average": 0.9,
    "accumulate": 2,
    "optimizer_factory": functools.partial(adamw, learning_rate=0.02),
    "schedule": cosine,
}


@pytest.mark.parametrize("name", [*OTHER, "auxiliary"])
def test_resuming_with_another_option_is_refused(tmp_path: Path, name: str) -> None:
    fit(net(auxiliary=True), task(), run(folder=tmp_path, steps=1), recipe=RECIPE, auxiliary=0.4)
    other = dataclasses.replace(RECIPE, **({name: OTHER[name]} if name in OTHER else {}))
    with pytest.raises(RunError, match="auxiliary" if name == "auxiliary" else "recipe"):
        fit(net(auxiliary=True), task(), run(folder=tmp_path, steps=1), recipe=other,
            auxiliary=0.3 if name == "auxiliary" else 0.4)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("clip", value) for value in (0, -1.0, float("nan"), float("inf"), "5", True)),
        *(("drop_path", value) for value in (-0.1, 1.0, float("nan"), "a")),
        *(("average", value) for value in (0.0, 1.0, float("nan"), "a", 2)),
        *(("accumulate", value) for value in (0, -1, 1.5, True)),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=.* was given\. Allowed is a"):
        Recipe(**{name: value})


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), None])
def test_a_weight_of_auxiliary_logits_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"auxiliary=.* was given\. Allowed is"):
        fit(net(), task(), run(), auxiliary=value)


def test_mixed_precision_trains_on_the_cpu() -> None:
    class Typed(Net):
        kinds: list[torch.dtype] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            if self.training:
                self.kinds.append(y.dtype)
            return y

    torch.manual_seed(0)
    network, data = Typed(), task()
    before = data.evaluate(network)["loss"]
    after = fit(network, data, run(steps=40, precision="bf16-mixed"))["loss"]
    assert after < before - 0.1
    assert network.kinds == [torch.float32] + 40 * [torch.bfloat16], "after a trial of the network as it is"
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def values(schedule: Callable[[float], float], steps: int) -> list[float]:
    return [schedule(step / steps) for step in range(steps)]


def test_warm_up_cosine() -> None:
    rates = values(warm_up_cosine(30 / 600), 600)
    assert rates[0] == 0.01 and rates[30] == 1.0 and max(rates) == 1.0
    assert rates[15] == pytest.approx(0.505) and rates[315] == pytest.approx(0.5)
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] < 1e-4
    darts = values(warm_up_cosine(0, last=0.001 / 0.025), 50)
    torch_rate = torch.optim.lr_scheduler.CosineAnnealingLR(SGD([nn.Parameter(torch.zeros(1))], lr=0.025), 50, 0.001)
    for rate in darts:
        assert 0.025 * rate == pytest.approx(torch_rate.get_last_lr()[0])
        torch_rate.optimizer.step()
        torch_rate.step()


@pytest.mark.parametrize(("share", "last"), [(1.0, 0.0), (-0.1, 0.0), (0.1, 1.5), (float("nan"), 0.0), (0.1, -1.0)])
def test_warm_up_cosine_out_of_range(share: float, last: float) -> None:
    with pytest.raises(ConfigError, match=r"warm_up_cosine\("):
        warm_up_cosine(share, last=last)


def test_a_network_whose_weights_are_computed_before_each_call_is_timed_on_a_copy() -> None:
    network = nn.Sequential(nn.Flatten(), prune.l1_unstructured(nn.Linear(64, 10), "weight", amount=0.5))
    assert seconds_per_step(network, Classification.load("digits"), run(), Recipe()) > 0


def test_a_network_that_does_not_fit_the_data_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    data = torch.randn(24, 6), torch.arange(24) % 3
    with pytest.raises(ModelError, match=r"network fails on a batch of shape \[2, 6\]"):
        fit(nn.Linear(5, 3), Classification(data), Run(steps=1, progress=False, folder=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="the loss has no gradient"):
        task = Supervised(data, loss=lambda output, target: output.detach().mean())
        fit(nn.Linear(6, 3), task, Run(steps=1, progress=False))

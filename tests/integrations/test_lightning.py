"""Gates in Lightning's Trainer: the limit, exact resume, what its optimizer trains, precision, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError

pytest.importorskip("lightning", reason="comes with the extra lightning")

import lightning.pytorch as pl
from lightning.pytorch.plugins import MixedPrecision

from archgrad.integrations import LightningGateCallback

pytestmark = [
    # Advice on speed and on loggers; these trainings are tiny and log nothing.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # What Lightning calls of torch, deprecated there.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval"),
]
STEPS = 12  # of two epochs


class Classifier(pl.LightningModule):
    def __init__(self, space: nn.Module, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        super().__init__()
        self.space, self.optimizer = space, optimizer
        self.seen: list[str] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(str(self.space(batch[0]).dtype))
        return nn.functional.cross_entropy(self.space(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters(), lr=0.01, weight_decay=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)}


def loader(batch_size: int = 32) -> torch.utils.data.DataLoader[Any]:
    digits = ag.digits()
    data = torch.utils.data.TensorDataset(digits.x[:192] / 255, digits.y[:192])
    return torch.utils.data.DataLoader(data, batch_size)


def slimmable() -> tuple[nn.Module, nn.Module, Tensor]:
    """A small CNN, its space, and an example of the digits, [1, 1, 8, 8]."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    x = ag.digits().x[:1] / 255
    return net, ag.slim(net, example=x), x


def parts(**options: Any) -> tuple[Classifier, LightningGateCallback]:
    _, space, x = slimmable()
    return Classifier(space), LightningGateCallback(space, limit=ag.macs(x).at_most(fraction=0.5), **options)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, **options}
    return pl.Trainer(
        callbacks=list(callbacks), logger=False, enable_progress_bar=False, enable_model_summary=False, **options
    )


def test_the_network_cut_is_under_the_limit_and_figures_are_logged() -> None:
    net, space, x = slimmable()
    before = [p.detach().clone() for p in space.parameters()]
    gates = LightningGateCallback(space, limit=ag.macs(x).at_most(fraction=0.5))
    training = trainer(gates)
    training.fit(Classifier(space), loader())
    small = gates.cut(inputs=[x for x, _ in loader()])
    assert ag.macs(x).of(small) <= 0.5 * ag.macs(x).of(net)
    assert not any(type(m).__module__.startswith(("archgrad", "lightning")) for m in small.modules())
    assert gates.gates.steps == gates.gates.steps_taken == STEPS
    assert all(not torch.equal(a, b) for a, b in zip(before, ag.weights(space), strict=False))
    assert training.logged_metrics["gates/scale"] == 400.0
    assert {"gates/open_gates", "gates/expected_macs"} <= set(training.logged_metrics)


class StopAfter(pl.Callback):
    def __init__(self, epochs: int, path: Path) -> None:
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def test_stopped_and_resumed_gives_the_same_bits_as_never_stopped(tmp_path: Path) -> None:
    whole, gates = parts()
    trainer(gates, max_epochs=3).fit(whole, loader())

    first, gates_of_first = parts()
    trainer(gates_of_first, StopAfter(1, tmp_path / "last.ckpt"), max_epochs=3).fit(first, loader())
    assert gates_of_first.gates.steps_taken == 6  # amid a round of the gates, so that they have momentum
    second, gates_of_second = parts()
    trainer(gates_of_second, max_epochs=3).fit(second, loader(), ckpt_path=tmp_path / "last.ckpt")

    assert gates_of_second.gates.steps_taken == gates.gates.steps_taken == 18
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert gates.gates.architecture() == gates_of_second.gates.architecture()

    # The controls: without the momentum of the gates the bits are others; without their state nothing goes on.
    checkpoint = torch.load(tmp_path / "last.ckpt")
    checkpoint["callbacks"]["LightningGateCallback"]["optimizer"]["state"] = {}
    torch.save(checkpoint, tmp_path / "without.ckpt")
    third, gates_of_third = parts()
    trainer(gates_of_third, max_epochs=3).fit(third, loader(), ckpt_path=tmp_path / "without.ckpt")
    assert not all(torch.equal(a, b) for a, b in zip(ag.logits(whole), ag.logits(third), strict=True))
    torch.save({**checkpoint, "callbacks": {}}, tmp_path / "without.ckpt")
    fourth, gates_of_fourth = parts()
    with pytest.raises(ConfigError, match="something other than GateTrainer has moved the logits"):
        trainer(gates_of_fourth, max_epochs=3).fit(fourth, loader(), ckpt_path=tmp_path / "without.ckpt")
    other, gates_of_other = parts()
    with pytest.raises(ConfigError, match="steps=18, and this GateTrainer has steps=30"):
        trainer(gates_of_other, max_epochs=5).fit(other, loader(), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad])
def test_the_optimizer_of_the_module_does_not_train_the_logits(optimizer: Any) -> None:
    _, space, x = slimmable()
    module = Classifier(space, optimizer)
    gates = LightningGateCallback(space, limit=ag.macs(x).at_most(fraction=0.5))
    training = trainer(gates)
    training.fit(module, loader())
    trained = {p for group in training.optimizers[0].param_groups for p in group["params"]}
    assert trained == set(ag.weights(space))
    assert set(training.optimizers[0].state) == trained


def loop_of_ones_own(accumulate: int = 1) -> tuple[nn.Module, ag.GateTrainer]:
    _, space, x = slimmable()
    gates = ag.GateTrainer(space, limit=ag.macs(x).at_most(fraction=0.5), steps=STEPS)
    optimizer = torch.optim.AdamW(ag.weights(space), lr=0.01, weight_decay=0.1)
    for epoch in range(2):
        for number, (x, y) in enumerate(loader(32 // accumulate)):
            (nn.functional.cross_entropy(space(x), y) / accumulate).backward()
            if (number + 1) % accumulate == 0:
                nn.utils.clip_grad_norm_(ag.weights(space), 0.5)
                optimizer.step()
                optimizer.zero_grad()
                gates.step()
        optimizer.param_groups[0]["lr"] = 0.01 * 0.9 ** (epoch + 1)
    return space, gates


class Plain(Classifier):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.space(batch[0]), batch[1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_loop_of_ones_own_with_accumulation_and_clipping(accumulate: int) -> None:
    own, gates = loop_of_ones_own(accumulate)
    _, space, x = slimmable()
    callback = LightningGateCallback(space, limit=ag.macs(x).at_most(fraction=0.5))
    training = trainer(callback, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
    training.fit(Plain(space), loader(32 // accumulate))
    assert callback.gates.steps_taken == gates.steps_taken == STEPS
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), space.state_dict().values(), strict=True))


def test_bf16_runs() -> None:
    module, gates = parts()
    trainer(gates, precision="bf16-mixed").fit(module, loader())
    assert set(module.seen) == {"torch.bfloat16"}
    gates.cut()


def test_a_scaler_changes_nothing_even_where_its_scale_grows_with_each_step() -> None:
    results = []
    for scale in (1.0, 2.0**8):
        _, space, x = slimmable()
        gates = LightningGateCallback(space, limit=ag.macs(x).at_most(fraction=0.5))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1 if scale > 1.0 else 1000)
        precision = MixedPrecision("16-mixed", "cpu", scaler)
        # In float32, where powers of two change no bit, so that equal means equal.
        precision.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)  # type: ignore[method-assign]
        trainer(gates, plugins=[precision], max_epochs=1).fit(Plain(space), loader())
        results.append([p.detach() for p in space.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_batches_without_a_loss_are_no_steps() -> None:
    class Skipping(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    _, space, x = slimmable()
    gates = LightningGateCallback(space, limit=ag.macs(x).at_most(fraction=0.5), steps=6)
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        trainer(gates).fit(Skipping(space), loader())
    assert gates.gates.steps_taken == 6


def test_what_cannot_work_is_refused() -> None:
    module, _ = parts()
    _, gates = parts()
    with pytest.raises(ConfigError, match="does not hold the space of the callback"):
        trainer(gates).fit(module, loader())
    module, gates = parts()
    with pytest.raises(ConfigError, match="give max_epochs or max_steps"):
        trainer(gates, max_epochs=-1).fit(module, loader())
    module, gates = parts()
    training = trainer(gates)
    training.strategy.__class__ = type(
        "FSDPStrategy", (type(training.strategy),), {"restore_checkpoint_after_setup": True}
    )
    with pytest.raises(ConfigError, match="FSDPStrategy shards parameters"):
        training.fit(module, loader())

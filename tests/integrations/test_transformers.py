"""Gates in Hugging Face's Trainer: the limit, exact resume, what its optimizer and clipping see, what is refused."""

from __future__ import annotations

import copy
import functools
import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import logits
from archgrad.errors import ConfigError

pytest.importorskip("transformers", reason="comes with the extra transformers")
pytest.importorskip("accelerate", reason="comes with the extra transformers")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)  # fmt: skip
from transformers.utils import logging

from archgrad.integrations import TransformersGateCallback

pytestmark = [
    # accelerate and the Trainer pin memory whether there is a GPU or not.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found"),
]
STEPS = 12  # of two epochs


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """96 rows of 8 tokens each; the label is whether there are more tokens below 20 than not."""

    def __init__(self) -> None:
        self.tokens = torch.randint(0, 40, (96, 8), generator=torch.Generator().manual_seed(0))
        self.labels = ((self.tokens < 20).sum(1) > 4).long()

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.tokens[index], "attention_mask": torch.ones(8, dtype=torch.long),
            "labels": self.labels[index],
        }  # fmt: skip


@functools.cache
def prepared() -> tuple[nn.Module, nn.Module, ag.Limit]:
    torch.manual_seed(0)
    net = BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=8, num_labels=2,
        )
    )  # fmt: skip
    example = (torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))
    return net, ag.slim(net, example=example), ag.macs(example).at_most(fraction=0.75)


def slimmable() -> tuple[nn.Module, nn.Module, ag.Limit]:
    """A BERT of 2 layers at random weights, its space, and 75% of its MACs."""
    return copy.deepcopy(prepared())


def without_dropout(space: nn.Module) -> nn.Module:
    for module in space.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return space


def trainer(
    space: nn.Module, folder: Path, *callbacks: TrainerCallback, kind: type[Trainer] = Trainer, **options: Any
) -> Trainer:
    options = {
        "num_train_epochs": 2, "per_device_train_batch_size": 16, "save_strategy": "no", "learning_rate": 1e-3,
        "weight_decay": 0.1, **options,
    }  # fmt: skip
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to="none", seed=0, **options)
    return kind(space, args, train_dataset=Sentences(), callbacks=list(callbacks))


def trained(folder: Path, *callbacks: TrainerCallback, resume: Path | None = None, **options: Any) -> Any:
    _, space, limit = slimmable()
    gates = TransformersGateCallback(space, limit=limit)
    training = trainer(space, folder, gates, *callbacks, **options)
    training.train(resume_from_checkpoint=None if resume is None else str(resume))
    return space, gates, training


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_network_cut_is_under_the_limit_and_figures_are_logged(tmp_path: Path) -> None:
    net, _, limit = slimmable()
    _, gates, training = trained(tmp_path)
    small = gates.cut()
    assert limit.cost.of(small) <= 0.75 * limit.cost.of(net)
    assert not any(type(m).__module__.startswith("archgrad") for m in small.modules())
    assert gates.gates.steps == gates.gates.steps_taken == STEPS
    logged = [row for row in training.state.log_history if "gates/scale" in row]
    assert logged[-1]["gates/scale"] == 400.0 and {"gates/open_gates", "gates/expected_macs"} <= set(logged[-1])
    assert small(**{k: v[None] for k, v in Sentences()[0].items()}).loss.isfinite()
    training.save_model(str(tmp_path / "space"))  # whose gates share their logits
    saved = load_file(tmp_path / "space" / "model.safetensors")
    assert len([name for name in saved if name.endswith(".logits")]) == len(logits(training.model))
    small.save_pretrained(tmp_path / "small")
    kept = load_file(tmp_path / "small" / "model.safetensors")
    assert kept.keys() == small.state_dict().keys()


class StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        control.should_training_stop = state.global_step == self.steps


def test_stopped_and_resumed_gives_the_same_bits_as_never_stopped(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 4}
    whole, gates, _ = trained(tmp_path / "whole", **saving)
    trained(tmp_path / "parts", StopAfter(5), **saving)
    checkpoint = tmp_path / "parts" / "checkpoint-4"  # amid the second epoch
    second, gates_of_second, _ = trained(tmp_path / "more", resume=checkpoint, **saving)
    assert gates_of_second.gates.steps_taken == gates.gates.steps_taken == 12
    assert same(whole, second) and gates.gates.architecture() == gates_of_second.gates.architecture()

    with pytest.raises(ConfigError, match="steps=12, and this GateTrainer has steps=15"):
        trained(tmp_path / "longer", resume=checkpoint, **{**saving, "num_train_epochs": 5})
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["TransformersGateCallback"]
    path.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="a training without TransformersGateCallback"):
        trained(tmp_path / "without", resume=checkpoint, **saving)


def test_the_optimizer_of_the_trainer_does_not_train_the_logits(tmp_path: Path) -> None:
    space, _, training = trained(tmp_path)
    in_optimizer = {p for group in training.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == set(ag.weights(space))
    assert all(float(p.detach().abs().max()) > 0 for p in ag.logits(space)), "and yet they have moved"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_loop_of_ones_own_with_accumulation_and_clipping(tmp_path: Path, accumulate: int) -> None:
    """The gradients of the logits are no part of the norm that is clipped."""
    batches: list[dict[str, Tensor]] = []

    class Recording(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *more: Any, **named: Any) -> Any:
            batches.append(inputs)
            return model(**inputs).loss / accumulate

    _, space, limit = slimmable()
    callback = TransformersGateCallback(space, limit=limit)
    training = trainer(
        without_dropout(space), tmp_path, callback, kind=Recording, max_grad_norm=0.1, num_train_epochs=1,
        gradient_accumulation_steps=accumulate, lr_scheduler_type="constant", optim="sgd", weight_decay=0.0,
    )  # fmt: skip
    training.train()

    _, own, limit = slimmable()
    gates = ag.GateTrainer(without_dropout(own).train(), limit=limit, steps=6 // accumulate)
    optimizer = torch.optim.SGD(ag.weights(own), lr=1e-3)
    for number, batch in enumerate(batches):
        (own(**batch).loss / accumulate).backward()
        if (number + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(ag.weights(own), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            gates.step()
    assert callback.gates.steps_taken == gates.steps_taken == 6 // accumulate
    assert same(own, space)


def test_bf16_runs(tmp_path: Path) -> None:
    kinds = set()

    class Watching(TrainerCallback):
        def on_init_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
            layer = model.get_submodule("bert.pooler.dense")
            layer.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))

    _, gates, _ = trained(tmp_path, Watching(), bf16=True)
    assert kinds == {torch.bfloat16}
    gates.cut()


def test_a_scaled_gradient_gives_the_same_step(tmp_path: Path) -> None:
    results = []
    for scale in (None, 2.0**10):
        _, space, limit = slimmable()
        gates = TransformersGateCallback(space, limit=limit)
        training = trainer(space, tmp_path, gates)
        state = TrainerState(max_steps=5)
        gates.on_train_begin(training.args, state, training.control, model=space)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        batch = {name: value[None] for name, value in Sentences()[0].items()}
        (space.eval()(**batch).loss * (scale or 1.0)).backward()
        assert all(p.grad is None for p in ag.logits(space)), "taken from where clipping would see them"
        optimizer = types.SimpleNamespace(scaler=scaler)
        gates.on_pre_optimizer_step(training.args, state, training.control, optimizer=optimizer)
        results.append([p.detach().clone() for p in ag.logits(space)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert any(float(p.abs().max()) > 0 for p in results[0])


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    _, space, _ = slimmable()
    _, another, limit = slimmable()
    gates = TransformersGateCallback(another, limit=limit)
    with pytest.raises(ConfigError, match="does not hold the space of the callback"):
        trainer(space, tmp_path, gates).train()
    with pytest.raises(ConfigError, match="restore_callback_states_from_checkpoint=True"):
        trainer(another, tmp_path, gates, restore_callback_states_from_checkpoint=True)
    args = types.SimpleNamespace(restore_callback_states_from_checkpoint=False, fsdp=["full_shard"], deepspeed=None)
    with pytest.raises(ConfigError, match="shard parameters"):
        gates.on_init_end(args, TrainerState(), TrainerControl())  # type: ignore[arg-type]

"""Gates under a limit in Hugging Face's Trainer, as a callback; needs the extra `transformers`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import logits
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, MissingExtra
from archgrad.gates.gate_optimizer import RATE_UNDER_LIMIT
from archgrad.gates.gate_trainer import GateTrainer
from archgrad.gates.width_rounding import RoundTo

try:
    import accelerate  # noqa: F401  # transformers imports its Trainer without, and fails when one is made
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtra("transformers or accelerate", "transformers") from error


class TransformersGateCallback(TrainerCallback, ExportableState):
    """An `archgrad.GateTrainer` in Hugging Face's Trainer: `Trainer(space, callbacks=[gates])`, then `gates.cut()`.

    It takes a step of the gates with each step of the Trainer's optimizer. The logits of the gates stay out of that
    optimizer, since they require no gradient until it has been made, and their gradients stay out of gradient
    clipping. Accumulation, mixed precision with its scaler, and several processes work.

    `gates/scale`, `gates/flips`, `gates/open_gates` and `gates/expected_<cost>` are added to the Trainer's log
    history where the gates harden. Checkpoints hold the logits with the model's weights, and the rest in
    `trainer_state.json`.

    Args:
        space: from `archgrad.slim`; the Trainer's model, or a part of it.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`.
        steps: steps of the optimizer in the whole training; default: `TrainerState.max_steps`.
        example, round_to, learning_rate: as `archgrad.GateTrainer` has them; it says what is raised here.

    Raises:
        MissingExtra: transformers or accelerate is not installed; importing this module raises it.
        ConfigError: when the training begins: the model does not hold the space, parameters are sharded, or the
            checkpoint has no gates or is of a training of another length.
    """

    def __init__(
        self,
        space: nn.Module,
        *,
        limit: Limit | Sequence[Limit],
        steps: int | None = None,
        example: Any = None,
        round_to: RoundTo = None,
        learning_rate: float = RATE_UNDER_LIMIT,
    ) -> None:
        self.gates = GateTrainer(
            space, limit=limit, steps=1 if steps is None else steps, example=example, round_to=round_to,
            learning_rate=learning_rate,
        )  # fmt: skip
        if hasattr(space, "_keys_to_ignore_on_save"):  # a model of transformers saves no tensor under two names
            tensors = space.state_dict(keep_vars=True)
            first = {id(tensor): key for key, tensor in reversed(tensors.items())}
            again = {key for key, tensor in tensors.items() if first[id(tensor)] != key}
            # Were these all of the missing keys, a resumed Trainer would tie weights anew, over the gates on them.
            ignored: set[str] = set(getattr(space, "_keys_to_ignore_on_save", None) or ())
            vars(space)["_keys_to_ignore_on_save"] = {*ignored, *again, "of no tensor"}
        self._steps = steps
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._hooks: list[Any] = []
        self._release()

    def __repr__(self) -> str:
        return f"<TransformersGateCallback: {self.gates!r}>"

    def cut(self, *, inputs: Iterable[Any] = ()) -> nn.Module:
        """The plain network under the limit; as `archgrad.GateTrainer.cut`."""
        return self.gates.cut(inputs=inputs)

    # The Trainer hands its model, optimizer and more to every event by name: hence `kwargs`.
    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot work."""
        if args.restore_callback_states_from_checkpoint:
            raise ConfigError(
                "restore_callback_states_from_checkpoint=True makes callbacks anew from a file, which cannot hold a "
                "space and a limit: leave the option out, since the callback of the gates restores itself"
            )
        if args.fsdp or args.deepspeed:
            raise ConfigError(
                "FSDP and DeepSpeed shard parameters, and the gates need them whole: train on one device, or on "
                "several with torchrun alone"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from a checkpoint, and collect the gradients of the logits from now on."""
        model: nn.Module = kwargs["model"]
        if not any(module is self.gates.space for module in model.modules()):
            raise ConfigError(
                f"the Trainer's model, {type(model).__name__}, does not hold the space of the callback: give the "
                "object that archgrad.slim returned to both, and no model_init to Trainer"
            )
        self.gates.steps = state.max_steps if self._steps is None else self._steps
        if state.global_step > 0:
            assert isinstance(
                state.stateful_callbacks, dict
            )  # as the Trainer keeps them, whatever its annotation says
            saved = state.stateful_callbacks.get(type(self).__name__)
            if saved is None:
                raise ConfigError(
                    "the checkpoint is of a training without TransformersGateCallback: begin without it"
                )
            self.gates.load_state_dict(_decoded(saved["attributes"]["gates"]))
        self._release()
        for parameter in logits(self.gates.space):
            parameter.requires_grad_(True)
            hook = parameter.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take a step of the gates.

        It reads the logits' gradients alone, so that before and after the optimizer's step are one; before it, the
        scaler still has the scale of these gradients.
        """
        for parameter in logits(self.gates.space):
            parameter.grad = self._gradients.pop(parameter, None)
            if args.world_size > 1:
                # DistributedDataParallel was made while the logits required no gradient, and does not know them.
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= args.world_size
        figures = self.gates.step(getattr(kwargs["optimizer"], "scaler", None))
        if figures:
            logged = {f"gates/{name}": value for name, value in figures.items()}
            state.log_history.append({**logged, "epoch": state.epoch, "step": state.global_step + 1})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the space as it was before the training but for its values."""
        self._release()

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps in the `trainer_state.json` of its checkpoints."""
        buffer = io.BytesIO()
        torch.save(self.gates.state_dict(), buffer)
        return {"args": {}, "attributes": {"gates": base64.b64encode(buffer.getvalue()).decode()}}

    def _collect(self, parameter: nn.Parameter) -> None:
        """Add a gradient to those before it, and take it from where clipping would see it."""
        assert parameter.grad is not None
        before = self._gradients.get(parameter)
        self._gradients[parameter] = parameter.grad if before is None else before + parameter.grad
        parameter.grad = None

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._gradients.clear()
        for parameter in logits(self.gates.space):
            parameter.requires_grad_(False)


def _decoded(text: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(base64.b64decode(text)), map_location="cpu", weights_only=True)
    return state

"""Gates under a limit in Lightning's Trainer, as a callback; needs the extra `lightning`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from archgrad.choices.access import logits
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, MissingExtra
from archgrad.gates.gate_optimizer import RATE_UNDER_LIMIT
from archgrad.gates.gate_trainer import GateTrainer
from archgrad.gates.width_rounding import RoundTo

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtra("lightning", "lightning") from error


class LightningGateCallback(Callback):
    """An `archgrad.GateTrainer` in Lightning's Trainer: `Trainer(callbacks=[gates])`, then `gates.cut()`.

    It takes a step of the gates with each step of the optimizer that trains the space's weights, and takes the
    logits of the gates out of the module's optimizers: `configure_optimizers` may give them `self.parameters()`.
    Accumulation, mixed precision with its scaler, gradient clipping, manual optimization and DDP stay Lightning's.
    `gates/scale`, `gates/flips`, `gates/open_gates` and `gates/expected_<cost>` are logged where the gates harden.
    Checkpoints hold the logits with the module's weights and the rest as this callback's state.

    Make the callback before a checkpoint is loaded into the module, since it adds the logits to the space.

    Args:
        space: from `archgrad.slim`; the LightningModule holds this very object, in any attribute.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`.
        steps: steps of the optimizer in the whole training; default: `trainer.estimated_stepping_batches`.
        example, round_to, learning_rate: as `archgrad.GateTrainer` has them; it says what is raised here.

    Raises:
        MissingExtra: lightning is not installed; importing this module raises it.
        ConfigError: when the training begins: the module does not hold the space, the strategy shards parameters,
            the number of steps is not known, or the checkpoint is of a training of another length.
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
        self._steps = steps
        self._restored: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<LightningGateCallback: {self.gates!r}>"

    def cut(self, *, inputs: Iterable[Any] = ()) -> nn.Module:
        """The plain network under the limit; as `archgrad.GateTrainer.cut`."""
        return self.gates.cut(inputs=inputs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        if not any(module is self.gates.space for module in pl_module.modules()):
            raise ConfigError(
                f"{type(pl_module).__name__} does not hold the space of the callback: put the object that "
                "archgrad.slim returned into an attribute of the module, and give the same object to the callback"
            )
        if trainer.strategy.restore_checkpoint_after_setup:
            raise ConfigError(
                f"{type(trainer.strategy).__name__} shards parameters, and the gates need them whole: train on one "
                'device, or with strategy="ddp"'
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the logits out of the optimizers, and go on from a checkpoint."""
        steps = trainer.estimated_stepping_batches if self._steps is None else self._steps
        if steps == float("inf"):
            raise ConfigError(
                "the Trainer has no end, and the gates have to be hard at the end: give max_epochs or max_steps to "
                "Trainer, or steps to the callback"
            )
        self.gates.steps = int(steps)
        if self._restored is not None:
            self.gates.load_state_dict(self._restored)
            self._restored = None
        decided = set(logits(self.gates.space))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p not in decided]
            for parameter in decided:
                optimizer.state.pop(parameter, None)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take a step of the gates.

        It reads the logits' gradients alone, so that before and after the optimizer's step are one; before it, the
        scaler still has the scale of these gradients.
        """
        weights = set(self.gates.space.parameters())
        stepped = (p for group in optimizer.param_groups for p in group["params"])
        # Not for an optimizer of other parts, nor where training_step returned None.
        if any(p in weights and p.grad is not None for p in stepped):
            figures = self.gates.step(getattr(trainer.precision_plugin, "scaler", None))
            pl_module.log_dict(
                {f"gates/{name}": value for name, value in figures.items()}, on_step=True, on_epoch=False
            )

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps in its checkpoints beside the module's weights."""
        return self.gates.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the module is on its device and the optimizers are there."""
        self._restored = state_dict

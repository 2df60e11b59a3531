"""The task of a dynamics model: regression of measured transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from archgrad.copy_and_run import in_mode
from archgrad.errors import DataError, ModelError
from archgrad.tasks.task import Batch, stable_seed

Pairs = tuple[Tensor, Tensor]


class Transitions:
    """Prediction of the state one step ahead, judged by the squared error on other rollouts.

    Inputs are states and actions [N, n + m], targets [N, n]. Both are taken as they are: scale them before.

    Args:
        train: inputs and targets.
        valid: the same of other rollouts. There is no test part, because the cost of control is what counts.
        batch_size: of training batches, which are drawn with replacement.

    Raises:
        DataError: there are no pairs, or numbers that are not finite.

    Example:
        >>> import torch
        >>> from archgrad.control import Transitions
        >>> x = torch.rand(40, 3)
        >>> task = Transitions((x[:30], x[:30, :2]), (x[30:], x[30:, :2]), batch_size=8)
        >>> list(task.stream(seed=0)(0)[0].shape)
        [8, 3]
    """

    def __init__(self, train: Pairs, valid: Pairs, *, batch_size: int = 512) -> None:
        for name, (x, y) in (("train", train), ("valid", valid)):
            if not len(x) or len(x) != len(y) or not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
                raise DataError(
                    f"{name}: {len(x)} inputs and {len(y)} targets were given. Give as many of both, all finite."
                )
        self._parts = {"train": train, "valid": valid, "test": valid}
        self.batch_size = min(batch_size, len(train[0]))
        self.steps_per_epoch = max(1, len(train[0]) // self.batch_size)
        self.splits: dict[str, Any] = {
            **{name: {"size": len(part[0])} for name, part in (("train", train), ("valid", valid))},
            "input_shape": list(train[0].shape[1:]), "target_shape": list(train[1].shape[1:]),
            "batch_size": self.batch_size,
        }  # fmt: skip

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {split['size']}" for name, split in self.splits.items() if isinstance(split, dict))
        return f"Transitions({sizes}, batch_size={self.batch_size})"

    @property
    def example(self) -> Tensor:
        """The first training input, [1, n + m]."""
        return self._parts["train"][0][:1]

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Batch]:
        """Training batch number `step`: a function of its four numbers."""
        x, y = self._parts["train"]

        def batch(step: int) -> Batch:
            generator = torch.Generator().manual_seed(stable_seed("transitions", seed, step, rank))
            rows = torch.randint(len(x), (max(1, self.batch_size // world),), generator=generator)
            return x[rows], y[rows]

        return batch

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error over a batch."""
        return functional.mse_loss(network(batch[0]), batch[1])

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """The fraction of the targets' variance that is explained, and the mean squared error."""
        x, y = self._parts[part]
        device = next((p.device for p in network.parameters()), x.device)
        modes = {module: module.training for module in network.modules()}
        network.eval()
        with torch.no_grad():
            error = functional.mse_loss(network(x.to(device)).cpu(), y)
        for module, mode in modes.items():
            module.training = mode
        return {"explained": float(1.0 - error / y.var(0, unbiased=False).mean()), "loss": float(error)}

    def check(self, network: nn.Module) -> None:
        """Raise ModelError where the network does not take an input, or gives another shape than a target's."""
        x, y = (part[:2] for part in self._parts["train"])
        device = next((p.device for p in network.parameters()), x.device)
        modes = {module: module.training for module in network.modules()}
        try:
            with torch.no_grad():
                output = in_mode(network)(x.to(device))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the network fails on inputs of shape {list(x.shape)}, states and actions: {error}"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not isinstance(output, Tensor) or output.shape != y.shape:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"the network gives {shape} for inputs {list(x.shape)}. A dynamics model takes state and "
                f"action [B, {x.shape[1]}] and gives the change of the state [B, {y.shape[1]}]."
            )

    def split(self, fraction: float = 0.5, *, seed: int | None = None) -> tuple[Transitions, Transitions]:
        """Two tasks on disjoint parts of the training pairs, drawn by `seed`: for weights, and for architectures."""
        if not 0.0 < fraction < 1.0:
            raise DataError(f"fraction={fraction} was given. Allowed is a number between 0 and 1.")
        x = self._parts["train"][0]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(stable_seed("halves", seed or 0)))
        cut = min(max(1, round(fraction * len(x))), len(x) - 1)
        return self._on(order[:cut]), self._on(order[cut:])

    def _on(self, rows: Tensor) -> Transitions:
        x, y = self._parts["train"]
        return Transitions((x[rows], y[rows]), self._parts["valid"], batch_size=self.batch_size)

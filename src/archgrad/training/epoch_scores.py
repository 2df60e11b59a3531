"""What a network scores on the validation part as it is trained, epoch by epoch."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from archgrad.tasks.task import Task, description, evaluate, higher_is_better


class EpochScores:
    """What a network scores on the validation part after each epoch, and the best so far.

    Where the validation part is larger than the training part, it is scored after every few epochs, so that scoring
    takes no longer than training.

    Args:
        network: that is trained.
        task: gives the scores.
        steps_per_epoch: of the optimizer.
        keep: score each epoch, and keep the weights of the best one, the first of several equals.
    """

    def __init__(self, network: nn.Module, task: Task, steps_per_epoch: int, *, keep: bool) -> None:
        # It holds no run, which holds it: an abandoned run lets go of its folder at once.
        self.network, self.task, self.keep = network, task, keep
        sizes = [(description(task).get(part) or {}).get("size", 1) for part in ("valid", "train")]
        self.interval = steps_per_epoch * (1 if keep else math.ceil(sizes[0] / max(1, sizes[1])))
        self.score = math.nan
        self.weights: dict[str, Tensor] = {}

    def before_step(self, step: int) -> dict[str, float]:
        """Before each epoch but the first: score the network as the last epoch has left it."""
        return self._score() if step and step % self.interval == 0 else {}

    def end(self) -> dict[str, float]:
        """Score the last epoch, then put the best weights into the network where they were kept."""
        figures = self._score()
        if self.keep:
            self.network.load_state_dict(self.weights)
        return figures

    def _score(self) -> dict[str, float]:
        figures = evaluate(self.task, self.network)
        score = next(iter(figures.values()))
        better = score > self.score if higher_is_better(self.task) else score < self.score
        if better or math.isnan(self.score):
            self.score = score
            if self.keep:
                self.weights = copy.deepcopy(self.network.state_dict())
        return {f"valid_{name}": value for name, value in figures.items()} | {"best_valid": self.score}

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.score, self.weights = state["score"], state["weights"]

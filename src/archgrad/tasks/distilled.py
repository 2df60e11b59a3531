"""Distillation: a task whose networks also learn from a trained one.

Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531); features as in Romero
and others 2015, FitNets (arXiv 1412.6550), here with the map from one to the other solved for and not trained.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from archgrad.argument_types import checked
from archgrad.copy_and_run import copied, evaluating, in_mode
from archgrad.errors import ConfigError, ModelError
from archgrad.fingerprint import described
from archgrad.tasks import batch_checks
from archgrad.tasks.losses import Loss, per_sample, unstretched
from archgrad.tasks.supervised import Supervised
from archgrad.tasks.task import (
    Batch,
    Checkable,
    PerSample,
    Splittable,
    Task,
    description,
    first,
    higher_is_better,
    mapped,
    require,
    tensors,
)

_RIDGE = 1e-4  # of the mean variance of a feature


@checked
class Distilled:
    """A task on which networks learn from a teacher too; any method and `fit` train on it.

        loss = (1 - weight) * loss of the task + weight * distance of the output from the teacher's
        distance of logits = temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature))

    Scores, data and abilities (`split`, `losses`, ...) are those of the task. The teacher runs on what the network is
    called with, in eval mode and without gradients; it is a copy, and no part of any network or checkpoint. It runs
    once for each training step, which adds the time of its forward pass.

    Args:
        task: what networks are judged on.
        teacher: a trained network for the same inputs.
        weight: of the distance, above 0 and at most 1.
        temperature: that both distributions are softened by, above 0. Logits are [B, classes, ...], those of a
            Hugging Face output [B, ..., classes].
        loss: of (output, output of the teacher), in place of the distance of logits: a scalar [], or one number for
            each sample [B]. Tasks whose own loss is no cross entropy need it.
        features: {name of a layer: name of the teacher's layer}, or a list of names that both have. The distance is
            then the share of the variance of the teacher's features [B, C, ...] that no linear map of the network's
            (a 1x1 convolution) explains, plus `loss` if given. The map is solved for in each batch, and thrown away.

    Attributes:
        task: the task that is wrapped.
        teacher: the copy.

    Raises:
        ConfigError: options out of range, a task that lacks something, or one whose outputs are no logits.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification(ag.digits())
        >>> teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)) for _ in range(2))
        >>> distilled = ag.Distilled(task, teacher, weight=0.5, temperature=4.0)
        >>> list(ag.fit(student, distilled, ag.Run(epochs=1, progress=False)))
        ['accuracy', 'loss']
    """

    def __init__(
        self,
        task: Task,
        teacher: nn.Module,
        *,
        weight: float = 0.5,
        temperature: float = 4.0,
        loss: Loss | None = None,
        features: Mapping[str, str] | list[str] | tuple[str, ...] | None = None,
    ) -> None:
        require(task, method="Distilled")
        for name, value, bound in (("weight", weight, 1.0), ("temperature", temperature, math.inf)):
            if not 0 < value <= bound:
                raise ConfigError(f"{name}={value!r}: give a number above 0{', at most 1' if bound == 1 else ''}")
        self.task, self.weight, self.temperature = task, float(weight), float(temperature)
        names = dict(zip(features, features, strict=True)) if isinstance(features, list | tuple) else features
        self._features = names
        self._loss = loss
        if loss is None and not self._features and not _has_logits(task):
            raise ConfigError(
                "the outputs of this task are no logits of classes, so that it is unknown how they are compared; "
                "give Distilled(loss=), a function of (output, output of the teacher) such as torch's mse_loss"
            )
        self._each = per_sample(loss) if loss is not None else None
        # A copy, since the user's own network may be the one that is trained.
        self.teacher = in_mode(copied(teacher)).requires_grad_(False)
        self._identity = _digest(self.teacher)
        self._teacher_score: float | None = None
        # Only those that the task has: whoever asks for an ability looks for the method.
        if isinstance(task, Splittable):
            self.split = self._split
        if isinstance(task, PerSample):
            self.losses = self._losses
        if callable(getattr(task, "with_validation", None)):
            self.with_validation = self._with_validation

    def __getattr__(self, name: str) -> Any:
        """Whatever else the task has, such as `classes`."""
        if name.startswith("_") or name in ("task", "split", "losses", "with_validation"):
            raise AttributeError(name)
        return getattr(self.task, name)

    def __repr__(self) -> str:
        return f"<Distilled from {type(self.teacher).__name__}, weight {self.weight:g}: {self.task!r}>"

    @property
    def example(self) -> Any:
        """The inputs of one sample, [1, ...]."""
        return self.task.example

    @property
    def steps_per_epoch(self) -> int:
        """The number of training batches in one pass over the training part."""
        return self.task.steps_per_epoch

    @property
    def higher_is_better(self) -> bool:
        """Which way the score goes."""
        return higher_is_better(self.task)

    @property
    def splits(self) -> dict[str, Any]:
        """The task's record of its data, and what is distilled."""
        how = {"weight": self.weight, "temperature": self.temperature, "features": self._features}
        name = described(self._loss) if self._loss is not None else None
        teacher = {"teacher": type(self.teacher).__name__, "teacher_sha256": self._identity}
        return {**description(self.task), "distillation": {**how, "loss": name, **teacher}}

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Batch]:
        """The task's training batches."""
        return self.task.stream(seed=seed, rank=rank, world=world)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of the task and the distance from the teacher, weighted as above, []."""
        with self._watched(network) as calls:
            loss = self.task.loss(network, batch)
        distances = [self._distance(call).mean() for call in calls]
        return (1 - self.weight) * loss + self.weight * torch.stack(distances).mean()

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """The task's figures: the teacher is not asked."""
        return self.task.evaluate(network, part)

    def check(self, network: nn.Module) -> None:
        """Everything that the task checks, and whether the network can be compared with the teacher.

        Raises:
            ModelError: the teacher fails on the data, or its outputs or features are of another kind.
            ConfigError: the loss gives no number, or the network has no such layer.
        """
        if isinstance(self.task, Checkable):
            self.task.check(network)
        device = batch_checks.device_of(network)
        batch = self.task.stream(seed=0)(0)
        if not self._features:  # which need the positions of a whole batch
            batch = first(batch, 2)
        batch = mapped(lambda tensor: tensor.to(device), batch)
        accelerators = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(accelerators), evaluating(network), self._watched(network) as calls:
            self.task.loss(network, batch)
        for call in calls:
            distance = self._distance(call)
            if distance.ndim > 1 or not bool(torch.isfinite(distance).all()):
                raise ConfigError(
                    f"the distance from the teacher is {batch_checks.described(distance)}, or not finite; loss must "
                    f"give a scalar tensor []"
                )

    def remarks(self, network: nn.Module) -> list[str]:
        """What a report has to say of this: that the teacher was no better than the network it taught."""
        if self._teacher_score is None:
            device = batch_checks.device_of(network)
            self._teacher_score = next(iter(self.task.evaluate(self.teacher.to(device)).values()))
        name, score = next(iter(self.task.evaluate(network).items()))
        gain = self._teacher_score - score if self.higher_is_better else score - self._teacher_score
        if gain > 0:
            return []
        return [
            f"the teacher is no better than the network it taught: {name} {self._teacher_score:.4g} against "
            f"{score:.4g} on the validation part; train without it and compare"
        ]

    def _split(self, fraction: float = 0.5) -> tuple[Distilled, Distilled]:
        """Two tasks on disjoint parts of the training data, with the same teacher."""
        assert isinstance(self.task, Splittable)
        first_part, second_part = self.task.split(fraction)
        return self._around(first_part), self._around(second_part)

    def _with_validation(self) -> Distilled:
        """This task with the validation part added to the training part."""
        return self._around(self.task.with_validation())  # type: ignore[attr-defined]

    def _around(self, task: Task) -> Distilled:
        """Another task with this teacher, which is not copied again."""
        distilled = copy.copy(self)
        distilled.task = task
        for name in ("split", "losses", "with_validation"):
            if name in vars(self):
                setattr(distilled, name, getattr(distilled, f"_{name}"))
        return distilled

    def _losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of each sample, [B]; their mean is `loss`."""
        assert isinstance(self.task, PerSample)
        with self._watched(network) as calls:
            losses = self.task.losses(network, batch)
        distances = [self._distance(call, each=True) for call in calls]
        if any(distance.shape != losses.shape for distance in distances):
            raise ModelError(
                "the distance from the teacher is of whole batches, and that of each sample is needed, [B]; give a "
                "loss that returns it, or distill without features"
            )
        return (1 - self.weight) * losses + self.weight * torch.stack(distances).mean(0)

    @contextlib.contextmanager
    def _watched(self, network: nn.Module) -> Iterator[list[_Call]]:
        """The calls of a network inside, and the features of each; ends with a list of one or more."""
        calls: list[_Call] = []
        layers: dict[str, Tensor] = {}

        def called(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.append(_Call(args, kwargs, output, dict(layers)))

        with _captured(network, self._features or {}, layers, "network"):
            handle = network.register_forward_hook(called, with_kwargs=True)
            try:
                yield calls
            finally:
                handle.remove()
        if not calls:
            raise ModelError(
                "the task's loss does not call the network itself, so that there is nothing to compare with the "
                "teacher; call network(...) in it, and no submodule or method of the network"
            )

    def _distance(self, call: _Call, *, each: bool = False) -> Tensor:
        """How far a call is from the teacher's answer: [], or [B] from logits and where a loss gives `each`."""
        device = next((tensor.device for tensor in tensors(call.output)), torch.device("cpu"))
        layers: dict[str, Tensor] = {}
        names = {name: name for name in (self._features or {}).values()}
        with (
            torch.no_grad(),
            _captured(self.teacher.to(device), names, layers, "teacher"),
            batch_checks.explained("the teacher fails", (call.args, call.kwargs)),
        ):
            answer = self.teacher(*call.args, **call.kwargs)
        distances = [
            _unexplained(_layer(call.layers, name), _layer(layers, other))
            for name, other in (self._features or {}).items()
        ]
        if self._loss is not None:
            function = self._each if each and self._each is not None else self._loss
            with batch_checks.explained("the loss of distillation fails", (call.output, answer)):
                distances.append(unstretched(function, call.output, answer))
            if not isinstance(distances[-1], Tensor):
                raise ConfigError(
                    f"Distilled(loss=) gives {batch_checks.described(distances[-1])}; give a scalar tensor []"
                )
        elif not self._features:
            return self._divergence(call.output, answer)
        parts = distances if each else [distance.mean() for distance in distances]
        return sum(parts[1:], parts[0])

    def _divergence(self, output: Any, answer: Any) -> Tensor:
        (student, dimension), (teacher, _) = _logits(output, "network"), _logits(answer, "teacher")
        if student.shape != teacher.shape or student.ndim < 2 or student.shape[dimension] < 2:
            raise ModelError(
                f"the network gives logits {list(student.shape)} and the teacher {list(teacher.shape)}; both must be "
                f"of the same classes, two or more. Give a teacher of this task, or Distilled(loss=)"
            )
        logs, target = (functional.log_softmax(x.float() / self.temperature, dimension) for x in (student, teacher))
        divergence = functional.kl_div(logs, target, reduction="none", log_target=True).sum(dimension)
        return self.temperature**2 * (divergence.flatten(1).mean(1) if divergence.ndim > 1 else divergence)


class _Call(NamedTuple):
    """What a network was called with, what it gave, and the features of some of its layers."""

    args: Any
    kwargs: Any
    output: Any
    layers: dict[str, Tensor]


def _has_logits(task: Task) -> bool:
    """Whether outputs are logits of classes, as far as it can be known: what computes its own loss is trusted."""
    loss = task._loss if isinstance(task, Supervised) else None
    return loss is None or loss is functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def _logits(output: Any, whose: str) -> tuple[Tensor, int]:
    """Logits from what a network returns, and the dimension of their classes."""
    if isinstance(output, Tensor):
        return output, 1
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named, -1
    if isinstance(output, Mapping):
        logits = output.get("logits", output.get("out"))
    else:
        logits = output[0] if isinstance(output, tuple | list) and output else None
    if not isinstance(logits, Tensor):
        raise ModelError(f"the {whose} returns {batch_checks.described(output)}, no logits; give Distilled(loss=)")
    return logits, 1


@contextlib.contextmanager
def _captured(network: nn.Module, names: Mapping[str, str], layers: dict[str, Tensor], whose: str) -> Iterator[None]:
    """The outputs of layers of a network, by name, as it runs inside."""
    handles = []
    try:
        for name in names:
            try:
                layer = network.get_submodule(name)
            except AttributeError as error:
                known = ", ".join(known for known, _ in list(network.named_modules())[1:9])
                raise ConfigError(f"features: the {whose} has no layer {name!r}; it begins with {known}") from error

            def keep(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                layers[name] = output

            handles.append(layer.register_forward_hook(keep))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(layers: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in layers:
        raise ConfigError(f"features: the layer {name!r} is not run; name one that is")
    return layers[name]


def _unexplained(student: Tensor, teacher: Tensor) -> Tensor:
    """The share in [0, 1] of the teacher's variance that no linear map of the student's channels explains, []."""
    if not all(isinstance(x, Tensor) and x.ndim >= 2 for x in (student, teacher)):
        raise ModelError("features: these layers give no tensors [B, C, ...]; name layers that do")
    if student.ndim == teacher.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
        height, width = (min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
        student, teacher = (functional.adaptive_avg_pool2d(x, (height, width)) for x in (student, teacher))
    with torch.autocast(student.device.type, enabled=False):
        x, y = _positions(student), _positions(teacher)
        if len(x) != len(y) or len(x) <= 2 * x.shape[1]:
            raise ModelError(
                f"features {list(student.shape)} cannot be compared with the teacher's {list(teacher.shape)}: a map "
                f"is solved for from {len(x)} positions of {x.shape[1]} channels, and needs more than twice as many "
                f"positions as channels, the same of both. Name earlier layers, or give a larger batch"
            )
        x, y = x - x.mean(0), y - y.mean(0)
        moments = x.T @ x
        ridge = _RIDGE * moments.diagonal().mean().detach().clamp_min(1e-12)
        # The gradient at the solution is that of the residual alone, so that the map needs none.
        with torch.no_grad():
            solution = torch.linalg.solve(moments + ridge * torch.eye(len(moments), device=x.device), x.T @ y)
        residual: Tensor = (y - x @ solution).square().sum()
        return residual / y.square().sum().clamp_min(1e-12)


def _positions(features: Tensor) -> Tensor:
    """Features [B, C, H, W], [B, T, C] or [B, C] as [positions, C] float32."""
    channels_last = features.movedim(1, -1) if features.ndim > 3 else features
    return channels_last.reshape(-1, channels_last.shape[-1]).float()


def _digest(network: nn.Module) -> str:
    """What tells one teacher from another when a run goes on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

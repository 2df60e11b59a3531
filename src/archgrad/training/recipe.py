"""How weights are trained: optimizer, schedule, clipping, averaging, accumulation, drop-path, choice of the epoch."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from archgrad.argument_types import checked, noted
from archgrad.choices.access import trainable
from archgrad.copy_and_run import require_values
from archgrad.errors import ConfigError, ModelError, one_line
from archgrad.fingerprint import described
from archgrad.training.schedules import Schedule, cosine

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


@checked
def sgd(
    parameters: Iterable[nn.Parameter], *, learning_rate: float = 0.05, weight_decay: float = 5e-4,
    clip: float | None = 5.0,
) -> Optimizer:  # fmt: skip
    """SGD with Nesterov momentum 0.9, the gradient's norm clipped at `clip`, or not where it is None.

    Without it a few steps at this rate can throw trained weights away.

    Example:
        >>> import functools, archgrad as ag
        >>> recipe = ag.Recipe(optimizer_factory=functools.partial(ag.sgd, learning_rate=0.01))
    """
    with _as_config_error():
        group = {"params": list(parameters)} | ({} if clip is None else {"clip": clip})
        return SGD([group], lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def darts_sgd(
    parameters: Iterable[nn.Parameter], *, learning_rate: float = 0.025, weight_decay: float = 3e-4
) -> Optimizer:
    """The optimizer of DARTS for a supernet's weights: SGD, rate 0.025, momentum 0.9, decay 3e-4, clipped at 5."""
    return SGD([{"params": list(parameters), "clip": 5.0}], lr=learning_rate, momentum=0.9, weight_decay=weight_decay)


@checked
def adamw(
    parameters: Iterable[nn.Parameter], *, learning_rate: float = 1e-3, weight_decay: float = 0.05
) -> Optimizer:
    """AdamW without weight decay on parameters of at most one dimension: biases, and scales of norms.

    Example:
        >>> import torch, archgrad as ag
        >>> [group["weight_decay"] for group in ag.adamw(torch.nn.Linear(2, 2).parameters()).param_groups]
        [0.05, 0.0]
    """
    with _as_config_error():
        weights = list(parameters)
        decayed, other = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]
        return AdamW([group for group in groups if group["params"]], lr=learning_rate)


@checked
def adam(parameters: Iterable[nn.Parameter], *, learning_rate: float = 0.01) -> Optimizer:
    """Adam without weight decay, at a rate for few steps.

    Example:
        >>> import torch, archgrad as ag
        >>> ag.adam(torch.nn.Linear(2, 2).parameters()).param_groups[0]["lr"]
        0.01
    """
    with _as_config_error():
        return Adam(parameters, lr=learning_rate)


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"no optimizer can be made of this: {one_line(error)}. Allowed are network.parameters(), a learning rate "
            f"above 0 and a weight decay of at least 0."
        ) from error


@dataclass(frozen=True, repr=False)
class Recipe:
    """How weights are trained.

    Attributes:
        optimizer_factory: from parameters to their optimizer, for instance `ag.adamw` or
            `functools.partial(ag.sgd, learning_rate=0.01)`.
        schedule: from progress in [0, 1] through the budget to a factor on the learning rates; default: half a cosine
            with a short warm-up.
        clip: largest norm of the gradient of all weights together; None: the optimizer's own, which `ag.sgd` has.
        average: decay of an exponential moving average of the weights. The network ends up with the averaged weights
            and with BatchNorm statistics estimated for them.
        accumulate: batches whose gradients are averaged before each step of the optimizer.
        drop_path: probability to drop a path in modules named `drop_path`; it grows linearly to this value.
        best_epoch: the network ends up with the weights of the epoch that scored best on the validation part.

    Raises:
        ConfigError: a value out of its range, or `average` together with `best_epoch`.

    Example:
        >>> import archgrad as ag
        >>> ag.Recipe(optimizer_factory=ag.adamw, clip=1.0)
        Recipe(optimizer_factory=adamw, clip=1.0)
    """

    optimizer_factory: OptimizerFactory = sgd
    schedule: Schedule = cosine
    clip: float | None = None
    average: float | None = None
    accumulate: int = 1
    drop_path: float = 0.0
    best_epoch: bool = False

    def __post_init__(self) -> None:
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "optimizer_factory": (
                lambda x: callable(x) and not isinstance(x, Optimizer),
                "a function from parameters to their optimizer, such as archgrad.adamw",
            ),
            "schedule": (callable, "a function from progress in [0, 1] to a factor, such as warm_up_cosine()"),
            "clip": (
                lambda x: x is None or (_number(x) and 0 < x < math.inf),
                "a number above 0, such as 5.0, or None",
            ),
            "average": (lambda x: x is None or (_number(x) and 0 < x < 1), "a number between 0 and 1, such as 0.999"),
            "accumulate": (lambda x: type(x) is int and x >= 1, "a whole number from 1 up"),
            "drop_path": (
                lambda x: _number(x) and 0 <= x < 1,
                "a probability of at least 0 and below 1, such as 0.2",
            ),
            "best_epoch": (lambda x: isinstance(x, bool), "True or False"),
        }
        for name, (fits, rule) in rules.items():
            if not fits(value := getattr(self, name)):
                raise ConfigError(f"Recipe({name}={value!r}) was given. Allowed is {rule}.")
        if self.average and self.best_epoch:
            raise ConfigError(
                "Recipe(average=..., best_epoch=True): both choose the final weights. Give one of them."
            )

    def __repr__(self) -> str:
        default = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in default}
        told = {name: described(value) if callable(value) else value for name, value in values.items()}
        given = {name: value for name, value in told.items() if values[name] != default[name]}
        return f"Recipe({', '.join(f'{name}={value}' for name, value in given.items())})"

    def optimizer(self, network: nn.Module) -> Optimizer:
        """An optimizer of all weights of a network that require a gradient; `clip` bounds all of them together.

        Raises:
            ModelError: there are none, or they hold no values.
            ConfigError: the factory gives no optimizer, one of other parameters, or one that needs a closure.
        """
        weights = trainable(network)
        if not weights:
            raise ModelError(
                f"{type(network).__name__} has no parameter that requires a gradient, so there is nothing to train; "
                f"leave some of them trainable (requires_grad_(True))"
            )
        require_values(network)
        with noted("Recipe(optimizer_factory=) with the list of parameters"):
            optimizer = self.optimizer_factory(weights)
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"Recipe(optimizer_factory=) gave a {type(optimizer).__name__}. Allowed is a function from "
                f"parameters to their torch.optim.Optimizer, such as archgrad.adamw."
            )
        _check_steps(optimizer, weights)
        if self.clip:
            # A group's "clip" would bound each group alone, and that of a default is not what was asked for.
            for group in optimizer.param_groups:
                group.pop("clip", None)
            optimizer.register_step_pre_hook(functools.partial(_clip, self.clip, weights))
        return optimizer

    def check_plain(self, option: str, where: str = "a supernet's training") -> None:
        """Refuse all but optimizer, schedule and clip, where the weights are not those that are handed back.

        Args:
            option: the method's option that the recipe was given as, for the message.
            where: what it trains, for the message.

        Raises:
            ConfigError: the recipe averages, accumulates, drops paths, or chooses an epoch.
        """
        default = Recipe()
        names = [
            name
            for name in ("average", "accumulate", "drop_path", "best_epoch")
            if getattr(self, name) != getattr(default, name)
        ]
        if names:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            raise ConfigError(
                f"{option} was given a Recipe({values}), and in {where} these have no effect. Allowed here are "
                f"optimizer_factory, schedule and clip. Give the others in the recipe of the network handed back."
            )

    def record(self) -> dict[str, Any]:
        """Every field as JSON, functions with what they bind: what a resumed run is compared by."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["optimizer_factory"] = _with_defaults(self.optimizer_factory)
        return {name: described(value) if callable(value) else value for name, value in values.items()}


def _check_steps(optimizer: Optimizer, weights: list[nn.Parameter]) -> None:
    """Refuse an optimizer of other weights, which would leave these as they are, and one that computes the loss."""
    kind, held = type(optimizer).__name__, [p for group in optimizer.param_groups for p in group["params"]]
    if not {id(p) for p in weights} & {id(p) for p in held}:
        raise ConfigError(
            f"Recipe(optimizer_factory=) gave a {kind} of other parameters than those it was called with, so that "
            f"nothing would be trained: methods train copies of your network. Give a function that makes the "
            f"optimizer of its argument, such as lambda parameters: {kind}(parameters, ...), not of "
            f"network.parameters()."
        )
    asked = [p for p in inspect.signature(optimizer.step).parameters.values() if p.default is inspect.Parameter.empty]
    if any(parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in asked):
        raise ConfigError(
            f"Recipe(optimizer_factory=) gave a {kind}, whose step computes the loss anew by a closure. Allowed are "
            f"optimizers that step on the gradients there are, such as archgrad.adamw."
        )


def _with_defaults(factory: OptimizerFactory) -> OptimizerFactory:
    """A factory that binds its own defaults too, so that a record says the rates: sgd(learning_rate=0.05, ...)."""
    bound = factory if isinstance(factory, functools.partial) else functools.partial(factory)
    function, given = bound.func, bound.keywords
    if bound.args or not inspect.isfunction(inspect.unwrap(function)):
        return factory
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    return functools.partial(function, **(defaults | given)) if defaults else factory


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _clip(largest: float, weights: list[nn.Parameter], *hooked: object) -> None:
    nn.utils.clip_grad_norm_(weights, largest)

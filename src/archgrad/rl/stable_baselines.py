"""Any supernet as the features extractor of Stable-Baselines3: it plays, and learns by the agent's loss.

    model = PPO("CnnPolicy", env, policy_kwargs=policy_kwargs(space))
    model.learn(100_000, callback=SearchLogger())
    found = archgrad.derive(supernet_of(model))

The weights and the logits are in one optimizer, the logits in a group of their own without weight decay, as RL-DARTS
(arXiv 2106.02229) has it. The algorithms play in eval mode and learn in training mode: take a space without
BatchNorm, for instance `archgrad.impala_cells(norm="none")` or "group", so that both are one function. They keep no
state of their environments, so that a run of theirs does not resume exactly; `archgrad.rl_darts` does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from archgrad.choices.access import choices, logits
from archgrad.copy_and_run import copied
from archgrad.errors import ChoiceError, MissingExtra
from archgrad.rl.ppo import count_features
from archgrad.supernets.bilevel import relaxation_figures
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.lifecycle import refuse_unfit

try:
    from gymnasium import Space
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ImportError as error:
    raise MissingExtra("stable-baselines3", "rl") from error

# Set on the parameters that are logits, since an optimizer is made of parameters alone.
_MARK = "archgrad_logits"


def policy_kwargs(space: nn.Module, *, weight_decay: float = 0.0, eps: float = 1e-5) -> dict[str, Any]:
    """The `policy_kwargs` with which an algorithm of Stable-Baselines3 searches a space.

    Args:
        space: from images [B, C, H, W] to features [B, F], or to what is flattened to them; not changed. Where it is
            not relaxed yet, each choice gets a softmax, and choices that keep several inputs mix all of them.
        weight_decay: of the weights; the logits have none.
        eps: of Adam.

    Raises:
        ChoiceError: the space has no choice, or has gates.

    Example:
        >>> import archgrad as ag
        >>> from archgrad.rl import policy_kwargs
        >>> sorted(policy_kwargs(ag.impala_cells(size=8, depths=(2,), nodes=1, features=2)))[:2]
        ['features_extractor_class', 'features_extractor_kwargs']
    """
    refuse_unfit(space, needs="an agent's encoder")
    space = copied(space)
    if any(same[0].relaxation is None for same in choices(space).values()):
        relax_as_mixture(space)
    return {
        "features_extractor_class": Encoder,
        "features_extractor_kwargs": {"supernet": space},
        "optimizer_class": adam,
        "optimizer_kwargs": {"eps": eps, "weight_decay": weight_decay},
    }


class Encoder(BaseFeaturesExtractor):
    """A copy of a relaxed supernet as a features extractor; each network of an algorithm makes its own.

    Args:
        observation_space: of the images, channels first.
        supernet: relaxed.

    Raises:
        ModelError: it does not run on what is observed.
    """

    def __init__(self, observation_space: Space[Any], supernet: nn.Module) -> None:
        supernet = copied(supernet)
        super().__init__(
            observation_space, count_features(supernet, torch.zeros(1, *(observation_space.shape or ())))
        )
        self.supernet = supernet
        for parameter in logits(self.supernet):
            setattr(parameter, _MARK, True)

    def forward(self, observations: Tensor) -> Tensor:
        """Features [B, F]."""
        features: Tensor = self.supernet(observations)
        return features.flatten(1)


def adam(
    params: Iterable[nn.Parameter], lr: float = 3e-4, *, eps: float = 1e-5, weight_decay: float = 0.0
) -> Optimizer:
    """Adam with the logits of supernets in a group of their own, which does not decay."""
    parameters = list(params)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if not hasattr(p, _MARK)]},
        {"params": [p for p in parameters if hasattr(p, _MARK)], "weight_decay": 0.0},
    ]
    return Adam([group for group in groups if group["params"]], lr=lr, eps=eps, weight_decay=weight_decay)


def supernet_of(model: BaseAlgorithm) -> nn.Module:
    """The supernet that a model acts with, for `archgrad.derive`, `decide` and `build`; the actor's of two.

    Raises:
        ChoiceError: it has none.
    """
    encoder = next((m for m in model.policy.modules() if isinstance(m, Encoder)), None)
    if encoder is None:
        raise ChoiceError(
            "the model's policy has no supernet. Make it with policy_kwargs=archgrad.rl.policy_kwargs(space)."
        )
    return encoder.supernet


class SearchLogger(BaseCallback):
    """A callback that logs the search after each rollout: entropy, mixing weights, and the norms of both gradients.

    On-policy algorithms clip the gradient of all parameters together; the norms are those after clipping.
    """

    def __repr__(self) -> str:
        return f"<SearchLogger, {self.num_timesteps:,} steps>"

    def _on_training_start(self) -> None:
        self._norms: list[list[float]] = []
        self._hook = _optimizer(self.model).register_step_pre_hook(functools.partial(_append_norms, self._norms))

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        for name, value in relaxation_figures(supernet_of(self.model)).items():
            self.logger.record(f"architecture/{name}", value, exclude="stdout" if "/" in name else None)
        for name, values in zip(("weights", "logits"), zip(*self._norms, strict=True), strict=False):
            self.logger.record(f"architecture/gradient_norm_{name}", sum(values) / len(values))
        self._norms.clear()

    def _on_training_end(self) -> None:
        self._hook.remove()


def _optimizer(model: BaseAlgorithm) -> Optimizer:
    """The optimizer of the supernet's logits; an algorithm may have several."""
    wanted = {id(p) for p in logits(supernet_of(model))}
    for module in model.policy.modules():
        optimizer = getattr(module, "optimizer", None)
        if isinstance(optimizer, Optimizer) and any(
            id(p) in wanted for g in optimizer.param_groups for p in g["params"]
        ):
            return optimizer
    raise ChoiceError("no optimizer of the model's policy trains the logits of its supernet")


def _append_norms(norms: list[list[float]], optimizer: Optimizer, args: object, kwargs: object) -> None:
    groups = ([p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups)
    norms.append([float(nn.utils.get_total_norm(gradients)) for gradients in groups])

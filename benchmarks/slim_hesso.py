"""HESSO (only_train_once 3.0.1) on parameter groups made of our gates, since its own tracing needs an older torch.

One schedule: a tenth of the steps of plain training, then the groups of lowest saliency shrink to zero over four
tenths while everything is trained, then training goes on. How many groups go is decided when saliency is computed:
the fewest that bring the network under the limit. No layer loses more than half of its uniform width, as in DNAL:
without that floor whole layers go. What is cut afterwards is zero already.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.gates import GateConstraint, gates


def _without_its_init(name: str) -> types.ModuleType:
    """A package of which submodules can be imported, though its own first lines need parts of an older torch."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("HESSO needs only_train_once: pip install --no-deps only_train_once==3.0.1")
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = module
    return module


_without_its_init("only_train_once")
_transform = _without_its_init("only_train_once.transform")
_tensor_transform = importlib.import_module("only_train_once.transform.tensor_transform")
_transform.__dict__.update(vars(_tensor_transform))
HESSO = importlib.import_module("only_train_once.optimizer.hesso").HESSO
BASIC = _tensor_transform.TensorTransform.BASIC


class LimitedHESSO(HESSO):  # type: ignore[misc, valid-type]
    """HESSO that finds out, with its own scores, how many groups have to go for a limit on MACs."""

    constraint: GateConstraint

    def identify_redundant_groups(self) -> None:
        order = torch.cat(self.global_scores).argsort(descending=True)
        scores = torch.empty(len(order))
        scores[order] = torch.linspace(1.0, 0.0, len(order))
        # Residual branches stay, as whole groups of channels are all that HESSO knows.
        of_gate = {name: torch.full((gate.size,), 2.0) for name, gate in gates(self.constraint.space).items()}
        of_gate |= dict(zip(self.names, scores.split(self.sizes), strict=True))
        kept = self.constraint.best_feasible(of_gate, floor=0.5 * self.constraint.uniform_width())
        low = {name: [i for i in range(len(of_gate[name])) if i not in set(kept[name])] for name in self.names}
        for group in self.param_groups:
            if group["is_prunable"]:
                gone = low[group["id"]]
                self.active_redundant_idxes[group["id"]] = gone
                self.important_idxes[group["id"]] = [i for i in self.important_idxes[group["id"]] if i not in gone]
                group["active_redundant_bool"] = torch.tensor(np.isin(np.arange(group["num_groups"]), gone))
        self.target_num_redundant_groups = sum(map(len, low.values()))
        self.kept = kept


def groups(network: nn.Module, space: nn.Module) -> list[dict[str, Any]]:
    """A group for each gate over whole channels, with the weights that make them; one for all other parameters."""
    found, taken = [], set[int]()
    for name, gate in gates(space).items():
        params: list[Tensor] = []
        names: list[str] = []
        if gate.vanishing is not None:
            continue
        for side in gate.couplings:
            whole = side.side == "out" and torch.equal(side.places, torch.arange(gate.size))
            for attribute, dim in side.tensors if whole else ():
                tensor = getattr(network.get_submodule(side.module), attribute)
                if dim == 0 and isinstance(tensor, nn.Parameter) and id(tensor) not in taken:
                    taken.add(id(tensor))
                    params.append(tensor)
                    names.append(f"{side.module}.{attribute}")
        if not params:
            raise ImportError(f"HESSO: the gate {name} is not over whole channels, which its groups need")
        found.append({
            "id": name, "params": params, "p_names": names, "p_transform": [BASIC] * len(params),
            "is_prunable": True, "is_auxiliary": False, "num_groups": gate.size, "auxiliary_ngs": [],
        })  # fmt: skip
    rest = [(n, p) for n, p in network.named_parameters() if id(p) not in taken]
    found.append({
        "id": "rest", "params": [p for _, p in rest], "p_names": [n for n, _ in rest],
        "p_transform": [BASIC] * len(rest), "is_prunable": False, "is_auxiliary": False,
        "num_groups": 1, "auxiliary_ngs": [],
    })  # fmt: skip
    return found


def train(
    space: nn.Module, network: nn.Module, constraint: GateConstraint, bench: Any, *, epochs: float, rate: float
) -> nn.Module:
    """The network that HESSO leaves under the limit, trained."""
    network, task = copy.deepcopy(network), bench.task
    steps = round(epochs * task.steps_per_epoch)
    settings = {"variant": "adamw", "lr": rate / 50}
    if not bench.adam:
        settings = {"variant": "sgd", "lr": rate, "weight_decay": 5e-4, "first_momentum": 0.9}
    optimizer = LimitedHESSO(
        groups(network, space), start_pruning_step=max(steps // 10, 1), pruning_steps=max(4 * steps // 10, 1),
        target_group_sparsity=0.5, **settings,
    )  # fmt: skip
    optimizer.constraint = constraint
    optimizer.names = [group["id"] for group in optimizer.param_groups if group["is_prunable"]]
    optimizer.sizes = [group["num_groups"] for group in optimizer.param_groups if group["is_prunable"]]
    schedule, stream = ag.Recipe().schedule, task.stream(seed=bench.seed + 1000)
    for step in range(steps):
        optimizer.set_learning_rate(settings["lr"] * schedule(step / steps))
        network.train()
        optimizer.zero_grad()
        task.loss(network, stream(step)).backward()
        if not bench.adam:
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)  # as `ag.sgd` does
        optimizer.step()
    small, weights = copy.deepcopy(space), network.state_dict()
    small.load_state_dict({
        key: weights.get(key.replace("parametrizations.weight.original", "weight"), value)
        for key, value in small.state_dict().items()
    })  # fmt: skip
    return ag.build(small, optimizer.kept)

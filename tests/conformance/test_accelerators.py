"""Every method on a pretended CUDA device: no tensor is left on the CPU, and the device is seldom waited for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pretended
import pytest
import torch
from planted import limit, task
from test_methods import METHODS, found_by, quiet
from test_numbers import poisoned
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.relaxations import read_together, read_values
from archgrad.errors import NonFiniteError
from archgrad.rl.ppo import PpoTerms

IMAGE = torch.zeros(1, 3, 8, 8)
# Waits a step, beside those of steps that are logged. A draw of UNAS has to be known to the program, as have the
# supports of clipped choices; gates are moved to a limit, and the price of a mixture is computed on the CPU.
WAITS = {
    "unas": 5, "unas, topology": 5, "unas, score function": 5, "unas, per image": 7,
    "darts_prime, clipped and ADMM": 2, "darts, second order": 1,
}  # fmt: skip
NONE = ("dnal, published", "pruning_transfer", "pruning_transfer, frozen", "monas", "multimodal_random",
        "random_search", "random_search, halving")  # fmt: skip


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[pretended.Waits]:
    with pretended.pretended_cuda(monkeypatch) as waits:
        yield waits


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 3


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def short(**settings: Any) -> ag.Run:
    return ag.Run(**{"steps": 6, "trials": 2, "progress": False, **settings})


on_gpu = functools.partial(short, device="cuda")
Begin = Callable[..., ag.Run]


def slimmed_with_all_of_a_recipe(run: Begin) -> ag.Found:
    data = ag.Distilled(
        ag.Classification(images(), batch_size=8, class_weight="balanced", augment=(ag.flip(), ag.crop(1))),
        network(), features=["0"],
    )  # fmt: skip
    recipe = ag.Recipe(average=0.9, accumulate=2, clip=1.0)
    space = ag.slim(network(), IMAGE)
    return ag.dnal(space, data, run(steps=30), limit=limit_of(IMAGE), round_to=1, gate_epochs=1, recipe=recipe)


def limit_of(x: Tensor) -> ag.Limit:
    return ag.macs(x).at_most(fraction=0.7)


def a_transformer(run: Begin) -> ag.Found:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(24, 5, 8)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
    data = ag.Supervised((x, torch.arange(24) % 3), loss=nn.functional.cross_entropy, batch_size=8)
    return ag.dnal(ag.slim(net, x[:1]), data, run(steps=30), limit=limit_of(x[:1]), round_to=1, gate_epochs=1)


def a_cell(run: Begin) -> ag.Found:
    space = ag.darts_cells(channels=2, cells=1, classes=3, nodes=2)
    return ag.darts(space, ag.Classification(images(), batch_size=8), run(steps=2))


def by_its_scores(run: Begin) -> ag.Found:
    return ag.freenas(ag.nasbench201_cells(channels=2, cells=1), run(), example=IMAGE, seeds=1)


def an_agent(run: Begin) -> ag.Found:
    pytest.importorskip("gymnasium", reason="comes with the extra rl")
    from archgrad.rl.pixel_game import PixelGame

    game = functools.partial(PixelGame, size=6, gems=2, traps=1, blocks=1, max_steps=9)
    space = ag.impala_cells(size=6, depths=(4,), nodes=2, features=8, norm="none")
    terms = PpoTerms(rollout_steps=8, minibatch_size=16, epochs=1, reseed_every=2)
    return ag.rl_darts(
        space, ag.Reinforcement(game, num_envs=4, train_levels=20), run(steps=None, trials=None),
        environment_steps=96, terms=terms, episodes=2,
    )  # fmt: skip


OTHERS: dict[str, Callable[[Begin], ag.Found]] = {
    "a recipe, a teacher": slimmed_with_all_of_a_recipe, "attention": a_transformer, "a DARTS cell": a_cell,
    "freenas": by_its_scores, "rl_darts": an_agent,
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_no_method_leaves_a_tensor_behind_or_waits_often(name: str, cuda: pretended.Waits) -> None:
    run = quiet(name, epochs=None, steps=40, trials=3, device="cuda", output=ag.Output())
    found = found_by(name, run, limit=limit())
    assert {t.device for t in found.network.state_dict().values()} == {pretended.CUDA}
    assert found.score is not None and math.isfinite(found.score)
    logged = sum(1 for row in run.history if "loss" in row)
    often = 0 if name in NONE else WAITS.get(name, 0.6)
    assert cuda.in_steps.total() <= often * 40 + logged, cuda.in_steps.most_common(8)


@pytest.mark.parametrize("name", OTHERS)
def test_no_kind_of_network_or_task_leaves_a_tensor_behind(name: str, cuda: pretended.Waits) -> None:
    found = OTHERS[name](on_gpu)
    assert {t.device for t in found.network.state_dict().values()} == {pretended.CUDA}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_in_bf16(name: str) -> None:
    run = quiet(name, epochs=None, steps=30, trials=2, precision="bf16-mixed")
    found = found_by(name, run, limit=limit())
    assert found.score is not None and math.isfinite(found.score)
    assert {p.dtype for p in found.network.parameters()} == {torch.float32}
    assert all(math.isfinite(row["loss"]) for row in run.history if "loss" in row)


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "freenas"])  # which trains nothing
def test_every_kind_of_network_and_task_runs_in_bf16(name: str) -> None:
    found = OTHERS[name](functools.partial(short, device="cpu", precision="bf16-mixed"))
    assert all(bool(value.isfinite().all()) for value in found.network.state_dict().values())


def test_a_stray_tensor_is_noticed(cuda: pretended.Waits) -> None:
    class Forgetful(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(self.out_features)

    with pytest.raises(Exception, match="Expected all tensors to be on the same device"):
        ag.fit(Forgetful(8, 2), task(), on_gpu())


@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_nan_is_noticed_where_a_step_is_logged(kind: str, cuda: pretended.Waits) -> None:
    with pytest.raises(NonFiniteError, match=r"at step [0-9]+, or in one of the steps .*log_every=1"):
        ag.fit(nn.Linear(8, 2), poisoned(kind, after=5), on_gpu(steps=40))
    with pytest.raises(NonFiniteError, match="became NaN or infinite in phase 'fit' at step 4"):
        ag.fit(nn.Linear(8, 2), poisoned(kind, after=5), on_gpu(steps=40, output=ag.Output(log_every=1)))
    with pytest.raises(NonFiniteError, match="became NaN or infinite"):
        ag.fit(nn.Linear(8, 2), poisoned(kind, after=5), on_gpu(steps=6))


def test_a_mixture_runs_in_inference_mode(cuda: pretended.Waits) -> None:
    space = ag.relax(ag.OpChoice([nn.Linear(4, 4), nn.Identity()], name="layer"), ag.softmax).to("cuda")
    x = torch.ones(2, 4, device="cuda")
    whole = space(x).detach()
    with torch.inference_mode():
        assert torch.equal(space(x).cpu(), whole.cpu())
        weights = torch.tensor([0.25, 0.75], device="cuda")
        with ag.using(space, {"layer": weights}):
            assert torch.isfinite(space(x).cpu()).all()


def test_values_are_read_as_they_are(cuda: pretended.Waits) -> None:
    rows = [[0.1, 1e300], [True, False], [2**24 + 1, 3], [0.5]]
    kinds = [torch.float64, torch.bool, torch.int64, torch.bfloat16]
    tensors = [torch.tensor(row, dtype=kind, device="cuda") for row, kind in zip(rows, kinds, strict=True)]
    read_together(tensors)
    cuda.clear()
    assert [read_values(t) for t in tensors] == rows
    assert type(read_values(tensors[2])[0]) is int
    assert not cuda
    run = on_gpu()
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    for step in run.steps(1):
        run.log_step(
            {"loss": torch.tensor(1e300, dtype=torch.float64, device="cuda"), "count": tensors[2][0]}, step=step
        )
    assert (run.history[-1]["loss"], run.history[-1]["count"]) == (1e300, 2**24 + 1)

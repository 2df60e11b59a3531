"""`probe`: what holds inside it, and that nothing is left of it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.choices.access import logits, relax
from archgrad.choices.modules import OpChoice
from archgrad.choices.relaxations import Softmax
from archgrad.errors import ConfigError, ModelError
from archgrad.proxies.temporary_state import probe
from archgrad.spaces.nasbench201 import nasbench201_network

NAN = 0x7FC12345  # a NaN with a payload


class Counting(nn.Module):
    """A buffer of integers, one that is replaced at each call, and a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("last", torch.zeros(()))
        self.plain = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().mean()
        self.plain += 1
        return x


def network() -> nn.Module:
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        Counting(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )
    made[5].weight = nn.Parameter(made[5].weight.detach().clone())
    made.add_module("again", nn.Identity())
    made.again.shared = made[8].weight
    with torch.no_grad():
        made[0].weight[0] = -0.0
        made[1].running_mean.copy_(torch.tensor([-0.0, -1.0, 2.0, 3.0]))
    made[6].eval()
    made[5].weight.requires_grad_(False)
    made[0].weight.grad = torch.full_like(made[0].weight, -0.0)
    return made


def bits(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.detach().numpy().tobytes())


def everything(made: nn.Module) -> list[Any]:
    tensors = [*made.named_parameters(remove_duplicate=False), *made.named_buffers(remove_duplicate=False)]
    numpy_state = np.random.get_state(legacy=False)
    return [
        [(n, id(t), t.data_ptr(), bits(t), id(t.grad), bits(t.grad), t.requires_grad) for n, t in tensors],
        [(n, m.training, len(m._forward_hooks), vars(m).get("plain")) for n, m in made.named_modules()],
        torch.get_rng_state().tolist(),
        (numpy_state["state"]["pos"], numpy_state["state"]["key"].tolist()),
        random.getstate(),
    ]


def disturb(made: nn.Module, dtype: torch.dtype) -> None:
    made(torch.randn(2, 3, 6, 6, dtype=dtype)).sum().backward()
    made.train()
    for tensor in [*made.parameters(), *made.buffers()]:
        tensor.data.fill_(1)
        tensor.data = tensor.data.half()
    made.requires_grad_(False)
    made[4].register_buffer("more", torch.ones(1))
    made[0] = nn.Identity()
    np.random.rand(), random.random()


@pytest.mark.parametrize("weights", ["as they are", "absolute", "normal", "kaiming"])
@pytest.mark.parametrize("norm", ["as it is", "identity", "eval", "train"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_nothing_is_left_of_it_even_where_the_block_raises(
    weights: Any, norm: Any, dtype: torch.dtype | None
) -> None:
    made = network()
    before = everything(made)
    with (
        pytest.raises(ZeroDivisionError),
        probe(made, weights=weights, biases="zero", norm=norm, dtype=dtype),
    ):
        assert all(p.grad is None for p in made.parameters())
        disturb(made, dtype or torch.float32)
        assert everything(made) != before
        raise ZeroDivisionError
    assert everything(made) == before


def test_the_comparison_of_these_tests_sees_a_sign_of_zero() -> None:
    made = network()
    before = everything(made)
    with torch.no_grad():
        made[0].weight.abs_().mul_(made[0].weight.sign())  # the restoration by signs that the literature uses
    assert torch.equal(made[0].weight[0], torch.zeros(3, 3, 3))
    assert everything(made) != before


def test_payloads_of_nan_come_back() -> None:
    made = nn.Linear(2, 2)
    made.weight.data = torch.full((2, 2), NAN, dtype=torch.int32).view(torch.float32)
    before = bits(made.weight)
    with probe(made, weights="absolute", dtype=torch.float64):
        pass
    assert bits(made.weight) == before
    assert made.weight.data.view(torch.int32).eq(NAN).all()


def test_absolute_touches_parameters_alone_and_shared_ones_once() -> None:
    made = network()
    made[1].bias.data.fill_(-2.0)
    with probe(made, weights="absolute"):
        assert all(bool((p >= 0).all()) for p in made.parameters())
        assert made[1].bias.tolist() == [2.0] * 4
        assert made[1].running_mean[1] == -1.0 and made[4].calls.dtype == torch.int64
        assert made.again.shared is made[8].weight
    with probe(made, weights="absolute", biases="zero"):
        assert not made[1].bias.any() and not made[0].bias.any() and not made[8].bias.any()
        assert bool(made[1].weight.all())


def test_architecture_parameters_keep_their_values() -> None:
    space = relax(OpChoice([nn.Linear(2, 2), nn.Linear(2, 2)], name="op"), Softmax)
    (alpha,) = logits(space)
    alpha.data = torch.tensor([-1.0, 0.5])
    with probe(space, weights="absolute", biases="zero", dtype=torch.float64):
        assert alpha.tolist() == [-1.0, 0.5] and alpha.dtype == torch.float64


def test_norms_are_passed_over_in_graph_modules_and_functions() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(F.batch_norm(x, None, None, training=True), x.shape[1:])

    class Acting(nn.BatchNorm2d):  # as some libraries' norm with an activation
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    x = torch.randn(2, 3, 4, 4)
    for made, wanted in (
        (Functional(), x),
        (Acting(3), x.relu()),
        (nn.Sequential(nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm(4)), x),
        (torch.fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3, affine=False))), x),
    ):
        assert not torch.equal(made(x), wanted)
        with probe(made, norm="identity"):
            assert torch.equal(made(x), wanted)
        assert not torch.equal(made(x), wanted)


def test_a_published_network_without_norms_is_homogeneous() -> None:
    made = nasbench201_network(
        "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|", cells=1
    )
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with probe(made, weights="absolute", biases="zero", norm="identity", dtype=torch.float64):
        torch.testing.assert_close(made(3 * x), 3 * made(x), rtol=1e-12, atol=0)
    with probe(made, weights="absolute", biases="zero", norm="train", dtype=torch.float64):
        assert not torch.allclose(made(3 * x), 3 * made(x), rtol=1e-3)


def test_modes_of_norms_and_the_rest() -> None:
    made = network()
    for norm, wanted in (("eval", set()), ("identity", set()), ("train", {"1", "6"})):
        with probe(made, norm=norm):  # type: ignore[arg-type]
            assert {name for name, m in made.named_modules() if m.training} == wanted
    with probe(made):
        assert made[3].training and not made[6].training


def test_drawn_weights_depend_on_the_seed_alone() -> None:
    made, found = network(), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        with probe(made, weights="kaiming", seed=seed):
            found.append(made[0].weight.detach().clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    wide = nn.Conv2d(64, 64, 3)
    with probe(wide, weights="kaiming"):
        assert float(wide.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    with probe(wide, weights="normal"):
        assert float(wide.weight.detach().std()) == pytest.approx(1, rel=0.02)


def test_gradients_inside_no_grad_inference_mode_and_autocast() -> None:
    made = nn.Linear(3, 2)
    for outside in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with outside, probe(made):
            y = made(torch.ones(1, 3))
            y.sum().backward()
            assert y.dtype == torch.float32 and made.weight.grad is not None
    assert made.weight.grad is None


def test_errors() -> None:
    made = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"weights='abs'.*absolute"), probe(made, weights="abs"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ConfigError, match="norm='off'"), probe(made, norm="off"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ConfigError, match="int32"), probe(made, dtype=torch.int32):
        pass
    with pytest.raises(ModelError, match="lazy"), probe(nn.LazyLinear(2)):
        pass


@pytest.mark.filterwarnings("ignore")
def test_scripted_modules_are_refused() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="scripted"), probe(nn.Sequential(scripted)):
        pass

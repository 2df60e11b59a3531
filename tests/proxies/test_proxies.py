"""Proxies against closed forms, against each other, and what they leave of a network: nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad import proxies
from archgrad.choices.access import hold, logits, relax
from archgrad.choices.relaxations import Softmax
from archgrad.errors import ChoiceError, ConfigError, ModelError
from archgrad.extract.discretize import build
from archgrad.spaces.nasbench201 import from_string, nasbench201_cells, nasbench201_network

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
JOINED = ("az_nas", "rank_vote", "te_nas")
# Of many architectures of one space at once, and of scores: not proxies of one network.
OTHERS = ("mean_channels", "rank_agreement", "synflow_each")
LABELLED = ("grad_norm", "snip", "grasp", "fisher", "zico")
FAST: dict[str, dict[str, Any]] = {"swap": {"repeats": 2}, "linear_regions": {"repeats": 2}}
ALL = [name for name in proxies.__all__ if name not in (*JOINED, *OTHERS)]
VALUES = [name for name in ALL if name not in ("params", "macs")]


def score(name: str, network: nn.Module, batch: Any) -> float:
    found: float = getattr(proxies, name)(network, batch, **FAST.get(name, {}))
    return found


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.drop(self.relu(self.norm(self.first(x))))
        return self.out(F.relu(self.again(self.second(x))).mean((2, 3)))


def small() -> Small:
    made = Small()
    with torch.no_grad():
        made.first.weight[0, 0] = -0.0
        made.norm.running_mean[0] = -0.0
    made.again.eval()
    made.second.weight.requires_grad_(False)
    made.first.weight.grad = torch.full_like(made.first.weight, -0.0)
    return made


def batch(size: int = 6, pixels: int = 8, classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, pixels, pixels), torch.arange(size) % classes


def bits(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tensor.detach().numpy().tobytes())


def everything(made: nn.Module, given: tuple[Tensor, Tensor]) -> list[Any]:
    tensors = [*made.named_parameters(), *made.named_buffers()]
    return [
        [(n, id(t), t.data_ptr(), bits(t), id(t.grad), bits(t.grad), t.requires_grad) for n, t in tensors],
        [(n, m.training, len(m._forward_hooks)) for n, m in made.named_modules()],
        [(bits(t), t.requires_grad, bits(t.grad)) for t in given],
        torch.get_rng_state().tolist(),
        np.random.get_state(legacy=False)["state"]["pos"],
        random.getstate(),
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_proxy_leaves_the_network_and_its_batch_bit_for_bit(name: str) -> None:
    made, given = small(), batch()
    before = everything(made, given)
    first = score(name, made, given)
    assert math.isfinite(first) and type(first) is float
    assert everything(made, given) == before
    torch.manual_seed(5)
    with torch.no_grad():
        assert score(name, made, given) == first
    if name not in LABELLED:
        assert score(name, made, given[0]) == first
    if name == "params":
        return
    two_channels = (given[0][:, :2], given[1])
    before = everything(made, given)
    with pytest.raises(ModelError, match=r"fails on inputs|does not run on the example of \[1, 2, 8, 8\]"):
        score(name, made, two_channels)
    assert everything(made, given) == before


@pytest.mark.parametrize("name", ["synflow", "zen", "meco", "params", "macs"])
def test_proxies_without_data_look_at_the_shape_alone(name: str) -> None:
    made, (x, _) = small(), batch()
    assert score(name, made, x) == score(name, made, torch.full_like(x, torch.nan))


def chain(*matrices: list[list[float]]) -> nn.Sequential:
    made = nn.Sequential()
    for rows in matrices:
        layer = nn.Linear(len(rows[0]), len(rows), bias=False)
        layer.weight.data = torch.tensor(rows)
        made.append(layer)
    return made


def test_synflow_of_a_linear_chain() -> None:
    made = chain([[1.0, -2.0], [3.0, 4.0]], [[-1.0, 2.0]])  # R = 1 * (1 + 2) + 2 * (3 + 4) = 17, and 17 a layer
    assert proxies.synflow(made, torch.zeros(1, 2)) == pytest.approx(math.log(34), rel=1e-12)


def test_synflow_is_conserved_from_layer_to_layer() -> None:
    made = nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Conv2d(5, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3)),
        *(nn.Flatten(), nn.Linear(4, 7)),
    )
    x = torch.ones(1, 3, 9, 9, dtype=torch.float64)
    flow = made.double()
    for norm in (flow[1], flow[4]):
        norm.running_var.fill_(9.0)
    positive = nn.Sequential(*(m for m in flow if not isinstance(m, nn.BatchNorm2d)))
    found = proxies.synflow(made, torch.zeros(1, 3, 9, 9))
    with torch.no_grad():
        for path, parameter in positive.named_parameters():
            parameter.abs_() if path.endswith("weight") else parameter.zero_()
        total = 3 * float(positive(x).sum())
        negative = 3 * float(nn.Sequential(*flow).eval()(x).sum())
    assert math.exp(found) == pytest.approx(total, rel=1e-10)
    assert negative != pytest.approx(total, rel=1e-2)


def test_synflow_is_finite_where_floats_overflow() -> None:
    def deep(layers: int) -> nn.Module:
        made = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(layers)))
        for parameter in made.parameters():
            nn.init.constant_(parameter, 1e4)
        return made

    x = torch.ones(1, 4)
    for layers in (2, 12, 100):  # R = 4 * 40000^layers
        wanted = math.log(4 * layers) + layers * math.log(4e4)
        assert proxies.synflow(deep(layers), x) == pytest.approx(wanted, rel=1e-9)
    assert not torch.isfinite(deep(12)(x)).any()  # float32
    assert not torch.isfinite(deep(100).double()(x.double())).any()
    with pytest.raises(ModelError, match="range of float64"):
        proxies.synflow(deep(300), x)


def test_synflow_of_nasbench201() -> None:
    images = torch.zeros(1, 3, 32, 32)
    assert math.isfinite(proxies.synflow(nasbench201_network(CELL), images))
    dead = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert proxies.synflow(nasbench201_network(dead, cells=1), images) < 10
    space = hold(nasbench201_cells(cells=1), from_string(CELL))
    traced = build(space, from_string(CELL), weights="inherit")
    small_images = torch.zeros(1, 3, 8, 8)
    assert proxies.synflow(traced, small_images) == pytest.approx(proxies.synflow(space, small_images), rel=1e-12)


def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    made = nn.Linear(3, 2, bias=False)
    made.weight.data = torch.tensor([[0.5, -1.0, 0.25], [0.0, 2.0, -0.5]])
    return made, torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), torch.tensor([0, 1])


def test_grad_norm_and_snip_of_a_linear_classifier() -> None:
    made, x, y = linear()
    slope = ((x @ made.weight.data.T).softmax(1) - F.one_hot(y, 2)).T @ x / 2
    assert proxies.grad_norm(made, (x, y)) == pytest.approx(float(slope.norm()), rel=1e-5)
    assert proxies.snip(made, (x, y)) == pytest.approx(float((made.weight.data * slope).abs().sum()), rel=1e-5)


def test_fisher_of_a_linear_classifier() -> None:
    made, x, y = linear()
    out = x @ made.weight.data.T
    product = out * (out.softmax(1) - F.one_hot(y, 2)) / 2
    wanted = float(3 * (0.5 * product.square().mean(0)).sum())  # 3 weights a channel
    assert proxies.fisher(made, (x, y)) == pytest.approx(wanted, rel=1e-5)
    maps = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Flatten())
    maps[0].weight.data = made.weight.data[:, :, None, None].clone()
    rectified = x @ made.weight.data.T
    product = rectified.relu() * (rectified.relu().softmax(1) - F.one_hot(y, 2)) / 2
    wanted = float(3 * (0.5 * product.square().mean(0)).sum())
    assert proxies.fisher(maps, (x[:, :, None, None], y)) == pytest.approx(wanted, rel=1e-5)


def squares(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().mean()


def test_grasp_of_least_squares() -> None:
    made = nn.Linear(2, 1, bias=False)
    made.weight.data = torch.tensor([[1.0, -3.0]])
    x, y = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]), torch.tensor([[1.0], [0.0], [2.0]])
    hessian, w = x.T @ x / 3, made.weight.data
    slope = (x @ w.T - y).T @ x / 3
    wanted = -float((w * (slope @ hessian)).sum())
    assert proxies.grasp(made, (x, y), loss=squares) == pytest.approx(wanted, rel=1e-5)
    assert proxies.grasp(made, (x, y), loss=squares, temperature=2.0) != pytest.approx(wanted, rel=1e-2)


def test_zico_of_two_known_gradients() -> None:
    made = nn.Linear(2, 1, bias=False)
    made.weight.data = torch.zeros(1, 2)
    x, y = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[1.0], [1.0]])
    # g = -x: means (2, 2), deviations (1, 0); the second weight is left out.
    assert proxies.zico(made, (x, y), loss=squares) == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(ConfigError, match="parts=1"):
        proxies.zico(made, (x, y), loss=squares, parts=1)


def test_ntk_condition_of_a_linear_network() -> None:
    made = nn.Linear(2, 3)
    assert proxies.ntk_condition(made, torch.tensor([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(4, rel=1e-6)
    assert proxies.ntk_condition(made, torch.tensor([[1.0, 1.0], [2.0, 2.0]])) == math.inf


def test_naswot_of_a_code_made_by_hand() -> None:
    made = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    made[0].weight.data = torch.eye(2)
    x = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    # Units that agree: [[2, 1, 1], [1, 2, 0], [1, 0, 2]], of determinant 4.
    assert proxies.naswot(made, x) == pytest.approx(math.log(4), rel=1e-9)
    assert proxies.naswot(made, torch.cat([x, x[:1]])) == -math.inf

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).relu()  # type: ignore[no-any-return]

    assert proxies.naswot(Functional(), x) == proxies.naswot(made, x)


def test_jacob_cov_of_equal_rows_and_of_no_rows() -> None:
    made = chain([[1.0, -2.0, 0.5]])
    x, k = torch.randn(4, 3), 1e-5
    wanted = -(math.log(4 + k) + 1 / (4 + k) + 3 * (math.log(k) + 1 / k))
    assert proxies.jacob_cov(made, x) == pytest.approx(wanted, rel=1e-6)
    assert math.isnan(proxies.jacob_cov(chain([[0.0, 0.0, 0.0]]), x))
    x, _ = batch()
    assert proxies.jacob_cov(small(), x) > wanted


def test_zen_of_one_convolution_with_and_without_norm() -> None:
    x, pixels, channels = torch.zeros(4, 1, 32, 32), 1024, 2000
    mean = math.sqrt(2 / math.pi)  # of |N(0, 1)|
    bare = nn.Conv2d(1, channels, 1)
    assert proxies.zen(bare, x) == pytest.approx(math.log(0.01 * channels * pixels * mean**2), abs=0.05)
    normed = nn.Sequential(bare, nn.BatchNorm2d(channels))
    assert proxies.zen(normed, x) == pytest.approx(math.log(0.01 * channels * pixels * mean), abs=0.05)
    pooled = nn.Sequential(bare, nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert proxies.zen(pooled, x) == proxies.zen(normed, x) == proxies.zen(pooled, x, features="1")
    with pytest.raises(ConfigError, match="features='9'"):
        proxies.zen(pooled, x, features="9")


def test_meco_of_channels_alike_and_apart() -> None:
    alike, apart = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, groups=2)
    alike.weight.data = torch.ones(2, 2, 1, 1)
    x = torch.zeros(1, 2, 64, 64)
    assert proxies.meco(alike, x) == pytest.approx(0, abs=1e-6)
    assert 0.9 < proxies.meco(apart, x) <= 1
    assert proxies.meco(nn.Sequential(apart), x) == pytest.approx(2 * proxies.meco(apart, x))


def test_swap_and_linear_regions_of_codes_made_by_hand() -> None:
    made = nn.Sequential(nn.Linear(1, 40, bias=False), nn.ReLU())
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    assert proxies.swap(made, x, repeats=3) == 2  # columns 101 and 010
    assert proxies.linear_regions(made, x) == 2  # examples 0 and 2 are alike
    regular = proxies.swap(made, x, repeats=1, center=30, width=200)
    assert regular == pytest.approx(2 * math.exp(-100 / 200))
    for wrong in ({"repeats": 0}, {"center": 1.0}, {"center": 1.0, "width": 0.0}):
        with pytest.raises(ConfigError, match="swap with"):
            proxies.swap(made, x, **wrong)  # type: ignore[arg-type]


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_the_parts_of_az_nas() -> None:
    made = nn.Sequential(nn.Conv2d(3, 3, 1), Scale(-1), Scale(3), nn.Conv2d(3, 1, 1))
    plain = nn.Sequential(Scale(1), nn.Conv2d(3, 1, 1))
    x = torch.randn(8, 3, 32, 32)
    assert proxies.expressivity(plain, x, blocks=["0"]) == pytest.approx(math.log(3), abs=1e-3)
    assert proxies.expressivity(plain, x[:, :1].expand(8, 3, 32, 32), blocks=["0"]) == pytest.approx(0, abs=1e-5)
    assert proxies.progressivity(made, x, blocks=["1", "2"]) == pytest.approx(0, abs=1e-5)
    assert proxies.trainability(made, x, blocks=["0", "1"]) == pytest.approx(0, abs=1e-2)
    assert proxies.trainability(made, x, blocks=["1", "2"]) == pytest.approx(2 - 3 - 1 / 3, abs=0.1)
    assert proxies.trainability(nn.Sequential(plain, Scale(1)), x, blocks=["0.0", "0.1"]) < 0
    same = nn.Sequential(nn.Conv2d(3, 3, 1), Scale(1))  # a block that changes nothing: published, minus infinity
    assert proxies.trainability(same, x, blocks=["0", "1"]) < -1e5
    with pytest.raises(ConfigError, match="'7'"):
        proxies.expressivity(made, x, blocks=["7"])
    with pytest.raises(ModelError, match="2 are needed"):
        proxies.progressivity(plain, x, blocks=["0"])


def test_where_a_block_halves_the_resolution_the_pixels_of_its_input_are_channels() -> None:
    x = torch.randn(64, 1, 16, 16)
    # Each of four pixels gets a quarter of its output's gradient: g_in g_out^T is a column of four 1/4, of norm 1/2.
    halved = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AvgPool2d(2))
    assert proxies.trainability(halved, x, blocks=["0", "1"]) == pytest.approx(2 - 0.5 - 1 / 0.5, abs=1e-4)


@pytest.mark.parametrize("name", VALUES)
def test_networks_that_cannot_be_scored(name: str) -> None:
    given = batch()

    def refused(change: Callable[[Small], object], words: str) -> None:
        made = small()
        change(made)
        with pytest.raises(ModelError, match=words):
            score(name, made, given)

    refused(lambda m: m.second.weight.data[0, 0, 0].fill_(torch.nan), "second.weight.*NaN")
    refused(lambda m: m.norm.running_var.fill_(torch.inf), "norm.running_var.*infinite")
    refused(lambda m: m.half(), "float16.*float32")
    refused(lambda m: m.bfloat16(), "bfloat16")
    refused(lambda m: m.to("meta"), "meta device")
    with pytest.raises(ModelError, match="no weights"):
        score(name, nn.Sequential(nn.ReLU(), nn.Flatten()), given)
    with pytest.raises(ModelError, match=r"give a torch\.nn\.Module"):
        score(name, "resnet", given)  # type: ignore[arg-type]
    with pytest.raises(ChoiceError, match="undecided"):
        score(name, nasbench201_cells(cells=1, channels=4, classes=4), given)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_missing_or_do_not_fit(name: str) -> None:
    made, (x, y) = small(), batch()
    for wrong in (x, (x, None), (x, y[:-1]), (x, torch.tensor(1))):
        with pytest.raises(ConfigError, match=r"labels.*needs a batch"):
            score(name, made, wrong)
    for unfit in (y + 10, y.reshape(-1, 1), y.float()):
        with pytest.raises(ConfigError, match="do not fit"):
            score(name, made, (x, unfit))


@pytest.mark.parametrize("name", [n for n in ALL if n != "params"])
def test_batches_that_cannot_be_used(name: str) -> None:
    x, y = batch()
    for wrong in (None, (), (x, y, y), "images", (x[:0], y[:0]), (x.to(torch.uint8), y), (torch.ones(()), y)):
        with pytest.raises(ConfigError, match="give"):
            score(name, small(), wrong)
    if name not in ("synflow", "zen", "meco", "macs"):
        with pytest.raises(ConfigError, match="finite"):
            score(name, small(), (x * torch.nan, y))


@pytest.mark.parametrize("name", ["jacob_cov", "naswot", "ntk_condition"])
def test_proxies_that_compare_examples_need_two(name: str) -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        score(name, small(), batch(1))


class Partial(Small):
    """A first layer without gradients, and several outputs."""

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.first(x)
        return self.out(F.relu(self.again(self.second(x))).mean((2, 3))), x


@pytest.mark.parametrize("name", VALUES)
def test_parts_without_gradients_and_several_outputs(name: str) -> None:
    if name in ("jacob_cov", "synflow"):
        assert not math.isinf(score(name, Partial(), batch()))
    elif name == "trainability":
        with pytest.raises(ModelError, match="follow each other"):
            score(name, Partial(), batch())
    else:
        assert math.isfinite(score(name, Partial(), batch()))


@pytest.mark.parametrize("name", VALUES)
def test_a_relaxed_space_is_scored_as_it_mixes(name: str) -> None:
    space = relax(nasbench201_cells(cells=1, channels=4, classes=4), Softmax)
    assert math.isfinite(score(name, space, batch()))
    assert all(p.grad is None for p in logits(space))

"""FreeNAS: conservation and the scale law exactly, the decision rules, what is left as it was, refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.errors import ChoiceError, ConfigError, InputError, LimitError, ModelError, NonFiniteError
from archgrad.methods.freenas.freenas import freenas
from archgrad.methods.freenas.sensitivity import Scores, decoded, narrowed, scored, sensitivity
from archgrad.spaces.mobile import Widths
from archgrad.spaces.nasbench201 import EDGES, LABELS, to_string

X = torch.ones(1, 3, 8, 8)
CUTS = {"out": ("3.0", "3.1", "3.2"), "in": ("1.0", "2.0", "3.0"), "middle": ("2.0", "2.1", "3.0", "3.1")}


def nasbench(cells: int = 1, channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return ag.nasbench201_cells(channels=channels, cells=cells)


def random_alpha(seed: int) -> Scores:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(5, generator=g, dtype=torch.float64) + 0.1 for name in EDGES}


def quiet(seed: int = 0, folder: Path | None = None) -> ag.Run:
    return ag.Run(seed=seed, device="cpu", progress=False, folder=folder)


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_what_crosses_a_cut_of_the_cell_is_the_value_of_the_network(cells: int, cut: str) -> None:
    space = nasbench(cells)
    value, scores = sensitivity(space, random_alpha(cells), X)
    crossing = sum(float(scores[edge].sum()) for edge in CUTS[cut])
    assert crossing == pytest.approx(3 * cells * float(value), rel=1e-10)


def test_conservation_fails_where_paths_cross_twice_or_norms_see_the_batch() -> None:
    space, alpha = nasbench(2), random_alpha(0)
    value, scores = sensitivity(space, alpha, X)
    assert float(scores["1.0"].sum() + scores["2.1"].sum()) != pytest.approx(6 * float(value), rel=1e-3)
    value, scores = sensitivity(space, alpha, X, norm="train")
    assert sum(float(scores[e].sum()) for e in CUTS["out"]) != pytest.approx(6 * float(value), rel=1e-3)


def test_the_published_depth_is_finite_and_positive() -> None:
    value, scores = sensitivity(nasbench(5, 16), {name: torch.ones(5) for name in EDGES}, X)
    assert float(value) > 1e38  # beyond float32
    for row in scores.values():
        assert bool(row.isfinite().all()) and float(row[0]) == 0.0 and bool((row[1:] > 0.0).all())


def test_scaling_a_cut_scales_the_value_once_a_cell() -> None:
    space, alpha = nasbench(2), random_alpha(1)
    value, _ = sensitivity(space, alpha, X)
    for cut in CUTS.values():
        scaled = {name: row * (1.5 if name in cut else 1.0) for name, row in alpha.items()}
        assert float(sensitivity(space, scaled, X)[0]) == pytest.approx(1.5**6 * float(value), rel=1e-10)


def test_scores_follow_the_mean_gain_of_an_operation() -> None:
    """1 for skip and pool, sqrt(C) / 2 and 3 sqrt(C) / 2 for the convolutions, C from 16 to 64."""
    _, scores = sensitivity(nasbench(2, 16), {name: torch.ones(5) for name in EDGES}, torch.ones(1, 3, 32, 32))
    for row in scores.values():
        assert (row / row.sum()).tolist() == pytest.approx([0.0, 0.08, 0.21, 0.62, 0.08], abs=0.03)


def test_the_space_is_left_bit_for_bit_as_it_was() -> None:
    space = nasbench()
    with torch.no_grad():
        next(space.parameters()).view(-1)[:3] = torch.tensor([-0.0, 0.0, -1.0])
    next(space.parameters()).grad = torch.full_like(next(space.parameters()), -0.0)
    next(iter(space.parameters())).requires_grad_(False)
    before = copy.deepcopy(space)
    grad, state = next(space.parameters()).grad, torch.get_rng_state()
    for norm in ("off", "eval", "train"):
        scored(space, X, rounds=2, norm=norm, draws=[None, 7])
    assert torch.equal(state, torch.get_rng_state())
    freenas(space, quiet(), example=X, rounds=2, seeds=1)
    for (name, now), then in zip(space.state_dict().items(), before.state_dict().values(), strict=True):
        assert now.numpy().tobytes() == then.numpy().tobytes(), name
    assert next(space.parameters()).grad is grad
    for now, then in zip(space.parameters(), before.parameters(), strict=True):
        assert now.requires_grad == then.requires_grad and now.dtype == then.dtype
    assert [m.training for m in space.modules()] == [m.training for m in before.modules()]
    assert all(c.override is None for same in choices(space).values() for c in same)


def test_the_conventions_decide_the_answer_and_the_record_says_so() -> None:
    """As measured for the specification: convolutions of 3x3 alone, or not one, from the same space."""
    space = ag.nasbench201_cells(channels=8, cells=2)
    found = freenas(space, quiet(), example=torch.ones(1, 3, 16, 16))
    assert set(found.record["conventions"]) == {"off", "eval", "train"}
    assert found.record["conventions"]["off"].count("nor_conv_3x3") == 6
    assert found.record["conventions"]["train"].count("nor_conv_3x3") < 3
    assert found.record["conventions"]["off"] == to_string(found.architecture) == found.record["architecture_text"]
    assert any("conventions decide" in note and "not the best" in note for note in found.record["notes"])
    assert 0.0 <= found.record["seed_agreement"] <= 1.0 and len(found.record["log10_values"]) == 3
    assert found.score is None and set(found.costs) == {"params", "macs"} and found.record["graphs"]
    assert not [m for m in found.network.modules() if type(m).__module__.startswith("archgrad")]
    assert found.network(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert "one candidate" in " ".join(found.report().split())


SPACES = {
    "nasbench": lambda: ag.nasbench201_cells(channels=2, cells=1),
    "darts": lambda: ag.darts_cells(channels=2, cells=3, nodes=2),
    "factorized": lambda: ag.darts_cells(channels=2, cells=3, nodes=2, operations=4, factorized=True),
}


@pytest.mark.parametrize("kind", SPACES)
def test_narrowing_in_one_go_is_the_decision_at_once(kind: str) -> None:
    space, g = SPACES[kind](), torch.Generator().manual_seed(0)
    for _ in range(5):
        scores = {n: torch.rand(same[0].size, generator=g).double() for n, same in choices(space).items()}
        at_once = decoded(space, scores)
        if kind != "nasbench":
            assert "none" not in space.to_string(at_once)
        alive = narrowed(space, scores, 0)
        for name, mask in alive.items():
            pick = at_once[name]
            assert mask.nonzero().flatten().tolist() == ([pick] if isinstance(pick, int) else list(pick))


def test_no_random_scores_cut_the_output_off() -> None:
    space, g = nasbench(), torch.Generator().manual_seed(0)
    cut = 0
    for i in range(8):
        scores = {n: torch.rand(5, generator=g).double() + torch.tensor([0.6 * (i > 3), 0, 0, 0, 0]) for n in EDGES}
        for count in (6, 12):
            alive = narrowed(space, scores, count)
            assert float(sensitivity(space, {n: m.double() for n, m in alive.items()}, X)[0]) > 0.0
        picks = {n: int(row.argmax()) for n, row in scores.items()}
        masks = {n: torch.eye(5)[pick] for n, pick in picks.items()}
        cut += float(sensitivity(space, masks, X)[0]) == 0.0
        assert all(LABELS[decoded(space, scores)[n]] != "none" for n in EDGES)
    assert cut  # which the plain argmax does


def test_nodes_of_darts_keep_the_inputs_of_their_best_operations() -> None:
    space = ag.darts_cells(channels=2, cells=3, nodes=2)
    scores = {n: torch.full((same[0].size,), 0.1).double() for n, same in choices(space).items()}
    scores["normal.3.0"][4], scores["normal.3.1"][0], scores["normal.3.2"][5] = 0.5, 9.0, 0.2  # 0 is "none", barred
    scores["normal.3.inputs"] = torch.tensor([0.0, 9.0, 0.0]).double()
    found = decoded(space, scores)
    assert found["normal.3.inputs"] == (0, 2) and found["normal.3.0"] == 4 and found["normal.3.2"] == 5
    factorized = ag.darts_cells(channels=2, cells=3, nodes=2, operations=3, factorized=True)
    scores = {n: torch.zeros(same[0].size).double() for n, same in choices(factorized).items()}
    scores["normal.3.input0"][2], scores["normal.3.op0"][1] = 1.0, 1.0
    assert decoded(factorized, scores)["normal.3.input0"] == (2,) and decoded(factorized, scores)["normal.3.op0"] == 1


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("kind", ["darts", "factorized"])
def test_every_form_of_the_darts_space(kind: str, rounds: int) -> None:
    space = SPACES[kind]()
    found = freenas(space, quiet(), example=X, rounds=rounds, seeds=1)
    assert found.network(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    assert "none" not in found.record["architecture_text"] and found.record["seed_agreement"] is None
    assert all(s >= 0.0 for row in found.record["scores"].values() for s in row)


def test_a_mobile_space() -> None:
    widths = Widths(stem=4, first=4, stages=(4, 8), head=8)
    space = ag.mobile_backbone(widths=widths, cells=(2, 1), strides=(1, 2), stem_stride=1, classes=3)
    found = freenas(space, quiet(), example=X, seeds=2)
    assert found.network(torch.rand(2, 3, 8, 8)).shape == (2, 3)
    assert all(s > 0.0 for row in found.record["scores"].values() for s in row)
    with pytest.raises(ModelError, match="all scores are 0"):  # ReLU6 is full
        freenas(space, quiet(), example=X, norm="eval")


class Block(nn.Module):
    """Attention or an MLP on tokens, behind a LayerNorm, as somebody else would write it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 8))
        self.choice = ag.OpChoice({"mlp": mlp, "linear": nn.Linear(8, 8), "none": Nothing()}, name=f"block{index}")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0] + self.choice(y)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.blocks, self.head = nn.Sequential(Block(0), Block(1)), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.blocks(self.words(tokens)).mean(dim=1))}


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_transformer_of_ones_own_on_tokens(rounds: int) -> None:
    found = freenas(Transformer(), quiet(), example=torch.arange(6).view(2, 3), rounds=rounds)
    assert found.network(torch.tensor([[1, 2, 3]]))["logits"].shape == (1, 4)
    assert all(row["pick"] != "none" for row in found.record["picks"])


def test_a_limit_holds_on_a_recount_and_none_is_the_last_resort() -> None:
    for rounds in (1, 3):
        limit = ag.macs(X).at_most(fraction=0.5)
        found = freenas(nasbench(), quiet(), example=X, rounds=rounds, seeds=1, limit=limit)
        assert found.costs["macs"] == ag.macs(X).of(found.network) <= found.record["limit"]["bound"]
        assert "none" not in to_string(found.architecture) and "nor_conv" in to_string(found.architecture)
    with pytest.raises(LimitError):
        freenas(nasbench(), quiet(), example=X, limit=ag.macs(X).at_most(1.0))


def test_the_same_seed_gives_the_same_result_and_a_folder_resumes(tmp_path: Path) -> None:
    runs = [
        freenas(nasbench(), quiet(3, folder), example=X, seeds=2) for folder in (None, tmp_path / "a", tmp_path / "a")
    ]
    for other in runs[1:]:
        assert other.architecture == runs[0].architecture and other.record["scores"] == runs[0].record["scores"]
        for a, b in zip(other.network.state_dict().values(), runs[0].network.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"architecture.json", "network.safetensors", "record.json", "report.html"} <= names
    assert freenas(nasbench(), quiet(4), example=X, seeds=2).record["scores"] != runs[0].record["scores"]


def test_what_cannot_be_scored_is_refused_and_the_fix_named(tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="no choice"):
        freenas(nn.Linear(2, 2), quiet(), example=torch.ones(1, 2))
    with pytest.raises(ChoiceError, match="gates"):
        freenas(ag.slim(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), torch.ones(1, 2)), quiet(), example=X)
    for wrong in ({"norm": "on"}, {"rounds": 0}, {"seeds": 0}, {"rounds": True}, {"seeds": 1.5}):
        with pytest.raises(ConfigError, match=r"whole numbers|Allowed is"):
            freenas(nasbench(), quiet(), example=X, **wrong)
    for example in (
        torch.ones(1, 5, 8, 8),
        torch.ones(3),
        (X, X),
        (),
        None,
        "image",
        torch.ones(0, 3, 8, 8),
        torch.ones(()),
    ):
        with pytest.raises(InputError, match=r"fails on inputs|the example is|example=.* was given"):
            freenas(nasbench(), quiet(0, tmp_path), example=example)
    broken = nasbench()
    with torch.no_grad():
        broken.stem[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="check the weights"):
        freenas(broken, quiet(0, tmp_path), example=X)
    assert not (tmp_path / "architecture.json").exists()


def test_choices_that_reach_nothing_are_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.choice = ag.OpChoice([nn.Linear(2, 2), nn.Identity()], name="c")

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ModelError, match="all scores are 0"):
        freenas(Idle(), quiet(), example=torch.ones(1, 2))


def test_a_limit_that_leaves_no_way_through_is_refused() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.choice = ag.OpChoice({"layer": nn.Linear(4, 4), "none": Nothing()}, name="c")
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.choice(x))

    with pytest.raises(LimitError, match="no path"):
        freenas(Line(), quiet(), example=torch.ones(1, 4), limit=ag.params().at_most(15))
    assert freenas(Line(), quiet(), example=torch.ones(1, 4), limit=ag.params().at_most(30)).architecture["c"] == 0

"""Distributions over subsets: against enumeration, at their limits, and as relaxations of a space."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.decide import decide
from archgrad.choices.subsets import Factorized, Subsets, SubsetTable, marginals, topologies, topology
from archgrad.errors import ArchitectureError, ChoiceError
from archgrad.methods.unas.objective import Sampler

CASES = [(n, k) for n in range(1, 8) for k in range(1, n + 1)] + [(n, pair) for n, pair in ((5, (1, 3)), (6, (2, 6)))]
cases = pytest.mark.parametrize(("size", "keep"), CASES, ids=str)


def everything(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool)


def factorized(size: int, keep: int | tuple[int, int], *, seed: int = 0, spread: float = 1.5) -> Factorized:
    """With random logits; as many of them are drawn as there are parameters."""
    made = Factorized(size, keep, temperature=0.5).double()
    return scattered(made, seed, spread)


def scattered(made: Subsets, seed: int = 0, spread: float = 1.5) -> Subsets:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return made


def enumerated(made: Factorized, live: Tensor) -> dict[tuple[int, ...], float]:
    """p of each subset by its definition, in plain floats."""
    temperature, eta = float(made.temperature), made.logits.tolist()
    kappa = [0.0] if made.size_logits is None else made.size_logits.tolist()
    p: dict[tuple[int, ...], float] = {}
    alive = live.nonzero().flatten().tolist()
    for k in range(made.fewest, min(made.most, len(alive)) + 1):
        row = {c: math.exp(sum(eta[i] for i in c) / temperature) for c in itertools.combinations(alive, k)}
        share = math.exp(kappa[k - made.fewest] / temperature)
        p |= {c: share * w / sum(row.values()) for c, w in row.items()}
    return {c: w / sum(p.values()) for c, w in p.items()}


def as_tensor(made: Subsets, p: dict[tuple[int, ...], float]) -> Tensor:
    listed = [tuple(row.nonzero().flatten().tolist()) for row in made.subsets]
    return torch.tensor([p.get(c, 0.0) for c in listed], dtype=torch.float64)


@cases
def test_marginals_probabilities_and_the_rest_are_those_of_the_enumeration(size: int, keep: int) -> None:
    made = factorized(size, keep)
    for live in (everything(size), everything(size).index_fill(0, torch.tensor([0]), False)):
        if int(live.sum()) < made.fewest:
            continue
        p = enumerated(made, live)
        found = made.log_probabilities(live).exp().detach()
        torch.testing.assert_close(found, as_tensor(made, p), rtol=0, atol=1e-12)
        q = torch.tensor([sum(w for c, w in p.items() if i in c) for i in range(size)], dtype=torch.float64)
        torch.testing.assert_close(made(live).detach(), q, rtol=0, atol=1e-12)
        first, second, *_ = [*sorted(p.values(), reverse=True), 0.0]
        assert float(made.lead(live).detach()) == pytest.approx(first - second, abs=1e-12)
        assert made.likeliest(live) == max(p, key=p.__getitem__)
        assert float(made.entropy(live).detach()) == pytest.approx(
            -sum(w * math.log(w) for w in p.values()), abs=1e-10
        )
        weights = [math.exp(e / 0.5) for e, alive in zip(made.logits.tolist(), live.tolist(), strict=True) if alive]
        valid = sum(
            math.prod(weights[i] for i in c)
            for k in range(made.fewest, min(made.most, len(weights)) + 1)
            for c in itertools.combinations(range(len(weights)), k)
        )
        wanted = 1.0 - valid / math.prod(1.0 + w for w in weights)
        assert float(made.invalid(live).detach()) == pytest.approx(wanted, abs=1e-12)


def test_the_enumeration_would_notice_marginals_of_another_distribution() -> None:
    """Independent inputs scaled to sum to k are not the marginals; Gumbel-top-k's are not either."""
    made = factorized(5, 2, spread=0.7)
    wanted = made(everything(5)).detach()
    independent = torch.sigmoid(made.logits.detach() / made.temperature)
    assert not torch.allclose(2.0 * independent / independent.sum(), wanted, atol=1e-2)
    uniform = torch.rand(20_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = -torch.log(-torch.log(uniform))
    kept = (made.logits.detach() / made.temperature + noise).topk(2).indices
    top = torch.zeros(20_000, 5).scatter(1, kept, 1.0).mean(0).double()
    assert float((top - wanted).abs().max()) > 0.015, "four times the noise of the frequencies"


@cases
def test_the_gradient_passes_through_the_programme(size: int, keep: int) -> None:
    made = factorized(size, keep)
    live = everything(size)

    def marginals_at(*parameters: Tensor) -> Tensor:
        names = [name for name, _ in made.named_parameters()]
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (live,))

    assert torch.autograd.gradcheck(marginals_at, [p.detach().clone().requires_grad_() for p in made.parameters()])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=9), st.data())
def test_marginals_are_the_gradient_of_the_normalizer(values: list[float], data: st.DataObject) -> None:
    scores = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    k = data.draw(st.integers(1, len(values)))
    q, log_e = marginals(scores, range(k, k + 1))
    (wanted,) = torch.autograd.grad(log_e[0], scores)
    torch.testing.assert_close(q[0].detach(), wanted, rtol=0, atol=1e-11)
    assert float(q.detach().sum()) == pytest.approx(k, abs=1e-10)
    assert bool(((q >= 0) & (q <= 1 + 1e-12)).all())


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_long_and_cold_distributions_stay_finite(temperature: float) -> None:
    """Of 300 inputs 150: products of weights, in place of sums of logarithms, would overflow."""
    made = scattered(Factorized(300, 150, temperature=temperature), spread=4.0)
    q = made(everything(300))
    assert q.dtype == torch.float32
    assert float(q.detach().double().sum()) == pytest.approx(150, abs=1e-3)
    (gradient,) = torch.autograd.grad((q * torch.arange(300.0)).sum(), made.logits)
    assert bool(gradient.isfinite().all())
    assert math.isfinite(float(made.invalid(everything(300)).detach()))
    assert made.likeliest(everything(300)) == tuple(sorted(made.logits.topk(150).indices.tolist()))
    assert not bool(torch.exp(made.logits.detach() / temperature).prod().isfinite()) or temperature == 1.0


@pytest.mark.parametrize("keep", [2, (1, 3)])
def test_a_table_of_additive_logits_is_the_factorized_form(keep: int | tuple[int, int]) -> None:
    made, table = factorized(5, keep), SubsetTable(5, keep, temperature=0.5).double()
    with torch.no_grad():
        table.logits.copy_(made.log_probabilities(everything(5)) * 0.5)
    for live in (everything(5), torch.tensor([True, False, True, True, True])):
        if keep != 2 and not bool(live.all()):
            continue  # what a dead input takes with it is another share of each size
        torch.testing.assert_close(table(live), made(live), rtol=0, atol=1e-12)
        torch.testing.assert_close(table.lead(live), made.lead(live), rtol=0, atol=1e-12)
        torch.testing.assert_close(table.entropy(live), made.entropy(live), rtol=0, atol=1e-12)
        assert table.likeliest(live) == made.likeliest(live)
        assert float(table.invalid(live)) == 0.0
    with torch.no_grad():
        table.logits[3] += 3.0
    assert not torch.allclose(table(everything(5)), made(everything(5)), atol=1e-3), "a table knows more"


@pytest.mark.parametrize("make", [SubsetTable, Factorized])
def test_a_node_without_a_choice_has_weight_one_and_no_gradient(make: type[Subsets]) -> None:
    for size in (1, 2):
        made = scattered(make(size, size).double())
        q = made(everything(size))
        assert q.tolist() == pytest.approx([1.0] * size, abs=1e-12)
        gradients = torch.autograd.grad(q.square().sum(), list(made.parameters()))
        assert all(float(g.abs().max()) < 1e-12 for g in gradients)
        assert float(made.lead(everything(size)).detach()) == pytest.approx(1.0)
    made = scattered(make(3, 2).double())
    assert any(
        bool(g.any()) for g in torch.autograd.grad(made(everything(3)).square().sum(), list(made.parameters()))
    )


def test_permuted_inputs_have_permuted_marginals() -> None:
    made, other = factorized(6, 3), factorized(6, 3)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    with torch.no_grad():
        other.logits.copy_(made.logits[order])
    torch.testing.assert_close(other(everything(6)), made(everything(6))[order], rtol=0, atol=1e-13)


def test_hard_support_has_no_invalid_subsets() -> None:
    assert float(scattered(Factorized(5, 2, hard=True)).invalid(everything(5))) == 0.0
    assert float(scattered(Factorized(5, 2)).invalid(everything(5)).detach()) > 0.1


class Node(nn.Module):
    """A node of four inputs, each through one of two operations, one of them barred."""

    def __init__(self, keep: int = 2) -> None:
        super().__init__()
        edges = [
            ag.OpChoice({"none": nn.Identity(), "up": nn.Linear(3, 3), "down": nn.Linear(3, 3)}, name=f"edge{i}",
                        barred=["none"])
            for i in range(4)
        ]  # fmt: skip
        self.inputs = ag.InputChoice(4, name="inputs", keep=keep, edges=edges)

    def forward(self, x: Tensor) -> Tensor:
        return self.inputs([x, x + 1, x * x, -x])


def relaxed(form: str, keep: int | tuple[int, int] | None = None) -> nn.Module:
    torch.manual_seed(0)
    given_space = Node()
    space = topology(given_space, form=form, keep=keep)
    assert given_space.inputs.relaxation is None, "the space given is not changed"
    ag.relax(space, ag.softmax, where=lambda choice: choice.relaxation is None)
    for distribution, _ in topologies(space).values():
        scattered(distribution)
    return space


@pytest.mark.parametrize("form", ["table", "factorized"])
@pytest.mark.parametrize("keep", [1, 2, 3, (1, 3)])
def test_a_cold_node_is_the_decoded_node_bit_for_bit(form: str, keep: int | tuple[int, int]) -> None:
    space = relaxed(form, keep)
    for p in ag.logits(space):
        if p.shape == (3,) and p is not space.inputs.relaxation.logits:
            p.data.copy_(torch.tensor([0.0, 2e4, 0.0]))
    architecture = decide(space)
    assert len(set(architecture["inputs"])) == len(architecture["inputs"])
    held, x = ag.hold(space, architecture), torch.randn(5, 3)
    assert not torch.equal(space(x), held(x))
    space.inputs.relaxation.temperature.fill_(1e-4)
    assert torch.equal(space(x), held(x))
    again = ag.Architecture.from_json(architecture.to_json())
    assert again == architecture
    assert torch.equal(ag.build(space, again)(x), held(x))


@pytest.mark.parametrize("form", ["table", "factorized"])
def test_a_restricted_node_decides_among_what_is_alive(form: str) -> None:
    space = relaxed(form)
    assert space.inputs.edges[0].live.tolist() == [False, True, True], "absence is of the topology alone"
    best = decide(space)["inputs"]
    ag.choices.access.restrict(space, {"inputs": [i for i in range(4) if i != best[0]]})
    assert best[0] not in decide(space)["inputs"] and len(decide(space)["inputs"]) == 2
    q = space.inputs.mixing().detach()
    assert float(q[best[0]]) == 0.0 and float(q.sum()) == pytest.approx(2.0)
    for seed in range(20):
        picked = ag.sample(space, generator=torch.Generator().manual_seed(seed))["inputs"]
        assert len(picked) == 2 and best[0] not in picked


def test_a_table_decides_for_the_likeliest_subset_and_not_for_the_heaviest_inputs() -> None:
    """(0, 1) is likeliest, and yet 2 and 3 are the inputs that are kept most often."""
    space = topology(Node(), form="table")
    ag.relax(space, ag.softmax, where=lambda choice: choice.relaxation is None)
    p = {(0, 1): 0.3, (0, 2): 0.1, (0, 3): 0.1, (1, 2): 0.1, (1, 3): 0.1, (2, 3): 0.29}
    p[(0, 2)], p[(1, 2)] = 0.115, 0.115
    with torch.no_grad():
        space.inputs.relaxation.logits.copy_(torch.tensor([math.log(w) for w in p.values()]))
    heaviest = space.inputs.mixing().topk(2).indices.tolist()
    assert decide(space)["inputs"] == (0, 1) and 2 in heaviest


@pytest.mark.parametrize("form", ["table", "factorized"])
@pytest.mark.parametrize("keep", [2, (1, 3)])
def test_sampled_subsets_have_the_marginals_and_their_exact_log_probability(
    form: str, keep: int | tuple[int, int]
) -> None:
    space = relaxed(form, keep)
    sampler = Sampler(space, ag.Run(seed=0, steps=1, device="cpu", progress=False), temperature=0.4, softening=0.0)
    samples = 20_000
    drawn = sampler.draw(samples)
    q, rows = space.inputs.mixing().detach(), sampler.named(drawn.hard)["inputs"]
    frequencies = rows.float().mean(0)
    assert bool(((frequencies - q).abs() < 4.0 * (q * (1 - q) / samples).sqrt() + 1e-6).all())
    off = (torch.tensor([0.5, 0.5, 0.5, 0.5]) - q).abs()
    assert bool((off > 4.0 * (q * (1 - q) / samples).sqrt()).any()), "even inputs would be noticed"
    relaxed_rows = sampler.named(drawn.relaxed)["inputs"]
    if keep == 2:
        assert torch.allclose(relaxed_rows.sum(1), torch.full((samples,), 2.0), atol=1e-4)
    log_p = space.inputs.relaxation.log_probabilities(space.inputs.live)
    index = int(drawn.hard[[*ag.choices.access.choices(space)].index("inputs")][0].argmax())
    others = [row for name, row in zip(ag.choices.access.choices(space), drawn.hard, strict=True) if name != "inputs"]
    live = [c for name, (c, *_) in ag.choices.access.choices(space).items() if name != "inputs"]
    rest = sum(float(c.mixing().detach()[row[0].argmax()].log()) for c, row in zip(live, others, strict=True))
    assert float(drawn.log_probability[0].detach()) == pytest.approx(float(log_p[index].detach()) + rest, abs=1e-4)
    architecture = sampler.architecture(drawn)
    assert architecture["inputs"] == tuple(rows[0].nonzero().flatten().tolist())
    ag.hold(space, architecture)(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Factorized(3, 4), r"keep=4 of 3 inputs: allowed are a number from 1 to 3"),
        (lambda: Factorized(3, 0), r"keep=0 of 3"),
        (lambda: SubsetTable(3, (2, 1)), r"keep=\(2, 1\)"),
        (lambda: SubsetTable(3, True), r"keep=True"),
        (lambda: Factorized(3, 2, temperature=0.0), r"temperature of 0\.0"),
        (lambda: SubsetTable(60, 30), r"form='factorized'"),
        (lambda: topology(Node(), keep=5), r"choice 'inputs' has 4 inputs and cannot keep 5"),
        (lambda: topology(Node(), form="tree"), r"'table' and 'factorized'"),
        (lambda: topology(nn.Linear(2, 2)), r"has no InputChoice"),
        (lambda: topology(ag.InputChoice(1, name="one"), keep=2), r"has 1 inputs and cannot keep 2"),
        (lambda: Factorized(3, 2)(torch.zeros(3, dtype=torch.bool)), r"0 are alive"),
        (lambda: SubsetTable(3, 2)(torch.tensor([True, False, False])), r"1 are alive"),
        (lambda: Factorized(60, 30).log_probabilities(everything(60)), r"keep fewer"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, match: str) -> None:
    with pytest.raises(ChoiceError, match=match):
        make()


def test_a_pick_of_another_number_of_inputs_is_refused() -> None:
    space = topology(Node(), keep=(1, 2))
    edges = {f"edge{i}": 1 for i in range(4)}
    for pick in ((0,), (0, 3)):
        ag.hold(space, ag.Architecture({**edges, "inputs": pick}))
    with pytest.raises(ArchitectureError, match="keeps 1 to 2 inputs"):
        ag.hold(space, ag.Architecture({**edges, "inputs": (0, 1, 2)}))
    numbers = {len(ag.sample(space, generator=torch.Generator().manual_seed(s))["inputs"]) for s in range(20)}
    assert numbers == {1, 2}


def test_one_input_is_kept() -> None:
    space = topology(ag.InputChoice(1, name="one"))
    assert decide(space)["one"] == (0,)
    assert space([torch.ones(2)]).tolist() == [1.0, 1.0]

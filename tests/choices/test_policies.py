"""Policies against enumeration: probabilities, entropies, the policy gradient, with controls that must fail."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.policies import Categorical, Controller, Policy, Reinforce, Uniform
from archgrad.errors import ArchitectureError, ChoiceError, ConfigError, NonFiniteError

SIZES = (3, 2, 4)


def space() -> nn.Module:
    return nn.Sequential(*(ag.OpChoice([str(i) for i in range(n)], name=f"c{n}") for n in SIZES))


def mixed_space() -> nn.Module:
    return nn.Sequential(
        ag.OpChoice(("a", "b", "none"), name="op", barred=("none",)),
        ag.InputChoice(4, name="in", keep=2),
        ag.Gate(3, name="gate"),
    )


def every(sizes: Sequence[int] = SIZES) -> list[ag.Architecture]:
    names = [f"c{n}" for n in sizes]
    return [ag.Architecture(dict(zip(names, p, strict=True))) for p in itertools.product(*map(range, sizes))]


def shaken(policy: Policy, scale: float = 0.7) -> Policy:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return policy


def reward(architecture: ag.Architecture) -> float:
    x = [float(str(pick)) for pick in architecture.values()]
    return math.sin(3 * x[0] + x[1] * x[2]) + 0.2 * x[2]


def half(name: str, picks: Mapping[str, object]) -> list[int] | None:
    """The last decision does not matter where the first is 0."""
    return [0] if name == "c4" and picks["c3"] == 0 else None


MAKES: dict[str, Callable[[nn.Module], Policy]] = {
    "uniform": Uniform,
    "categorical": Categorical,
    "controller": functools.partial(Controller, width=6),
    "conditional categorical": functools.partial(Categorical, condition=half),
    "conditional controller": functools.partial(Controller, width=6, condition=half),
}
LEARNING = [name for name in MAKES if name != "uniform"]


def allowed(name: str) -> list[ag.Architecture]:
    return [a for a in every() if "conditional" not in name or a["c3"] != 0 or a["c4"] == 0]


@pytest.mark.parametrize("name", MAKES)
def test_probabilities_of_all_architectures_sum_to_one(name: str) -> None:
    policy = shaken(MAKES[name](space()))
    total = sum(float(policy.log_probability(a).detach().exp()) for a in allowed(name))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_subsets_of_inputs_and_gates_are_decided_too() -> None:
    policy = shaken(Controller(mixed_space(), width=4))
    pairs, subsets = list(itertools.combinations(range(4), 2)), [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    architectures = [ag.Architecture({"op": o, "in": i, "gate": g}) for o in (0, 1) for i in pairs for g in subsets]
    total = sum(float(policy.log_probability(a).detach().exp()) for a in architectures)
    assert total == pytest.approx(1.0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    assert {policy.sample(generator) for _ in range(50)} <= set(architectures)
    with pytest.raises(ArchitectureError, match="not allowed"):
        policy.log_probability(ag.Architecture({"op": 2, "in": (0, 1), "gate": (0,)}))


@pytest.mark.parametrize("name", MAKES)
def test_draws_are_as_frequent_as_they_are_probable(name: str) -> None:
    policy, generator, count = shaken(MAKES[name](space())), torch.Generator().manual_seed(1), 2000
    counts = Counter(policy.sample(generator) for _ in range(count))
    assert set(counts) <= set(allowed(name))
    excess = 0.0
    for a in allowed(name):
        p = float(policy.log_probability(a).detach().exp())
        excess += (counts[a] - count * p) ** 2 / (count * p)
    degrees = len(allowed(name)) - 1
    assert excess < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("name", MAKES)
def test_the_mean_entropy_on_the_way_is_the_entropy(name: str) -> None:
    policy = shaken(MAKES[name](space()))
    log_p, on_the_way = zip(*(policy.trace(a) for a in allowed(name)), strict=True)
    p = torch.stack(log_p).detach()
    assert float((p.exp() * torch.stack(on_the_way).detach()).sum()) == pytest.approx(float(-(p.exp() * p).sum()))


def exact(policy: Policy, architectures: list[ag.Architecture], bonus: float) -> Tensor:
    """grad of E[R] + bonus * entropy by differentiating the sum over all architectures."""
    log_p = torch.stack([policy.log_probability(a) for a in architectures])
    worth = torch.tensor([reward(a) for a in architectures], dtype=torch.float64) - bonus * log_p
    objective = (log_p.exp() * worth).sum()
    return flat(objective, policy)


def flat(value: Tensor, policy: Policy) -> Tensor:
    gradients = torch.autograd.grad(value, list(policy.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def estimated(learner: Reinforce, architectures: list[ag.Architecture]) -> Tensor:
    """The mean of the estimate over the policy."""
    policy = learner.policy
    total = torch.zeros(())
    for a in architectures:
        p = float(policy.log_probability(a).detach().exp())
        total = total - p * flat(learner.surrogate([a], [reward(a)])[0], policy)
    return total


@pytest.mark.parametrize("baseline", [0.0, 1.7])
@pytest.mark.parametrize("bonus", [0.0, 0.3])
@pytest.mark.parametrize("name", LEARNING)
def test_the_policy_gradient_is_unbiased(name: str, bonus: float, baseline: float) -> None:
    learner = Reinforce(shaken(MAKES[name](space())), bonus=bonus)
    learner.baseline.load_state_dict({"value": baseline, "started": True})
    architectures = allowed(name)
    assert torch.allclose(estimated(learner, architectures), exact(learner.policy, architectures, bonus), atol=1e-12)


def test_a_baseline_that_knows_its_sample_or_a_bonus_half_done_is_biased() -> None:
    """The controls: what the test above has to be able to tell."""
    architectures = every()
    policy = shaken(Controller(space(), width=6))
    learner, right = Reinforce(policy, bonus=0.3), exact(policy, every(), 0.3)
    wrong = torch.zeros(())
    for a in architectures:
        p = float(policy.log_probability(a).detach().exp())
        log_p, entropy = policy.trace(a)
        wrong = wrong + p * flat(reward(a) * log_p + 0.3 * entropy, policy)  # a bonus that is no reward
    assert not torch.allclose(wrong, right, atol=1e-3)
    wrong = torch.zeros(())
    for a in architectures:
        learner.baseline.load_state_dict({"value": 0.5 * reward(a), "started": True})
        p = float(policy.log_probability(a).detach().exp())
        wrong = wrong - p * flat(learner.surrogate([a], [reward(a)])[0], policy)
    assert not torch.allclose(wrong, right, atol=1e-3)


def test_equal_rewards_teach_nothing_on_average() -> None:
    policy = shaken(Controller(space(), width=6))
    learner, total = Reinforce(policy, bonus=0.0), torch.zeros(())
    for a in every():
        p = float(policy.log_probability(a).detach().exp())
        total = total + p * flat(learner.surrogate([a], [0.4])[0], policy)
    assert float(total.abs().max()) < 1e-12


def test_the_best_arm_of_a_bandit_gains_with_every_exact_step() -> None:
    policy = Categorical(nn.Sequential(ag.OpChoice(("a", "b", "c"), name="arm")))
    arms = [ag.Architecture({"arm": i}) for i in range(3)]
    rewards = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    last = 0.0
    for _ in range(30):
        p = torch.stack([policy.log_probability(a) for a in arms]).exp()
        assert float(p[1].detach()) > last
        last = float(p[1].detach())
        gradient = torch.autograd.grad((p * rewards).sum(), list(policy.parameters()))
        with torch.no_grad():
            for q, g in zip(policy.parameters(), gradient, strict=True):
                q += g


@pytest.mark.parametrize("name", LEARNING)
def test_teaching_raises_the_expected_reward_and_goes_on_exactly_from_its_state(name: str) -> None:
    def taught(steps: int, policy: Policy, learner: Reinforce, generator: torch.Generator) -> None:
        for _ in range(steps):
            drawn = [policy.sample(generator) for _ in range(4)]
            learner.step(drawn, [reward(a) for a in drawn])

    def fresh() -> tuple[Policy, Reinforce]:
        torch.manual_seed(0)
        policy = MAKES[name](space())
        return policy, Reinforce(policy, rate=0.03)

    def mean(policy: Policy) -> float:
        return sum(float(policy.log_probability(a).detach().exp()) * reward(a) for a in allowed(name))

    (policy, learner), generator = fresh(), torch.Generator().manual_seed(0)
    before = mean(policy)
    taught(20, policy, learner, generator)
    kept = [policy.state_dict(), learner.state_dict(), generator.get_state()]
    kept[0] = {k: v.clone() for k, v in kept[0].items()}
    other, again = fresh()
    other.load_state_dict(kept[0])
    again.load_state_dict(copy.deepcopy(kept[1]))
    second = torch.Generator()
    second.set_state(kept[2])
    taught(40, policy, learner, generator)
    taught(40, other, again, second)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))
    assert mean(policy) > before + 0.2


def test_uniform_draws_what_sample_draws() -> None:
    given, a, b = mixed_space(), torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    policy = Uniform(given)
    assert [policy.sample(a) for _ in range(20)] == [ag.sample(given, generator=b) for _ in range(20)]


@pytest.mark.parametrize("make", [Uniform, Categorical, Controller])
def test_a_prior_is_where_a_policy_begins(make: Callable[..., Policy]) -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0])
    policy = make(space(), prior={"c4": logits})
    p = [float(policy.log_probability(ag.Architecture({"c2": 0, "c3": 0, "c4": i})).detach().exp()) for i in range(4)]
    assert p == pytest.approx((logits.double().softmax(0) / 6).tolist())


def test_what_dies_in_the_space_is_not_drawn_any_more() -> None:
    given = space()
    policy = Categorical(given)
    ag.restrict(given, {"c4": [1, 3]})
    generator = torch.Generator().manual_seed(0)
    assert {policy.sample(generator)["c4"] for _ in range(40)} == {1, 3}
    ag.restrict(given, {"c4": [3]})
    assert float(
        policy.log_probability(ag.Architecture({"c2": 0, "c3": 0, "c4": 3})).detach().exp()
    ) == pytest.approx(1 / 6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ChoiceError, match="no choice to draw from"):
        Uniform(nn.Linear(2, 2))
    with pytest.raises(ChoiceError, match="no choice is named 'x'"):
        Categorical(space(), prior={"x": torch.zeros(3)})
    for wrong in (torch.zeros(3), torch.full((4,), math.nan)):
        with pytest.raises(ChoiceError, match="give 4 finite logits"):
            Controller(space(), prior={"c4": wrong})
    with pytest.raises(ChoiceError, match="more than the 4,096"):
        Uniform(nn.Sequential(ag.Gate(13, name="wide")))
    with pytest.raises(ConfigError, match="nothing to learn"):
        Reinforce(Uniform(space()))
    with pytest.raises(ConfigError, match="rate"):
        Reinforce(Categorical(space()), rate=0.0)
    with pytest.raises(ConfigError, match="units"):
        Controller(space(), width=0)
    with pytest.raises(NonFiniteError, match="reward"):
        Reinforce(Categorical(space())).step([every()[0]], [math.nan])
    with pytest.raises(ArchitectureError, match="same space"):
        Categorical(space()).log_probability(ag.Architecture({"c3": 0}))
    impossible = Categorical(space(), condition=lambda name, picks: [])
    with pytest.raises(ChoiceError, match="nothing left to pick"):
        impossible.sample()

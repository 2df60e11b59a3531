"""Policies: distributions that architectures are drawn from, for searches that have scores and no gradients.

An architecture is a sequence of decisions, one a choice, in the order of the space. Decision t has options, the picks
that its choice allows. Entry logits z_t [size] and a prior m_t [size] score a pick by the sum over its entries:

    p_t(pick | earlier picks) = softmax over the allowed picks of  sum over i in pick of (z_t + m_t)_i
    log p(a)                  = sum over t of  log p_t(a_t | a_<t)

For an `OpChoice` that is the softmax of the logits; for an `InputChoice` that keeps several, a distribution over
subsets. Allowed are live candidates that are not barred and that a `condition` allows after the earlier picks.

Everything is float64 on the CPU. Policies are modules, so their state is saved and resumed like any other module's;
draws come from the generator that is given.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.estimators import DecayingBaseline
from archgrad.choices.gate import Gate
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.errors import ArchitectureError, ChoiceError, ConfigError, NonFiniteError

# From a choice's name and the picks of the choices before it to the entries that may be picked; None: all.
Condition = Callable[[str, Mapping[str, Pick]], Sequence[int] | None]
Prior = Mapping[str, Tensor]
MOST = 4096  # options of one decision
LOWEST = -1e30  # in place of the log of 0, whose gradient would be NaN


class _Decision:
    """One choice as a list of picks; `members` [options, size] are the entries of each, where it picks several."""

    def __init__(self, choice: Choice, prior: Tensor | None) -> None:
        self.name, self.size, self._choice = choice.name, choice.size, choice
        self.picks = _picks(choice)
        self.places = {pick: place for place, pick in enumerate(self.picks)}
        self.single = all(isinstance(pick, int) for pick in self.picks)
        # For single picks this would be the unit matrix, which is large where there are many candidates.
        rows = [] if self.single else [choice.picked(pick) for pick in self.picks]
        self.members = torch.stack(rows).double() if rows else torch.empty(0, self.size)
        self.prior = None if prior is None else prior.detach().cpu().double()

    def picked(self, option: int) -> Tensor:
        """[size] zeros and ones: the entries of an option."""
        return self._choice.picked(self.picks[option]).double()

    def log_p(self, logits: Tensor, allowed: Sequence[int] | None) -> Tensor:
        """[options] log-probabilities, -inf for options that are not allowed."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[self._choice.pickable_places()] = True
        if allowed is not None:
            permitted = torch.zeros_like(mask)
            permitted[list(allowed)] = True
            mask = mask & permitted
        barred = ~mask if self.single else (self.members @ (~mask).double()) > 0
        if bool(barred.all()):
            raise ChoiceError(
                f"choice {self.name!r} has nothing left to pick: what is alive and what the condition allows "
                f"({list(allowed) if allowed is not None else 'everything'}) have too little in common"
            )
        entries = logits if self.prior is None else logits + self.prior
        scores = entries if self.single else self.members @ entries
        return torch.log_softmax(scores.masked_fill(barred, -math.inf), 0)


class Policy(nn.Module):
    """What all policies share: drawing, log-probabilities, entropy.

    Args:
        space: whose choices are decided; it is not changed. Candidates that die in it later are no longer drawn.
        prior: logits that are added, [size] for each choice or for some, as `archgrad.prior` returns them.
        condition: which entries are allowed after earlier picks; it leaves one entry where a decision is irrelevant.

    Raises:
        ChoiceError: the space has no choice, a choice has too many picks to list, or the prior does not fit.
    """

    def __init__(self, space: nn.Module, *, prior: Prior | None = None, condition: Condition | None = None) -> None:
        super().__init__()
        one_by_name = decisions(space)
        if not one_by_name:
            raise ChoiceError(f"{type(space).__name__} has no choice to draw from")
        check_prior(prior, one_by_name)
        self.decisions = [_Decision(choice, (prior or {}).get(name)) for name, choice in one_by_name.items()]
        self.condition = condition

    @abstractmethod
    def logits(self, place: int, last: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Entry logits [size] of the decision at `place`, and what the next call is given as `state`.

        `last` [size] is the pick before it, as zeros and ones; None at the first, where `state` is None too.
        """

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """An architecture drawn from the policy."""

        def choose(decision: _Decision, log_p: Tensor) -> int:
            return int(torch.multinomial(log_p.exp(), 1, generator=generator))

        with torch.no_grad():
            return self._walk(choose)[0]

    def trace(self, architecture: Architecture) -> tuple[Tensor, Tensor]:
        """log p(a) and sum over t of H(p_t | a_<t), in nats: scalars with gradient.

        The mean of the second over architectures drawn from the policy is the entropy of the policy.

        Raises:
            ArchitectureError: the architecture is for another space, or the condition rules it out.
        """
        if architecture.keys() != {decision.name for decision in self.decisions}:
            raise ArchitectureError(
                f"the architecture decides {list(architecture)[:5]}, the policy "
                f"{[decision.name for decision in self.decisions[:5]]}; draw from a policy of the same space"
            )

        def choose(decision: _Decision, log_p: Tensor) -> int:
            place = decision.places.get(architecture[decision.name])
            if place is None or not math.isfinite(float(log_p[place].detach())):
                raise ArchitectureError(
                    f"choice {decision.name!r}: the pick {architecture[decision.name]!r} is not allowed here; draw "
                    f"architectures from the policy itself"
                )
            return place

        _, log_probability, entropy = self._walk(choose)
        return log_probability, entropy

    def log_probability(self, architecture: Architecture) -> Tensor:
        """log p(a), a scalar with gradient; raises as `trace`."""
        return self.trace(architecture)[0]

    def entropy(self, architecture: Architecture) -> Tensor:
        """The entropy of the decisions on the way to an architecture, in nats; see `trace`."""
        return self.trace(architecture)[1]

    def _walk(self, choose: Callable[[_Decision, Tensor], int]) -> tuple[Architecture, Tensor, Tensor]:
        picks: dict[str, Pick] = {}
        total, entropy = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        last, state = None, None
        for place, decision in enumerate(self.decisions):
            logits, state = self.logits(place, last, state)
            allowed = self.condition(decision.name, picks) if self.condition else None
            log_p = decision.log_p(logits, allowed)
            option = choose(decision, log_p)
            picks[decision.name], last = decision.picks[option], decision.picked(option)
            total = total + log_p[option]
            entropy = entropy - (log_p.exp() * log_p.clamp_min(LOWEST)).sum()
        return Architecture(picks), total, entropy


class Uniform(Policy):
    """Every choice drawn uniformly from its allowed picks, or from the prior: it learns nothing.

    Without prior and condition it draws what `archgrad.sample` draws with the same generator, and is faster.
    """

    def __init__(self, space: nn.Module, *, prior: Prior | None = None, condition: Condition | None = None) -> None:
        super().__init__(space, prior=prior, condition=condition)
        self._unconditional = list(decisions(space).values()) if prior is None and condition is None else None

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """An architecture drawn from the policy."""
        if self._unconditional is None:
            return super().sample(generator)
        return Architecture({choice.name: choice.sampled(generator) for choice in self._unconditional})

    def logits(self, place: int, last: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Zeros [size]."""
        return torch.zeros(self.decisions[place].size, dtype=torch.float64), None


class Categorical(Policy):
    """Independent decisions, logits theta_t [size] each, all 0 at first."""

    def __init__(self, space: nn.Module, *, prior: Prior | None = None, condition: Condition | None = None) -> None:
        super().__init__(space, prior=prior, condition=condition)
        self.theta = nn.ParameterList([torch.zeros(d.size, dtype=torch.float64) for d in self.decisions])

    def logits(self, place: int, last: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """theta [size]."""
        return self.theta[place], None


class Controller(Policy):
    """An LSTM that decides in sequence, each decision conditioned on the earlier ones.

        (h_t, c_t) = LSTM(e_{t-1}, h_{t-1}, c_{t-1}),   z_t = W_t h_t + b_t,   e_t the pick as zeros and ones, e_0 = 0

    W and b start at 0, so that the first draws are uniform, or follow the prior.

    Args:
        space, prior, condition: see `Policy`.
        width: of h and c.

    Source: MONAS (arXiv 1806.10332), as reading notes of it describe the controller; starting at 0 is our choice.
    """

    def __init__(
        self, space: nn.Module, *, prior: Prior | None = None, condition: Condition | None = None, width: int = 32
    ) -> None:
        super().__init__(space, prior=prior, condition=condition)
        if width < 1:
            raise ConfigError(f"width={width}: a controller has 1 or more units; 32 is the default")
        self._widest = max(decision.size for decision in self.decisions)
        self.cell = nn.LSTMCell(self._widest, width, dtype=torch.float64)
        self.heads = nn.ModuleList([nn.Linear(width, d.size, dtype=torch.float64) for d in self.decisions])
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def logits(self, place: int, last: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """z_t [size] and (h_t, c_t)."""
        e = torch.zeros(1, self._widest, dtype=torch.float64)
        if last is not None:
            e[0, : len(last)] = last
        state = self.cell(e, state)
        return self.heads[place](state[0][0]), state


class Reinforce:
    """The policy gradient of an expected reward plus an entropy bonus, by Adam, with a decaying baseline.

        J    = E[R(a) + beta H(a)],   H(a) = sum over t of H(p_t | a_<t)
        grad = mean over the draws of  (R(a) + beta H(a) - b) grad log p(a) + beta grad H(a)

    b is the running mean of the rewards before these draws, so that the estimate is unbiased.

    Args:
        policy: one that learns.
        rate: of Adam.
        bonus: beta, reward for each nat.
        decay: of the baseline.

    Raises:
        ConfigError: the policy has nothing to learn, or a rate, bonus or decay out of its range.

    Source: Williams, "Simple statistical gradient-following algorithms" (1992); MONAS (arXiv 1806.10332) with b = 0
    and without bonus, as reading notes of it say.
    """

    def __init__(self, policy: Policy, *, rate: float = 0.01, bonus: float = 0.005, decay: float = 0.9) -> None:
        parameters = list(policy.parameters())
        if not parameters:
            raise ConfigError(f"{type(policy).__name__} has nothing to learn; give Categorical or Controller")
        if not 0.0 < rate < math.inf or not 0.0 <= bonus < math.inf:
            raise ConfigError(f"rate={rate}, bonus={bonus}: give a finite rate above 0 and a bonus from 0 up")
        self.policy, self.bonus = policy, bonus
        self.baseline = DecayingBaseline(decay)
        self.optimizer = torch.optim.Adam(parameters, lr=rate)

    def surrogate(self, architectures: Sequence[Architecture], rewards: Sequence[float]) -> tuple[Tensor, float]:
        """A scalar whose gradient is the estimate of -grad J, and the mean of H(a); the baseline stays as it is.

        Raises:
            NonFiniteError: a reward is NaN or infinite.
        """
        terms, entropies = [], []
        for architecture, reward in zip(architectures, rewards, strict=True):
            if not math.isfinite(reward):
                raise NonFiniteError(f"a reward of {reward} for {dict(architecture)}; a reward is a finite number")
            log_p, entropy = self.policy.trace(architecture)
            entropies.append(float(entropy.detach()))
            advantage = reward + self.bonus * entropies[-1] - self.baseline.value
            terms.append(advantage * log_p + self.bonus * entropy)
        return -torch.stack(terms).mean(), sum(entropies) / len(entropies)

    def step(self, architectures: Sequence[Architecture], rewards: Sequence[float]) -> float:
        """One step on draws of the policy and their rewards; returns the mean entropy of the decisions, in nats.

        The first call has no baseline yet: it sets the baseline and does not change the policy.

        Raises:
            NonFiniteError: a reward is NaN or infinite.
        """
        loss, entropy = self.surrogate(architectures, rewards)
        if self.baseline.state_dict()["started"]:
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.baseline.update(sum(rewards) / len(rewards) + self.bonus * entropy)
        return entropy

    def state_dict(self) -> dict[str, Any]:
        """Adam's state and the baseline; the policy's state is its own."""
        return {"optimizer": self.optimizer.state_dict(), "baseline": self.baseline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline.load_state_dict(state["baseline"])


def _picks(choice: Choice) -> list[Pick]:
    if isinstance(choice, OpChoice):
        return list(range(choice.size))
    least = 0 if isinstance(choice, Gate) and choice.vanishing else 1
    sizes = [choice.keep] if isinstance(choice, InputChoice) else list(range(least, choice.size + 1))
    if (count := sum(math.comb(choice.size, number) for number in sizes)) > MOST:
        raise ChoiceError(
            f"choice {choice.name!r} has {count:,} picks, more than the {MOST:,} that a policy lists; "
            f"decide gates by archgrad.dnal, or give it fewer entries"
        )
    return [pick for number in sizes for pick in itertools.combinations(range(choice.size), number)]


def check_prior(prior: Prior | None, one_by_name: Mapping[str, Choice]) -> None:
    """Raises ChoiceError where a prior does not fit the choices of a space."""
    for name, row in (prior or {}).items():
        if name not in one_by_name:
            raise ChoiceError(
                f"the prior is for another space: no choice is named {name!r}; it has {list(one_by_name)[:9]}"
            )
        size = one_by_name[name].size
        if row.shape != (size,) or not bool(torch.isfinite(row).all()):
            raise ChoiceError(
                f"the prior of choice {name!r} is {tuple(row.shape)}, or not finite; give {size} finite logits"
            )

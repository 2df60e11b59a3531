"""Distributions over the subsets of inputs that a node may keep: relaxations of `InputChoice` for its topology.

A subset c of k of n inputs has probability p(c), and input i mixes with the probability of being kept,

    q_i = sum over c that hold i of p(c),     sum_i q_i = k,     0 <= q_i <= 1

Two forms, with scores divided by a temperature T:

    SubsetTable  p(c) = softmax(beta / T)_c                                 one logit a subset
    Factorized   p(c) = exp(sum_{i in c} eta_i / T) / e_k(exp(eta / T))     one logit an input

e_k is the elementary symmetric polynomial; it and the marginals q come from one dynamic program in log space,
O(n k), float64. With the number of inputs free from k_1 to k_2, a table lists the subsets of all these sizes, and
the factorized form has a softmax over sizes in front: p(c) = softmax(kappa / T)_|c| * p(c | |c|).

Source: TopoNAS (arXiv 2011.09300), whose full text was not at hand: the two forms are reconstructions that agree
with its abstract. The authors' code of DOTS (CVPR 2021) has the table too.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, decisions, restrict
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.relaxations import true_places
from archgrad.copy_and_run import copied
from archgrad.errors import ChoiceError

Space = TypeVar("Space", bound=nn.Module)
Keep = int | tuple[int, int]
MOST = 10_000  # subsets that are listed one by one
# In place of -inf, whose differences are NaN; float64 holds sums of such.
NEVER = -1e100


class Subsets(nn.Module):
    """A distribution over the subsets of inputs that a node may keep.

    Args:
        size: number of inputs, n.
        keep: how many are kept, or (fewest, most).
        temperature: T, above 0; towards 0 all probability goes to the likeliest subset.
        hard: whether only subsets of these sizes are possible, so that `invalid` is 0.

    Raises:
        ChoiceError: a number or a temperature out of range.
    """

    temperature: Tensor

    def __init__(self, size: int, keep: Keep, *, temperature: float = 1.0, hard: bool = True) -> None:
        super().__init__()
        self.fewest, self.most = _sizes(size, keep)
        self.size, self.hard = size, hard
        if not 0.0 < temperature < math.inf:
            raise ChoiceError(f"a temperature of {temperature}: give a finite number above 0, for instance 1")
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self._listed: Tensor | None = None

    @property
    def subsets(self) -> Tensor:
        """[C, size] bool: all subsets, listed by size, then in the order of their inputs.

        Raises:
            ChoiceError: there are more than can be listed.
        """
        if self._listed is None:
            sizes = range(self.fewest, self.most + 1)
            count = sum(math.comb(self.size, k) for k in sizes)
            if count > MOST:
                raise ChoiceError(
                    f"{_range(self.fewest, self.most)} of {self.size} inputs make {count:,} subsets, and at most "
                    f"{MOST:,} are listed. Take form='factorized' in a method that does not sample, which needs none "
                    f"(archgrad.toponas, archgrad.darts), or keep fewer"
                )
            listed = [c for k in sizes for c in itertools.combinations(range(self.size), k)]
            self._listed = torch.zeros(count, self.size, dtype=torch.bool)
            for row, subset in zip(self._listed, listed, strict=True):
                row[list(subset)] = True
        return self._listed.to(self.temperature.device)

    @abstractmethod
    def forward(self, live: Tensor) -> Tensor:
        """[size] marginals q, 0 where not live; they sum to the (expected) number of inputs kept.

        Raises:
            ChoiceError: fewer inputs are alive than are to be kept.
        """

    @abstractmethod
    def log_probabilities(self, live: Tensor) -> Tensor:
        """[C] float64 log p(c) of `subsets`; -inf for those that hold a dead input."""

    @abstractmethod
    def likeliest(self, live: Tensor) -> tuple[int, ...]:
        """The subset of highest probability."""

    @abstractmethod
    def lead(self, live: Tensor) -> Tensor:
        """(): probability of the likeliest subset less that of the second; 1 where there is only one."""

    @abstractmethod
    def entropy(self, live: Tensor) -> Tensor:
        """(): -sum_c p(c) log p(c), nats."""

    def invalid(self, live: Tensor) -> Tensor:
        """(): probability of a subset of another size; 0 where there is none."""
        return self.temperature.new_zeros((), dtype=torch.float64)

    def _alive(self, live: Tensor) -> Tensor:
        """Indices of the live inputs; refused where there are too few."""
        alive = torch.tensor(true_places(live), dtype=torch.long, device=live.device)
        if len(alive) < self.fewest:
            raise ChoiceError(
                f"{_range(self.fewest, self.most)} of {self.size} inputs are to be kept, but {len(alive)} are alive; "
                f"restrict the choice to {self.fewest} or more, or keep fewer"
            )
        return alive


class SubsetTable(Subsets):
    """p = softmax(beta / T) over all subsets, one logit each; every distribution over them is possible.

    Args:
        size: number of inputs.
        keep: how many are kept, or (fewest, most).
        temperature: T, above 0.

    Raises:
        ChoiceError: numbers out of range, or too many subsets to list.
    """

    def __init__(self, size: int, keep: Keep, *, temperature: float = 1.0) -> None:
        super().__init__(size, keep, temperature=temperature)
        self.logits = nn.Parameter(torch.zeros(len(self.subsets)))

    def forward(self, live: Tensor) -> Tensor:
        """[size] marginals q = p M, M the incidence of inputs in subsets."""
        return (self.log_probabilities(live).exp() @ self.subsets.double()).to(self.logits.dtype)

    def log_probabilities(self, live: Tensor) -> Tensor:
        """[C] float64 log p(c)."""
        self._alive(live)
        dead = (self.subsets & ~live).any(dim=1)
        return torch.log_softmax((self.logits.double() / self.temperature).masked_fill(dead, -math.inf), dim=0)

    def likeliest(self, live: Tensor) -> tuple[int, ...]:
        """The subset of the largest logit."""
        return _indices(self.subsets[self.log_probabilities(live).argmax()])

    def lead(self, live: Tensor) -> Tensor:
        """(): p of the first less p of the second."""
        return _lead(self.log_probabilities(live))

    def entropy(self, live: Tensor) -> Tensor:
        """(): nats."""
        log_p = self.log_probabilities(live)
        return -(log_p.exp() * log_p.clamp_min(NEVER)).sum()


class Factorized(Subsets):
    """Conditional Poisson, one logit an input: any k of any n, since no subset is listed.

    Args:
        size: number of inputs.
        keep: how many are kept, or (fewest, most), which adds a logit for each size.
        temperature: T, above 0.
        hard: whether only subsets of these sizes are possible, so that `invalid` is 0.

    Raises:
        ChoiceError: numbers out of range.
    """

    def __init__(self, size: int, keep: Keep, *, temperature: float = 1.0, hard: bool = False) -> None:
        super().__init__(size, keep, temperature=temperature, hard=hard)
        self.logits = nn.Parameter(torch.zeros(size))
        free = self.most > self.fewest
        self.size_logits = nn.Parameter(torch.zeros(self.most - self.fewest + 1)) if free else None

    def forward(self, live: Tensor) -> Tensor:
        """[size] marginals, the mean over sizes k of q_i = exp(eta_i / T) e_{k-1}(the others) / e_k."""
        alive = self._alive(live)
        q = torch.einsum("k,ki->i", self._log_sizes(len(alive)).exp(), self._given_size(alive)[0])
        return torch.zeros_like(self.logits).index_put((alive,), q.to(self.logits.dtype))

    def log_probabilities(self, live: Tensor) -> Tensor:
        """[C] float64 log p(c)."""
        alive = self._alive(live)
        score, log_e = self._scores(alive), self._given_size(alive)[1]
        full = score.new_zeros(self.size).index_put((alive,), score)
        sizes, dead = self.subsets.sum(dim=1), (self.subsets & ~live).any(dim=1)
        places = (sizes - self.fewest).clamp(max=len(log_e) - 1)  # a larger subset holds a dead input
        log_p = self.subsets.double() @ full + (self._log_sizes(len(alive)) - log_e)[places]
        return log_p.masked_fill(dead, -math.inf)

    def likeliest(self, live: Tensor) -> tuple[int, ...]:
        """The largest logits, as many as is likeliest."""
        alive = self._alive(live)
        best = self._best(alive)
        kept = alive[self._scores(alive).argsort(descending=True, stable=True)[: self.fewest + int(best.argmax())]]
        return tuple(sorted(kept.tolist()))

    def lead(self, live: Tensor) -> Tensor:
        """(): p of the first less p of the second; of one size, the second swaps the last input for the next."""
        alive = self._alive(live)
        best, order = self._best(alive), self._scores(alive).sort(descending=True).values
        sizes = range(self.fewest, self.fewest + len(best))
        seconds = [best[j] - order[k - 1] + order[k] for j, k in enumerate(sizes) if k < len(alive)]
        return _lead(torch.cat([best, *(second.view(1) for second in seconds)]))

    def entropy(self, live: Tensor) -> Tensor:
        """(): nats; sum_k pi_k (log e_k - sum_i q_i eta_i / T - log pi_k)."""
        alive = self._alive(live)
        (q, log_e), log_pi = self._given_size(alive), self._log_sizes(len(alive))
        return (log_pi.exp() * (log_e - q @ self._scores(alive) - log_pi)).sum()

    def invalid(self, live: Tensor) -> Tensor:
        """(): the probability that the number of inputs is not allowed, were each kept independently.

        Input i with probability sigmoid(eta_i / T):   1 - sum_k e_k(w) / prod_i (1 + w_i),   w = exp(eta / T)
        """
        if self.hard:
            return super().invalid(live)
        alive = self._alive(live)
        log_valid = self._given_size(alive)[1].logsumexp(0) - nn.functional.softplus(self._scores(alive)).sum()
        return -torch.expm1(log_valid.clamp(max=0.0))

    def _scores(self, alive: Tensor) -> Tensor:
        return self.logits.double()[alive] / self.temperature

    def _log_sizes(self, alive: int) -> Tensor:
        """[K] log-probability of each size that so many live inputs allow."""
        count = min(self.most, alive) - self.fewest + 1
        if self.size_logits is None:
            return self.temperature.new_zeros(count, dtype=torch.float64)
        return torch.log_softmax(self.size_logits.double()[:count] / self.temperature, dim=0)

    def _best(self, alive: Tensor) -> Tensor:
        """[K] log p of the likeliest subset of each size."""
        log_e, sums = self._given_size(alive)[1], self._scores(alive).sort(descending=True).values.cumsum(0)
        return self._log_sizes(len(alive)) + sums[self.fewest - 1 :][: len(log_e)] - log_e

    def _given_size(self, alive: Tensor) -> tuple[Tensor, Tensor]:
        """[K, alive] marginals given each size, and [K] log e_k."""
        return marginals(self._scores(alive), range(self.fewest, min(self.most, len(alive)) + 1))


def marginals(scores: Tensor, sizes: range) -> tuple[Tensor, Tensor]:
    """Marginals and normalizers of p(c) ~ exp(sum of the scores in c) over the subsets of each of some sizes.

        log e_k(s_1 .. s_i) = logaddexp(log e_k(s_1 .. s_{i-1}), s_i + log e_{k-1}(s_1 .. s_{i-1}))
        q_i = exp(s_i + log e_{k-1}(all but i) - log e_k),   all but i: those before i joined with those behind it

    Args:
        scores: [n] float64.
        sizes: k, each from 1 to n.

    Returns:
        q [sizes, n], and log e_k [sizes]; both differentiable.
    """
    both = torch.stack([scores, scores.flip(0)])
    start = scores.new_full((2, sizes[-1] + 1), NEVER)
    start[:, 0] = 0.0
    rows = [start]
    for i in range(len(scores)):
        shifted = torch.cat([start[:, 1:2], rows[-1][:, :-1]], dim=1)
        rows.append(torch.logaddexp(rows[-1], shifted + both[:, i : i + 1]))
    before = torch.stack([row[0] for row in rows[:-1]])
    behind = torch.stack([row[1] for row in rows[-2::-1]])
    log_e = rows[-1][0]
    q = [torch.exp(scores + torch.logsumexp(before[:, :k] + behind[:, :k].flip(1), dim=1) - log_e[k]) for k in sizes]
    return torch.stack(q), log_e[sizes[0] : sizes[-1] + 1]


def topology(
    space: Space,
    *,
    form: Literal["table", "factorized"] = "factorized",
    keep: Keep | None = None,
    temperature: float = 1.0,
    hard: bool = False,
    where: Callable[[Choice], bool] | None = None,
) -> Space:
    """A copy of a space whose input choices have distributions over subsets, separate from the operations.

    Any method for supernets takes it as a space. Which inputs a node keeps is then a variable of its own and does not
    follow from the weights of the operations. Candidates that are barred on the edges of these nodes, such as "none",
    are dead in the copy: only the topology removes an edge.

    Args:
        space: a network with InputChoice; it is not changed.
        form: "factorized", one logit an input; "table", one a subset.
        keep: inputs that a node keeps; (fewest, most) leaves the number free, as far as there are inputs. Default:
            as each choice has it.
        temperature: of the distributions.
        hard: for the factorized form; see `Factorized`.
        where: which input choices; default: all.

    Raises:
        ChoiceError: there is no such choice, another form, or fewer inputs than are to be kept.
    """
    space = copied(space)
    barred: dict[str, Tensor] = {}
    by_name = choices(space)
    nodes = [c for c, *_ in by_name.values() if isinstance(c, InputChoice) and (where is None or where(c))]
    if not nodes:
        raise ChoiceError(
            f"{type(space).__name__} has no InputChoice whose inputs could be chosen; topology needs one, as in "
            f"archgrad.darts_cells. Where only operations are chosen, search without it"
        )
    if form not in ("table", "factorized"):
        raise ChoiceError(f"form={form!r}; allowed are 'table' and 'factorized'")
    for first in nodes:
        numbers = _numbers(first, keep)
        distribution: Subsets
        if form == "table":
            distribution = SubsetTable(first.size, numbers, temperature=temperature)
        else:
            distribution = Factorized(first.size, numbers, temperature=temperature, hard=hard)
        distribution.to(first.live.device)
        for choice in by_name[first.name]:
            assert isinstance(choice, InputChoice)
            choice.relaxation, choice.fewest, choice.keep = distribution, distribution.fewest, distribution.most
            edges = [edge for edge in choice.edges or () if isinstance(edge, OpChoice) and edge.barred]
            barred |= {edge.name: edge.pickable for edge in edges}
    restrict(space, barred)
    return space


def topologies(space: nn.Module) -> dict[str, tuple[Subsets, Tensor]]:
    """The distributions over subsets in a space, each with the live inputs [size] of its choice."""
    return {n: (c.relaxation, c.live) for n, c in decisions(space).items() if isinstance(c.relaxation, Subsets)}


def without_topology(choice: Choice) -> bool:
    """Whether a choice has no distribution over subsets, so that a method relaxes it."""
    return not isinstance(choice.relaxation, Subsets)


def probabilities(space: nn.Module) -> dict[str, dict[tuple[int, ...], float]]:
    """For each choice with a distribution over subsets, the probability of each subset of live inputs.

    Raises:
        ChoiceError: there are too many subsets to list.
    """
    tables: dict[str, dict[tuple[int, ...], float]] = {}
    for name, (distribution, live) in topologies(space).items():
        rows = zip(distribution.subsets, distribution.log_probabilities(live).exp().tolist(), strict=True)
        tables[name] = {_indices(subset): value for subset, value in rows if not bool((subset & ~live).any())}
    return tables


def _numbers(choice: InputChoice, keep: Keep | None) -> Keep:
    if keep is None:
        return choice.fewest, choice.keep
    fewest, most = (keep, keep) if isinstance(keep, int) else keep
    if (isinstance(keep, int) and keep > choice.size) or fewest > choice.size:
        raise ChoiceError(
            f"choice {choice.name!r} has {choice.size} inputs and cannot keep {fewest}; give keep=1 to "
            f"{choice.size}, a range such as keep=(1, {fewest}), or leave the choice out by where="
        )
    return fewest, min(most, choice.size) if isinstance(most, int) else most


def _sizes(size: int, keep: Keep) -> tuple[int, int]:
    pair = keep if isinstance(keep, tuple) else (keep, keep)
    if len(pair) != 2 or any(type(k) is not int for k in pair) or not 1 <= pair[0] <= pair[1] <= size:
        raise ChoiceError(
            f"keep={keep!r} of {size} inputs: allowed are a number from 1 to {size}, and (fewest, most) in that range"
        )
    return pair


def _range(fewest: int, most: int) -> str:
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


def _lead(log_p: Tensor) -> Tensor:
    """Difference of the two largest probabilities."""
    first, second = torch.cat([log_p, log_p.new_full((1,), -math.inf)]).topk(2).values.exp().unbind()
    return first - second

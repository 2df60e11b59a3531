"""Bias and variance of the gradient estimators on spaces small enough to enumerate.

python benchmarks/estimators.py --seeds 5 --out benchmarks/results/estimators.json
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from saving import save_results
from torch import Tensor
from torch.nn.functional import cross_entropy

from archgrad.choices import DecayingBaseline, Loss, log_probability, one_hot, pathwise, rebar, score_function
from archgrad.errors import ConfigError

Value = float | int | str | None
Row = dict[str, Value]
SIZES = (3, 2, 4)
LAYERS, WIDTH, IMAGES, TRAINING = 3, 16, 32, 300
OFFSET = 2.0  # about a cross-entropy; it hurts an estimator without a baseline
CALLS, SAMPLES = 500, 20
STEPS, BURN_IN = 4000, 50  # of the decaying baseline, which sees one architecture a step
BEST = "score function, best constant"


@dataclass(frozen=True, eq=False)
class Problem:
    """A loss on a space small enough to enumerate.

    Attributes:
        name: of the loss.
        loss: from weights [samples, K_d] to [samples].
        logits: for each choice [K_d], float64.
        hard: all architectures, for each choice [architectures, K_d].
        losses: [architectures].
    """

    name: str
    loss: Loss
    logits: list[Tensor]
    hard: list[Tensor]
    losses: Tensor

    def exact(self) -> Tensor:
        """The gradient of E[L(z)] with respect to all logits, [sum of K_d]."""
        expected = (log_probability(self.logits, self.hard).exp() * self.losses).sum()
        return torch.cat(torch.autograd.grad(expected, self.logits))

    def best_constant(self) -> float:
        """The constant baseline of least variance: E[L |grad log p|^2] / E[|grad log p|^2]."""
        pairs = zip(self.hard, self.logits, strict=True)
        scores = torch.cat([z - torch.softmax(x.detach(), 0) for z, x in pairs], -1)
        weight = log_probability(self.logits, self.hard).detach().exp() * scores.square().sum(-1)
        return float((weight * self.losses).sum() / weight.sum())


def enumerated(name: str, loss: Loss, logits: list[Tensor]) -> Problem:
    """The problem with the loss of every architecture."""
    picks = torch.cartesian_prod(*[torch.arange(len(x)) for x in logits]).reshape(-1, len(logits))
    hard = [torch.eye(len(x), dtype=x.dtype)[picks[:, d]] for d, x in enumerate(logits)]
    with torch.no_grad():
        return Problem(name, loss, logits, hard, loss(hard))


def problems(seed: int, *, digits: bool = True) -> Iterator[Problem]:
    """A smooth loss, a wiggly one, and a small supernet on digits; logits and losses are drawn from the seed.

    x = sum_d <a_d, w_d>,  a ~ N(0, 1/4):   smooth 2 + x^2 / 2 + tanh x,   wiggly 2 + sin(12 x)
    """
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(sum(SIZES), generator=g, dtype=torch.float64) / 2
    logits = _logits(SIZES, g)

    def smooth(weights: list[Tensor]) -> Tensor:
        x = torch.cat(weights, -1) @ a
        return OFFSET + x.square() / 2 + x.tanh()

    def wiggly(weights: list[Tensor]) -> Tensor:
        return OFFSET + torch.sin(12 * (torch.cat(weights, -1) @ a))

    yield enumerated("smooth", smooth, logits)
    yield enumerated("wiggly", wiggly, logits)
    if digits:
        yield enumerated("digits", _supernet(g), _logits((4,) * LAYERS, g))


def variance_report(
    *,
    seeds: int = 3,
    temperatures: Sequence[float] = (0.1, 0.4, 1.0),
    calls: int = CALLS,
    steps: int = STEPS,
    digits: bool = True,
) -> list[Row]:
    """Measure every estimator on every problem.

    Each row has `loss`, `estimator`, `temperature` (None for the score function), `seed`, and

        bias          |mean - exact|, the norm over all logits
        bias_error    sqrt(variance / draws): what `bias` comes to where there is none
        variance      of a gradient from one architecture: E|g - E g|^2, summed over logits
        gradient      |exact|
        draws         architectures drawn

    Args:
        seeds: problems and noise are drawn anew for each seed 0, 1, ...
        temperatures: of the relaxations, above 0.
        calls: calls of 20 samples for each estimator; 2 or more.
        steps: steps of one sample for the decaying baseline; the first 50 are left out.
        digits: whether the supernet on digits is measured, which takes most of the time.

    Raises:
        ConfigError: a number that makes no sense.
    """
    if seeds < 1 or calls < 2 or steps < BURN_IN + 2:
        raise ConfigError(f"seeds={seeds}, calls={calls}, steps={steps}: allowed are at least 1, 2 and {BURN_IN + 2}")
    rows = []
    for seed in range(seeds):
        g = torch.Generator().manual_seed(1000 + seed)
        for problem in problems(seed, digits=digits):
            exact = problem.exact()
            for name, temperature, gradients, samples in _measured(problem, temperatures, (calls, steps), g):
                variance = samples * float(gradients.var(0).sum())
                draws = samples * len(gradients)
                rows.append(Row({
                    "loss": problem.name, "estimator": name, "temperature": temperature, "seed": seed,
                    "bias": float((gradients.mean(0) - exact).norm()), "bias_error": math.sqrt(variance / draws),
                    "variance": variance, "gradient": float(exact.norm()), "draws": draws,
                }))  # fmt: skip
    return rows


def variance_lines(rows: Sequence[Mapping[str, Value]]) -> list[str]:
    """The rows as a Markdown table: means over seeds, and the standard deviation of the variance.

    "bias if none" is `bias_error`; "below best" counts the seeds in which an estimator has less variance than the
    score function with the best constant baseline on the same problem.
    """
    best = {(r["loss"], r["seed"]): _number(r, "variance") for r in rows if r["estimator"] == BEST}
    groups: dict[tuple[object, ...], list[Mapping[str, Value]]] = {}
    for row in rows:
        groups.setdefault((row["loss"], row["estimator"], row["temperature"]), []).append(row)
    cells: list[tuple[str, ...]] = [
        ("loss", "estimator", "temperature", "bias", "bias if none", "gradient", "variance", "below best")
    ]
    for (loss, estimator, temperature), same in groups.items():
        below = sum(_number(r, "variance") < best.get((r["loss"], r["seed"]), -math.inf) for r in same)
        cells.append((
            str(loss), str(estimator), "-" if temperature is None else f"{temperature:g}",
            *(_mean(same, key) for key in ("bias", "bias_error", "gradient")), _mean(same, "variance", spread=True),
            "-" if estimator == BEST else f"{below} of {len(same)}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def _measured(
    problem: Problem, temperatures: Sequence[float], counts: tuple[int, int], g: torch.Generator
) -> Iterator[tuple[str, float | None, Tensor, int]]:
    """(estimator, temperature, gradients [calls, sum of K_d], samples of each call)."""
    loss, logits = problem.loss, problem.logits
    calls, steps = counts

    def repeated(estimate: Callable[[], Tensor]) -> Tensor:
        return torch.stack([torch.cat(torch.autograd.grad(estimate(), logits)) for _ in range(calls)])

    def score(baseline: float) -> Callable[[], Tensor]:
        return lambda: score_function(loss, logits, samples=SAMPLES, generator=g, baseline=baseline)

    yield "score function", None, repeated(score(0.0)), SAMPLES
    yield "score function, decaying baseline", None, _decaying(problem, steps, g), 1
    yield BEST, None, repeated(score(problem.best_constant())), SAMPLES
    for t in temperatures:

        def relaxed(straight_through: bool, t: float = t) -> Callable[[], Tensor]:
            return lambda: pathwise(
                loss, logits, temperature=t, samples=SAMPLES, generator=g, straight_through=straight_through
            )

        def controlled(t: float = t) -> Tensor:
            return rebar(loss, logits, temperature=t, samples=SAMPLES, generator=g)

        yield "REBAR", t, repeated(controlled), SAMPLES
        yield "Gumbel-softmax", t, repeated(relaxed(False)), SAMPLES
        yield "straight-through", t, repeated(relaxed(True)), SAMPLES


def _decaying(problem: Problem, steps: int, g: torch.Generator) -> Tensor:
    """Gradients of the score function with the running mean of what was drawn before, one architecture a step."""
    baseline, gradients = DecayingBaseline(), []
    for _ in range(steps):
        estimate = score_function(problem.loss, problem.logits, samples=1, generator=g, baseline=baseline.value)
        gradients.append(torch.cat(torch.autograd.grad(estimate, problem.logits)))
        baseline.update(estimate)
    return torch.stack(gradients[BURN_IN:])


def _logits(sizes: Sequence[int], g: torch.Generator) -> list[Tensor]:
    return [torch.randn(k, generator=g, dtype=torch.float64).requires_grad_() for k in sizes]


def _supernet(g: torch.Generator) -> Loss:
    """Cross-entropy on 32 digits of a supernet that was trained on uniformly random architectures.

    Three linear layers of 16, each followed by the choice of relu, tanh, abs or identity.
    """
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x, y = x.double() / 16, y.long()
    sizes = [x.shape[1], *[WIDTH] * LAYERS, 10]
    layers = [torch.randn(i, o, generator=g, dtype=torch.float64) / math.sqrt(i) for i, o in pairwise(sizes)]

    def loss(weights: list[Tensor], images: Tensor) -> Tensor:
        h = x[images]
        for layer, w in zip(layers[:-1], weights, strict=True):
            h = h @ layer
            h = (torch.stack([h.relu(), h.tanh(), h.abs(), h], -1) * w[:, None, None]).sum(-1)
        scores = (h @ layers[-1]).transpose(1, 2)  # [samples, classes, images]
        return cross_entropy(scores, y[images].expand(len(h), -1), reduction="none").mean(-1)

    optimizer = torch.optim.Adam([layer.requires_grad_() for layer in layers], lr=1e-2)
    uniform = [torch.zeros(4, dtype=torch.float64)] * LAYERS
    for _ in range(TRAINING):
        optimizer.zero_grad()
        images = torch.randint(len(x), (IMAGES,), generator=g)
        loss(one_hot(uniform, samples=4, generator=g), images).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for layer in layers:
        layer.requires_grad_(False)
    images = torch.randint(len(x), (IMAGES,), generator=g)
    return lambda weights: loss(weights, images)


def _number(row: Mapping[str, Value], key: str) -> float:
    value = row[key]
    assert isinstance(value, float)
    return value


def _mean(rows: Sequence[Mapping[str, Value]], key: str, *, spread: bool = False) -> str:
    values = [_number(row, key) for row in rows]
    mean = f"{statistics.mean(values):.3g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if spread and len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = variance_report(seeds=chosen.seeds)
    if chosen.out:
        body = {"seeds": chosen.seeds, "torch": torch.__version__, "rows": rows}
        save_results(chosen.out, body)
    print("\n".join(variance_lines(rows)))


if __name__ == "__main__":
    main()

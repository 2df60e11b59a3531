"""Gradients of an expected loss with respect to the logits of independent categorical choices.

D choices, choice d with logits [K_d], q_d = softmax(logits_d), one-hot z_d with p(z) = prod_d q_d[z_d]. Each
estimator returns a scalar whose gradient with respect to the logits is an estimate of grad E[L(z)]:

    estimator        bias                        the loss has to be
    score_function   none                        known at one-hot weights only
    rebar            none                        the same, with any differentiable function as control variate
    pathwise         some, less as it is colder  differentiable in the weights

A logit of -inf is a dead candidate: never drawn, weight exactly 0, gradient 0. Noise is float64; weights and
log-probabilities have the dtype and device of the logits.

Source: Gumbel-softmax (arXiv 1611.01144), REBAR (arXiv 1703.07370), as the code of UNAS (arXiv 1912.07651) has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot as indicator
from torch.nn.utils.rnn import pad_sequence

from archgrad.errors import ChoiceError, ConfigError, NonFiniteError

Loss = Callable[[list[Tensor]], Tensor]
# Gumbels then lie in [-3.3, 27.6]. With 1e-3, candidates less likely than about e^-8.8 of the likeliest would never
# be drawn; float32 uniforms end 6e-8 below 1, where Gumbels end at 16.6.
CLAMP = 1e-12


@dataclass(frozen=True, eq=False)
class Sample:
    """One draw of all choices, with lists over the choices d of weights [samples, K_d].

    Attributes:
        hard: exact one-hots z; no gradient.
        relaxed: zeta, Gumbel-softmax samples of the same noise; argmax of zeta is z.
        conditional: zeta~, equal to zeta in value; its gradient is that of a zeta drawn given z.
        log_probability: [samples], log p(z) over all choices.
    """

    hard: list[Tensor]
    relaxed: list[Tensor]
    conditional: list[Tensor]
    log_probability: Tensor

    @property
    def mixed(self) -> list[Tensor]:
        """zeta - zeta~ + stopgrad(zeta~), [samples, K_d] each: grad c(mixed) = grad c(zeta) - grad c(zeta~)."""
        pairs = zip(self.relaxed, self.conditional, strict=True)
        return [relaxed + (conditional.detach() - conditional) for relaxed, conditional in pairs]


def draw(
    logits: Sequence[Tensor], *, temperature: float, samples: int, generator: torch.Generator | None = None
) -> Sample:
    """Hard, relaxed and conditional weights of one draw, and its log-probability.

        z = onehot(argmax y),  y = log q + gumbel;   zeta = softmax(y / temperature);   zeta~ : see `resample`

    Args:
        logits: for each choice [K_d].
        temperature: above 0; cold samples are nearly one-hot.
        samples: independent draws of all choices.
        generator: source of the noise, on any device; default: torch's own of the logits' device.

    Raises:
        ConfigError: a temperature or a number of samples that makes no sense.
        ChoiceError: `logits` is no list of vectors, or a choice has NaN, +inf, or nothing alive.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature}: a finite number above 0 is allowed; UNAS's code has 0.4")
    log_q = _log_q(logits)
    noise = _noise(log_q, samples, generator)
    scores = log_q + noise
    index = scores.argmax(-1)
    # The gradient of a loss at weight 0 may be infinite; filling with 0 keeps it from the live logits.
    relaxed = torch.softmax(scores / temperature, -1).masked_fill(dead := log_q == -math.inf, 0)
    conditional = torch.softmax(resample(log_q, noise) / temperature, -1).masked_fill(dead, 0)
    return Sample(
        hard=_split(indicator(index, log_q.shape[-1]), logits),
        relaxed=_split(relaxed, logits),
        conditional=_split(conditional, logits),
        log_probability=_log_p(log_q, index).to(logits[0]),
    )


def rebar(
    loss: Loss,
    logits: Sequence[Tensor],
    *,
    temperature: float,
    samples: int,
    generator: torch.Generator | None = None,
    relaxed: Loss | None = None,
    baseline: float | Tensor = 0.0,
) -> Tensor:
    """REBAR: the score function with the Gumbel-softmax relaxation as control variate; unbiased.

        gradient = mean of (L(z) - c(zeta) - baseline) grad log p(z) + grad c(zeta) - grad c(zeta~)

    The value of the scalar is the mean of L(z), itself an unbiased estimate of E[L(z)]. The loss is evaluated at
    one-hots without gradient, and c once, at `Sample.mixed`. Where c does not follow L, or the temperature is low,
    the variance is above that of `score_function` with a good baseline.

    Args:
        loss: L, from a list of weights [samples, K_d] to losses [samples]; may be a table or a measurement.
        logits: for each choice [K_d].
        temperature: of the relaxation, above 0.
        samples: architectures drawn.
        generator: source of the noise.
        relaxed: c, if it is another function than the loss; smooth in the weights. A table that is read at the
            argmax is not: its gradient misses the steps between one-hots.
        baseline: a number or [samples], independent of the architectures drawn here.

    Raises:
        ConfigError: a temperature or a number of samples that makes no sense.
        ChoiceError: wrong logits, losses not of shape [samples], or a loss without gradient and no `relaxed`.
        NonFiniteError: a loss is NaN or infinite.
    """
    sample = draw(logits, temperature=temperature, samples=samples, generator=generator)
    with torch.no_grad():
        hard_loss = loss(sample.hard)
    mixed = sample.mixed
    relaxed_loss = (relaxed or loss)(mixed)
    if relaxed is None and any(w.requires_grad for w in mixed) and not _has_gradient(relaxed_loss):
        raise ChoiceError(
            "the loss has no gradient with respect to the weights, so it cannot be its own control variate; "
            "give relaxed=, a smooth function that resembles it, or use score_function"
        )
    return control_variate(hard_loss, relaxed_loss, sample.log_probability, baseline=baseline)


def score_function(
    loss: Loss,
    logits: Sequence[Tensor],
    *,
    samples: int,
    generator: torch.Generator | None = None,
    baseline: float | Tensor = 0.0,
) -> Tensor:
    """The score function (REINFORCE): gradient = mean of (L(z) - baseline) grad log p(z); unbiased.

    The value of the scalar is the mean of L(z). Arguments and errors are those of `rebar`; with one generator both
    draw the same z.
    """
    hard = one_hot(logits, samples=samples, generator=generator)
    log_p = log_probability(logits, hard)
    with torch.no_grad():
        hard_loss = loss(hard)
    return control_variate(hard_loss, torch.zeros_like(log_p), log_p, baseline=baseline)


def control_variate(
    hard_loss: Tensor, relaxed_loss: Tensor, log_probability: Tensor, *, baseline: float | Tensor = 0.0
) -> Tensor:
    """The surrogate of `rebar` from losses computed elsewhere, all of them [samples].

        mean of stopgrad(L(z) - c - baseline) log p(z) + c,   shifted to have the value mean of L(z)

    Args:
        hard_loss: L(z) at `Sample.hard`; its gradient is not used.
        relaxed_loss: c at `Sample.mixed`, with gradient; zeros give the score function.
        log_probability: that of the same `Sample`.
        baseline: a number or [samples], independent of this sample.

    Raises:
        ChoiceError: other shapes than [samples].
        NonFiniteError: a loss is NaN or infinite.
    """
    hard_loss = _losses(hard_loss, log_probability, "the loss at one-hot weights").detach()
    relaxed_loss = _losses(relaxed_loss, log_probability, "the loss at relaxed weights")
    if isinstance(baseline, Tensor) and baseline.shape not in ((), log_probability.shape):
        raise ChoiceError(
            f"the baseline has shape {tuple(baseline.shape)}; allowed are a number and {tuple(log_probability.shape)}"
        )
    residual = (hard_loss - relaxed_loss - baseline).detach()
    surrogate = (residual * log_probability + relaxed_loss).mean()
    return surrogate - surrogate.detach() + hard_loss.mean()


def pathwise(
    loss: Loss,
    logits: Sequence[Tensor],
    *,
    temperature: float,
    samples: int,
    generator: torch.Generator | None = None,
    straight_through: bool = False,
) -> Tensor:
    """Gumbel-softmax: gradient = mean of grad L(zeta); biased, since L(zeta) is not L(z).

    The value of the scalar is the mean of the loss where it was evaluated: at zeta, or at z if straight-through.

    Args:
        loss: from a list of weights [samples, K_d] to losses [samples], differentiable in the weights.
        logits: for each choice [K_d].
        temperature: of the relaxation, above 0.
        samples: independent draws.
        generator: source of the noise.
        straight_through: one-hots forward, the gradient of the relaxed weights backward.

    Raises:
        ConfigError: a temperature or a number of samples that makes no sense.
        ChoiceError: wrong logits, losses not of shape [samples], or a loss without gradient.
        NonFiniteError: a loss is NaN or infinite.
    """
    sample = draw(logits, temperature=temperature, samples=samples, generator=generator)
    weights = sample.relaxed
    if straight_through:
        weights = [hard + (soft - soft.detach()) for hard, soft in zip(sample.hard, weights, strict=True)]
    values = loss(weights)
    if any(w.requires_grad for w in weights) and not _has_gradient(values):
        raise ChoiceError(
            "the loss has no gradient with respect to the weights; pathwise needs one that has: "
            "use score_function, or rebar with relaxed="
        )
    return _losses(values, sample.log_probability, "the loss").mean()


def resample(log_q: Tensor, noise: Tensor) -> Tensor:
    """Perturbed logits y~ given z, from the noise that gave z: equal to y = log q + noise in value.

        e = exp(-noise),  E = exp(-y_z),  r_k = e_k - q_k E   (held constant)
        y~_z = -log E,    y~_k = log q_k - log(r_k + q_k E)   (k != z)

    With the uniforms v_z = exp(-E) and v_k = exp(-r_k), independent given z, this is REBAR's conditional sample,
    without a division by small numbers. It depends on the logits through the q_k of the formula alone.

    Args:
        log_q: [..., K] log-probabilities, normalized; -inf for dead candidates.
        noise: [samples, ..., K] Gumbel noise.
    """
    q = log_q.exp()
    with torch.no_grad():
        top, index = (log_q + noise).max(-1, keepdim=True)
        first = torch.exp(-top)
        remainder = (torch.exp(-noise) - q * first).clamp_min(0)
    others = log_q - torch.log(remainder + q * first)
    return others.scatter(-1, index, top)


def gumbel(
    size: Sequence[int], *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard Gumbel noise -log(-log u) of this size, float64, drawn on the generator's device, then moved."""
    source = device if generator is None else generator.device
    u = torch.rand(tuple(size), dtype=torch.float64, generator=generator, device=source).clamp(CLAMP, 1 - CLAMP)
    return -torch.log(-torch.log(u)).to(device)


def one_hot(logits: Sequence[Tensor], *, samples: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Exact one-hot samples [samples, K_d] of each choice; those of `draw` from the same generator."""
    log_q = _log_q(logits)
    return _split(indicator((log_q + _noise(log_q, samples, generator)).argmax(-1), log_q.shape[-1]), logits)


def log_probability(logits: Sequence[Tensor], hard: Sequence[Tensor]) -> Tensor:
    """log p(z) = sum_d log q_d[z_d], [samples], of one-hots [samples, K_d]; -inf where z picks a dead candidate.

    Raises:
        ChoiceError: wrong logits, or one-hots that are not of their sizes.
    """
    log_q = _log_q(logits)
    shapes, sizes = [tuple(z.shape) for z in hard], [len(row) for row in logits]
    if [shape[1:] for shape in shapes] != [(size,) for size in sizes] or len({shape[0] for shape in shapes}) > 1:
        raise ChoiceError(
            f"one-hots of shapes {shapes[:5]} for choices of {sizes[:5]} candidates; "
            f"give one tensor [samples, candidates] for each choice"
        )
    return _log_p(log_q, torch.stack([z.argmax(-1).to(log_q.device) for z in hard], -1)).to(logits[0])


def entropy(logits: Sequence[Tensor]) -> Tensor:
    """[D] entropy of each choice, -sum_k q_k log q_k, in nats; at most log K_d."""
    log_q = _log_q(logits)
    return -(log_q.exp() * log_q.masked_fill(log_q == -math.inf, 0)).sum(-1).to(logits[0])


def soften(logits: Sequence[Tensor], eps: float) -> list[Tensor]:
    """Logits log(q + eps), [K_d] each: every live candidate keeps some probability; dead ones stay dead.

        softmax of the result lies in [eps, 1 + eps] / (1 + K eps),  K the number of live candidates

    Raises:
        ConfigError: eps is negative or not finite.
    """
    if not 0 <= eps < math.inf:
        raise ConfigError(f"eps={eps}: a finite number, 0 or above, is allowed; UNAS's code has 0.08 or 0")
    log_q = _log_q(logits)
    dead = log_q == -math.inf
    floor = log_q.new_tensor(math.log(eps) if eps else -math.inf)
    softened = torch.logaddexp(log_q.masked_fill(dead, 0), floor).masked_fill(dead, -math.inf)
    return [row[: len(like)].to(like) for row, like in zip(softened, logits, strict=True)]


class DecayingBaseline:
    """A running mean of losses: b <- decay b + (1 - decay) mean; the first mean starts it.

    Read `value` before `update` takes in the sample: a baseline that depends on its sample biases the estimate.

    Attributes:
        value: b; 0 before the first update.

    Raises:
        ConfigError: the decay is not in [0, 1).
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay={decay}: allowed is 0 to below 1; 0.9 remembers about ten steps")
        self.decay, self.value, self._started = decay, 0.0, False

    def __repr__(self) -> str:
        return f"<DecayingBaseline, decay {self.decay:g}: {self.value:g}>"

    def update(self, losses: float | Tensor) -> None:
        """Take in one number, or the mean of a tensor of any shape; NonFiniteError if it is not finite."""
        mean = float(losses.detach().double().mean()) if isinstance(losses, Tensor) else float(losses)
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"a mean loss of {mean} for the baseline; lower the learning rate or look at the data"
            )
        self.value = self.decay * self.value + (1 - self.decay) * mean if self._started else mean
        self._started = True

    def state_dict(self) -> dict[str, float | bool]:
        """What `load_state_dict` takes."""
        return {"value": self.value, "started": self._started}

    def load_state_dict(self, state_dict: Mapping[str, float | bool]) -> None:
        """Go on from a state that `state_dict` returned."""
        self.value, self._started = float(state_dict["value"]), bool(state_dict["started"])


def _log_q(logits: Sequence[Tensor]) -> Tensor:
    """[D, largest K] log-probabilities in float64; shorter choices are filled up with dead candidates."""
    rows = [logits] if isinstance(logits, Tensor) else list(logits)
    if isinstance(logits, Tensor) or not rows or not all(_is_vector(row) for row in rows):
        shown = [f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x) for x in rows[:5]]
        raise ChoiceError(
            f"logits are {shown}; give a list with one floating-point vector [candidates] for each choice, not empty"
        )
    device = logits[0].device
    padded = pad_sequence([x.double().to(device) for x in logits], batch_first=True, padding_value=-math.inf)
    # The largest logit is NaN, +inf or -inf exactly where the choice has NaN, +inf or nothing alive.
    wrong = ~padded.detach().amax(-1).isfinite()
    if bool(wrong.any()):
        d = int(wrong.nonzero()[0])
        raise ChoiceError(
            f"choice {d} has the logits {logits[d].tolist()[:8]}; allowed are finite numbers, and -inf for "
            f"dead candidates as long as one is alive"
        )
    return torch.log_softmax(padded, -1)


def _is_vector(row: object) -> bool:
    return isinstance(row, Tensor) and row.dim() == 1 and len(row) > 0 and row.is_floating_point()


def _noise(log_q: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    if not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"samples={samples}: a whole number, 1 or more, is allowed")
    return gumbel((samples, *log_q.shape), generator=generator, device=log_q.device)


def _log_p(log_q: Tensor, index: Tensor) -> Tensor:
    """[samples] from picks [samples, D]."""
    return log_q.expand(len(index), -1, -1).gather(-1, index.unsqueeze(-1)).sum((-2, -1))


def _split(weights: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """[samples, D, largest K] as a list of [samples, K_d], each of its logits' dtype and device."""
    return [weights[:, d, : len(row)].to(row) for d, row in enumerate(logits)]


def _has_gradient(values: object) -> bool:
    """Whether a gradient flows; `_losses` refuses what is no tensor, with its own message."""
    return not isinstance(values, Tensor) or values.requires_grad


def _losses(values: Tensor, like: Tensor, what: str) -> Tensor:
    """The losses on the device of `like`; refused unless there is one finite number for each sample."""
    if not isinstance(values, Tensor) or values.shape != like.shape:
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ChoiceError(
            f"{what} is {given}; give a tensor of shape {tuple(like.shape)}: a mean over images, not over samples"
        )
    if not bool(values.detach().isfinite().all()):
        raise NonFiniteError(
            f"{what} is not finite for {int((~values.detach().isfinite()).sum())} of {len(values)} samples; "
            f"lower the learning rate, or look at the loss at one-hot weights"
        )
    return values.to(like.device) if values.is_floating_point() else values.to(like)

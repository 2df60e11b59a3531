"""NaN and infinity: each step is looked at for them, and an error says where they come from.

That is the term of a loss, the module, the parameter, and the choice that it belongs to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from archgrad.choices.access import choices
from archgrad.choices.modules import OpChoice
from archgrad.errors import ArchgradError, NonFiniteError
from archgrad.run.device import Machine
from archgrad.run.output import Log

_TERM = "archgrad.term"
Named = dict[Tensor, str]


def term(name: str, value: Tensor) -> Tensor:
    """The same scalar; the diagnosis of a loss that it becomes part of knows it by `name`."""
    if value.grad_fn is not None:
        _metadata(value.grad_fn)[_TERM] = (name, value.detach())
    return value


def joined(scalars: Mapping[str, Tensor]) -> Tensor:
    """The sum of scalars, which keeps their names for a diagnosis, and nothing of what they were computed from."""
    with torch.enable_grad():
        parts = [term(name, value.detach().requires_grad_() * 1.0) for name, value in scalars.items()]
        return torch.stack(parts).sum()


def parameters(parts: Mapping[str, object]) -> list[Tensor]:
    """What is trained of the parts that a run keeps: parameters of networks, and what optimizers step on."""
    trained: dict[Tensor, None] = {}
    for network in _networks(parts).values():
        trained |= dict.fromkeys(network.parameters())
    for part in parts.values():
        if isinstance(part, Optimizer):
            trained |= dict.fromkeys(p for group in part.param_groups for p in group["params"])
    return list(trained)


class Diagnosed(Protocol):
    """A run, as far as messages name it."""

    @property
    def location(self) -> str:
        """Where it is, in words."""

    @property
    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""

    @property
    def precision(self) -> str:
        """By Fabric's name."""


class Failing(Diagnosed, Protocol):
    """A run, or its loop; `failed` becomes True where a step fails."""

    failed: bool


class FiniteChecks:
    """The checks of one run. Asking an accelerator for a value waits for all its work, so that is done seldom.

    Args:
        machine: of the device.
        log: how often steps are logged; where each is, each is looked at.
        parts: gives the parts that messages name, by name.
    """

    def __init__(self, machine: Machine, log: Log, *, parts: Callable[[], Mapping[str, Any]]) -> None:
        self._machine, self._log, self._parts = machine, log, parts
        self._largest: Tensor | None = None  # magnitude that the device computed since it was looked at

    def figures(
        self, figures: Mapping[str, float | Tensor], run: Diagnosed, *, again: Callable[[], object] | None
    ) -> None:
        """See `Run.check_finite`."""
        if self._later:
            self._add(value for value in figures.values() if isinstance(value, Tensor))
            figures = {name: value for name, value in figures.items() if not isinstance(value, Tensor)}
            if not figures:
                return
        wrong = len(wrong_figures(figures))
        if wrong if self._machine.alone else self._machine.greatest(wrong):
            raise figures_error(figures, run, parts=self._parts(), again=again)

    def gradients(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], run: Diagnosed) -> None:
        """See `Run.check_gradients`."""
        if self._later:
            self._add(gradients)
        elif not finite(gradients):
            raise gradients_error(parameters, gradients, run, parts=self._parts())

    def read(self, figures: Mapping[str, float | Tensor], run: Failing) -> Mapping[str, float | Tensor]:
        """The figures, those on an accelerator as numbers, after one wait for it.

        Raises NonFiniteError for what it computed since the wait before.
        """
        there = {n: v for n, v in figures.items() if isinstance(v, Tensor) and v.numel() == 1 and not v.is_cpu}
        waiting, self._largest = self._largest, None
        rows = [*there.values(), *([] if waiting is None else [waiting])]
        exact = torch.float32 if self._machine.device.type == "mps" else torch.float64
        values = torch.stack([row.detach().reshape(()).to(exact) for row in rows]).tolist() if rows else []
        wrong = waiting is not None and not math.isfinite(values[-1])
        if wrong if self._machine.alone else self._later and self._machine.greatest(int(wrong)):
            run.failed = True
            raise late_error(run)
        pairs = zip(there.items(), values, strict=False)
        return {**figures, **{n: v if t.is_floating_point() else int(v) for (n, t), v in pairs}}

    def is_wrong(self) -> bool:
        """Whether `read` would raise for what this process's accelerator computed; nothing is asked of others."""
        return self._largest is not None and not math.isfinite(self._largest.item())

    @property
    def _later(self) -> bool:
        return self._log.interval > 1 and self._machine.device.type != "cpu"

    def _add(self, tensors: Iterable[Tensor | None]) -> None:
        given = [t.detach() for t in tensors if t is not None and measurable(t)]
        if given:
            now = get_total_norm(given, norm_type=math.inf)
            self._largest = now if self._largest is None else torch.maximum(self._largest, now)


def finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no element of these is NaN or infinite: one fused norm of all, and one wait for it."""
    given = [t for t in tensors if t is not None]
    if len({(t.dtype, t.device, t.layout) for t in given}) == 1 and measurable(given[0]):
        # What get_total_norm does, without the time that it takes to sort tensors by dtype and device.
        with torch.no_grad():
            total = torch.stack(torch._foreach_norm(given)).sum()
    elif given := [t.detach() for t in given if measurable(t)]:
        total = get_total_norm(given)
    else:
        return True
    # The sum of squares is quickest; where it overflows, the largest magnitude tells.
    return math.isfinite(total.item()) or largest(given) < math.inf


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest magnitude in these; NaN where one is."""
    given = [t.detach() for t in tensors if measurable(t)]
    return float(get_total_norm(given, norm_type=math.inf)) if given else 0.0


def measurable(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of which one could be NaN or infinite."""
    return (
        tensor.is_floating_point() and tensor.layout == torch.strided and bool(tensor.numel()) and not tensor.is_meta
    )


def wrong_figures(figures: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    """Those of the numbers and tensors [...] that hold NaN or infinity."""
    return {name: value for name, value in figures.items() if not _is_finite(value)}


def _is_finite(value: float | Tensor) -> bool:
    if isinstance(value, Tensor) and value.numel() != 1:
        return bool(value.isfinite().all())
    return math.isfinite(value.item() if isinstance(value, Tensor) else value)


def figures_error(
    figures: Mapping[str, float | Tensor], run: Diagnosed, *, parts: Mapping[str, object],
    again: Callable[[], object] | None,
) -> NonFiniteError:  # fmt: skip
    """The error for figures that are NaN or infinite, in this process or in another."""
    wrong = wrong_figures(figures)
    if not wrong:
        return _error(run, f"{', '.join(figures)} became NaN or infinite {run.location}, in another process.")
    reasons = explain_figures(wrong, parts), explain_modules(parts, again) if again else ""
    return _error(run, f"{', '.join(wrong)} became NaN or infinite {run.location}.", *reasons)


def gradients_error(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], run: Diagnosed, *, parts: Mapping[str, object]
) -> NonFiniteError:
    """The error for gradients that are NaN or infinite."""
    reason = explain_gradients(parameters, gradients, parts)
    return _error(run, f"A gradient became NaN or infinite {run.location}, from a finite loss.", reason)


def late_error(run: Diagnosed) -> NonFiniteError:
    """The error for what steps on an accelerator computed since they were looked at last."""
    return _error(
        run,
        f"A loss or a gradient became NaN or infinite {run.location}, or in one of the steps since the last that was "
        f"logged. Steps on an accelerator are looked at where they are logged: the same program with "
        f"output=archgrad.Output(log_every=1) looks at each, and says where it begins.",
    )


def _error(run: Diagnosed, *sentences: str) -> NonFiniteError:
    advice = (
        f'Try a lower learning rate, gradient clipping, or precision="32-true" (now {run.precision!r}), in a new '
        f"folder."
    )
    return NonFiniteError(" ".join(filter(None, (*sentences, run.good_state, advice))))


def explain_figures(figures: Mapping[str, float | Tensor], parts: Mapping[str, object]) -> str:
    """What can be said of figures that are not finite, without computing anything again."""
    reasons = [
        text for name, value in figures.items() if isinstance(value, Tensor) and (text := _explain_terms(name, value))
    ]
    return " ".join([*reasons, explain_parameters(parts)]).strip()


def explain_parameters(parts: Mapping[str, object]) -> str:
    """Which parameters of the parts are not finite; empty where all are."""
    names = named(parts)
    wrong = [p for p in parameters(parts) if not finite([p])]
    if not wrong:
        return ""
    more = f" (and {len(wrong) - 1} more of {len(parameters(parts))} parameters)" if len(wrong) > 1 else ""
    count = int((~wrong[0].detach().isfinite()).sum())
    return (
        f"{names.get(wrong[0], 'A parameter')}{more} holds NaN or infinity in {count} of {wrong[0].numel()} values: "
        f"an earlier step was too large, or it was so from the start."
    )


def explain_gradients(
    trained: Sequence[Tensor], gradients: Sequence[Tensor | None], parts: Mapping[str, object]
) -> str:
    """Which parameter's gradient is not finite, the one nearest to the loss first."""
    names = named(parts)
    wrong = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None and not finite([g])]
    # Backward comes from the loss: what stands last in the network is reached first.
    order = {p: place for place, p in enumerate(parameters(parts))}
    first, gradient = max(wrong, key=lambda pair: order.get(pair[0], -1))
    more = f", as are those of {len(wrong) - 1} more of {len(trained)}" if len(wrong) > 1 else ""
    kind = "NaN" if bool(gradient.isnan().any()) else "infinite"
    return f"The gradient of {names.get(first, f'a parameter of shape {list(first.shape)}')} is {kind}{more}."


def explain_modules(parts: Mapping[str, object], again: Callable[[], object]) -> str:
    """Compute it `again` and say which module's output is the first that is not finite; empty where none is."""
    seen, result = list[str](), object()
    with contextlib.ExitStack() as stack:
        for name, network in _networks(parts).items():
            for path, module in network.named_modules():
                hook = _watch(seen, f"{name}.{path}" if path else name, _choice(network, path))
                stack.callback(module.register_forward_hook(hook).remove)
        # What cannot be computed a second time has been explained without it.
        with contextlib.suppress(ArchgradError, RuntimeError, ValueError, LookupError, TypeError, StopIteration):
            result = again()
    if not seen and isinstance(result, Tensor) and not finite([result]):
        return (
            "Computed again, the outputs of all modules are finite and the loss is not: it divides by 0, takes a "
            "logarithm or root of what has none, or overflows. Let it return 0 where a batch has nothing to teach."
        )
    return f"Computed again, the first output that is not finite is that of {seen[0]}." if seen else ""


def _watch(seen: list[str], path: str, where: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if seen or finite(_tensors(output)):
            return
        inputs_are = "from finite inputs" if finite(_tensors(inputs)) else "whose inputs are not finite either"
        seen.append(f"{path} ({type(module).__name__}{where}), {inputs_are}")

    return hook


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def _explain_terms(name: str, loss: Tensor) -> str:
    terms = dict(_terms(loss))
    if not terms:
        return ""
    wrong = [term for term, value in terms.items() if not finite([value])]
    if wrong:
        return f"Of the terms of the {name}, {' and '.join(f'{term!r} is {float(terms[term])}' for term in wrong)}."
    listed = ", ".join(f"{term!r} ({float(value):.4g})" for term, value in terms.items())
    return f"Of the terms of the {name}, {listed} is finite: it is the rest, the task's own loss."


def _terms(loss: Tensor) -> Iterator[tuple[str, Tensor]]:
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _TERM in _metadata(node):
            yield _metadata(node)[_TERM]
        else:
            waiting += [before for before, _ in node.next_functions]


def _metadata(node: Any) -> dict[str, Any]:
    # A property, which torch's types take for a method.
    metadata: dict[str, Any] = node.metadata
    return metadata


def named(parts: Mapping[str, object]) -> Named:
    """What the parameters of the parts are called; logits by their choice, weights of a candidate with both."""
    names: Named = {}
    for part, network in _networks(parts).items():
        for path, parameter in network.named_parameters():
            names.setdefault(parameter, f"{part}.{path}{_choice(network, path, brackets=True)}")
        for name, same in _choices(network).items():
            for choice in same:
                for logit in choice.relaxation.parameters() if choice.relaxation is not None else ():
                    names[logit] = f"the logits of choice {name!r}"
    return names


def _networks(parts: Mapping[str, object]) -> dict[str, nn.Module]:
    """The parts that are networks, and the spaces of those that have one."""
    both = {
        name: part if isinstance(part, nn.Module) else getattr(part, "space", None) for name, part in parts.items()
    }
    return {name: network for name, network in both.items() if isinstance(network, nn.Module)}


def _choices(network: nn.Module) -> dict[str, Any]:
    # Networks that are no space, or a damaged one, are diagnosed all the same.
    with contextlib.suppress(ArchgradError):
        return choices(network)
    return {}


def _choice(network: nn.Module, path: str, *, brackets: bool = False) -> str:
    """The candidate that a path lies in, the innermost one."""
    words, where = path.split("."), ""
    for end in range(1, len(words) - 1):
        if words[end] == "candidates" and words[end + 1].isdecimal():
            holder = network.get_submodule(".".join(words[:end]))
            if isinstance(holder, OpChoice):
                where = f"candidate {holder.labels[int(words[end + 1])]!r} of choice {holder.name!r}"
    if not where:
        return ""
    return f" ({where})" if brackets else f", {where}"

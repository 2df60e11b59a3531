"""What the digests of networks and functions tell apart, and what they leave out."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from archgrad.fingerprint import described, of_network, of_weights


def reading(source: str, **values: Any) -> Any:
    """A function of a program of the user's that reads values of its module."""
    program: dict[str, Any] = {"__name__": "theirs", **values}
    exec(source, program)
    return program["f"]


class Kept:
    """What a network may save."""

    def __init__(self, by: float) -> None:
        self.by = by


ACTIVATIONS = [  # of forward, which change nothing that is kept
    "y = torch.add(x, self.scales[0])", "y = 1 * x; y[:, 0] = self.scales[0]", "y = x.clone().add_(self.scales[0])",
    "y = x * self.scales[0]; y[0][1:2] = 0", "y = [x]; y.append(self.scales[0]); y.pop()",
    "y = x if self.scales else 2 * x; y[:, 0] = 0", "y = {'a': x}; y.update(b=self.scales[0]); del y['a']",
]  # fmt: skip
CHANGES_KEPT = [
    "self.scales.append(x)", "self.scales[0] = x", "kept = self.scales; kept[0] += 1", "del self.scales[0]",
    "self.scales[0:1] = [x if x else 1]", "KEPT = self; KEPT.scales.insert(0, x)", "[self.scales.pop() for _ in x]",
    "setattr(self, 'scales', x)",
]  # fmt: skip


@pytest.mark.parametrize("line", [*ACTIVATIONS, *CHANGES_KEPT])
def test_a_change_of_an_activation_hides_no_option(line: str) -> None:
    source = (
        f"class C(nn.Module):\n    def forward(self, x):\n        {line}\n        return x\ndef f():\n    return C()"
    )

    def of(scale: float) -> str:
        module = reading(source, nn=nn, torch=torch)()
        module.scales = [scale]
        return of_network(module)

    assert of(1.5) == of(1.5)
    assert (of(1.5) == of(2.5)) == (line in CHANGES_KEPT)


NET = "class C(nn.Module):\n def forward(self, x): return "
OBJECT = "class O:\n def __init__(self): self.by = {v}\n def "
FUNCTOOLS = "import functools\n"
# What a network C computes with, {v}, in ways that each hide it elsewhere.
HIDDEN = {
    "a property": NET + "self.by * x\n @property\n def by(self): return {v}",
    "a cached property": FUNCTOOLS + NET + "self.by * x\n @functools.cached_property\n def by(self): return {v}",
    "a class method of a base": "class B(nn.Module):\n BY = {v}\n @classmethod\n def by(cls): return cls.BY\n"
    "class C(B):\n def forward(self, x): return self.by() * x",
    "a static method": "class H:\n @staticmethod\n def g(x): return {v} * x\n" + NET + "H.g(x)",
    "a partial method": FUNCTOOLS + NET + "self.h(x)\n def g(self, x, by): return by * x\n"
    " h = functools.partialmethod(g, by={v})",
    "an operator of an object": OBJECT + "__rmul__(self, x): return x * self.by\nO = O()\n" + NET + "x * O",
    "an object in an object": OBJECT
    + "of(self, x): return x * self.by\nclass P:\n def __init__(self): self.o = O()\n"
    "P = P()\n" + NET + "P.o.of(x)",
    "an enumeration": "import enum\nclass E(enum.Enum):\n A = {v}\n" + NET + "E.A.value",
    "a backward of its own": "class G(torch.autograd.Function):\n @staticmethod\n def forward(ctx, x): return x\n"
    " @staticmethod\n def backward(ctx, g): return {v} * g\n" + NET + "G.apply(x)",
    "a decorator": FUNCTOOLS + "def d(by):\n def e(g):\n  @functools.wraps(g)\n  def h(*a): return by * g(*a)\n"
    "  return h\n return e\n@d({v})\ndef g(x): return x\n" + NET + "g(x)",
    "what is cached": FUNCTOOLS + "@functools.lru_cache\ndef g(): return {v}\n" + NET + "g() * x",
    "a closure in a module": "def d(by):\n def e(x): return by * x\n return e\ng = d({v})\n" + NET + "g(x)",
    "a default": "BY = {v}\nclass C(nn.Module):\n def forward(self, x, by=BY + 1): return by * x",
    "a hook on a norm": OBJECT + "__call__(self, x): return self.by * x\no = O()\ndef C():\n n = nn.BatchNorm1d(2)\n"
    " n.register_forward_pre_hook(lambda m, a: (o(a[0]),))\n return n",
    "a hook on a gradient": "def C():\n n = nn.Linear(2, 2)\n n.weight.register_hook(lambda g: {v} * g)\n return n",
    "a hook on what goes back": "def C():\n n = nn.ReLU()\n"
    " n.register_full_backward_hook(lambda m, a, b: ({v} * a[0],))\n return n",
}
# What a function changes itself, or what makes no difference to what it computes.
UNIMPORTANT = {
    "a counter of the module": "N = {v}\ndef f(x):\n global N\n N += 1\n return x",
    "a counter of a function": "def d():\n n = [{v}][0]\n def f(x):\n  nonlocal n\n  n += 1\n  return x\n return f\n"
    "f = d()",
    "an attribute that it does not read": "class O:\n def __init__(self): self.by, self.at = 1, {v}\n"
    " def __call__(self, x): return self.by * x\no = O()\ndef f(x): return o(x)",
    "where an object writes to": "class O:\n def __init__(self): self.at = '/runs/{v}'\n"
    " def __call__(self, x): return self.at and x\no = O()\ndef f(x): return o(x)",
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_a_network_computes_with_is_seen_wherever_it_stands(kind: str) -> None:
    def of(value: float) -> str:
        return of_network(reading(f"{HIDDEN[kind].format(v=value)}\ndef f(): return C()", nn=nn, torch=torch)())

    assert of(1.5) == of(1.5) != of(2.5)


@pytest.mark.parametrize("kind", UNIMPORTANT)
def test_what_is_state_or_not_read_is_no_setting(kind: str) -> None:
    first, second = (described(reading(UNIMPORTANT[kind].format(v=value))) for value in (1.5, 2.5))
    assert first == second


def test_constants_of_a_loss_are_part_of_it() -> None:
    def of(value: float) -> str:
        return described(nn.CrossEntropyLoss(weight=torch.tensor([1.0, value])))

    assert of(1.5) == of(1.5) != of(2.5)
    moved = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())  # as in a loss by a network's features
    before = described(moved)
    moved(torch.randn(4, 2))
    assert described(moved) == before


def test_options_of_a_module_that_code_reads_may_be_tensors() -> None:
    def of(value: float) -> str:
        module = types.ModuleType("options")
        module.SCALES = torch.tensor([1.0, value])  # type: ignore[attr-defined]
        return described(reading("def f(x):\n    return options.SCALES * x", options=module))

    assert of(1.5) == of(1.5) != of(2.5)


def test_faults_of_a_description_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any) -> str:
        raise KeyError("a fault")

    monkeypatch.setattr("archgrad.fingerprint._function", fails)
    with pytest.raises(KeyError, match="a fault"):
        described([lambda: 1])


class Extra(nn.Module):
    """A network that saves what is no dense tensor."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.register_buffer("sparse", torch.diag(torch.tensor([1.0, value])).to_sparse())
        self.register_buffer("empty", torch.empty(2, device="meta"))

    def get_extra_state(self) -> Any:
        return Kept(self.value)

    def set_extra_state(self, state: Any) -> None:
        self.value = state.by


def test_weights_that_are_no_dense_tensors_have_a_digest() -> None:
    assert of_weights(Extra(1.5)) == of_weights(Extra(1.5)) != of_weights(Extra(2.5))
    other = Extra(1.5)
    other.value = 2.5
    assert of_weights(other) != of_weights(Extra(1.5)), "the object alone"
    other.value, other.sparse = 1.5, Extra(2.5).sparse
    assert of_weights(other) != of_weights(Extra(1.5)), "the sparse buffer alone"


class Node:
    """Leads to others, the last of them to the first."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.next: Node = self

    def __call__(self) -> int:
        return self.value + self.next.value


def test_objects_and_modules_that_lead_back_to_themselves_and_long_chains_are_described() -> None:
    def ring(last: int) -> Callable[[], int]:
        nodes = [Node(0) for _ in range(2000)]
        for node, following in itertools.pairwise([*nodes, nodes[0]]):
            node.next = following
        nodes[-1].value, first = last, nodes[0]
        return lambda: 1 + first()

    def chained(last: int) -> Callable[[], int]:
        lines = [f"def f{n}():\n    return f{n + 1}()" for n in range(2000)] + [f"def f2000():\n    return {last}"]
        values: dict[str, Any] = {"__name__": "mine"}
        exec("\n".join(lines), values)
        return values["f0"]

    def around(last: int) -> Callable[[], int]:
        one, other = types.ModuleType("mine_one"), types.ModuleType("mine_other")
        one.other, other.one, one.value = other, one, last  # type: ignore[attr-defined]
        return lambda: one.other.one.value

    for make in (ring, chained, around):
        assert described(make(1)) == described(make(1)) != described(make(2)), make

"""What code changes while it runs is read off its bytecode, which every version of Python writes in its own words.

Run by another Python, this file verifies that one; archgrad and torch need not be there.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import CodeType

PLACE = Path(__file__).parent.parent / "src" / "archgrad" / "code_changes.py"
spec = importlib.util.spec_from_file_location("code_changes_alone", PLACE)
assert spec and spec.loader
code_changes = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = code_changes
spec.loader.exec_module(code_changes)

# Functions, and whether they change in place what is not theirs alone: a state of `self`, of a module, of a closure.
CASES: list[tuple[str, bool]] = [
    ("def f(self, x):\n self.seen.append(x)\n return x", True),
    ("def f(self, x):\n self.cache[x] = x\n return x", True),
    ("def f(self, x):\n y = x * 2\n self.cache['a'] = y\n return y", True),
    ("def f(self, k, v):\n self.cache[k] = v", True),
    ("def f(self, k, v):\n a = k + v\n b = self.cache\n b[a] = v", True),
    ("def f(self, x):\n y = []\n y.append(x)\n return y", False),
    ("def f(self, x):\n x[0] = 1\n return x", False),
    ("def f(self, x):\n x.add_(1)\n return x", False),
    ("def f(self, x):\n y = x.clone()\n y[0] = 0\n y.mul_(2)\n return y", False),
    ("def f(self, x):\n h = self.conv(x)\n h.add_(x)\n return h", False),
    ("def f(self, x):\n h = self.conv(x)\n h[:, 0] = 0\n return h", False),
    ("def f(self, x):\n self.mean.mul_(0.9).add_(x)\n return x", True),
    ("def f(self, x):\n self.count += 1\n return x", False),
    ("def f(self, x):\n setattr(self, 'a', x)", True),
    ("def f(x):\n STATE.update(a=x)\n return x", True),
    ("def f(x):\n STATE['a'] = x\n return x", True),
    ("def f(x, i):\n torch.add(x, 1)\n return x", False),
    ("def f(self, xs):\n return [x.pop() for x in xs]", False),
    ("def f(self, xs):\n out = []\n for x in xs:\n  out.append(self.g(x))\n return out", False),
    ("def f(self, xs):\n for x in xs:\n  self.log.append(x)\n return xs", True),
    ("def f(self, x):\n a, b = x.chunk(2)\n a.mul_(2)\n b[0] = a\n return b", False),
    ("def f(self, x):\n a, b = self.p, x\n a[0] = b\n return b", True),
    ("def f(self, x):\n del self.cache[x]", True),
    ("def f(self, x):\n self.buf[0:2] = x", True),
    ("def f(self, x):\n x[0:2] = self.w\n return x", False),
    ("def f(self, x):\n x[:, :2] = self.w[:, :2]\n return x", False),
    ("def f(self, x):\n y = x + self.w\n y.clear()\n return y", False),
    ("def f(self, x):\n if x is not None:\n  d = dict(a=1)\n  d.update(b=2)\n return self.g(**d)", False),
    ("def f(self, x):\n s = super().forward(x)\n s.append(1)\n return s", False),
    ("def outer(state):\n def f(x):\n  state.append(x)\n  return x\n return f", True),
    ("def outer(state):\n def f(x):\n  state['n'] = x\n  return x\n return f", True),
    ("def outer(state):\n def f(x):\n  y = x\n  y['n'] = state\n  return x\n return f", False),
    ("def f(self, x):\n y = self.weights['a']\n return y * x", False),
    ("def f(self, x):\n y = self.weights['a']\n y.fill_(1)\n return y * x", True),
    ("def f(self, x, *, k=1):\n x = x.view(-1)\n m = {}\n m[k] = x\n return m", False),
    ("def f(self, x):\n with self.lock:\n  self.items.add(x)\n return x", True),
    ("def f(self, x):\n try:\n  self.items.add(x)\n except ValueError:\n  pass\n return x", True),
    ("def f(self, x):\n h = {k: v for k, v in x.items()}\n h['a'] = self.a\n return h", False),
    ("def f(self, x):\n h = [self.g(v) for v in x]\n h.append(self.a)\n return h", False),
    ("def f(self, x):\n t = self.table\n t[x] = t[x] + 1", True),
    ("def f(self, x):\n self.table[x] += 1", True),
    ("def f(self, x, y):\n x[y] += 1\n return x", False),
]


def compiled(source: str) -> CodeType:
    return next(c for c in compile(source, "theirs", "exec").co_consts if isinstance(c, CodeType))


def wrong() -> list[str]:
    """What is not as it should be."""
    found = [source for source, changed in CASES if code_changes.changes(compiled(source)).in_place != changed]
    both = code_changes.changes(
        compiled("def f(self, x):\n self.a = OTHER\n self.b, self.c = x, g(x)\n return HELP.x")
    )
    if (both.read, both.assigned) != ({"OTHER", "g", "HELP"}, {"a", "b", "c"}):
        found.append(f"{sorted(both.read)} {sorted(both.assigned)}")
    return found


def test_what_code_changes_in_place_is_seen() -> None:
    assert wrong() == []


# What a function may be made of; each is named f, and what else is there is not of it.
SAID = [
    "f = lambda x: 2 * x",
    "f, g = lambda x: 2 * x, lambda x: 3 * x",
    "h = [lambda x: x, lambda x: -x]; f = h[1]",
    "f = (lambda a, *, b=1, **c: (a, b, c))",
    "def f(x):\n return [y * 2 for y in x if y]",
    "def f(x: int) -> 'str':\n 'Says.'\n y: int = x\n return f'{x!r:>{y}} {y=}'",
    "def f(x, /, y=1, *z):\n def g(): return x\n return {g(): y, **{}}",
    "def f(x):\n match x:\n  case [1, *_] | {'a': 1}: return x\n  case _ if x: return -1.0",
    "async def f(x):\n async with x as y: return await y",
    "def f(x):\n global Z\n Z = (y := x)[1:, ..., None]",
    "def f(x):\n try: return x\n except* ValueError as e: raise e from None\n finally: del x",
    "def d(g): return g\n@d\n@d\ndef f(x):\n class C(int):\n  def m(self): return super().m()\n return C",
    "def f(x):\n with open(x) as a, open(x) as b: yield from (c for c in a)\n return 1 if x else b'' or 1j",
]


def said(source: str, place: Path) -> str:
    """What the function f of a source text says, which stands in a file of its own."""
    path = place / f"theirs{abs(hash(source))}.py"
    path.write_text(source)
    program: dict[str, object] = {"__name__": "theirs"}
    exec(compile(source, str(path), "exec"), program)
    return json.dumps(code_changes.said(program["f"]))


def all_said() -> list[str]:
    with tempfile.TemporaryDirectory() as place:
        return [said(source, Path(place)) for source in SAID]


def test_source_is_compared_without_comments_layout_annotations_and_docstrings(tmp_path: Path) -> None:
    one = "def f(x, by=2):\n    'Says.'\n    return (x * by)\n"
    same = "# A remark.\n\n\ndef f(x: int, by=2) -> int:\n    # Another.\n    return x*by  # third"
    assert said(one, tmp_path) == said(same, tmp_path) != said(one.replace("by=2", "by=3"), tmp_path)
    lambdas = [said(f"f, g = lambda x: {a} * x, lambda x: {b} * x", tmp_path) for a, b in ((2, 3), (2, 4), (5, 3))]
    assert lambdas[0] == lambdas[1] != lambdas[2]
    assert all("bytecode" not in each for each in all_said())


def test_code_without_its_source_is_compared_by_its_bytecode(tmp_path: Path) -> None:
    program: dict[str, object] = {}
    exec("def f(x):\n return 2 * x", program)
    assert code_changes.said(program["f"])[0] == "bytecode"
    path = tmp_path / "edited.py"
    path.write_text("def f(x):\n return 3 * x")  # since it was imported
    exec(compile("def f(x):\n return 2 * x", str(path), "exec"), program)
    assert code_changes.said(program["f"])[0] == "bytecode"


def test_it_is_seen_by_the_other_pythons_of_this_machine() -> None:
    for minor in (11, 12, 13, 14):
        if python := shutil.which(f"python3.{minor}"):
            done = subprocess.run([python, __file__], capture_output=True, text=True, check=False, timeout=60)
            # A shim without its Python answers so.
            assert done.returncode in (0, 127) or "command not found" in done.stderr, done.stdout + done.stderr
            assert done.returncode or json.loads(done.stdout.splitlines()[-1]) == all_said(), python
    done = subprocess.run([sys.executable, "-O", __file__], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == all_said()


if __name__ == "__main__":
    print(sys.version_info[:2], len(CASES), "functions")
    print(json.dumps(all_said()))
    sys.exit("\n".join(wrong()) or 0)

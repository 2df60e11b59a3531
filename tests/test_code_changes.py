"""What code changes while it runs is read off its bytecode, which every version of Python writes in its own words.

Run by another Python, this file verifies that one; archgrad and torch need not be there.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
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


def test_it_is_seen_by_the_other_pythons_of_this_machine() -> None:
    for minor in (11, 12, 13, 14):
        if python := shutil.which(f"python3.{minor}"):
            done = subprocess.run([python, __file__], capture_output=True, text=True, check=False, timeout=60)
            # A shim without its Python answers so.
            assert done.returncode in (0, 127) or "command not found" in done.stderr, done.stdout + done.stderr


if __name__ == "__main__":
    print(sys.version_info[:2], len(CASES), "functions")
    sys.exit("\n".join(wrong()) or 0)

"""The house rules that no linter holds: documents that run, versions that agree, sizes, floors."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import archgrad

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "archgrad"
FILES = sorted(SOURCE.rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
RUNS = "<!-- runs in tests -->"
BLOCK = re.compile(r"(?P<mark><!--(?:(?!-->).)*-->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
FORBIDDEN = {"utils", "util", "common", "core", "helpers", "helper", "misc"}
LINES, METHOD_LINES, FUNCTION_LINES = 400, 250, 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, bool]]:
    """The Python blocks of a page, and whether each is marked as run."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(one["code"], (one["mark"] or "").strip() == RUNS) for one in found]


def bodies(tree: ast.Module) -> list[tuple[str, int]]:
    """Each function of a module with its lines, the docstring not counted."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                assert text.end_lineno is not None
                lines -= text.end_lineno - text.lineno + 1
            found.append((node.name, lines))
    return found


def test_the_first_block_of_the_readme_is_run_and_leaves_what_it_says() -> None:
    code, runs = blocks(ROOT / "README.md")[0]
    assert runs
    assert "ag.slim(" in code and "ag.dnal(" in code and "export_onnx" in code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_in_documents_parses_and_names_what_exists(page: Path) -> None:
    for code, _ in blocks(page):
        ast.parse(code)
    used = set(re.findall(r"\bag\.(\w+)", page.read_text(encoding="utf-8")))
    assert not used - set(archgrad.__all__), "named as ag.NAME, but not a public name"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_documents_exist(page: Path) -> None:
    from typer.main import get_command

    from archgrad.cli.app import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shell = "".join(text for language, text in fenced if not language)
    for line in re.findall(r"^archgrad .*$", shell, re.MULTILINE):
        name, *words = line.partition(" -- ")[0].split()[1:]
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if name.startswith("--"):
            assert name in ("--help", "--version", "--traceback", "--install-completion", "--show-completion")
        else:
            assert options <= {option for one in known[name].params for option in one.opts} | {"--help"}


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert versions[0] == archgrad.__version__


def test_types_are_shipped() -> None:
    assert (SOURCE / "py.typed").is_file()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = METHOD_LINES if path.parent.name == "methods" else LINES
    assert len(text.splitlines()) <= limit
    long = {name: lines for name, lines in bodies(ast.parse(text)) if lines > FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_forbidden_in_the_library(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = path.relative_to(SOURCE).with_suffix("").parts
    wrong = [f"named {part}" for part in parts if part in FORBIDDEN]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            wrong += [f"line {node.lineno}: print"] if parts[0] != "cli" else []
        # register_state's keywords are names that the caller gives, the command line's come from a schema; a
        # decorator, and what stands in for a user's network, pass on what they are given. The events of another
        # library's callbacks get more keywords with each of its versions.
        name = node.name if isinstance(node, ast.FunctionDef) else ""
        event = parts[0] == "integrations" and name.startswith("on_")
        free = parts[0] in ("cli", "argument_types") or name in ("register_state", "forward") or event
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg and not free:
            wrong.append(f"line {node.lineno}: {node.name} takes **{node.args.kwarg.arg}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "pickle.load",
            "pickle.loads",
            "torch.load",
        ):
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            wrong += [] if safe else [f"line {node.lineno}: reads what can execute code"]
    assert not wrong


def test_rooms_import_lower_floors_only() -> None:
    beside = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    command = beside or shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed; it comes with the extra dev")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_measures_themselves_measure() -> None:
    """What the rules above count, on a case where the count is known."""
    text = "def short():\n    '''One.\n\n    Two.\n    '''\n    return 1\n\n\nclass C:\n    def long(self):\n"
    tree = ast.parse(text + "        pass\n" * 61)
    assert sorted(bodies(tree)) == [("long", 62), ("short", 2)]

"""The documents: every Python block runs or says why not, links and anchors resolve, methods' pages have one form."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import archgrad as ag

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))
HEADINGS = [
    "Paper",
    "What is implemented",
    "What the paper leaves open, and what we chose",
    "Equations",
    "Hyper-parameters and where they come from",
    "Logged figures",
    "Our results beside the published ones",
    "Citation",
]
BLOCK = re.compile(r"(?P<mark><!--(?:(?!-->).)*-->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
RUNS = re.compile(
    r"<!-- runs in tests(?: after(?P<before> the blocks before)?(?:, and)?)?(?:\n(?P<first>.*?)\n| )-->\n", re.DOTALL
)
NOT_RUN = re.compile(r"<!-- not run in tests: .+ -->\n")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def programs() -> Iterator[tuple[str, list[str]]]:
    """What runs: the blocks of a page by themselves, or one after another where a block says so."""
    for page in PAGES:
        joined: list[list[str]] = []
        for block in BLOCK.finditer(text_of(page)):
            runs = RUNS.fullmatch(block["mark"] or "")
            if runs is None:
                continue
            own = [*([runs["first"]] if runs["first"] else []), block["code"]]
            if runs["before"]:
                joined[-1] += own
            else:
                joined.append(own)
        yield from ((f"{name_of(page)}-{place}", parts) for place, parts in enumerate(joined))


@pytest.mark.parametrize("parts", [pytest.param(parts, id=name) for name, parts in programs()])
def test_code_in_documents_runs(parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden lines in front of a block may replace what takes long, by `patch(owner, name, value)`."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "block", "patch": monkeypatch.setattr}
    for part in parts:
        exec(compile(part, "<block>", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_runs_or_says_why_not(page: Path) -> None:
    for block in BLOCK.finditer(text_of(page)):
        mark = block["mark"] or ""
        assert RUNS.fullmatch(mark) or NOT_RUN.fullmatch(mark), block["code"]


def test_marks_are_understood() -> None:
    assert RUNS.fullmatch("<!-- runs in tests -->\n")
    assert RUNS.fullmatch("<!-- runs in tests after the blocks before -->\n")["before"]  # type: ignore[index]
    both = RUNS.fullmatch("<!-- runs in tests after the blocks before, and\na = 1\nb = 2\n-->\n")
    assert both is not None and both["before"] and both["first"] == "a = 1\nb = 2"
    assert not RUNS.fullmatch("<!-- runs in test -->\n")


@pytest.mark.parametrize("page", METHODS, ids=name_of)
def test_pages_of_methods_have_the_same_parts_in_the_same_order(page: Path) -> None:
    assert headings(text_of(page), level=2) == HEADINGS
    assert "```bibtex\n@" in text_of(page)


def test_every_method_has_its_page() -> None:
    from archgrad.cli.schemas.methods import METHODS as known

    assert {page.stem.replace("-", "_") for page in METHODS} == set(known)


def test_the_reference_has_every_public_name() -> None:
    told = set(re.findall(r"^::: archgrad\.(?:\w+\.)*(\w+)$", text_of(ROOT / "docs" / "reference.md"), re.MULTILINE))
    assert told == set(ag.__all__) - {"__version__"}


def headings(text: str, *, level: int) -> list[str]:
    """The headings of one level; what stands in code is none."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^{'#' * level} (.+)$", plain, re.MULTILINE)


def anchor(heading: str) -> str:
    """As the toc extension of Python-Markdown makes them, and GitHub for headings as plain as ours."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@functools.cache
def anchors(page: Path) -> set[str]:
    text = text_of(page)
    return {anchor(one) for level in (1, 2, 3, 4) for one in headings(text, level=level)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    plain = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r'(?:src|srcset|href)="([^"]+)"', plain)
    broken = []
    for target in targets:
        path, _, part = target.partition("#")
        if "://" in target or path.startswith("mailto:"):
            continue
        place = (page.parent / path).resolve() if path else page
        known = place.exists() and (not part or place.suffix != ".md" or part in anchors(place))
        broken += [] if known else [target]
    assert not broken


def test_a_broken_anchor_is_found() -> None:
    page = ROOT / "docs" / "methods" / "dnal.md"
    assert "logged-figures" in anchors(page) and "what-is-logged" not in anchors(page)


@functools.cache
def written() -> tuple[set[str], list[re.Pattern[str]]]:
    """All strings of the library that could be keys, and those into which something is filled."""
    found, filled = set(), set()
    for path in (ROOT / "src" / "archgrad").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(str(v.value)) if isinstance(v, ast.Constant) else "[^ ]+" for v in node.values]
                if re.search(r"\w{2}", "".join(part for part in parts if part != "[^ ]+")):
                    filled.add("".join(parts))
            elif isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
    return found, [re.compile(one) for one in filled if " " not in one.replace("[^ ]+", "")]


@pytest.mark.parametrize("page", METHODS, ids=name_of)
def test_figures_that_a_page_lists_are_keys_that_the_library_writes(page: Path) -> None:
    part = text_of(page).partition("\n## Logged figures\n")[2].partition("\n## ")[0]
    names = {name for name in re.findall(r"`([a-z][\w/<>-]*\w>?)`", part) if not name.startswith("ag")}
    assert names
    assert not {name for name in names if not is_written(name)}


def is_written(name: str) -> bool:
    """Whether a string of the library, with whatever is filled into it, may be this name."""
    name = re.sub(r"<\w+>", "x", name).replace("-N", "-1")
    plain, filled = written()
    return name in plain or any(one.fullmatch(name) for one in filled)


def test_a_key_that_nobody_writes_is_found() -> None:
    assert is_written("weight/<choice>/<candidate>")
    assert not is_written("fisher_of_yesterday")


@pytest.mark.parametrize(("method", "page"), [("darts", "darts"), ("random_search", "random-search")])
def test_figures_of_a_run_are_those_of_its_page(method: str, page: str) -> None:
    space = ag.nasbench201_cells(channels=2, cells=1, in_channels=1)
    task = ag.Classification.load("digits", batch_size=64)
    run = ag.Run(steps=4, trials=2, progress=False, device="cpu")
    found = getattr(ag, method)(space, task, run)
    logged = {key.partition("/")[0] for row in found.history for key in row} - {"phase", "step", "time"}
    told = text_of(ROOT / "docs" / "methods" / f"{page}.md").partition("\n## Logged figures\n")[2]
    missing = {key for key in logged if f"`{key}" not in told} - {"predicted_peak_bytes"}
    assert not missing


def test_the_results_file_of_every_benchmark_page_is_there() -> None:
    for page in (ROOT / "docs" / "benchmarks").glob("*.md"):
        for name in re.findall(r"`benchmarks/results/([\w-]+\.json)`", text_of(page)):
            json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_page_and_the_table_of_what_can_be_removed_are_what_the_script_makes_of_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = runpy.run_path(str(ROOT / "benchmarks" / "coverage.py"))
    record = json.loads(text_of(ROOT / "benchmarks" / "results" / "coverage.json"))
    assert script["page"](record).strip() == text_of(ROOT / "docs" / "benchmarks" / "coverage.md").strip()
    assert script["summary"](record) in text_of(ROOT / "README.md")


def test_the_ledger_is_what_its_script_makes_of_the_results(tmp_path: Path) -> None:
    folder = ROOT / "benchmarks"
    subprocess.run([sys.executable, str(folder / "ledger.py"), "--into", str(tmp_path)], check=True)
    for name in ("RESULTS.md", "RESULTS.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == text_of(folder / name), "run: make ledger"


def test_the_ledger_says_what_lost() -> None:
    held = json.loads(text_of(ROOT / "benchmarks" / "RESULTS.json"))
    for entry in (held["slim"], held["multimodal"]):
        best = {(one["group"], one["figure"]): one["value"] for one in entry["figures"] if one["peer"]}
        assert best and entry["lost"] and all(": behind " in line for line in entry["lost"])
    assert all(entry["command"] and entry["page"] for entry in held.values() if entry["figures"])


def test_no_row_of_the_ledger_lacks_machine_versions_or_date() -> None:
    held = json.loads(text_of(ROOT / "benchmarks" / "RESULTS.json"))
    assert sum(bool(entry["figures"]) for entry in held.values()) >= 3
    for name, entry in held.items():
        if entry["figures"]:
            assert entry["machine"] and {"archgrad", "torch"} <= set(entry["versions"]), name
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry["date"]), name


def test_every_file_of_results_says_where_and_when_it_was_made() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        stamp = json.loads(text_of(path)).get("machine") or {}
        assert {"words", "versions", "date"} <= set(stamp), f"{path}: written by save_results a file says it"


SCRIPTS = [path for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in text_of(path)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_benchmarks_write_only_where_out_says_and_say_where_they_ran(path: Path) -> None:
    """What writes a file is `save_results`, which stamps it, into a path of the command line that has no default."""
    tree = ast.parse(text_of(path))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in ("write_text", "write_bytes"):
            target = ast.unparse(call.func)
            assert path.stem == "ledger" or target == "Path('/proc/self/clear_refs').write_text", target
        if name == "save_results":
            assert ast.unparse(call.args[0]) in {"chosen.out", "arguments.out", "options.out", "given.out", "out",
                                                 "self.path", "chosen.stamp"}  # fmt: skip
        if name == "add_argument" and [ast.unparse(arg) for arg in call.args] == ["'--out'"]:
            assert "default" not in {keyword.arg for keyword in call.keywords}, "without --out nothing is written"


def test_results_say_machine_versions_and_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    saving = importlib.import_module("saving")
    path = tmp_path / "rows.json"
    saving.save_results(path, {"rows": [1]})
    saving.save_results(path, {"rows": [1, 2]})
    held = json.loads(path.read_text(encoding="utf-8"))
    assert held["rows"] == [1, 2] and {"words", "versions", "date"} == set(held["machine"])
    elsewhere = {**held["machine"], "words": "another machine"}
    saving.save_results(path, {**held, "machine": elsewhere})
    assert json.loads(path.read_text(encoding="utf-8"))["machine"]["earlier"] == [elsewhere]
    assert [one.name for one in tmp_path.iterdir()] == ["rows.json"]


def test_every_page_ends_with_what_to_read_next() -> None:
    """Guides and the page on tasks lead on from their tables."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if path.parent.name != "guides" and path.name != "tasks.md":
            last = text_of(path).rstrip().splitlines()[-1]
            assert last.startswith("**Read next:** ") and "](" in last, path


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 120

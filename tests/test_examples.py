"""The examples run, in a smoke mode of seconds; the notebook too, cell by cell."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import archgrad as ag

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.rglob("*.py"))
# Served over HTTP, and run by a test of its own.
SERVER = EXAMPLES / "photographs" / "serve.py"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NEEDS = {"search_in_my_rl_loop.py": "gymnasium", "photographs/slim.py": "onnxruntime"}


def name_of(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


@pytest.mark.parametrize("script", [one for one in SCRIPTS if one != SERVER], ids=name_of)
def test_an_example_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name_of(script) in NEEDS:
        pytest.importorskip(NEEDS[name_of(script)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--smoke"])
    runpy.run_path(str(script), run_name="__main__")
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= ({"runs"} if script.parent.name == "photographs" else set())
    if script.parent.name == "photographs":
        assert (tmp_path / "runs/photographs/small.onnx").is_file()
        served(tmp_path / "runs/photographs", tmp_path / "one.png")


def served(folder: Path, photograph: Path) -> None:
    """The server's own program, in a process that has neither archgrad nor torch in use."""
    Image.fromarray(np.full((64, 64, 3), (200, 90, 40), np.uint8)).save(photograph)
    done = subprocess.run(
        [sys.executable, str(SERVER), str(folder), str(photograph)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'warm'" in done.stdout and "ms from the file's bytes" in done.stdout


def test_the_server_is_small_and_needs_neither_archgrad_nor_torch() -> None:
    text = SERVER.read_text(encoding="utf-8")
    imported = {node.names[0].name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)}
    assert not imported & {"archgrad", "torch"}
    code = [one for one in text.split('"""', 2)[2].splitlines() if one.strip() and "import" not in one]
    assert len(code) <= 30


def test_every_example_is_named_in_the_documents() -> None:
    told = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    assert not [name_of(one) for one in [*SCRIPTS, *NOTEBOOKS] if f"examples/{name_of(one)}" not in told]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_and_holds_no_output(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notebook.stat().st_size < 50_000
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
            source = "".join(cell["source"]).replace("QUICK = False", "QUICK = True")
            exec(compile(source, str(notebook), "exec"), names)
    assert not list(tmp_path.iterdir())


def test_the_teaching_method_is_short_and_is_a_method() -> None:
    path = EXAMPLES / "teaching_method.py"
    (method,) = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "one_level"
    ]
    assert method.end_lineno is not None and method.end_lineno - method.lineno < 60
    names = runpy.run_path(str(path))
    task = ag.Classification.load("digits", batch_size=64)
    space = names["space"]()
    found = [names["one_level"](space, task, ag.Run(epochs=2, seed=1, progress=False)) for _ in range(2)]
    assert found[0].architecture == found[1].architecture and found[0].score == found[1].score


def test_the_teaching_method_resumes_exactly(tmp_path: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / "teaching_method.py"))

    class Away(RuntimeError):
        pass

    def leave(record: dict[str, object]) -> None:
        if record["phase"] == "train" and record["step"] == 3:
            raise Away

    def run(folder: str, on_log: object = None) -> ag.Run:
        return ag.Run(
            steps=20,
            folder=tmp_path / folder,
            progress=False,
            output=ag.Output(checkpoint_seconds=0.0, on_log=on_log),
        )  # type: ignore[arg-type]

    task, space = ag.Classification.load("digits", batch_size=64), names["space"]()
    whole = names["one_level"](space, task, run("whole"))
    with pytest.raises(Away):
        names["one_level"](space, task, run("left", leave))
    resumed = names["one_level"](space, task, run("left"))
    assert resumed.score == whole.score and resumed.architecture == whole.architecture
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]

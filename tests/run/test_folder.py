from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.data.run_folder import present
from archgrad.report.data.run_format import is_running
from archgrad.run.output import Output
from archgrad.run.run import Run


def begun(folder: Path, *, settings: Any = None, method: str = "test", **options: Any) -> Run:
    run = Run(folder=folder, device="cpu", progress=False, **options)
    run.begin(method, settings or {})
    return run


def test_run_json_says_what_was_run_and_with_what(tmp_path: Path) -> None:
    run = begun(tmp_path / "a" / "run", settings={"lr": 0.1, "shape": (1, 2)}, seed=4, epochs=2)
    record = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert record["identity"] == {
        "method": "test",
        "settings": {"lr": 0.1, "shape": [1, 2]},
        "seed": 4,
        "precision": "32-true",
        "dtype": "torch.float32",
        "epochs": 2,
        "steps": None,
        "trials": None,
        "seconds": None,
    }
    numerics = {"threads", "deterministic", "matmul_precision", "mkldnn"}
    assert set(record["made_with"]) == {"archgrad", "torch", "numpy", "python", "device", "processes", *numerics}
    assert (record["status"], record["resumed"], record["finished"]) == ("running", [], None)
    run.finish()
    begun(tmp_path / "a" / "run", settings={"lr": 0.1, "shape": [1, 2]}, seed=4, epochs=2).finish()
    record = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert (record["status"], len(record["resumed"])) == ("finished", 1)
    assert record["finished"] >= record["started"]


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    begun(tmp_path, settings={"lr": 0.1, "space": {"cells": 8}}, seed=1).finish()
    with pytest.raises(RunError) as caught:
        begun(tmp_path, settings={"lr": 0.1, "space": {"cells": 4}, "extra": True}, seed=2, method="unas")
    message = str(caught.value)
    for part in (
        "settings.space.cells (given 4, in the folder 8)",
        "settings.extra (given true, in the folder nothing)",
        "seed (given 2, in the folder 1)",
        'method (given "unas", in the folder "test")',
        "Choose another folder, or resume with the same settings",
    ):
        assert part in message
    assert "lr" not in message
    begun(tmp_path, settings={"lr": 0.1, "space": {"cells": 8}}, seed=1).finish()


@pytest.mark.parametrize(
    ("what", "other"), [("torch", "1.0"), ("threads", 64), ("mkldnn", False), ("device", "cpu (other)")]
)
def test_a_change_of_machine_is_noted_and_allowed(tmp_path: Path, what: str, other: object) -> None:
    begun(tmp_path).finish()
    record = json.loads((tmp_path / "run.json").read_text())
    record["made_with"][what] = other
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert f"last bits may differ: {what} (" in begun(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("where", "value"),
    [("", "tf32"), ("cuda.matmul", "tf32"), ("mkldnn.matmul", "bf16"), ("cudnn.conv", "tf32"), ("mkldnn", "bf16")],
)
def test_precisions_of_torch_are_noted_however_they_are_set(tmp_path: Path, where: str, value: str) -> None:
    begun(tmp_path).finish()
    code = (
        "import sys; from pathlib import Path; import torch; from archgrad.run.run import Run\n"
        f"torch.backends.{where}{'.' if where else ''}fp32_precision = {value!r}\n"
        "run = Run(folder=sys.argv[1], device='cpu', progress=False); run.begin('test', {}); print(run.notes)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert ("matmul_precision (" in told) == (where != "cudnn.conv")


READS = {
    "item": "def f(): return os.environ['{}']", "get": "def f(): return os.environ.get('{}', '0')",
    "getenv": "def f(): return os.getenv('{}')", "environ": "from os import environ\ndef f(): return environ['{}']",
    "lambda": "f = lambda: (lambda: os.getenv('{}'))()",
    "cached": "@functools.cache\ndef f(): return os.getenv('{}')",
    "helper": "def read(name): return os.environ[name]\nclass Net:\n def forward(self): return read('{}')",
}  # fmt: skip
# Texts of many words: single ones would be names of variables that this module, which reads the environment, has.
WORDS = re.compile(r"\w+")
COMPUTES = WORDS.findall(
    "GAIN RANK_WEIGHT LORA_RANK IMPORTANCE TRANSPORT_COST RAPID JOBS_WEIGHT THREADED gain MAX_TOKENS KEYPOINTS "
    "HOSTILITY USE_CACHE N_TOKENS TOKENS_PER_STEP PAT_DIM NUM_KEYS PAD_TOKEN MASK_TOKEN DROP_PATH PYTHON_LR "
    "PYTHONHASHSEED KEYS HEAD_KEYS KEY_DIM AUTHORS PASSES MONKEY"
)
ELSEWHERE = WORDS.findall(
    "RANK LOCAL_RANK WORLD_SIZE MASTER_PORT SLURM_JOB_ID CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES "
    "HOSTNAME OMP_NUM_THREADS DEBUG VERBOSE LOG_LEVEL TERM LOGNAME LANGUAGE USERNAME "
    "HF_TOKEN OPENAI_API_KEY DB_PASSWORD AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID OPENAI_API_KEYS PAT GH_PAT TOKEN "
    "WANDB_MODE NO_COLOR CI TZ TOKENIZERS_PARALLELISM PYTHONUNBUFFERED PYTHONUTF8 PYTHON_COLORS DATA_ROOT OUT_DIR "
    "MODEL_PATH CONFIG_FILE ssh_key"
)
UNREAD = "NOT_READ ".strip()  # nothing names it


def test_variables_that_a_module_reads_as_it_is_imported_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, unread = "module_width ".strip(), "module_unread ".strip()
    (tmp_path / "of_the_user_alone.py").write_text(
        f"import os\nWIDTH = int(os.environ.get('{width}'))\nclass Net:\n depth = os.getenv('depth')\n"
    )
    (tmp_path / "of_the_user_without.py").write_text(f"NAME = '{unread}'\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (width, unread):
        monkeypatch.setenv(name, "16")
    for module in ("of_the_user_alone", "of_the_user_without"):
        monkeypatch.setitem(sys.modules, module, importlib.import_module(module))
    begun(tmp_path / "run").finish()
    monkeypatch.setenv(width, "32")
    monkeypatch.setenv(unread, "32")
    (note,) = begun(tmp_path / "run").notes
    assert f'variable {width} (given "32", in the folder "16")' in note and unread not in note


@pytest.mark.parametrize("read", READS)
def test_changed_variables_that_code_reads_are_noted_by_name(
    tmp_path: Path, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{READS[read].format(COMPUTES[0])}", f"NAMES = lambda: {COMPUTES + ELSEWHERE + ['IS_PATH']}"]
    module = ModuleType("of_the_user")
    exec("import functools, os\n" + "\n".join(lines), vars(module))
    monkeypatch.setitem(sys.modules, "of_the_user", module)
    for name in {*os.environ} - {"PATH", "HOME"}:  # other tests are modules of the user's too, and name some
        monkeypatch.delenv(name)

    def notes(value: str) -> list[str]:
        for name in [*COMPUTES, *ELSEWHERE, UNREAD]:
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("IS_PATH", f"/data/{value}")
        run = begun(tmp_path)
        run.finish()
        return run.notes

    assert notes("7.25") == notes("7.25") == []
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["variables"] == dict.fromkeys(COMPUTES, "7.25")
    (note,) = notes("x" * 500)
    assert re.findall(r'variable (\w+) \(given "#\w{16}", in the folder "7\.25"\)', note) == sorted(COMPUTES)
    for name in COMPUTES:
        monkeypatch.delenv(name)
    assert "variable GAIN (given nothing, in the folder" in begun(tmp_path).notes[0]


@pytest.mark.parametrize("trace", ["checkpoints", "history.jsonl"])
def test_remains_without_run_json_are_refused(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).mkdir() if trace == "checkpoints" else (tmp_path / trace).touch()
    with pytest.raises(RunError, match=rf"has {trace} but no run\.json"):
        begun(tmp_path)


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    begun(tmp_path).finish()
    assert (tmp_path / "notes.txt").read_text() == "mine"


_ACCEPTED = '{"identity": {}, "made_with": {}, "resumed": [], "accepted": "none"}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": {}}', _ACCEPTED])
def test_a_damaged_run_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        begun(tmp_path)


def test_damaged_remembered_figures_are_refused(tmp_path: Path) -> None:
    begun(tmp_path).finish()
    path = tmp_path / "computed.json"
    for text in ("{", "[]", "{}", '{"figures": {}}', '{"figures": {"given": 3}, "checksum": "00000000"}'):
        path.write_text(text)
        with pytest.raises(RunError, match="Remove it"):
            begun(tmp_path)
    path.write_text('{"given": 0.5}')
    with pytest.raises(RunError, match="it has no checksum, as in earlier versions"):
        begun(tmp_path)
    path.unlink()
    run = begun(tmp_path)
    assert run.compute_once("figure", lambda: {"a": [1, 0.1, float("nan")]})["a"][1] == 0.1
    run.close()
    again = begun(tmp_path)
    assert again.compute_once("figure", lambda: {})["a"][:2] == [1, 0.1]
    again.close()
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(RunError, match="checksum"):
        begun(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose a folder that can be written to"):
        begun(tmp_path / "file" / "run")


def hold(folder: Path, *, child: bool = False) -> int:
    """A process that holds the folder's lock until it is told to end; with `child`, only its child does."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            run = begun(folder)
            if child and os.fork() == 0:
                os.write(tell, b"x")
                time.sleep(1.0)
                os._exit(0)
            if not child:
                os.write(tell, b"x")
                time.sleep(60)
            run.note("held until here")
        finally:
            os._exit(0)
    assert os.read(ready, 1) == b"x"
    return pid


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    pid = hold(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunError, match=rf"is running \(pid {pid}\)"):
        begun(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    begun(tmp_path).finish()


def test_children_of_a_dead_run_are_waited_for(tmp_path: Path) -> None:
    os.waitpid(hold(tmp_path, child=True), 0)
    with (tmp_path / "lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    begun(tmp_path).finish()


def test_a_second_run_of_this_process_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with pytest.raises(RunError, match=r"Call its finish\(\) or close\(\) first"):
        begun(tmp_path)
    run.close()
    begun(tmp_path).finish()


def test_without_a_folder_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(device="cpu", progress=False, output=Output(checkpoint_seconds=0))
    run.begin("test", {})
    run.register_state()
    for _ in run.steps(3):
        run.log({"loss": 1.0})
    assert run.compute_once("ms", lambda: 3) == 3
    run.finish()
    assert run.folder is None
    assert len(run.history) == 3
    assert list(tmp_path.iterdir()) == []


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def an_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def started(folder: Path) -> Run:
    run = begun(folder, output=Output(checkpoint_seconds=0))
    run.register_state(layer=nn.Linear(1, 1))
    return run


@pytest.mark.parametrize("put", [a_pipe, a_folder, an_endless_device, a_socket])
@pytest.mark.parametrize("name", ["run.json", "history.jsonl", "computed.json", "trials.jsonl", "lock"])
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path, put: Callable[[Path], None], name: str) -> None:
    begun(tmp_path).close()
    (tmp_path / name).unlink(missing_ok=True)
    put(tmp_path / name)
    with pytest.raises(RunError, match=f"{name} is no ordinary file"):
        begun(tmp_path)
    with contextlib.suppress(RunError):
        present(tmp_path)
    is_running(tmp_path)


@pytest.mark.parametrize("put", [a_pipe, an_endless_device, a_socket])
def test_what_is_no_ordinary_file_is_no_checkpoint(tmp_path: Path, put: Callable[[Path], None]) -> None:
    run = started(tmp_path)
    for step in run.steps(6):
        if step == 4:
            run.close()
            break
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.unlink()
    put(newest)
    assert list(started(tmp_path).steps(6)) == [3, 4, 5]


@pytest.mark.parametrize(
    "name", ["run.json", "history.jsonl", "computed.json", "trials.jsonl", "lock", "checkpoints"]
)
@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_left_alone(tmp_path: Path, name: str, there: bool) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim"
    started(folder).close()
    if name == "checkpoints" and there:
        victim.mkdir()
    elif there:
        victim.write_text("precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    with pytest.raises(RunError, match=f"{name} is a link to {victim}"):
        begun(folder)
    assert victim.exists() == there
    assert not victim.is_file() or victim.read_text() == "precious"


def test_a_file_is_no_folder_of_checkpoints(tmp_path: Path) -> None:
    begun(tmp_path).close()
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="checkpoints is no folder"):
        begun(tmp_path)


def stopped(folder: Path, *, at: int = 4) -> Path:
    """A run that was stopped at a step; its newest checkpoint."""
    run = started(folder)
    for step in run.steps(6):
        run.log({"loss": step}, step=step)
        if step == at:
            run.close()
            break
    return max((folder / "checkpoints").glob("*[0-9].safetensors"))


def test_checkpoints_and_history_of_another_run_are_not_taken_for_its_own(tmp_path: Path) -> None:
    newest, other = stopped(tmp_path / "one"), stopped(tmp_path / "other")
    shutil.copy(other, newest)
    run = started(tmp_path / "one")
    assert list(run.steps(6)) == [3, 4, 5]
    assert any("a checkpoint of another run" in note for note in run.notes)
    run.close()
    stopped(tmp_path / "two")
    lines = (tmp_path / "two" / "history.jsonl").read_text()
    (tmp_path / "two" / "history.jsonl").write_text(lines.replace("0.0", "7.0").replace('"loss": 0', '"loss": 9'))
    run = started(tmp_path / "two")
    assert list(run.steps(6)) == [4, 5]
    assert any("history.jsonl does not hold what this run wrote" in note for note in run.notes)
    run.close()
    (tmp_path / "two" / "computed.json").write_text('{"run": "0", "checksum": "0", "figures": {}}')
    with pytest.raises(RunError, match="of another run"):
        begun(tmp_path / "two")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_checkpoints_that_cannot_be_read_now_are_not_lost(
    tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = stopped(tmp_path)

    def fails(path: Path) -> None:
        raise error

    run = started(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "open_ordinary", fails)
        with pytest.raises(RunError, match=rf"cannot be used: {error.strerror}. Give access"):
            next(run.steps(6))
    run.close()
    assert newest.exists()
    assert list(started(tmp_path).steps(6)) == [4, 5]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"identity": 3}'])
def test_a_run_that_has_ended_writes_its_run_json_whatever_became_of_it(tmp_path: Path, text: str | None) -> None:
    run, path = begun(tmp_path), tmp_path / "run.json"
    before = json.loads(path.read_text())
    path.unlink()
    if text is not None:
        path.write_text(text)
    run.finish()
    after = json.loads(path.read_text())
    assert after["status"] == "finished" and after["identity"] == before["identity"] and after["id"] == before["id"]


@pytest.mark.parametrize("change", ["removed", "renamed", "replaced"])
def test_a_folder_that_is_gone_is_told(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "run"
    run, seen = started(folder), 0
    with pytest.raises(RunError, match=r"run was removed, renamed or replaced while .* Put the folder back"):
        for step in run.steps(9):
            seen = step
            if step == 3:
                folder.rename(tmp_path / "elsewhere")
                if change == "removed":
                    shutil.rmtree(tmp_path / "elsewhere")
                if change == "replaced":
                    shutil.copytree(tmp_path / "elsewhere", folder)
    assert seen == 3
    run.close()
    if change == "renamed":
        (tmp_path / "elsewhere").rename(folder)
        assert list(started(folder).steps(9)) == [3, 4, 5, 6, 7, 8]

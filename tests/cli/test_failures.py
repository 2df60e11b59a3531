"""What is explained, and what keeps its traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from archgrad.cli import error_messages
from archgrad.cli.command_file import resumable
from archgrad.cli.error_messages import explained, user_line
from archgrad.errors import ModelError, NonFiniteError, ResourceError
from archgrad.run.signals import Stopped


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_statuses() -> None:
    for error, status in {
        ModelError("x"): 2,
        NonFiniteError("x"): 2,
        FileNotFoundError(2, "No such file", "a.npz"): 2,
        torch.OutOfMemoryError("x"): 2,
        Stopped("x", 15): 143,
        Stopped("x", 2): 130,
        KeyboardInterrupt(): 130,
    }.items():
        failure = explained(error)
        assert failure is not None and failure.status == status


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), "memory of the GPU ran out"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."),
            "torch tried to allocate 4.00 GiB",
        ),
        (MemoryError(), "Memory ran out"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "killed by signal"),
    ],
)
def test_what_the_machine_lacks_is_told_wherever_it_happens(error: Exception, told: str) -> None:
    failure = explained(_raised(error))
    assert failure is not None and failure.status == 2
    assert told in failure.message and "Try " in failure.message


def test_memory_that_runs_out_leaves_a_run_that_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    told = rf"what to lower\nTo go on .*: archgrad resume {tmp_path}\. Others need"
    with pytest.raises(ResourceError, match=told), resumable(tmp_path):
        raise ResourceError("what to lower")
    assert (tmp_path / "run.json").exists()


def test_a_fault_of_ours_is_not_explained() -> None:
    assert explained(AssertionError("ours")) is None
    with pytest.raises(ModelError) as caught:
        from archgrad.spaces.slim.slimmable import slim

        slim(torch.nn.ReLU(), torch.zeros(1, 3))
    assert __file__ in user_line(caught.value)


def test_code_of_the_user_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(x):\n    return {}[x]\n")
    scope: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(KeyError) as caught:
        scope["f"]("key")  # type: ignore[operator]
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # type: ignore[union-attr]
    failure = explained(caught.value)
    assert failure is not None and failure.status == 2
    assert failure.message == f"Your code raised KeyError: 'key' ({path}, line 2)."


def test_a_library_of_another_environment_is_not_code_of_the_user(tmp_path: Path) -> None:
    for name in ("site-packages", "dist-packages", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from_{name[:4]}.py").write_text("def f():\n    raise ValueError('inside')\n")
    program = """
from archgrad.cli.error_messages import user_line
import from_site, from_dist, from_mine
for module in (from_site, from_dist, from_mine):
    try:
        module.f()
    except ValueError as error:
        print(module.__name__, bool(user_line(error.with_traceback(error.__traceback__.tb_next))))
"""
    path = os.pathsep.join([*(str(folder) for folder in tmp_path.iterdir()), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["from_site", "False", "from_dist", "False", "from_mine", "True"]


def test_the_cause_says_where(tmp_path: Path) -> None:
    error = ModelError("the network fails")
    error.__cause__ = _raised(ValueError("inside"))
    failure = explained(error)
    assert failure is not None and f"{__file__}, line" in failure.message


def test_causes_that_lead_back_to_each_other_and_errors_without_text_are_told() -> None:
    class WithoutText(KeyError):
        __notes__ = 3  # type: ignore[assignment]

        def __str__(self) -> str:
            raise ValueError("no text")

    first, second = _raised(ValueError("first")), _raised(WithoutText())
    first.__cause__, second.__cause__ = second, first
    for error in (first, second):
        failure = explained(error)
        assert failure is not None and failure.status == 2 and "Your code raised" in failure.message


GREEDY = """
import os
import torch
from torch import nn

CALLS = [0]

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.last = nn.Linear(64, classes)

    def forward(self, x):
        CALLS[0] += self.training
        if CALLS[0] == int(os.environ.get("EAT_AT", -1)):
            torch.empty(2**60)
        return self.last(x.flatten(1))
"""


def test_memory_that_runs_out_in_a_command(
    tmp_path: Path,
    place: Path,
    cli: Callable[..., Result],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.setenv("EAT_AT", "6")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    command = (
        "train", f"{tmp_path / 'greedy.py'}:Net", place / "data.npz", "--steps", "8", "--batch-size", "18",
        "--no-onnx", "--out", tmp_path / "run",
    )  # fmt: skip
    message = refused(*command)
    for part in ("4,294,967,296.00 GiB", "in phase 'fit' at step", "archgrad resume", "--batch-size", "fit-00000000"):
        assert part in message
    monkeypatch.delenv("EAT_AT")
    done = cli("resume", tmp_path / "run", "--accept", "network")  # whose code reads that variable
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "network.safetensors").exists()


def test_a_sigterm_in_a_callback_of_a_weak_reference_is_not_lost() -> None:
    class Thing:
        pass

    thing = Thing()
    watch = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGTERM), sum(range(10)))[0])
    with pytest.raises(Stopped), error_messages._sigterm_raises():
        del thing
        # The signal comes again from a thread; a lost one would leave this waiting for nothing.
        for _ in range(500):
            time.sleep(0.01)
    assert watch() is None


@pytest.mark.parametrize("module", ["archgrad.cli.app", "typer.core", "torch._C", "archgrad.run.run"])
def test_ctrl_c_while_modules_are_imported_leaves_one_line(module: str) -> None:
    program = f"""
import os, signal, sys
import archgrad.cli

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["archgrad", "train", "net.py:Net", "data.npz"]
archgrad.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130
    assert done.stderr == "Interrupted. Nothing was begun that could be resumed.\n" and not done.stdout


@pytest.mark.parametrize("command", [("--help",), ("--version",), ("methods",), ("slim", "--help")])
def test_an_output_that_cannot_be_written_is_one_message(command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "archgrad", *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_memory_that_runs_out_while_torch_is_loaded(tmp_path: Path) -> None:
    network = tmp_path / "net.py"
    network.write_text("from torch import nn\n\n\ndef net(classes=3):\n    return nn.Linear(2, classes)\n")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))"
    program = f"{limited}; from archgrad.cli import main; main()"
    command = ["train", f"{network}:net", "digits", "--steps", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Memory ran out while a library was loaded") and "Traceback" not in done.stderr

from __future__ import annotations

import io

import pytest
from rich.console import Console

from archgrad.run import progress
from archgrad.run.progress import ProgressView


def run_view(view: ProgressView, *, steps: int) -> None:
    view.start("search", total=steps, done=0)
    for step in range(steps):
        view.figures({"loss": 0.123456, "alive": 7})
        view.step(step + 1, progress=(step + 1) / steps)
    view.stop()


def test_elsewhere_one_plain_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    run_view(ProgressView(), steps=500)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("search 500/500  ")
    assert "steps/s" in lines[0]
    assert lines[0].endswith("loss 0.1235  alive 7")


def test_plain_lines_come_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    file = io.StringIO()
    view = ProgressView(console=Console(file=file, force_terminal=False))
    run_view(view, steps=100)
    lines = file.getvalue().splitlines()
    assert sum("more steps" in line for line in lines[:3]) == 1, "once, by the pace of the first steps"
    assert 6 <= len(lines) <= 14
    assert "left" in lines[2] and not any("more steps" in line for line in lines[3:])
    assert lines[-1].startswith("search 100/100")


@pytest.mark.parametrize("first", [1.0, 90.0])
@pytest.mark.parametrize("timed", [False, True])
def test_a_first_step_that_compiles_is_no_part_of_the_pace(
    monkeypatch: pytest.MonkeyPatch, first: float, timed: bool
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    file = io.StringIO()
    view = ProgressView(console=Console(file=file, force_terminal=False))
    for done in (0, 40):  # anew, and after a resume
        view.start("fit", total=None if timed else 140 + done, done=done)
        for step in range(140):
            now += first if step == 0 else 1.0
            view.step(done + step + 1, progress=(step + 1) / 140)
        view.stop()
    lines = file.getvalue().splitlines()
    assert sum("fit: about 2:" in line for line in lines) == 2, lines
    assert all("1.0 steps/s" in line for line in lines if "steps/s" in line)
    assert all("s/step" not in line for line in lines)
    assert sum("left" in line for line in lines) >= 20


def test_a_terminal_shows_a_live_bar() -> None:
    file = io.StringIO()
    view = ProgressView(console=Console(file=file, force_terminal=True, width=120))
    run_view(view, steps=50)
    shown = file.getvalue()
    assert "━" in shown
    assert "50/50" in shown
    assert "loss 0.1235" in shown


def test_names_are_no_markup_and_notes_are_one_line() -> None:
    file = io.StringIO()
    view = ProgressView(console=Console(file=file, force_terminal=False, width=20))
    view.note("[red]a note that is longer than the console is wide[/red]")
    assert file.getvalue() == "[red]a note that is longer than the console is wide[/red]\n"


def test_off_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView(enabled=False)
    run_view(view, steps=20)
    view.note("hidden")
    assert capsys.readouterr() == ("", "")


def test_stop_without_start_and_resumed_rates() -> None:
    file = io.StringIO()
    view = ProgressView(console=Console(file=file, force_terminal=False))
    view.stop()
    assert file.getvalue() == ""
    view.start("search", total=10, done=10, progress=1.0)
    view.stop()
    assert file.getvalue() == "search 10/10\n"


def test_the_figures_of_an_epoch_stay_until_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    view.start("fit", total=4, done=0)
    for step, best in enumerate((0.5, 0.75)):
        view.figures({"valid_accuracy": best - 0.1, "valid_loss": 3.0, "best_valid": best, "loss": 2.0})
        view.figures({"loss": 1.0})
        view.step(2 * step + 2, progress=(step + 1) / 2)
    view.stop()
    assert capsys.readouterr().err.splitlines()[-1].endswith("valid_accuracy 0.65  best_valid 0.75  loss 1")

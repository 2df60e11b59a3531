"""The board: who is answered, when it is drawn anew, and folders that are begun, killed, damaged, or a stranger's."""

from __future__ import annotations

import http.client
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import EVIL, ended, finished, held, rows, run_json, write
from test_page import fetches_nothing, read

from archgrad.errors import ConfigError, RunError
from archgrad.report.board import Board, Server, draw
from archgrad.report.data.run_folder import Checkpoint, newest_checkpoint
from archgrad.report.numbers import seconds as duration


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write(tmp_path, "record.json", ended())
    write(tmp_path, "secret.txt", "not to be read")
    with Server(Board(tmp_path), port=0) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def ask(server: Server, path: str = "/", *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body; a path as it is, without a client's tidying."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=given)
    answer = connection.getresponse()
    found = answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def words(html: str) -> str:
    return " ".join(" ".join(read(html).words).split())


def test_it_listens_on_this_machine_alone_and_gives_the_page(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, headers, body = ask(server)
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert "A search" in words(body) and 'data-live="2000"' in body
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin" and "access-control-allow-origin" not in headers
    assert ask(server, Host=f"localhost:{server.port}")[0] == 200
    head = ask(server, method="HEAD")
    assert head[0] == 200 and head[2] == "" and head[1]["content-length"] == headers["content-length"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1.evil:{port}", ""])
def test_another_host_is_refused(server: Server, host: str) -> None:
    status, _, body = ask(server, Host=host.format(port=server.port))
    assert status == 421 and "A search" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "//secret.txt",
        "/record.json",
        "/?/secret.txt",
        "*",
        "/<b>",
    ],
)
def test_no_address_but_the_pages_names_anything(server: Server, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404 and body == "Not Found\n"


def test_nothing_is_written_by_a_request(server: Server) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, method=method)[0] == 501


def test_what_has_not_changed_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    board = Board(tmp_path, share=1e9)
    server.board = board
    _, headers, _ = ask(server)
    status, again, body = ask(server, If_None_Match=headers["etag"])
    assert status == 304 and body == "" and again["etag"] == headers["etag"]
    write(tmp_path, "history.jsonl", rows(0, 5))
    status, changed, body = ask(server, If_None_Match=headers["etag"])
    assert status == 200 and changed["etag"] != headers["etag"] and "Loss" in body


def test_drawing_leaves_the_processor_to_the_run(tmp_path: Path) -> None:
    write(tmp_path, "history.jsonl", rows(0, 5))
    board = Board(tmp_path, share=1e-9)
    first = board.page()
    write(tmp_path, "history.jsonl", rows(0, 9))
    assert board.page() is first


def test_a_port_that_is_taken_is_named_and_the_default_goes_on(tmp_path: Path) -> None:
    with Server(Board(tmp_path)) as one, Server(Board(tmp_path)) as other:
        assert one.port != other.port
        with pytest.raises(ConfigError, match=rf"port {one.port} cannot be served on: .*--port"):
            Server(Board(tmp_path), port=one.port)


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no run folder"):
        Board(tmp_path / "none")


def test_a_folder_that_is_empty_or_vanishes_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert "Not begun" in words(draw(folder))
    write(folder, "command.json", {"command": "search", "arguments": ["search", "--out", "a b"]})
    assert "archgrad search --out 'a b'" in words(draw(folder))
    (folder / "command.json").unlink()
    folder.rmdir()
    assert "There is no run folder" in words(draw(folder))


def test_a_run_that_goes_on_tells_phase_step_time_figures_and_notes(tmp_path: Path) -> None:
    write(tmp_path, "run.json", run_json())
    write(tmp_path, "history.jsonl", rows(0, 20))
    checkpoint(tmp_path, phase="search", steps=40, notes=["<b>careful"])
    with held(tmp_path):
        html = draw(tmp_path)
    fetches_nothing(html, read(html))
    shown = words(html)
    for told in (
        *("Running", "Begun 2026-01-02 03:04:05 UTC", "phase search", "step 20 of 40", "time in loops 9.5 s"),
        "time left in this phase about 10.0 s",
        *("loss 0.1", "expected macs 38,100", "<b>careful", "Loss", "highest at the end: conv 0.69"),
        *("limit on MACs: at most 25,000", "archgrad.unas with Run(seed=3", "archgrad 0.1.0"),
    ):
        assert told in shown, told
    assert 'value="500"' in html and "Before and after" not in shown
    assert "Expected cost against the limit" in shown


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def test_a_folder_of_runs_shows_all_of_them_and_writes_nothing(tmp_path: Path) -> None:
    finished(tmp_path / "old" / "b", evil=EVIL)
    tried = [{"phase": "search", "step": k, "tried/lower": 1 / (k + 1), "tried/macs": 1e4 + k} for k in range(5)]
    for name, history in (("a", rows(0, 20)), ("c", tried)):
        write(tmp_path / name, "run.json", run_json())
        write(tmp_path / name, "history.jsonl", history)
        checkpoint(tmp_path / name, phase="search", steps=40, notes=[])
    with held(tmp_path / "a"):
        before = _contents(tmp_path)
        html = Board(tmp_path).page().body.decode()
        assert _contents(tmp_path) == before
    fetches_nothing(html, read(html))
    shown = words(html)
    for told in ("1 running, 3 in all", "a: unas: Running", "old/b", "time left in this phase about 10.0 s"):
        assert told in shown, told
    assert shown.index("a: unas: Running") < shown.index("old/b: ")
    # The front as far as the search has come: a lower score at each higher cost.
    assert "Score against macs" in shown and "5 networks tried, 5 of them beaten by none in both" in shown
    board = Board(tmp_path, share=1e9)
    tag = board.page().tag
    assert board.page().tag == tag
    write(tmp_path / "a", "history.jsonl", rows(0, 21))
    assert board.page().tag != tag, "curves grow"


@pytest.mark.parametrize("part", ["score", "limit", "fronts", "before", "notes", "method"])
@pytest.mark.parametrize("value", ["acc", 3, [3], {"name": 3, "cost": [1]}, True])
def test_a_strange_record_leaves_the_other_runs_their_page(tmp_path: Path, part: str, value: object) -> None:
    finished(tmp_path / "strange")
    record = json.loads((tmp_path / "strange" / "record.json").read_text())
    (tmp_path / "strange" / "record.json").write_text(json.dumps({**record, part: value}))
    write(tmp_path / "other", "run.json", run_json())
    assert "2 in all" in words(draw(tmp_path))


def test_a_front_fills_while_a_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path, "run.json", run_json())
    tried = [{"phase": "search", "step": k, "tried/higher": 0.5, "tried/macs": 1e4 - k} for k in range(3)]
    write(tmp_path, "history.jsonl", tried)
    assert "3 networks tried, 1 of them beaten by none in both" in words(draw(tmp_path))


def test_a_run_that_was_killed_is_told_from_one_that_goes_on(tmp_path: Path) -> None:
    write(tmp_path, "run.json", run_json())
    write(tmp_path, "history.jsonl", [{"phase": "search", "step": 3}])
    for lock in (None, "", "not a number", f"{2**40}", "999999999"):
        if lock is not None:
            write(tmp_path, "lock", lock)
        shown = words(draw(tmp_path))
        assert "Stopped" in shown and "Run the same program to go on" in shown
    write(tmp_path, "command.json", {"arguments": ["search"]})
    assert f"To go on: archgrad resume {tmp_path}" in words(draw(tmp_path))
    board = Board(tmp_path, share=1e9)
    with held(tmp_path):
        assert "Running" in words(board.page().body.decode())
    assert "Stopped" in words(board.page().body.decode())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("record.json", '{"after": ', "record.json is damaged"),
        ("record.json", '{"after": 3}', "damaged at after"),
        ("record.json", '{"fronts": [{}], "title": "T"}', "damaged at fronts"),
        ("record.json", "[]", "no JSON object"),
        ("run.json", "{", "run.json is damaged"),
        ("run.json", '{"identity": 3, "made_with": [], "status": "running"}', "Start it again in another folder"),
        ("command.json", "\x00", "command.json is damaged"),
        ("history.jsonl", '{"step": 1, "loss": 2}\n{"ste\n3\n{"step": 2, "loss": 1}\n{"step": 3, "lo', "2 lines are"),
        ("history.jsonl", '{"step": "x", "phase": 3, "time": "y", "loss": 2}\n' * 3, "Stopped"),
        ("history.jsonl", "[" * 100_000 + "\n", "1 line is damaged"),
    ],
)
def test_what_is_damaged_is_told_and_the_rest_is_shown(tmp_path: Path, name: str, content: str, told: str) -> None:
    write(tmp_path, "run.json", run_json())
    write(tmp_path, "history.jsonl", rows(0, 3))
    write(tmp_path, name, content)
    html = draw(tmp_path)
    assert told in words(html)
    assert "Loss" in words(html) or "[[[" in content


def test_a_stranger_can_be_read_by_nothing_but_words(tmp_path: Path) -> None:
    html = draw(finished(tmp_path, evil=EVIL))
    reader = read(html)
    fetches_nothing(html, reader)
    assert "img" not in reader.tags and "{{7*7}}" in words(html)
    for one in reader.spots:
        assert all(isinstance(spot[3], str) for spot in json.loads(one))
    assert any("</script>" in one for one in reader.spots)
    # The command is one of archgrad's, and quoted.
    assert "archgrad search --method 'unas</script>" in words(html)


def test_a_run_of_a_stranger_that_goes_on(tmp_path: Path) -> None:
    write(tmp_path, "run.json", run_json(evil=EVIL))
    write(tmp_path, "history.jsonl", rows(0, 3, name=EVIL))
    checkpoint(tmp_path, phase=f"search{EVIL}", steps=40, notes=[EVIL])
    html = draw(tmp_path)
    fetches_nothing(html, read(html))


def checkpoint(folder: Path, *, phase: str, steps: int, notes: list[str]) -> None:
    """The header of a checkpoint, as `archgrad.run.checkpoint_file.save` writes it."""
    state = ["dict", ["phase", phase], ["limit", steps], ["notes", ["list", *notes]]]
    header = json.dumps({"__metadata__": {"state": json.dumps(state)}}).encode()
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "0000-x-0.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_the_newest_checkpoint_is_read_as_it_is_saved(tmp_path: Path) -> None:
    from archgrad.run.checkpoint_file import save

    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "0001-search-0000000007.safetensors"
    state = {"phase": "search", "limit": 12, "step": 7, "progress": 0.5, "notes": ["one", "two"]}
    save(path, state | {"seconds": float("inf")})
    assert newest_checkpoint(tmp_path) == Checkpoint("search", 7, 12, 0.5, ("one", "two"))
    for damaged in (path.read_bytes()[:20], b"", b"\xff" * 64, struct.pack("<Q", 2) + b"[]"):
        path.write_bytes(damaged)
        assert newest_checkpoint(tmp_path) == Checkpoint("search")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00 min"), (605, "10:05 min"), (3723, "1:02:03 h")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_the_board_and_the_comparison_never_load_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    finished(tmp_path / "a"), finished(tmp_path / "b")
    script = (
        "import sys\nfrom pathlib import Path\nfrom archgrad.cli import app\n"
        "from archgrad.cli.commands import report as pages\n"
        "from archgrad.report import board\n"
        f"folder = Path({str(tmp_path)!r}); board.draw(folder / 'a'); pages.draw_report(folder / 'a')\n"
        "pages.compare_runs([folder / 'a', folder / 'b'], folder / 'c.html')\n"
        "assert not {'torch', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr

"""A run's page, or one of all runs below a folder, served to this machine's browser and drawn anew as they go on.

Only 127.0.0.1 is listened on, and only the page's own address is answered: nothing of a request names a file. A
request with another host in its header is refused, so that no page from elsewhere can read this one by a name that
it points here.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from archgrad.errors import ConfigError, RunError
from archgrad.report import html, numbers, page, text
from archgrad.report.charts import curves, pareto
from archgrad.report.data.live_status import provisional, status
from archgrad.report.data.run_folder import Folder, is_run, present, runs_below, stamp
from archgrad.report.data.run_format import is_running

PORT = 6174
ADDRESS = "127.0.0.1"
_TRIED = 20
_POLL_MS = 2000
# Drawing may take this share of the time, so that the run keeps its processor.
_SHARE = 0.1
# Of a folder of runs: how many are drawn, with how many curves, and how much of each history is read.
_MOST_RUNS, _MOST_CURVES, _TAIL = 12, 2, 4 * 2**20
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Drawn(NamedTuple):
    """A page and the tag that tells it from others."""

    body: bytes
    tag: str


class Board:
    """The page of a folder, drawn again when a file has changed, and at most as often as drawing is cheap.

    Args:
        path: the run's folder, or one that runs are in.
        poll_ms: how often the page asks whether it has changed.
        share: of the time that drawing may take.

    Raises:
        RunError: there is no such folder.
    """

    def __init__(self, path: Path, *, poll_ms: int = _POLL_MS, share: float = _SHARE) -> None:
        present(path)
        self.path, self._poll_ms, self._share = path, poll_ms, share
        self._lock = threading.Lock()
        self._stamp: object = None
        self._due = 0.0
        self._drawn: Drawn | None = None

    def page(self) -> Drawn:
        """The page as it is now."""
        with self._lock:
            if self._drawn is None or time.monotonic() >= self._due:
                self._refresh()
            assert self._drawn is not None
            return self._drawn

    def _refresh(self) -> None:
        # A run that is killed changes no file.
        began = time.monotonic()
        runs = list(runs_below(self.path)) or [self.path]
        now = [(path, stamp(path), is_running(path)) for path in runs]
        if now == self._stamp and self._drawn is not None:
            return
        body = draw(self.path, poll_ms=self._poll_ms).encode("utf-8", errors="replace")
        self._drawn = Drawn(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        self._stamp = now
        ended = time.monotonic()
        self._due = ended + (ended - began) / self._share


def draw(path: Path, *, poll_ms: int = _POLL_MS) -> str:
    """The page of a run in any state, or of the runs below a folder; it says what is damaged."""
    if not is_run(path) and (below := list(runs_below(path))):
        return _overview(path, below, poll_ms=poll_ms)
    try:
        folder = present(path)
    except RunError as error:
        folder = Folder(path, problems=(str(error),))
    record = folder.record or provisional(folder)
    try:
        return _page(folder, record, status(folder), poll_ms=poll_ms)
    except RunError as error:
        # The record is of a stranger, or half of it: the curves are still worth showing.
        now = status(folder, more=[str(error)])
        return _page(folder, {"title": path.resolve().name}, now, poll_ms=poll_ms)


def _overview(path: Path, below: Sequence[Path], *, poll_ms: int) -> str:
    """All runs below a folder, those that go on first, each with its state and the curves that tell most."""
    newest = sorted(below, key=_last_write, reverse=True)
    folders = [(one, present(one, tail=_TAIL)) for one in newest[:_MOST_RUNS]]
    folders.sort(key=lambda pair: pair[1].state != "running")
    runs = [_side(one, folder, path, place) for place, (one, folder) in enumerate(folders)]
    going = sum(folder.state == "running" for _, folder in folders)
    context = {
        "title": f"Runs in {path.resolve().name}",
        "about": f"{going} running, {len(below)} in all",
        "state": "running" if going else "stopped",
        "runs": runs,
        "left_out": len(below) - len(runs),
    }
    return html.render("board.html.jinja", context, live=poll_ms)


def _side(path: Path, folder: Folder, root: Path, place: int) -> dict[str, Any]:
    record, more = folder.record or provisional(folder), []
    try:
        text.check(record)
        shown = curves.charts(folder.history, record.get("limit"), score=numbers.score(record))[:_MOST_CURVES]
        drawn = [*pareto.charts(record)[:1], *(one for one in shown if len(one.spots) > 1)]
    except RunError as error:
        drawn, more = [], [str(error)]
    return {
        "id": f"run-{place}",
        "name": str(path.relative_to(root)),
        "method": str(record.get("method") or ""),
        "now": status(folder, more=more),
        "charts": html.figures(drawn, f"run {place}"),
    }


def _last_write(path: Path) -> int:
    return max((changed for _, changed, _ in stamp(path)), default=0)


def _page(folder: Folder, record: Mapping[str, Any], now: Mapping[str, Any], *, poll_ms: int) -> str:
    return page.page(record, folder.history, run=folder.run, command=folder.command, now=now, live=poll_ms)


class Server(ThreadingHTTPServer):
    """Serves one board on this machine's own address.

    Raises:
        ConfigError: the port, or with None every port that is tried, is taken or not to be had.
    """

    daemon_threads = True
    # Of the parent, which would let a second board take the port of one that is served.
    allow_reuse_port = False

    def __init__(self, board: Board, *, port: int | None = None) -> None:
        self.board = board
        for number in [port] if port is not None else range(PORT, PORT + _TRIED):
            try:
                super().__init__((ADDRESS, number), _Handler)
            except (OSError, OverflowError) as error:
                problem = error
            else:
                break
        else:
            given = f"port {port}" if port is not None else f"no port from {PORT} to {PORT + _TRIED - 1}"
            raise ConfigError(f"{given} cannot be served on: {problem}. Give another, 1024 to 65535, with --port")
        self.port = int(self.server_address[1])
        self.url = f"http://{ADDRESS}:{self.port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong; a browser that goes away in the middle of an answer is no fault."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "archgrad", ""
    timeout = 30

    def do_GET(self) -> None:
        if self.headers.get("Host") not in {f"{name}:{self.server.port}" for name in (ADDRESS, "localhost")}:
            return self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        if self.path != "/":
            return self._refuse(HTTPStatus.NOT_FOUND)
        drawn = self.server.board.page()
        same = self.headers.get("If-None-Match") == drawn.tag
        return self._answer(
            HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK, b"" if same else drawn.body, drawn.tag
        )

    do_HEAD = do_GET

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._answer(status, f"{status.phrase}\n".encode(), None)

    def _answer(self, status: HTTPStatus, body: bytes, tag: str | None) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", html.served_policy())
        if tag:
            self.send_header("ETag", tag)
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing is logged: the terminal is the run's."""

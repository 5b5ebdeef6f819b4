"""A web server for tests that answers wrongly when it is told to: 503, cut bodies, silence, no ranges."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What it can be told to do with a GET: answer with a status, or with this.
CUT, DROP, SILENT, WHOLE, SHORT, DRIP = "cut", "drop", "silent", "whole", "short", "drip"


class FaultyServer:
    """Serves `files` by path at :attr:`url`, with ranges, ETags and listings; :attr:`faults` are for its next answers.

    ``faults[path]`` is a queue: an HTTP status, :data:`CUT` (the connection ends in mid-body), :data:`DROP` (before
    the headers), :data:`SILENT` (nothing until the server stops), :data:`DRIP` (a byte now and then), :data:`WHOLE`
    (ranges are ignored), :data:`SHORT` (a well-formed answer that lacks its last byte), or a barrier, at which it waits
    before it answers. ``always[path]`` is the same for every answer, and :attr:`everything` for those to any question.
    :attr:`asked` has each GET: path and range; :attr:`questions` counts all questions.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, deque[int | str | threading.Barrier]] = defaultdict(deque)
        self.always: dict[str, int | str] = {}
        self.everything: int | str | None = None
        self.questions = 0
        self.asked: list[tuple[str, str | None]] = []
        self.stopping = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self, body=True)

            def do_HEAD(self) -> None:
                server.answer(self, body=False)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path, wanted = request.path, request.headers.get("Range")
        fault: int | str | threading.Barrier | None = self.everything or self.always.get(path)
        self.questions += 1
        if body:
            self.asked.append((path, wanted))
            if self.faults[path]:
                fault = self.faults[path].popleft()
        if isinstance(fault, threading.Barrier):
            fault.wait(timeout=60)
        if fault == SILENT:
            self.stopping.wait()
        if fault in (DROP, SILENT):
            request.close_connection = True
            return
        if isinstance(fault, int):
            return self._send(request, fault, b"", body)
        if path not in self.files:
            if path.endswith("/") and any(name.startswith(path) for name in self.files):
                return self._send(request, 200, self._listing(path), body, type="text/html")
            return self._send(request, 404, b"", body)
        content, status, extra = self.files[path], 200, {}
        if wanted is not None and fault != WHOLE:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(content)), len(content) - 1)
            if begin >= len(content):
                return self._send(request, 416, b"", body)
            extra["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        extra["ETag"] = f'"{hashlib.md5(self.files[path]).hexdigest()}"'
        if fault == SHORT:
            content = content[:-1]
        if fault == DRIP and body:
            return self._drip(request, content)
        self._send(request, status, content, body, cut=fault == CUT, **extra)

    def _drip(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        request.send_response(206)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        with suppress(OSError):
            for k in range(len(content)):
                request.wfile.write(content[k : k + 1])
                if self.stopping.wait(0.01):
                    break
        request.close_connection = True

    def _listing(self, path: str) -> bytes:
        below = {name[len(path) :] for name in self.files if name.startswith(path)}
        names = sorted({head + slash for head, slash, _ in (name.partition("/") for name in below)})
        return "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        body: bool,
        cut: bool = False,
        **headers: str,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header("Content-Type" if name == "type" else name, value)
        request.end_headers()
        if body:
            request.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            request.close_connection = True


@contextmanager
def faulty_server(files: dict[str, bytes]) -> Iterator[FaultyServer]:
    server = FaultyServer(files)
    try:
        yield server
    finally:
        server.stop()

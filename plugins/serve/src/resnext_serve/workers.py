"""Several processes that serve at one socket: started, watched, replaced when they die, ended together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

from resnext_core.console.program import run_program
from resnext_core.errors import EXIT_OK
from resnext_core.ranks.children import exit_code, forwarding, how_it_ended, say_error
from resnext_core.ranks.parent import when_parent_ends
from resnext_serve.server import run
from resnext_serve.settings import ServeSettings

_CONTEXT = multiprocessing.get_context("spawn")
#: Seconds between the death of a worker and the start of another.
_PAUSE_S = 1.0


def run_workers(settings: ServeSettings, sock: socket.socket, ready: Callable[[], None]) -> int:
    """Serve with ``settings.workers`` processes until a signal; `ready` is called when all are ready.

    Returns 0, or the exit code of a worker that ended before it was ready: it would do so again.
    """
    with tempfile.TemporaryDirectory(prefix="resnext-serve-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            group = _Group(settings, sock)
            with forwarding(group.end):
                return group.wait(ready)
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


class _Worker:
    def __init__(self, settings: ServeSettings, sock: socket.socket) -> None:
        self.channel, theirs = _CONTEXT.Pipe(duplex=False)
        self.process: SpawnProcess = _CONTEXT.Process(
            target=_work, args=(settings, sock, theirs, os.getpid())
        )
        self.ready = False
        self.process.start()
        theirs.close()

    def send(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class _Group:
    def __init__(self, settings: ServeSettings, sock: socket.socket) -> None:
        self._settings, self._sock = settings, sock
        self._ending, self._code = False, EXIT_OK
        self._workers = [_Worker(settings, sock) for _ in range(settings.workers)]

    def end(self, number: int) -> None:
        """Tell all workers to end; a second SIGINT is passed on as it is."""
        for worker in self._workers:
            worker.send(number if self._ending else signal.SIGTERM)
        self._ending = True

    def wait(self, ready: Callable[[], None]) -> int:
        announced = False
        while self._workers:
            waited: list[Connection | int] = [worker.process.sentinel for worker in self._workers]
            waited += [worker.channel for worker in self._workers if not worker.ready]
            wait(waited, timeout=1.0)
            for worker in list(self._workers):
                if not worker.ready and worker.channel.poll():
                    with contextlib.suppress(EOFError):
                        worker.ready = bool(worker.channel.recv())
                if worker.process.exitcode is not None:
                    self._ended(worker)
            if not announced and all(worker.ready for worker in self._workers) and not self._ending:
                announced = True
                ready()
        return self._code

    def _ended(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.join()
        code = worker.process.exitcode or 0
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
        if self._ending:
            return
        if not worker.ready:
            self._code = exit_code(code) or 1
            self.end(signal.SIGTERM)
            return
        say_error(f"resnext-serve: a worker {how_it_ended(code)}; starting another")
        time.sleep(_PAUSE_S)
        self._workers.append(_Worker(self._settings, self._sock))


def _work(settings: ServeSettings, sock: socket.socket, channel: Connection, parent: int) -> None:
    """Be one worker; ends when its parent does, however that ends."""
    when_parent_ends(parent, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def serve() -> int:
        run(settings, sock, lambda service: channel.send(True))
        return EXIT_OK

    sys.exit(run_program("resnext-run", serve))

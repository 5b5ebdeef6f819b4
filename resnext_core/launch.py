"""Core's own launcher: N local processes of one module, watched until all are done or one has failed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from resnext_core.distributed import LAUNCHER
from resnext_core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNAVAILABLE, DataError, UsageError

if TYPE_CHECKING:
    from resnext_core.interfaces import LaunchRequest

#: Seconds between SIGTERM and SIGKILL for ranks that outlive a failed one; below the promised 30.
GRACE_S = 20.0
#: Seconds to wait for the real culprit when the first rank to end only says that it lost another.
CULPRIT_S = 2.0
#: Lines of the failing rank's log that are repeated on the terminal.
TAIL_LINES = 20
_POLL_S = 0.05
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


def launch_local(request: LaunchRequest) -> int:
    """Run ``python -m module *argv`` in `request.devices` processes on this machine and wait for them all.

    Each gets RESNEXT_RANK, RESNEXT_WORLD_SIZE, RESNEXT_LOCAL_RANK, RESNEXT_MASTER, RESNEXT_JOB and its
    share of the processors (OMP_NUM_THREADS, unless the user set it). Output is appended to
    ``log_dir/rank-<n>.log``; rank 0's also goes to the terminal. SIGTERM, SIGINT and SIGHUP are passed on to
    the ranks and waited for. When a rank fails, it is named on standard error with its last lines and the
    others are stopped (SIGTERM, after 20 s SIGKILL).

    Returns 0, or the exit code of the first rank that failed (128 + n when signal n killed it).
    Raises UsageError for fewer than one device, DataError when a log cannot be written.
    """
    if request.devices < 1:
        raise UsageError(f"cannot start {request.devices} processes; --devices must be 1 or more")
    group = _Group(request)
    try:
        with _forwarding(group):
            return group.wait()
    finally:
        group.kill()


class _Group:
    """The processes of one launch."""

    def __init__(self, request: LaunchRequest) -> None:
        self.interrupted = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pumps: list[threading.Thread] = []
        self._logs: list[Path] = []
        self._offsets: list[int] = []
        try:
            for rank in range(request.devices):
                self._logs.append(request.log_dir / f"rank-{rank}.log")
            shared = _shared_environment(request.devices)
            for rank, log in enumerate(self._logs):
                self._start(request, rank, log, shared)
        except OSError as error:
            self.kill()
            raise DataError(
                f"cannot start the ranks: {error.filename or ''} {error.strerror or error}"
            ) from error

    def _start(self, request: LaunchRequest, rank: int, log: Path, shared: dict[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("ab", buffering=0)  # appended to: an earlier run's log is evidence
        self._offsets.append(stream.tell())
        mirrored = rank == 0
        process = subprocess.Popen(
            [sys.executable, "-m", request.module, *request.argv],
            env={**os.environ, **shared, "RESNEXT_RANK": str(rank), "RESNEXT_LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if mirrored else stream,
            stderr=subprocess.PIPE if mirrored else subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C reaches a rank once, through us
        )
        self._processes.append(process)
        if not mirrored:
            stream.close()
            return
        for source, terminal in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            pump = threading.Thread(target=_pump, args=(source, stream, terminal), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def wait(self) -> int:
        """Return the exit code of the launch once no process is left."""
        failed = self._first_failure()
        if failed is None:
            self._drain()
            return EXIT_OK
        rank, code = failed
        if code == EXIT_INTERRUPTED and self.interrupted:  # all were told; let them save
            for process in self._processes:
                process.wait()
        else:
            self._stop_others()
            self._drain()
            self._report(rank)
        self._drain()
        return code

    def _first_failure(self) -> tuple[int, int] | None:
        """Return rank and exit code of the rank that failed first, or None when all ended well.

        A rank that lost another one exits with EXIT_UNAVAILABLE, perhaps before the other is quite dead: it
        is only blamed when nobody else fails within CULPRIT_S.
        """
        deadline = None
        while True:
            codes = [process.poll() for process in self._processes]
            failures = [(rank, exit_code(code)) for rank, code in enumerate(codes) if code]
            culprits = [failure for failure in failures if failure[1] != EXIT_UNAVAILABLE]
            if culprits:
                return culprits[0]
            if failures:
                deadline = deadline or time.monotonic() + CULPRIT_S
                if time.monotonic() > deadline or None not in codes:
                    return failures[0]
            elif None not in codes:
                return None
            time.sleep(_POLL_S)

    def _stop_others(self) -> None:
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(p.poll() is None for p in self._processes):
            time.sleep(_POLL_S)
        self.kill()

    def _report(self, rank: int) -> None:
        how = how_it_ended(self._processes[rank].returncode)
        log = self._logs[rank]
        with log.open("rb") as stream:
            stream.seek(self._offsets[rank])
            lines = stream.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        shown = "".join(f"  {line}\n" for line in lines)
        print(
            f"rank {rank} of {len(self._processes)} {how}; the others were stopped; log: {log}",
            file=sys.stderr,
        )
        print(
            f"last lines of rank {rank}:\n{shown}" if shown else f"rank {rank} wrote nothing", file=sys.stderr
        )

    def signal(self, number: int) -> None:
        """Pass a signal on to every process that still runs."""
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def kill(self) -> None:
        """End every process that still runs, and whatever it started."""
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _drain(self) -> None:
        for pump in self._pumps:
            pump.join(timeout=5)  # a grandchild may hold the pipe open for ever


def _pump(source: IO[bytes], log: IO[bytes], terminal: IO[str]) -> None:
    """Copy a stream to the terminal as it comes and to the log in whole lines, which two streams share.

    A closed terminal does not stop the log.
    """
    pending = b""
    while block := source.read1(1 << 16):  # type: ignore[attr-defined]
        pending += block
        whole = pending.rfind(b"\n") + 1 or (len(pending) if len(pending) > 1 << 16 else 0)
        log.write(pending[:whole])
        pending = pending[whole:]
        with contextlib.suppress(OSError, ValueError):
            if hasattr(terminal, "buffer"):
                terminal.buffer.write(block)
            else:
                terminal.write(block.decode(errors="replace"))
            terminal.flush()
    log.write(pending)


@contextlib.contextmanager
def _forwarding(group: _Group) -> Iterator[None]:
    """Pass signals on to the ranks; only the main thread of a process can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _frame: object) -> None:
        group.interrupted = True
        group.signal(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _shared_environment(devices: int) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return {
        "RESNEXT_WORLD_SIZE": str(devices),
        "RESNEXT_MASTER": f"127.0.0.1:{port}",
        "RESNEXT_JOB": secrets.token_hex(8),
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(_processors() // devices, 1)),
        "PYTHONUNBUFFERED": "1",  # what a rank says last must reach its log
    }


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def how_it_ended(returncode: int) -> str:
    """Return what to say of a rank by :attr:`subprocess.Popen.returncode`, to follow its name."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in list(signal.Signals) else f"signal {-returncode}"
    hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def exit_code(returncode: int) -> int:
    """Return what a shell would: :attr:`subprocess.Popen.returncode`, or 128 + n when signal n killed it."""
    return returncode if returncode > 0 else 128 - returncode

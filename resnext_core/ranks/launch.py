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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from resnext_core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNAVAILABLE,
    BackendUnavailable,
    DataError,
    UsageError,
    reason,
)
from resnext_core.files import make_folder
from resnext_core.files.scratch import Scratch
from resnext_core.ranks.children import (
    END,
    copy_output,
    exit_code,
    forwarding,
    how_it_ended,
    kill,
    noted_end,
    say_error,
    send_signal,
)
from resnext_core.ranks.info import LAUNCHER

if TYPE_CHECKING:
    from resnext_core.interfaces import LaunchRequest

#: Seconds between SIGTERM and SIGKILL for ranks that outlive a failed one; below the promised 30.
GRACE_S = 20.0
#: Seconds that the others have to save after a rank that ended in good order though nobody told us to stop.
ORDERLY_S = 120.0
#: Seconds to wait for the real culprit when the first rank to end may only have lost another.
CULPRIT_S = 2.0
#: How a rank ends that lost another: it says so, or the collectives' own threads abort it.
_LOST_ANOTHER = (EXIT_UNAVAILABLE, -signal.SIGABRT)
#: Lines of the failing rank's log that are repeated on the terminal.
TAIL_LINES = 20
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A process beside the ranks, without which they are lost: a module, and the environment it gets besides.

    It should end when they have left it.
    """

    name: str
    module: str
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks of one launch among all of a job, for backends whose ranks meet in a way of their own.

    The job has `world` ranks, those here begin with `first`. `environment` gives what a rank gets besides, by its place
    on this machine, and `started` learns its process id. `suspect` is asked all the time; once it names a rank and what
    is wrong with it, the job is ended. `grace` are seconds between SIGTERM and SIGKILL (default: 20). Lines that begin
    with `noise` stay in the logs.
    """

    world: int
    environment: Callable[[int], Mapping[str, str]]
    first: int = 0
    companion: Companion | None = None
    started: Callable[[int, int], None] = lambda local, process_id: None
    suspect: Callable[[], tuple[int, str] | None] = lambda: None
    grace: float | None = None
    noise: str | None = None


def launch_local(request: LaunchRequest, group: Group | None = None) -> int:
    """Run ``python -m module *argv`` in `request.devices` processes on this machine and wait for them all.

    Without `group` these are all ranks of the job, and each gets RESNEXT_RANK, RESNEXT_WORLD_SIZE, RESNEXT_LOCAL_RANK,
    RESNEXT_MASTER and RESNEXT_JOB. Each gets its share of the processors (OMP_NUM_THREADS, unless the user set it).
    Output is appended to ``log_dir/rank-<n>.log``; the first one's also goes to the terminal. SIGTERM, SIGINT and
    SIGHUP are passed on to the ranks and waited for, unless they are ignored. When a rank fails, it is named on
    standard error with its last lines and the others are stopped (SIGTERM, after 20 s SIGKILL).

    Returns 0, or the exit code of the first rank that failed (128 + n when signal n killed it), or 4 when one hangs. A
    rank that notes its exit code in the file RESNEXT_END, as resnext-run does, is believed whatever kills it then.
    Raises UsageError for fewer than one device, DataError when a log cannot be written.
    """
    if request.devices < 1:
        raise UsageError(f"cannot start {request.devices} processes; --devices must be 1 or more")
    job = _Job(request, group or _meeting_at_a_port(request.devices))
    try:
        with forwarding(job.interrupt):
            return job.wait()
    finally:
        job.kill()


class _End(NamedTuple):
    """How a job ended badly: its exit code, what to say of whom, and the name of the log that tells more."""

    code: int
    who: str
    how: str
    log: str


class _Job:
    """The processes of one launch: the ranks in their order, and their companion."""

    def __init__(self, request: LaunchRequest, group: Group) -> None:
        self._interrupted = False
        self._group, self._folder = group, request.log_dir
        self._grace = GRACE_S if group.grace is None else group.grace
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._companion: subprocess.Popen[bytes] | None = None
        self._pumps: list[threading.Thread] = []
        self._offsets: dict[str, int] = {}
        self._cleanup = contextlib.ExitStack()
        shared = _shared_environment(request.devices)
        try:
            make_folder(self._folder)
            self._ends = self._cleanup.enter_context(Scratch("ends", self._folder))
            if group.companion is not None:
                with self._open(group.companion.name) as log:
                    environment = {**shared, **group.companion.environment}
                    self._companion = _start([group.companion.module], environment, log)
            for local in range(request.devices):
                self._start_rank(local, [request.module, *request.argv], shared)
        except OSError as error:
            self.kill()
            raise DataError(f"cannot start the ranks: {error.filename or ''} {reason(error)}") from error

    def _start_rank(self, local: int, words: list[str], shared: Mapping[str, str]) -> None:
        environment = {**shared, **self._group.environment(local), END: str(self._noted(local))}
        log = self._open(f"rank-{self._group.first + local}")
        if local > 0:
            with log:
                self._ranks.append(_start(words, environment, log))
        else:
            process = _start(words, environment)
            self._ranks.append(process)
            for source, terminal in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                assert source is not None
                pump = threading.Thread(
                    target=copy_output, args=(source, log, terminal, self._group.noise), daemon=True
                )
                pump.start()
                self._pumps.append(pump)
        self._group.started(local, self._ranks[local].pid)

    def _open(self, name: str) -> IO[bytes]:
        stream = self._log(name).open("ab", buffering=0)  # appended to: an earlier run's log is evidence
        self._offsets[name] = stream.tell()
        return stream

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def wait(self) -> int:
        """Return the exit code of the launch once no rank is left."""
        end = self._end()
        if end is not None and end.code == EXIT_INTERRUPTED:  # the others are saving too
            self._wait(None if self._interrupted else ORDERLY_S)
            end = self._culprit() or end
        self._stop()
        self._drain()
        if end is None or end.code == EXIT_INTERRUPTED:
            self._leave_companion()
        else:
            self._report(end)
        return EXIT_OK if end is None else end.code

    def _end(self) -> _End | None:
        """Wait; return None when all ended well, or what ended first, or has to be ended.

        A rank that lost another one may end before the other is quite dead: it is only blamed when nobody else
        fails within CULPRIT_S.
        """
        deadline = None
        while True:
            codes = [self._code(local) for local in range(len(self._ranks))]
            failures = [(local, code) for local, code in enumerate(codes) if code]
            culprits = [failure for failure in failures if failure[1] not in _LOST_ANOTHER]
            if culprits:
                return self._failure(*culprits[0])
            if failures:
                deadline = deadline or time.monotonic() + CULPRIT_S
                if time.monotonic() > deadline or None not in codes:
                    return self._failure(*failures[0])
            elif None not in codes:
                return None
            else:
                end = self._broken()
                if end is not None:
                    return end
            time.sleep(_POLL_S)

    def _culprit(self) -> _End | None:
        """Return how the rank ended for whose failure the others have stopped in good order, if there is one."""
        for local in range(len(self._ranks)):
            code = self._code(local)
            if code is not None and code > 0 and code not in (EXIT_INTERRUPTED, EXIT_UNAVAILABLE):
                return self._failure(local, code)
        return None

    def _code(self, local: int) -> int | None:
        """Return how a rank ended, as :attr:`subprocess.Popen.returncode`; what it noted counts before a signal."""
        code = self._ranks[local].poll()
        if code is None or code >= 0:
            return code
        noted = noted_end(self._noted(local))
        return code if noted is None else noted

    def _noted(self, local: int) -> Path:
        return self._ends / str(local)

    def _failure(self, local: int, returncode: int) -> _End:
        return self._blame(self._group.first + local, exit_code(returncode), how_it_ended(returncode))

    def _blame(self, rank: int, code: int, how: str) -> _End:
        return _End(code, f"rank {rank} of {self._group.world}", how, f"rank-{rank}")

    def _broken(self) -> _End | None:
        """Return why a job has to be ended whose ranks all run or ended well, if it has."""
        returncode = None if self._companion is None else self._companion.poll()
        if returncode and self._group.companion is not None:
            name = self._group.companion.name
            return _End(EXIT_UNAVAILABLE, f"the {name}", how_it_ended(returncode), name)
        suspect = self._group.suspect()
        return None if suspect is None else self._blame(suspect[0], EXIT_UNAVAILABLE, suspect[1])

    def _wait(self, seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        while any(p.poll() is None for p in self._ranks) and (
            deadline is None or time.monotonic() < deadline
        ):
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        """End the ranks that still run."""
        self._signal(signal.SIGTERM)
        self._wait(self._grace)
        for process in self._ranks:
            kill(process)

    def _leave_companion(self) -> None:
        """Let the companion end by itself where ranks on other machines may still have to take leave of it."""
        if self._companion is not None and self._group.world > len(self._ranks):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._companion.wait(timeout=GRACE_S)

    def _report(self, end: _End) -> None:
        log = self._log(end.log)
        with log.open("rb") as stream:
            stream.seek(self._offsets[end.log])
            lines = stream.read().decode(errors="replace").splitlines()
        if self._group.noise is not None:
            lines = [line for line in lines if not line.startswith(self._group.noise)]
        shown = "".join(f"  {line}\n" for line in lines[-TAIL_LINES:])
        say_error(f"{end.who} {end.how}; the others were stopped; log: {log}")
        say_error(f"its last lines:\n{shown}" if shown else "it wrote nothing")

    def interrupt(self, number: int) -> None:
        """Pass a signal on to every rank that still runs."""
        self._interrupted = True
        self._signal(number)

    def _signal(self, number: int) -> None:
        for process in self._ranks:
            send_signal(process, number)

    def kill(self) -> None:
        """End every process that still runs, and whatever it started."""
        for process in (*self._ranks, *([] if self._companion is None else [self._companion])):
            kill(process)
        self._cleanup.close()

    def _drain(self) -> None:
        for pump in self._pumps:
            pump.join(timeout=5)  # a grandchild may hold the pipe open for ever


def _start(
    words: list[str], environment: Mapping[str, str], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a module with its output going to `log`, or to two pipes without."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log or subprocess.PIPE,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C reaches a rank once, through us
    )


def free_port() -> int:
    """Return a port of this machine that is free now, where its ranks may meet.

    It is below those that systems give to connections (from 32768 on Linux), which would soon take it.
    Raises BackendUnavailable when there is none.
    """
    for _ in range(100):
        port = 16384 + secrets.randbelow(16384)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise BackendUnavailable("no free port on 127.0.0.1 for the ranks to meet at")


def _meeting_at_a_port(devices: int) -> Group:
    """Return the group whose ranks core's own collectives join."""
    shared = {
        "RESNEXT_WORLD_SIZE": str(devices),
        "RESNEXT_MASTER": f"127.0.0.1:{free_port()}",
        "RESNEXT_JOB": secrets.token_hex(8),
    }
    return Group(
        world=devices,
        environment=lambda local: {**shared, "RESNEXT_RANK": str(local), "RESNEXT_LOCAL_RANK": str(local)},
    )


def _shared_environment(devices: int) -> dict[str, str]:
    return {
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(_processors() // devices, 1)),
        "PYTHONUNBUFFERED": "1",  # what a rank says last must reach its log
    }


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

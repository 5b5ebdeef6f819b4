"""Several MindSpore processes on one machine, started, watched and ended together.

The ranks get the environment that msrun gives (a "dynamic cluster": one scheduler, N workers). msrun itself is
not used because it loses the exit code of the ranks, leaves them running when it is asked to stop, and
kills a rank that is still saving as soon as another has exited.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TextIO

from resnext_core.distributed import LAUNCHER
from resnext_core.errors import EXIT_INTERRUPTED, EXIT_UNAVAILABLE, UsageError
from resnext_core.interfaces import LaunchRequest
from resnext_core.launch import exit_code, how_it_ended
from resnext_mindspore.device import cores

#: Seconds that the other ranks have to end by themselves: after a failure, and after an orderly stop.
_GRACE_FAILED, _GRACE_STOPPED = 5.0, 120.0
_POLL = 0.1


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks of one launch among all of a job, for backends whose devices are not the only ones.

    The job has `world` ranks, those here begin with `first`. `environment` is what all processes share besides;
    with ``MS_SCHED_HOST`` in it they are a dynamic cluster, whose scheduler runs here where `scheduler` says so.
    `own` gives the environment of a rank by its place on this machine, and `started` learns its process id.
    `suspect` is asked all the time; once it names a rank and what is wrong with it, the job is ended.
    """

    world: int
    first: int = 0
    scheduler: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    own: Callable[[int], Mapping[str, str]] = lambda local: {}
    started: Callable[[int, int], None] = lambda local, process_id: None
    suspect: Callable[[], tuple[int, str] | None] = lambda: None


def launch(request: LaunchRequest, *, cluster_timeout: int, group: Group | None = None) -> int:
    """Run `request.devices` ranks to their end and return the exit code of the first that failed, or 0.

    Rank r writes to ``rank-<r>.log`` in `request.log_dir`, the first one to the terminal too, the scheduler to
    ``scheduler.log``. When a rank fails the others are ended at once, and its last lines go to standard
    error. SIGTERM and SIGINT are passed on to the ranks, which may save before they exit. `cluster_timeout`
    is how long the ranks wait for each other, in seconds. Without `group` these are all ranks of the job.
    """
    if request.devices < 1:
        raise UsageError(f"the number of devices must be 1 or more, not {request.devices}")
    request.log_dir.mkdir(parents=True, exist_ok=True)
    if group is None:
        group = Group(world=request.devices, environment=local_cluster(request.devices, cluster_timeout))
    shared = _shared(group, request.devices)
    ranks: list[subprocess.Popen[bytes]] = []
    scheduler = None
    command = [sys.executable, "-m", request.module, *request.argv]
    logs = [_log(request.log_dir, group.first + local) for local in range(request.devices)]
    if group.scheduler:
        with (request.log_dir / "scheduler.log").open("wb") as log:
            scheduling = [sys.executable, "-m", "resnext_mindspore.scheduler"]
            own = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0", "DEVICE_ID": "0"}
            scheduler = _start(scheduling, {**shared, **own}, log)
    try:
        for local, path in enumerate(logs):
            rank = str(group.first + local)
            own = {"RANK_ID": rank, "DEVICE_ID": str(local)}
            if "MS_SCHED_HOST" in shared:
                own |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank}
            with path.open("wb") as log:
                process = _start(
                    command, {**shared, **own, **group.own(local)}, subprocess.PIPE if local == 0 else log
                )
            ranks.append(process)
            group.started(local, process.pid)
        pumps = [
            threading.Thread(target=_tee, args=(source, logs[0], terminal), daemon=True)
            for source, terminal in ((ranks[0].stdout, sys.stdout), (ranks[0].stderr, sys.stderr))
        ]
        for pump in pumps:
            pump.start()
        with _forwarded(ranks):
            code = _watch(ranks, scheduler, request.log_dir, group)
        for pump in pumps:
            pump.join(timeout=5)
        return code
    finally:
        for process in ranks if scheduler is None else (*ranks, scheduler):
            _kill(process)


def local_cluster(world: int, timeout: int) -> dict[str, str]:
    """Return the environment of a dynamic cluster that meets on this machine, at a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return cluster(world, timeout, "127.0.0.1", port)


def cluster(world: int, timeout: int, host: str, port: int) -> dict[str, str]:
    """Return the environment of a dynamic cluster that meets at `host`:`port`."""
    return {
        "MS_WORKER_NUM": str(world),
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": str(timeout),
    }


def _shared(group: Group, here: int) -> dict[str, str]:
    """Return the environment that all processes of a launch share."""
    return {
        "OMP_NUM_THREADS": str(max(1, cores() // here)),
        **os.environ,
        "RANK_SIZE": str(group.world),
        LAUNCHER: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        **group.environment,
    }


def _start(
    command: list[str], environment: Mapping[str, str], output: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if output == subprocess.PIPE else subprocess.STDOUT,
        start_new_session=True,  # a Ctrl+C reaches the ranks once, from here
    )


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def _tee(source: IO[bytes], path: Path, terminal: TextIO) -> None:
    """Copy one stream of rank 0 to its file and to the terminal as it comes.

    Output and errors stay apart on the terminal: a --json result is alone on standard output, whatever
    MindSpore logs.
    """
    with path.open("ab") as file:
        while block := source.read1(1 << 16):  # type: ignore[attr-defined]
            file.write(block)
            file.flush()
            terminal.buffer.write(block)
            terminal.flush()


@contextmanager
def _forwarded(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on to the ranks for the length of the block."""

    def forward(number: int, _: object) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may install handlers; the one who has it decides
        return
    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _watch(
    ranks: list[subprocess.Popen[bytes]],
    scheduler: subprocess.Popen[bytes] | None,
    log_dir: Path,
    group: Group,
) -> int:
    """Wait for all ranks; on the first failure end the others. Returns the exit code of the job."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((r for r, code in enumerate(codes) if code not in (None, 0)), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        if scheduler is not None and scheduler.poll() not in (None, 0):
            print(f"the scheduler failed: see {log_dir / 'scheduler.log'}", file=sys.stderr)
            _end(ranks, _GRACE_FAILED)
            return EXIT_UNAVAILABLE
        suspect = group.suspect()
        if suspect is not None:
            rank, reason = suspect
            _blame(rank, reason, log_dir)
            _end(ranks, _GRACE_FAILED)
            return EXIT_UNAVAILABLE
        time.sleep(_POLL)
    code = codes[failed]
    assert code is not None
    if code == EXIT_INTERRUPTED:  # an orderly stop: the others are saving too
        _wait(ranks, _GRACE_STOPPED)
    else:
        _blame(group.first + failed, how_it_ended(code), log_dir)
    _end(ranks, _GRACE_FAILED)
    return exit_code(code)


def _blame(rank: int, reason: str, log_dir: Path) -> None:
    tail = _tail(_log(log_dir, rank))
    wrote = f"Its last lines:\n{tail}" if tail else "It wrote nothing.\n"
    print(f"rank {rank} {reason}; stopping the others. {wrote}", end="", file=sys.stderr)


def _wait(ranks: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(_POLL)


def _end(ranks: list[subprocess.Popen[bytes]], grace: float) -> None:
    """Ask what still runs to stop, then kill it: a rank inside a collective cannot hear."""
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    _wait(ranks, grace)
    for process in ranks:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` with its children, where it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(path: Path, count: int = 15) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    # What the communication threads say when any process ends, whatever its log level, is no diagnosis.
    lines = [line for line in text.splitlines() if not line.startswith("[INFO] DISTRIBUTED(")]
    return "".join(f"  {line}\n" for line in lines[-count:])

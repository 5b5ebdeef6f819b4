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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from resnext_core.distributed import LAUNCHER
from resnext_core.errors import EXIT_INTERRUPTED, EXIT_UNAVAILABLE, UsageError
from resnext_core.interfaces import LaunchRequest
from resnext_mindspore.device import cores

#: Seconds that the other ranks have to end by themselves: after a failure, and after an orderly stop.
_GRACE_FAILED, _GRACE_STOPPED = 5.0, 120.0
_POLL = 0.1


def launch(request: LaunchRequest, *, cluster_timeout: int) -> int:
    """Run `request.devices` ranks to their end and return the exit code of the first that failed, or 0.

    Rank r writes to ``rank-<r>.log`` in `request.log_dir`, rank 0 to the terminal too, the scheduler to
    ``scheduler.log``. When a rank fails the others are ended at once, and its last lines go to standard
    error. SIGTERM and SIGINT are passed on to the ranks, which may save before they exit. `cluster_timeout`
    is how long the ranks wait for each other, in seconds.
    """
    if request.devices < 1:
        raise UsageError(f"the number of devices must be 1 or more, not {request.devices}")
    request.log_dir.mkdir(parents=True, exist_ok=True)
    shared = _cluster(request.devices, cluster_timeout)
    ranks: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", request.module, *request.argv]
    with (request.log_dir / "scheduler.log").open("wb") as log:
        scheduler = _start([sys.executable, "-m", "resnext_mindspore.scheduler"], shared, "MS_SCHED", 0, log)
    try:
        for rank in range(request.devices):
            with _log(request.log_dir, rank).open("wb") as log:
                ranks.append(
                    _start(command, shared, "MS_WORKER", rank, subprocess.PIPE if rank == 0 else log)
                )
        pumps = [
            threading.Thread(target=_tee, args=(source, _log(request.log_dir, 0), terminal), daemon=True)
            for source, terminal in ((ranks[0].stdout, sys.stdout), (ranks[0].stderr, sys.stderr))
        ]
        for pump in pumps:
            pump.start()
        with _forwarded(ranks):
            code = _watch(ranks, scheduler, request.log_dir)
        for pump in pumps:
            pump.join(timeout=5)
        return code
    finally:
        for process in (*ranks, scheduler):
            _kill(process)


def _cluster(world: int, timeout: int) -> dict[str, str]:
    """Return the environment that all processes of a cluster share."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(max(1, cores() // world))
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "MS_WORKER_NUM": str(world),
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": str(timeout),
        "RANK_SIZE": str(world),
        LAUNCHER: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }


def _start(
    command: list[str], shared: Mapping[str, str], role: str, rank: int, output: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    own = {"MS_ROLE": role, "RANK_ID": str(rank), "DEVICE_ID": str(rank)}
    if role == "MS_WORKER":
        own["MS_NODE_ID"] = str(rank)
    return subprocess.Popen(
        command,
        env={**shared, **own},
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


def _watch(ranks: list[subprocess.Popen[bytes]], scheduler: subprocess.Popen[bytes], log_dir: Path) -> int:
    """Wait for all ranks; on the first failure end the others. Returns the exit code of the job."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((r for r, code in enumerate(codes) if code not in (None, 0)), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        if scheduler.poll() not in (None, 0):
            print(f"the scheduler failed: see {log_dir / 'scheduler.log'}", file=sys.stderr)
            _end(ranks, _GRACE_FAILED)
            return EXIT_UNAVAILABLE
        time.sleep(_POLL)
    code = codes[failed]
    assert code is not None
    code = code if code > 0 else 128 - code
    if code == EXIT_INTERRUPTED:  # an orderly stop: the others are saving too
        _wait(ranks, _GRACE_STOPPED)
    else:
        print(
            f"rank {failed} ended with exit code {code}; stopping the others. Its last lines:",
            file=sys.stderr,
        )
        sys.stderr.write(_tail(_log(log_dir, failed)))
    _end(ranks, _GRACE_FAILED)
    return code


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

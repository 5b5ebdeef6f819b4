"""A process group with a time limit: ended with all it started, what it printed kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds before its limit in which a process may still say what it knows, after SIGINT; at most a fifth of the limit.
GRACE = 6.0
#: Of these, seconds for its threads' tracebacks, after SIGABRT (PYTHONFAULTHANDLER).
_LAST = 1.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a part ended: its exit `code`, negative for a signal, and whether its time was `up`."""

    code: int
    seconds: float
    up: bool = False
    why: str = ""


def run(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, seconds: float, mark: str
) -> Ended:
    """Run a command, its output going to the end of `log`; whatever carries `mark` in its environment ends with it."""
    began = time.monotonic()
    grace = min(GRACE, seconds / 5)
    process = None
    try:
        with log.open("ab") as out:
            process = subprocess.Popen(
                list(words), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        up = not _ended(process, began + seconds - grace)
        if up:
            _send(process, signal.SIGINT, group=False)
            if not _ended(process, began + seconds - min(_LAST, grace / 2)):
                _send(process, signal.SIGABRT, group=True)
                _ended(process, began + seconds)
    except OSError as error:
        return Ended(code=127, seconds=time.monotonic() - began, why=str(error))
    finally:
        if process is not None:
            _send(process, signal.SIGKILL, group=True)
        end_marked(mark)
    code = process.wait() if _ended(process, time.monotonic() + 5) else -signal.SIGKILL
    return Ended(code=code, seconds=time.monotonic() - began, up=up)


def _ended(process: subprocess.Popen[bytes], until: float) -> bool:
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _send(process: subprocess.Popen[bytes], number: int, *, group: bool) -> None:
    """Signal a process, or its group, of which some may live on after it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            os.kill(process.pid, number)


def end_marked(mark: str) -> None:
    """Kill the processes with ``GPU_DAY=mark`` in their environment: ranks have groups of their own."""
    wanted = f"GPU_DAY={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)

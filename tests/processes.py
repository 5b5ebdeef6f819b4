"""Other processes in tests: waiting for them, and for what they do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def eventually(condition: Callable[[], bool], seconds: float = 300.0) -> bool:
    """Wait until `condition` holds, at most so long; returns whether it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    """True while a process runs; one that only waits for its end to be noticed does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def data_workers() -> list[int]:
    """Return the ids of the worker processes of :mod:`resnext_core.data.pool` that this process has."""
    children = psutil.Process().children()
    return [child.pid for child in children if "resnext_core.data.worker" in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def holds(pid: int, target: Path) -> bool:
    """True while a process has the file `target` open."""
    with contextlib.suppress(OSError):
        return any(os.readlink(link) == str(target) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """Wait for a process; return its exit code and what it wrote to standard error."""
    try:
        _, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, err

"""Other processes in a backend's own tests: what an import costs, and jobs that are told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from resnext_core.errors import EXIT_INTERRUPTED


def job_environment(*unwanted: str, **changes: str) -> dict[str, str]:
    """Return this process's environment for a fresh job: without the variables of a launch, and with `changes`.

    `unwanted` are beginnings of more names to leave out.
    """
    launch = ("RANK", "WORLD_SIZE", "RESNEXT_", *unwanted)
    return {name: value for name, value in os.environ.items() if not name.startswith(launch)} | changes


def imported_by(code: str, modules: Iterable[str]) -> list[str]:
    """Return which of `modules` a fresh process has imported after `code`."""
    script = f"{code}\nimport sys; print(*(m for m in {list(modules)!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def stop_when_ready(code: str, folder: Path, ranks: int, seconds: float = 300) -> None:
    """Run `code` with `folder` as its argument, and send it SIGTERM once `ranks` files ``ready-*`` are there.

    It must end as interrupted, with a file ``saved-<rank>`` of every rank.
    """
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], start_new_session=True)
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(list(folder.glob("ready-*"))) < ranks:
            assert process.poll() is None, "the job ended before it was told to"
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=seconds) == EXIT_INTERRUPTED
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert sorted(p.name for p in folder.glob("saved-*")) == [f"saved-{rank}" for rank in range(ranks)]

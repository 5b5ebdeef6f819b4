"""A process for each row of ``bench all``: it is asked, stopped while others run, and ended when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from resnext_core.errors import ResnextError, shown
from resnext_core.jobs.bench_worker import Work
from resnext_core.ranks.children import how_it_ended, kill

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from resnext_core.jobs.bench_worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
#: Characters of what a process printed last that stand in its reason.
_MOST = 300
#: Processes are stopped where the system ends them with their parent, stopped or not.
_STOPS = sys.platform == "linux"


class ContenderFailed(ResnextError):
    """A row cannot be timed; the message says why, in one line."""


class Contender:
    """A process that does one `job` of :mod:`resnext_core.jobs.bench_worker`; what it prints goes to the file `log`.

    Between answers the process is stopped (SIGSTOP, on Linux), so that threads that wait for work in a loop take no
    time from others. It ends with this process, however that ends. What it started itself is not stopped: nobody would
    let it go on where this process is killed.
    """

    def __init__(self, job: Work, log: Path, environment: Mapping[str, str]) -> None:
        self._job, self._log, self._stopped = job, log, False
        self._link, theirs = Pipe()
        words = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        try:
            with log.open("wb") as stream:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, *words],
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(),),
                    env={**os.environ, **environment},
                    start_new_session=True,  # signals of the terminal go to the parent alone
                )  # fmt: skip
        finally:
            theirs.close()

    @property
    def label(self) -> str:
        """What the process times or writes."""
        return self._job.label

    def start(self, limit_s: float) -> dict[str, Any]:
        """Hand over the job and return the first answer; see :meth:`ask`."""
        return self.ask({"work": self._job}, limit_s)

    def ask(self, message: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a message and return the answer, for which there are `limit_s` seconds.

        ContenderFailed where there is none in that time, where it is an error, and where the process ended: it has
        ended then.
        """
        self._signal("SIGCONT")
        deadline = time.monotonic() + limit_s
        try:
            self._link.send(message)
            while not self._link.poll(max(0.0, min(1.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    self.close()
                    raise ContenderFailed(f"no answer within {limit_s:g} s, so it was ended (--limit)")
            answer: dict[str, Any] = self._link.recv()
        except (EOFError, OSError) as error:
            raise ContenderFailed(self._end()) from error
        if "error" in answer:
            self.close()
            raise ContenderFailed(answer["error"])
        self._signal("SIGSTOP")
        return answer

    def close(self) -> None:
        """End the process and whatever it started in its session."""
        kill(self._process)
        self._link.close()

    def _end(self) -> str:
        """Return how the process ended by itself, and what it printed last."""
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # its end of the pipe may close a little before it ends
            self._process.wait(timeout=10)
        code = self._process.poll()
        self.close()
        lines = self._log.read_text(errors="replace").split("\n") if self._log.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = f": {shown(last, _MOST)}" if last else ""
        return f"its process {'closed its pipe' if code is None else how_it_ended(code)}{said}"

    def _signal(self, name: str) -> None:
        stop = name == "SIGSTOP"
        if not _STOPS or stop == self._stopped or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, getattr(signal, name))
        self._stopped = stop

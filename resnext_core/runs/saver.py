"""Saving beside the training: one checkpoint at a time in a thread, its errors raised when the loop asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from resnext_core.runs.checkpoint_folder import Summary

#: Writes a checkpoint; gets the seconds that training stood still for it.
Write = Callable[[float], Summary]


class Saver:
    """Runs what it is given in a thread (`background`) or at once, and calls `done` with each checkpoint written.

    `done` is called by the thread that calls a method, never by the saver's own. At most one checkpoint is being
    written: a second :meth:`save` waits for the first. An error in the background is raised by the next call of any
    method.

    A context manager: leaving it waits for the checkpoint in flight, also after an error, whose place it does
    not take. KeyboardInterrupt (a second signal) alone does not wait; what is half written then is swept up later.
    """

    def __init__(self, done: Callable[[Summary], None], *, background: bool) -> None:
        self._done, self._background = done, background
        self._thread: threading.Thread | None = None
        self._result: Summary | None = None
        self._error: BaseException | None = None
        self._reported = True
        #: True when the last checkpoint could not be written.
        self.failed = False

    def save(self, write: Write, *, since: float, report: bool = True) -> None:
        """Have `write` called; `since` is when (``perf_counter``) the training stopped for it.

        Without `report` the checkpoint is not reported: it will be written again, complete.
        """
        self.wait()
        blocked_s = time.perf_counter() - since
        self._reported = report
        if not self._background:
            self._run(write, blocked_s)
            self._report()
            return
        self._thread = threading.Thread(
            target=self._run, args=(write, blocked_s), name="resnext-saver", daemon=True
        )
        self._thread.start()

    def report_written(self) -> None:
        """Report a checkpoint that is written by now, raise the error of one that failed; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint in flight, and report it or raise its error."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self._report()

    def _report(self) -> None:
        """Report the checkpoint that was written, or raise the error of one that could not be."""
        error, result = self._error, self._result
        self._error = self._result = None
        self.failed = error is not None
        if error is not None:
            raise error
        if result is not None and self._reported:
            self._done(result)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif not isinstance(error, KeyboardInterrupt) and self._thread is not None:
            self._thread.join()

    def _run(self, write: Write, blocked_s: float) -> None:
        try:
            self._result = write(blocked_s)
        except BaseException as error:
            self._error = error

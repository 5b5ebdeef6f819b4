"""SIGTERM and SIGINT as a request to stop after the current step; the second one stops at once.

A rank whose launcher is gone stops too, as if it had been told.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

from resnext_core.errors import EXIT_INTERRUPTED
from resnext_core.ranks.info import LAUNCHER
from resnext_core.ranks.parent import when_parent_ends


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets :attr:`requested`."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


#: Seconds until a rank that does not stop by itself is ended.
_PATIENCE_S = 25.0


def follow_launcher(environ: Mapping[str, str]) -> None:
    """End this rank when its launcher dies, also by ``kill -9``: SIGTERM, so that it saves, then the hard way.

    Does nothing in a process that no launcher started.
    """
    launcher = environ.get(LAUNCHER, "")
    if launcher.isdecimal() and int(launcher) == os.getppid():
        when_parent_ends(int(launcher), _stop)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os._exit(EXIT_INTERRUPTED)

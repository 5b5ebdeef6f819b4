"""Decoders for tests of the loader, in a module of their own: reader processes import them by name."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.content import Content
from resnext_core.data.pillow import PillowDecoder
from resnext_core.data.plan import Plan
from resnext_core.extensions import READY, Decoder, NotSupported
from resnext_core.model.preprocess import PreprocessSpec


class Threaded(PillowDecoder):
    """Pillow, as a decoder whose readers are threads."""


class Unsure(PillowDecoder):
    """Leaves every second image to Pillow, after it has written into the array and remarked on it."""

    def training(
        self,
        content: Content,
        name: str,
        draw: Callable[[int, int], Plan],
        out: NDArray[np.uint8],
        remarks: list[str],
    ) -> None:
        if len(content) % 2:
            draw(10, 10)
            out[...] = 77
            remarks.append("a remark on an image that it does not read")
            raise NotSupported
        super().training(content, name, draw, out, remarks)


class Deadly(PillowDecoder):
    """Ends its process at a file that begins with ``deadly``; the first time, while another thread is at an image.

    Until `mark` says that this has happened, other images wait. `alone` is made where nobody was beside it later.
    """

    def __init__(self, mark: Path, alone: Path) -> None:
        self._mark, self._alone = mark, alone
        self._beside = threading.Semaphore(0)

    def evaluation(
        self,
        content: Content,
        name: str,
        spec: PreprocessSpec,
        out: NDArray[np.uint8],
        remarks: list[str],
    ) -> None:
        if content[:6] == b"deadly":
            if not self._mark.exists():
                self._beside.acquire()
                self._mark.touch()
            elif not self._beside.acquire(blocking=False):
                self._alone.touch()
            # To this thread, as the processor sends it: sent to the process, it lets this thread run on for a while.
            signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
        elif not self._mark.exists():
            self._beside.release()
            threading.Event().wait()  # until this process has died
        super().evaluation(content, name, spec, out, remarks)


def unopened() -> PillowDecoder:
    """Fail as a library that is gone."""
    raise OSError("its library is gone")


def threaded(open: Callable[[], PillowDecoder] = Threaded) -> Decoder:
    """Return the record of a decoder with threads."""
    return Decoder(name="odd", summary="for tests", probe=lambda: READY, open=open, threads=True)


class Busy(PillowDecoder):
    """Never comes back from its first image; `there` has a file for each thread that is in it."""

    def __init__(self, there: Path) -> None:
        self._there = there

    def evaluation(
        self,
        content: Content,
        name: str,
        spec: PreprocessSpec,
        out: NDArray[np.uint8],
        remarks: list[str],
    ) -> None:
        (self._there / f"{os.getpid()}-{threading.get_native_id()}").touch()
        ctypes.CDLL(None).pause()  # in native code, without Python's lock

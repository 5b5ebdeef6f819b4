"""Standard output and error of the command line: what is written is escaped, and what cannot be written is told."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO, cast

from resnext_core.errors import escaped_character, reason

#: What could move the cursor, change colours or the direction of text, or is no character: all but tab and line end.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class StreamError(OSError):
    """Standard output cannot be written: closed, a pipe that nobody reads, a full disk."""


def printable(text: str) -> str:
    """Return `text`, of one line or several, with everything escaped that a terminal would act on."""
    return _UNSAFE.sub(lambda match: escaped_character(match[0]), text)


def raw(stream: IO[str]) -> IO[str]:
    """Return the stream below a guarded one: for what draws on a terminal."""
    _Guarded.used = True
    return cast(IO[str], getattr(stream, "raw_stream", stream))


def silence(stream: IO[str]) -> None:
    """Have what is still buffered for a stream that takes no more, and all that follows, go nowhere."""
    if isinstance(stream, _Guarded):
        stream.ignore_failures()
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def hold_standard_streams() -> None:
    """Open what of standard input, output and error is closed, on nothing.

    Else the next file gets that number, and a library or a child process takes it for its output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Escape what is printed in the block; failures of standard output are StreamError, those of error are ignored."""
    hold_standard_streams()
    before = sys.stdout, sys.stderr
    for stream in before:  # a character that the encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _Guarded.used = False
    sys.stdout = cast(TextIO, _Guarded(before[0], "standard output"))
    sys.stderr = cast(TextIO, _Guarded(before[1], None))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


#: Seconds before a start that takes longer is announced.
_PATIENCE_S = 0.8
#: What was announced already: a framework is imported once.
_announced: set[str] = set()


@contextmanager
def starting(what: str, *, first: bool = False) -> Iterator[None]:
    """Say that `what` is starting where the block takes longer than a moment: once, on a terminal's standard error.

    With `first` only where nothing has been printed or drawn before. Only programs of this command line say so; nothing
    is printed into a pipe or a file, or in other programs.
    """
    stream = sys.stderr
    if not isinstance(stream, _Guarded) or what in _announced or not stream.isatty():
        yield
        return

    def announce() -> None:
        if not (first and _Guarded.used):
            _announced.add(what)
            stream.write(f"starting {what} ...\n")
            stream.flush()

    timer = threading.Timer(_PATIENCE_S, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Guarded(io.TextIOBase):
    """A text stream over another; without `name` its failures are ignored, and None stands for a closed one.

    `used` is True once anything was written to one of them, or drawn below.
    """

    used = False

    def __init__(self, stream: TextIO | None, name: str | None) -> None:
        self.raw_stream, self._name = stream, name
        self._failure: StreamError | None = None

    def write(self, text: str) -> int:
        _Guarded.used = True
        self._do("write", printable(text))
        return len(text)

    def flush(self) -> None:
        if self._failure is not None:  # argparse passes over the failure of a write
            raise self._failure
        if self.raw_stream is not None:
            self._do("flush")

    def ignore_failures(self) -> None:
        """Fail no more."""
        self._name = self._failure = None

    def isatty(self) -> bool:
        return self.raw_stream is not None and self.raw_stream.isatty()

    def fileno(self) -> int:
        if self.raw_stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self.raw_stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.raw_stream, "encoding", None) or "utf-8"

    @property
    def buffer(self) -> Any:
        """The bytes below, unescaped; AttributeError where there are none."""
        return cast(Any, self.raw_stream).buffer

    def _do(self, method: str, *words: str) -> None:
        try:
            if self.raw_stream is None:
                raise OSError(errno.EBADF, "it is closed")
            getattr(self.raw_stream, method)(*words)
        except OSError as error:
            if self._name is not None:
                self._failure = StreamError(error.errno, f"cannot write {self._name}: {reason(error)}")
                raise self._failure from error

"""Child processes that are waited for: their output copied, signals passed on, their end put into words."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from resnext_core.errors import reason
from resnext_core.terminal import silence

#: Environment variable with the file in which a rank notes how it ends.
END = "RESNEXT_END"
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


def note_end(code: int) -> None:
    """Note the exit code of this process where its launcher wants to know it.

    For what comes after: a framework may crash while it is torn down, and all is saved by then.
    """
    path = os.environ.get(END)
    if path is not None:
        with contextlib.suppress(OSError):
            Path(path).write_text(str(code), encoding="ascii")


def noted_end(path: Path) -> int | None:
    """Return the exit code that was noted in a file, None where there is none."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def forwarding(send: Callable[[int], None]) -> Iterator[None]:
    """Call `send` with SIGTERM, SIGINT and SIGHUP for the length of the block; in the main thread, others cannot.

    The children should have sessions of their own, so that the terminal's Ctrl-C reaches them once. A signal that
    this process ignores stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]  # nohup, outliving_terminal
    previous = {number: signal.signal(number, lambda n, _: send(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def send_signal(process: subprocess.Popen[Any], number: int) -> None:
    """Send a signal to `process` where it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def kill(process: subprocess.Popen[Any]) -> None:
    """End `process`, where it still runs, and whatever it started in its session."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def copy_output(source: IO[bytes], log: IO[bytes], terminal: IO[str], noise: str | None = None) -> None:
    """Copy a stream to the terminal as it comes and to the log in whole lines, which two streams share.

    Lines that begin with `noise` do not reach the terminal. Neither a terminal nor a log that takes no more stops the
    other, nor the process that writes the stream.
    """
    pending, failed = b"", False
    while block := source.read1(1 << 16):  # type: ignore[attr-defined]
        pending += block
        whole = pending.rfind(b"\n") + 1 or (len(pending) if len(pending) > 1 << 16 else 0)
        lines, pending = pending[:whole], pending[whole:]
        failed = _keep(lines, log, terminal, failed)
        _show(block if noise is None else _without(lines, noise), terminal)
    _keep(pending, log, terminal, failed)
    if noise is not None:
        _show(_without(pending, noise), terminal)


def say_error(text: str) -> None:
    """Print a line on standard error, if anybody is there to read it."""
    _show(f"{text}\n".encode(errors="backslashreplace"), sys.stderr)


@contextlib.contextmanager
def outliving_terminal() -> Iterator[None]:
    """Ignore SIGHUP, which a terminal that closes sends, for the length of the block; children inherit that."""
    number = getattr(signal, "SIGHUP", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    if before is signal.SIG_DFL:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _keep(lines: bytes, log: IO[bytes], terminal: IO[str], failed: bool) -> bool:
    """Add lines to a log and return whether that fails; said once on the terminal."""
    try:
        while lines:
            lines = lines[log.write(lines) :]
    except OSError as error:
        if not failed:
            _show(f"cannot write {log.name}: {reason(error)}; continuing without it\n".encode(), terminal)
        return True
    return failed


def _without(lines: bytes, noise: str) -> bytes:
    return b"".join(line for line in lines.splitlines(keepends=True) if not line.startswith(noise.encode()))


def _show(block: bytes, terminal: IO[str]) -> None:
    try:
        if hasattr(terminal, "buffer"):
            terminal.buffer.write(block)
        else:
            terminal.write(block.decode(errors="replace"))
        terminal.flush()
    except (OSError, ValueError):
        silence(terminal)


def how_it_ended(returncode: int) -> str:
    """Return what to say of a process by :attr:`subprocess.Popen.returncode`, to follow its name."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = (
        signal.Signals(-returncode).name if -returncode in list(signal.Signals) else f"signal {-returncode}"
    )
    hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def exit_code(returncode: int) -> int:
    """Return what a shell would: :attr:`subprocess.Popen.returncode`, or 128 + n when signal n killed it."""
    return returncode if returncode >= 0 else 128 - returncode

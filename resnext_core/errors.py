"""Expected failures: each prints as one line and carries the exit code of the process."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Mapping, Set

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_UNAVAILABLE = 4
EXIT_INTERRUPTED = 75


class ResnextError(Exception):
    """Base of all expected failures; the message is one line that says what to do."""

    exit_code = EXIT_BUG


class UsageError(ResnextError):
    """Wrong use or configuration (exit 2)."""

    exit_code = EXIT_USAGE


class DataError(ResnextError):
    """Data, weights or verification failed (exit 3)."""

    exit_code = EXIT_DATA


class BackendUnavailable(ResnextError):
    """The backend that was asked for cannot run here (exit 4)."""

    exit_code = EXIT_UNAVAILABLE


class Interrupted(ResnextError):
    """Stopped by a signal after saving; the run can be resumed (exit 75)."""

    exit_code = EXIT_INTERRUPTED


class RanksFailed(ResnextError):
    """Processes that a job had started failed, and have printed why; `exit_code` is theirs."""

    def __init__(self, exit_code: int, logs: str) -> None:
        super().__init__(
            f"the processes of the job ended with exit code {exit_code}; their output is in {logs}"
        )
        self.exit_code = exit_code


#: Characters of a user's value that a message quotes.
MOST_SHOWN = 80


def shown(value: object, most: int | None = MOST_SHOWN) -> str:
    """Return a user's value as it may stand in a message or on a terminal: one line, printable, not long.

    Text, bytes and paths stand as they are, other values as Python writes them. Control characters, line ends and
    characters that change the direction of text become escapes like ``\\x1b``; a byte of a file name that is not
    UTF-8 becomes one like ``\\xe9``. What is longer than `most` characters is cut and ends in ``...``; None cuts
    nothing. A value of any size or depth costs little time and memory, unless `most` is None and it is text.
    """
    text = os.fsdecode(value) if isinstance(value, (str, bytes, os.PathLike)) else _bounded_repr(value)
    if most is not None and len(text) > most:
        text, end = text[:most], "..."
    else:
        end = ""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else escaped_character(c) for c in text)
    if most is not None and len(text) > most:  # by its escapes
        text, end = text[:most], "..."
    return text + end


def quoted(value: object, most: int | None = MOST_SHOWN) -> str:
    """Return :func:`shown`, with text between single quotes: the place of ``{value!r}`` in a message."""
    return f"'{shown(value, most)}'" if isinstance(value, (str, bytes, os.PathLike)) else shown(value, most)


def counted(count: float, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: ``1 image``, ``2.5 epochs``; `plural` where an s at the end does not make it."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}"


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return the message of `error` in one line of at most `most` characters, or its type where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def reason(error: BaseException) -> str:
    """Return why `error` happened, without the file name that an OSError repeats; other errors in one line."""
    return getattr(error, "strerror", None) or one_line(error)


def escaped_character(character: str) -> str:
    """Return a character as an escape like ``\\x1b``; a surrogate of a file name as the byte it stands for."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def _bounded_repr(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print more than 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (Mapping, Set, list, tuple)):
        return _REPR.repr(value)
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


class _Repr(reprlib.Repr):
    """Values in values: a few of each, three levels down."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, MOST_SHOWN, MOST_SHOWN
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else _bounded_repr(x)


_REPR = _Repr()


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `known`, or the list of all of them.

    The only one that begins with `word` is the closest. The result is meant to be appended to an error message. Of a
    long list only the first names are told.
    """
    names = sorted(known)
    # a long word is near to none, and comparing it takes time by the square of its length
    close = [name for name in names if word and name.startswith(word)]
    if len(close) != 1:
        close = difflib.get_close_matches(word, names, n=1, cutoff=0.6) if len(word) <= 200 else []
    if close:
        return f"; did you mean '{shown(close[0])}'?"
    more = f", ... ({len(names)} in all)" if len(names) > _MOST_NAMES else ""
    return f"; known: {', '.join(map(shown, names[:_MOST_NAMES]))}{more}" if names else ""


#: Names that a message lists.
_MOST_NAMES = 40

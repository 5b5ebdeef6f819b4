"""Expected failures: each prints as one line and carries the exit code of the process."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `known`, or the list of all of them.

    The result is meant to be appended to an error message.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""

"""Programs with a command line: their parser, and their end as one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from resnext_core.console.advice import advice, is_unknown
from resnext_core.errors import (
    EXIT_DATA,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    RanksFailed,
    ResnextError,
    UsageError,
    shown,
)
from resnext_core.plugins import load_plugins
from resnext_core.ranks.signals import follow_launcher
from resnext_core.terminal import StreamError, guarded_streams, silence


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageError, with advice on unknown flags.

    `settable` are the config keys that ``--set`` takes, by how they begin.
    """

    settable: tuple[str, ...] = ("",)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{shown(message, 1000)} (see {self.prog} --help)")  # it quotes what was given

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        if self._subparsers is None:  # before argparse complains of what a misspelt flag did not give
            self._refuse_unknown(args or ())
        namespace, rest = super().parse_known_args(args, namespace)
        self._refuse_unknown(rest)
        return namespace, rest

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        for word in itertools.takewhile(lambda w: w != "--", words):
            if is_unknown(word, self._option_string_actions):
                flags = [
                    flag
                    for flag, action in self._option_string_actions.items()
                    if flag.startswith("--") and action.help != argparse.SUPPRESS
                ]
                flag = word.split("=")[0]
                raise UsageError(
                    f"unknown flag '{shown(flag)}'{advice(flag, flags, self._keys())} (see {self.prog} --help)"
                )

    def _keys(self) -> Iterable[str]:
        """Return the config keys that ``--set`` takes here."""
        if "--set" not in self._option_string_actions:
            return ()
        from resnext_core.config import load_config  # with YAML, which --help does not need

        keys = load_config([], load_plugins().option_types())[1]
        return [key for key in keys if key.startswith(self.settable)]


def run_program(name: str, work: Callable[[], int]) -> int:
    """Return the exit code of `work`, with expected failures turned into one line on standard error after `name`."""
    follow_launcher(os.environ)
    with guarded_streams():
        try:
            try:
                return work()
            finally:
                sys.stdout.flush()
        except RanksFailed as error:  # they have said why
            return error.exit_code
        except (ResnextError, KeyboardInterrupt, StreamError, MemoryError, OSError) as error:
            code, message = _expected(error)
            if isinstance(error, StreamError):
                silence(sys.stdout)
            one_line = message.replace("\n", "\\n")
            print(f"{name}: {one_line}", file=sys.stderr)
            return code


def _expected(error: BaseException) -> tuple[int, str]:
    """Return exit code and message of a failure that is no bug; raises any other again."""
    if isinstance(error, ResnextError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "stopped"
    if isinstance(error, StreamError):
        return EXIT_DATA, str(error.strerror)
    if isinstance(error, MemoryError):
        what = f": {error}" if str(error) else ""
        return EXIT_UNAVAILABLE, f"out of memory{what}; free some, or use smaller batches"
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        where = f"{error.filename}: " if error.filename is not None else ""
        return EXIT_DATA, f"{where}{error.strerror}"
    raise error


#: Errors of the operating system that are the machine's state and no bug: full, unreadable, out of descriptors.
_ENVIRONMENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE,
    errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip

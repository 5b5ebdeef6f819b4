"""Run the parts of the day, write what is known after each, print a short table last.

    benchmarks/gpu_day.sh                 the first nine minutes on a card
    benchmarks/gpu_day.sh --second        what comes then
    benchmarks/gpu_day.sh --smoke         all parts on the CPU, tiny: shows that the code runs

Exit code: 0 if every part that ran is right; 2 for wrong use; 3 if one was not; 4 without a GPU, or without a package
that everything needs; 75 if it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gpu_day import place, process
from gpu_day.part import (
    CUT,
    FAILED,
    MISSING,
    NO_TIME,
    STOPPED,
    WRONG,
    Command,
    Context,
    Part,
    Verdict,
)
from gpu_day.parts import FIRST, PARTS, SECOND
from gpu_day.process import Ended

EXIT_OK, EXIT_USAGE, EXIT_WRONG, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 0, 2, 3, 4, 75
#: With the start of the machine and the transfer of the results, under nine minutes.
MINUTES = 8.8
#: Seconds kept for the table.
_PRINTING = 2.0
#: The CPU of a smoke test may be busy with other tests.
_SMOKE_SLOWER = 10
#: Bytes of a log that are kept from its begin and from its end.
_MOST_LOG = 1 << 20
RESULTS, TABLE = "results.json", "table.txt"


class Interrupted(BaseException):
    """A signal asks to end."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"gpu_day: {message}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def main(words: Sequence[str] | None = None) -> int:
    """Run the day; returns the exit code."""
    began = time.monotonic()
    args = _arguments(words)
    if args.list:
        for part in (*FIRST, *SECOND):
            say(f"{part.name:<14}{part.seconds:4.0f} s  {part.what}")
        return EXIT_OK
    if args.pack is not None:
        return place.pack(args.pack, args.names, args.python_version)
    out = args.out or Path(f"gpu_day-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / RESULTS).exists():
            raise FileExistsError(f"{out / RESULTS} already exists")
        (out / RESULTS).write_text("{}\n")
    except OSError as error:
        print(f"gpu_day: cannot write results ({error}); name another folder with --out", file=sys.stderr)
        return EXIT_USAGE
    with contextlib.suppress(ValueError, OSError):  # a child that aborts shall leave a traceback, and no core
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = Path(tempfile.mkdtemp(prefix="gpu_day-"))
    mark = secrets.token_hex(8)
    try:
        return Day(args, out.resolve(), work, mark, began).run()
    finally:
        process.end_marked(mark)
        shutil.rmtree(work, ignore_errors=True)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="gpu_day.sh", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--second", action="store_true", help="the parts of a second run")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="these parts alone; versions is always there"
    )
    parser.add_argument("--list", action="store_true", help="list the parts and the time that each may take")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything (default: {MINUTES})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results (default: gpu_day-DATE)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="use these for what is not installed here")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="where there is a network: download wheels to DIR"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"with --pack (default: {' '.join(place.PACKED)})"
    )
    parser.add_argument(
        "--python-version", default="3.12", help="with --pack: of the GPU machine (default: 3.12)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="all parts on the CPU, tiny: shows that the code runs"
    )
    args = parser.parse_args(words)
    if args.only:
        unknown = [name for name in args.only if name not in PARTS]
        if unknown:
            parser.error(f"unknown part '{unknown[0]}'; --list names them")
    if not 0 < args.minutes < 1e4:
        parser.error("--minutes must be more than 0")
    if args.names and args.pack is None:
        parser.error(f"unrecognized argument '{args.names[0]}'")
    if args.wheels is not None and not args.wheels.is_dir():
        parser.error(f"--wheels: there is no folder {args.wheels}")
    return args


class Day:
    """One run: what to do, until when, and what is known."""

    def __init__(self, args: argparse.Namespace, out: Path, work: Path, mark: str, began: float) -> None:
        self._args, self._out, self._mark, self._began = args, out, mark, began
        self._end = began + 60 * args.minutes - _PRINTING
        self._place = place.prepare(work, args.wheels, mark)
        chosen = (*FIRST, *SECOND) if args.smoke else SECOND if args.second else FIRST
        if args.only:
            chosen = tuple(part for part in (*FIRST, *SECOND) if part.name in args.only)
        self._parts = [FIRST[0], *(part for part in chosen if part is not FIRST[0])]
        self._rows: dict[str, Any] = {}
        self._tables: dict[str, Sequence[str]] = {}

    def run(self) -> int:
        """Run the parts and print the table; returns the exit code."""
        code = EXIT_OK
        with _signals():
            try:
                for line in self._place.notes:
                    say(line)
                lacking = self._place.lacks(
                    dict.fromkeys(name for part in self._parts for name in part.needs)
                )
                if lacking:
                    say(place.how_to_bring(lacking))
                for number, part in enumerate(self._parts):
                    later = sum(min(one.least, one.seconds) for one in self._parts[number + 1 :])
                    self._one(part, later)
                    if number == 0 and self._rows[part.name]["status"] in (
                        WRONG,
                        FAILED,
                    ):  # slow is no reason
                        code = EXIT_UNAVAILABLE
                        break
            except Interrupted as signalled:
                say(f"interrupted ({signalled})")
                code = EXIT_INTERRUPTED
        if code == EXIT_OK and any(row["status"] in (WRONG, FAILED, CUT) for row in self._rows.values()):
            code = EXIT_WRONG
        for part in self._parts:
            if part.name not in self._rows:
                self._put(part, 0.0, Verdict(status=STOPPED, said="not begun"))
        self._write()
        table = "\n".join(self._table())
        (self._out / TABLE).write_text(table + "\n")
        say(table)
        return code

    def _one(self, part: Part, later: float) -> None:
        """Run a part, and write down how it ended; beyond its least, `later` seconds are kept for those after it."""
        most = part.seconds * (_SMOKE_SLOWER if self._args.smoke else 1)
        left = self._end - time.monotonic()
        seconds = min(most, max(left - later, min(part.least, left)))
        lacking = self._place.lacks(part.needs)
        if lacking:
            self._put(part, 0.0, Verdict(status=MISSING, said=f"{', '.join(lacking)} is not installed"))
        elif seconds < min(part.least, part.seconds):
            self._put(
                part, 0.0, Verdict(status=NO_TIME, said=f"{max(left, 0):.0f} s of {part.seconds:.0f} s")
            )
        else:
            self._run(part, seconds)
        self._write()
        row = self._rows[part.name]
        say(f"{time.monotonic() - self._began:6.1f} s  {part.name}: {row['status']}: {row['said']}")

    def _run(self, part: Part, seconds: float) -> None:
        context = Context(
            place=self._place, python=sys.executable, smoke=self._args.smoke, cpus=_cpus(), found=self._rows
        )
        command = part.command(context, seconds)
        if not isinstance(command, Command):
            self._put(part, 0.0, Verdict(status=MISSING, said=command))
            return
        log = self._out / f"{part.log or part.name}.log"
        with log.open("a") as file:
            file.write(f"$ {' '.join(command.words)}\n\n")
            start = file.tell()
        started = time.monotonic()
        try:
            ended = process.run(
                command.words, env=self._place.env | self._smoke_env() | command.env, cwd=self._place.work, log=log,
                seconds=seconds, mark=self._mark,
            )  # fmt: skip
        except Interrupted:
            took = time.monotonic() - started
            verdict = part.judge(
                context, Ended(code=-signal.SIGTERM, seconds=took, up=True), _tail(log, start)
            )
            self._put(part, took, Verdict(status=STOPPED, said=verdict.said, data=verdict.data))
            raise
        try:
            verdict = part.judge(context, ended, _tail(log, start))
        except Exception as error:  # of what a part wrote; the others go on
            verdict = Verdict(
                status=FAILED, said=f"its results cannot be read: {type(error).__name__}: {error}"
            )
        self._put(part, ended.seconds, verdict, limit=seconds, code=ended.code)
        _shorten(log)

    def _smoke_env(self) -> dict[str, str]:
        """Return what a stand-in for a card needs: CUDA hidden, Triton interpreted, few threads."""
        if not self._args.smoke:
            return {}
        return {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    def _put(self, part: Part, seconds: float, verdict: Verdict, **more: Any) -> None:
        self._rows[part.name] = {
            "status": verdict.status, "said": verdict.said, "seconds": round(seconds, 1), **more, "found": verdict.data,
        }  # fmt: skip
        self._tables[part.name] = verdict.table

    def _write(self) -> None:
        """Write all that is known, to be seen whole or as it was before."""
        known = {
            "command": sys.argv[1:], "smoke": self._args.smoke, "minutes": self._args.minutes,
            "seconds": round(time.monotonic() - self._began, 1), "notes": self._place.notes, "parts": self._rows,
        }  # fmt: skip
        beside = self._out / f".{RESULTS}"
        beside.write_text(json.dumps(known, indent=1, default=str) + "\n")
        os.replace(beside, self._out / RESULTS)

    def _table(self) -> Iterator[str]:
        yield ""
        for part in self._parts:
            lines = self._tables[part.name]
            if lines:
                yield from (f"-- {part.name}", *(line[:180] for line in lines), "")
        for part in self._parts:
            row = self._rows[part.name]
            yield f"{part.name:<14}{row['status']:<13}{row['seconds']:6.1f} s  {row['said'][:200]}"
        yield f"{time.monotonic() - self._began:.0f} s in all; results in {self._out}"
        if self._args.smoke:
            yield "smoke test on the CPU: its figures mean nothing"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The first of SIGINT, SIGTERM and SIGHUP raises Interrupted inside; none does anything after."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, _: Any) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for one in numbers:
        if signal.getsignal(one) is not signal.SIG_IGN or one != signal.SIGHUP:  # nohup
            signal.signal(one, stop)
    try:
        yield
    finally:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def _shorten(log: Path) -> None:
    """Keep the begin and the end of a log that is too long to bring home."""
    size = log.stat().st_size
    if size > 2 * _MOST_LOG:
        with log.open("rb") as file:
            head = file.read(_MOST_LOG)
            file.seek(size - _MOST_LOG)
            tail = file.read()
        log.write_bytes(head + f"\n\n... {size - 2 * _MOST_LOG} bytes left out ...\n\n".encode() + tail)


def say(text: str) -> None:
    """Print; whoever stopped listening finds everything in the results."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())

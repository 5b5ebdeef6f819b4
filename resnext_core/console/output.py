"""What people and programs see: lines, one JSON result, a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from resnext_core.errors import reason, shown
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.log import RunLog, describe
from resnext_core.runs.records import End, Opened, Progress, Record
from resnext_core.terminal import printable, raw, silence

#: Seconds between two drawings of the progress bar.
_REFRESH_S = 0.1
#: Columns that the bar keeps on a narrow terminal.
_LEAST_BAR = 8


class Output:
    """Lines for people on standard output, or on standard error when --json owns standard output.

    Where there is a `log` file, a terminal, pipe or file that cannot be written ends nothing; the log says that it
    happened.
    """

    def __init__(self, *, json_result: bool = False, quiet: bool = False, log: RunLog | None = None) -> None:
        self.json_result, self.quiet, self.log = json_result, quiet, log
        self._stream = sys.stderr if json_result else sys.stdout
        self._gone = False

    def show(self, text: str) -> None:
        """Print a line for people, without adding it to the log."""
        if not self.quiet and not self._gone:
            try:
                print(printable(text), file=self._stream, flush=True)
            except (OSError, ValueError) as error:
                self.lose(error)

    def say(self, text: str) -> None:
        """Print a line for people, and add it to the log file if there is one."""
        self.show(text)
        self.note(text)

    def lose(self, error: OSError | ValueError) -> None:
        """Continue without the terminal, which failed with `error`; raises that where there is no log."""
        if self.log is None or isinstance(error, UnicodeError):
            raise error
        self._gone = True
        silence(self._stream)
        self.note(f"cannot write to the terminal ({reason(error)}); continuing without it")

    def note(self, text: str) -> None:
        """Add a line to the log file alone."""
        if self.log is not None:
            self.log.add(text)

    def result(self, value: Mapping[str, Any], text: str | None = None) -> None:
        """Print the result: `value` as one JSON line with --json, otherwise `text`."""
        if self.json_result:
            if not self.quiet:
                print(json.dumps(value), flush=True)
            if text is not None:
                self.note(text)
        elif text is not None:
            self.say(text)

    @property
    def interactive(self) -> bool:
        """True where a progress bar can be drawn: on a terminal."""
        try:
            return not self.quiet and not self._gone and self._stream.isatty()
        except ValueError:  # closed
            return False


class ProgressBar:
    """Shows the records of a job: progress as a bar on a terminal, others as lines; closed at the end of a block.

    What it shows of a run is in the run's log already. Once the run folder is known, the output has that log.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._progress: Any = None
        self._refreshed = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, record: Record) -> None:
        if isinstance(record, Opened):
            self._output.log = RunLog(RunFolder(record.path).log)
        elif isinstance(record, Progress):
            if self._output.interactive:
                self._drawn(lambda: self._advance(record))
        else:
            if isinstance(record, End):
                self.close()
            line = describe(record)
            if line is not None:
                self._line(line)

    def _line(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        progress = self._progress
        if progress is None:
            self._output.show(line)
        else:
            self._drawn(
                lambda: (
                    progress.console.print(  # the text as it is: no :name: of an emoji, no line ends in a path
                        printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True
                    )
                )
            )

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._progress is not None:
            progress, self._progress = self._progress, None
            self._bars.clear()
            self._started.clear()
            self._drawn(progress.stop)

    def _drawn(self, draw: Callable[[], object]) -> None:
        """Draw on the terminal; where that fails, only the bar is lost."""
        try:
            draw()
        except (OSError, ValueError) as error:
            progress, self._progress = self._progress, None
            self._output.lose(error)
            if progress is not None:
                progress.stop()

    def _advance(self, record: Progress) -> None:
        if self._progress is None:
            self._progress = _rich_progress(self._output)
            self._progress.start()
        what = record.what
        first = what not in self._bars
        if first:
            self._bars[what] = self._progress.add_task(what, total=record.total, detail="")
            self._started[what] = time.perf_counter()
        detail = ""
        if record.images is not None:
            now = time.perf_counter()
            rate = None if first else record.images / max(now - self._started[what], 1e-9)
            self._started[what] = now
            detail = _detail(record, rate, self._progress.console.width)
        done = record.done >= record.total and what != "train"
        self._progress.update(
            self._bars[what], completed=record.done, total=record.total, detail=detail, visible=not done
        )
        if done or time.perf_counter() - self._refreshed > _REFRESH_S:
            self._progress.refresh()
            self._refreshed = time.perf_counter()


def _detail(record: Progress, rate: float | None, width: int) -> str:
    """Return what the last step did, as much of it as fits beside the bar on a terminal of `width` columns."""
    counts = len(f"{record.total}/{record.total}")
    room = width - len(" train") - _LEAST_BAR - counts - len("-:--:--") - 4  # blanks between the columns
    words: dict[int, str] = {}
    for place, word in (
        (1, f"loss {record.loss:.4f}"), (0, f"epoch {record.epoch}"),
        (3, "" if rate is None else f"{rate:.0f} images/s"), (2, f"lr {record.lr:.4g}"),
    ):  # fmt: skip
        if word and len("  ".join([*words.values(), word])) <= room:
            words[place] = word
    return "  ".join(words[place] for place in sorted(words))


def _rich_progress(output: Output) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def one_line() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("{task.description:>6}", table_column=one_line()),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=_LEAST_BAR)),
        MofNCompleteColumn(table_column=one_line()), TimeRemainingColumn(table_column=one_line()),
        TextColumn("{task.fields[detail]}", table_column=one_line()),
        console=Console(file=raw(sys.stderr if output.json_result else sys.stdout)), transient=True,
        auto_refresh=False,  # its thread would die of a terminal that is gone, and say so
    )  # fmt: skip


def table(rows: list[list[str]], header: list[str]) -> str:
    """Return aligned plain-text columns; cells are one line each, whatever names they hold."""
    rows = [[shown(cell, None) for cell in row] for row in rows]
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows]]
    return "\n".join(lines)

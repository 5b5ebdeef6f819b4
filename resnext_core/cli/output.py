"""What people and programs see: lines, one JSON result, a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resnext_core.errors import reason, shown
from resnext_core.metrics import metric_lines
from resnext_core.runs.records import BadImage, Eval, Nonfinite, Note, Progress, Record, Train
from resnext_core.terminal import printable, raw, silence

#: Seconds between two drawings of the progress bar.
_REFRESH_S = 0.1


class Output:
    """Lines for people on standard output, or on standard error when --json owns standard output.

    Where they also go to a `log` file, nobody needs to be there to read them: a terminal, pipe or file that takes no
    more ends nothing. The log says that it happened.
    """

    def __init__(self, *, json_result: bool = False, quiet: bool = False, log: Path | None = None) -> None:
        self.json_result, self.quiet, self.log = json_result, quiet, log
        self._stream = sys.stderr if json_result else sys.stdout
        self._gone = False

    def say(self, text: str) -> None:
        """Print a line for people, and add it to the log file if there is one."""
        if not self.quiet and not self._gone:
            try:
                print(text, file=self._stream, flush=True)
            except (OSError, ValueError) as error:
                self.lose(error)
        self.note(text)

    def lose(self, error: OSError | ValueError) -> None:
        """Go on without the terminal that failed with `error`; raises it where there is no log to go on in."""
        if self.log is None or isinstance(error, UnicodeError):
            raise error
        self._gone = True
        silence(self._stream)
        self.note(f"the terminal takes no more ({reason(error)}); going on without it")

    def note(self, text: str) -> None:
        """Add a line to the log file alone."""
        if self.log is not None:
            try:
                with self.log.open("a", encoding="utf-8") as stream:
                    stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(text)}\n")
            except OSError:  # the log is a convenience: records and checkpoints report a full disk
                self.log = None

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
        """True where a progress bar can be drawn."""
        try:
            return not self.quiet and not self._gone and self._stream.isatty()
        except ValueError:  # closed
            return False


class ProgressBar:
    """Shows ``progress`` records as a bar on a terminal; other records become plain lines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._progress: Any = None
        self._refreshed = 0.0

    def __call__(self, record: Record) -> None:
        if isinstance(record, Progress):
            if self._output.interactive:
                self._drawn(lambda: self._advance(record))
            return
        line = describe(record)
        if line is None:
            return
        if self._progress is not None and isinstance(record, Train):
            self._output.note(line)  # the bar shows it already
        elif self._progress is not None:
            progress = self._progress
            self._drawn(lambda: progress.console.print(printable(line), highlight=False, markup=False))
            self._output.note(line)
        else:
            self._output.say(line)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._progress is not None:
            progress, self._progress = self._progress, None
            self._drawn(progress.stop)

    def _drawn(self, draw: Callable[[], object]) -> None:
        """Draw on the terminal; one that is gone loses the bar, and nothing else."""
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
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(what, total=record.total, detail="")
            self._started[what] = time.perf_counter()
        detail = ""
        if record.images is not None:
            now = time.perf_counter()
            rate = record.images / max(now - self._started[what], 1e-9)
            self._started[what] = now
            detail = f"epoch {record.epoch}  loss {record.loss:.4f}  lr {record.lr:.4g}  {rate:.0f} images/s"
        done = record.done >= record.total and what != "train"
        self._progress.update(
            self._bars[what], completed=record.done, total=record.total, detail=detail, visible=not done
        )
        if done or time.perf_counter() - self._refreshed > _REFRESH_S:
            self._progress.refresh()
            self._refreshed = time.perf_counter()


def describe(record: Record) -> str | None:
    """Return one line for people about a record, or None where there is nothing to say."""
    if isinstance(record, Train):
        return (
            f"epoch {record.epoch:>3}  step {record.step:>6}  loss {_loss(record.loss)}  "
            f"lr {record.lr:.4g}  {record.images_per_s:.0f} images/s  "
            f"waiting {100 * record.wait_s / max(record.seconds, 1e-9):.0f} %"
        )
    if isinstance(record, Eval):
        star = "  best so far" if record.best else ""
        return (
            f"epoch {record.epoch:>3}  {record.split} {'  '.join(metric_lines(record.metrics))}  "
            f"({record.scored} of {record.expected} images){star}"
        )
    if isinstance(record, Nonfinite):
        where = f"; its samples: {record.path}" if record.path else ""
        return f"epoch {record.epoch:>3}  step {record.step:>6}  loss is {record.loss}{where}"
    if isinstance(record, BadImage):
        called = "training" if record.split == "train" else record.split
        return (
            f"cannot read {called} image {shown(record.path, None)}: {record.reason} ({record.count} so far)"
        )
    if isinstance(record, Note):
        return record.text
    return None


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _rich_progress(output: Output) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:>6}"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
        console=Console(file=raw(sys.stderr if output.json_result else sys.stdout)), transient=True,
        auto_refresh=False,  # its thread would die of a terminal that is gone, and say so
    )  # fmt: skip


def table(rows: list[list[str]], header: list[str]) -> str:
    """Return aligned plain-text columns; cells are one line each, whatever names they hold."""
    rows = [[shown(cell, None) for cell in row] for row in rows]
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows]]
    return "\n".join(lines)

"""The log of a run: a line for people about what happened, with the local time of each."""

from __future__ import annotations

import time
from pathlib import Path

from resnext_core.errors import counted, shown
from resnext_core.metrics import metric_lines
from resnext_core.runs.records import BadImage, End, Eval, Fit, Nonfinite, Note, Record, Train
from resnext_core.terminal import printable


class RunLog:
    """The file ``log.txt`` of a run."""

    def __init__(self, path: Path) -> None:
        self._path: Path | None = path

    def add(self, text: str) -> None:
        """Add a line; it never fails, because records and checkpoints report a full disk."""
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(text)}\n")
        except OSError:
            self._path = None


def describe(record: Record) -> str | None:
    """Return one line for people about a record, or None where there is nothing to say."""
    if isinstance(record, Train):
        taught = "" if record.teacher_s is None else f"  teacher {_share(record.teacher_s, record)}"
        return (
            f"epoch {record.epoch:>3}  step {record.step:>6}  loss {_loss(record.loss)}  "
            f"lr {record.lr:.4g}  {record.images_per_s:.0f} images/s  "
            f"waiting {_share(record.wait_s, record)}{taught}"
        )
    if isinstance(record, Eval):
        star = "  best so far" if record.best else ""
        loss = "" if record.loss is None else f"  loss {record.loss:.4f}"
        return (
            f"epoch {record.epoch:>3}  {record.split} {'  '.join(metric_lines(record.metrics))}{loss}  "
            f"({record.scored} of {counted(record.expected, 'image')}){star}"
        )
    if isinstance(record, Nonfinite):
        where = f"; its samples: {record.path}" if record.path else ""
        return f"epoch {record.epoch:>3}  step {record.step:>6}  loss is {record.loss}{where}"
    if isinstance(record, BadImage):
        called = "training" if record.split == "train" else record.split
        return (
            f"cannot read {called} image {shown(record.path, None)}: {record.reason} ({record.count} so far)"
        )
    if isinstance(record, Fit):
        evaluations = f" and {record.eval_s:.3g} s an evaluation" if record.eval_s else ""
        return (
            f"fitted to {counted(record.minutes, 'minute')}: "
            f"{counted(record.total, 'step')}, {record.epochs:.4g} epochs, at "
            f"{record.step_s:.3g} s a step{evaluations}; {record.trained_s:.0f} s used"
        )
    if isinstance(record, End):
        return None if record.reason is None else f"ended after step {record.step}: {record.reason}"
    if isinstance(record, Note):
        return record.text
    return None


def _share(seconds: float, record: Train) -> str:
    return f"{100 * seconds / max(record.seconds, 1e-9):.0f} %"


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"

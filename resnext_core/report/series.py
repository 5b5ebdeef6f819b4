"""From the lines of records.jsonl to the curves of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from resnext_core.report.text import number
from resnext_core.runs.records import End, Eval, Fit, Record, Resume, Saved, Start, Train

#: Points a curve keeps; more cannot be seen and only make the file large.
MAX_POINTS = 500


@dataclass(kw_only=True)
class History:
    """The records of a run by kind, in order of steps, and what happened on the way.

    A run that is resumed has dropped the records after its checkpoint, so no step is in two of them.
    """

    train: list[Train] = field(default_factory=list)
    evals: list[Eval] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    ended: bool = False
    ended_early: str | None = None
    fit: Fit | None = None
    started: bool = False
    overflow_steps: int = 0
    times: list[float] = field(default_factory=list)
    train_s: float = 0.0
    wait_s: float = 0.0
    compute_s: float = 0.0
    eval_s: float = 0.0
    checkpoint_s: float = 0.0
    images: float = 0.0

    @property
    def other_s(self) -> float:
        """Seconds of training that were neither waiting for data nor computing."""
        return max(self.train_s - self.wait_s - self.compute_s, 0.0)

    @property
    def images_per_s(self) -> float:
        """Training images a second, evaluation and checkpoints not counted; NaN without training."""
        return self.images / self.train_s if self.train_s > 0 else math.nan

    @property
    def wall_s(self) -> float:
        """Seconds from the first record to the last, as their clocks say; NaN without two of them."""
        return max(self.times) - min(self.times) if len(self.times) > 1 else math.nan

    @property
    def last_step(self) -> int:
        """The last step that any curve reaches; 0 without records."""
        return max((r.step for r in (*self.train, *self.evals)), default=0)


def read_history(records: Sequence[Record]) -> History:
    """Sort `records` by kind; those that no curve needs are passed over."""
    history = History()
    for record in records:
        if record.time is not None:
            history.times.append(record.time)
        if isinstance(record, Start):
            history.started, history.ended = True, False
        elif isinstance(record, Resume):
            history.ended = False
            history.resumes.append(record.step)
        elif isinstance(record, End):
            history.ended, history.ended_early = True, record.reason
        elif isinstance(record, Fit):
            history.fit = record
        elif isinstance(record, Saved):
            history.checkpoint_s += _seconds(record.seconds)
        elif isinstance(record, Train):
            history.train.append(record)
            history.train_s += _seconds(record.seconds)
            history.wait_s += _seconds(record.wait_s)
            history.compute_s += _seconds(record.compute_s)
            history.images += record.images
            history.overflow_steps = max(history.overflow_steps, record.overflow_steps)
        elif isinstance(record, Eval):
            history.evals.append(record)
            history.eval_s += _seconds(record.seconds)
    return history


def column(records: Sequence[Record], name: str) -> list[float]:
    """Return one number a record, of a field or of a metric; NaN where it is missing."""
    return [
        number(r.metrics.get(name) if isinstance(r, Eval) and name in r.metrics else getattr(r, name, None))
        for r in records
    ]


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Return the mean of about `span` points around each one.

    The window is centred, so the curve does not lag, and narrows towards both ends. Values that are not
    finite stay NaN and enter no mean.
    """
    sums, counts = [0.0], [0]
    for value in values:
        good = math.isfinite(value)
        sums.append(sums[-1] + (value if good else 0.0))
        counts.append(counts[-1] + good)
    result = []
    for k, value in enumerate(values):
        half = min(span // 2, k, len(values) - 1 - k)
        low, high = k - half, k + half + 1
        good = math.isfinite(value)
        result.append((sums[high] - sums[low]) / (counts[high] - counts[low]) if good else math.nan)
    return result


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Keep at most :data:`MAX_POINTS` points: the lowest and the highest of each stretch, in their order."""
    if len(x) <= MAX_POINTS:
        return list(x), list(y)
    stretches = MAX_POINTS // 2
    keep: set[int] = {0, len(x) - 1}
    for k in range(stretches):
        part = range(k * len(x) // stretches, (k + 1) * len(x) // stretches)
        finite = [i for i in part if math.isfinite(y[i])]
        if finite:
            keep |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)}
        else:
            keep.add(part[0])
    order = sorted(keep)
    return [x[i] for i in order], [y[i] for i in order]


@dataclass(frozen=True, kw_only=True)
class TimeSlice:
    """A stretch of training from `start` to `end` (steps) and the shares of its time, which sum to 1."""

    start: float
    end: float
    wait: float
    compute: float
    other: float


def time_slices(train: Sequence[Train], limit: int = 60) -> list[TimeSlice]:
    """Cut training lines into at most `limit` stretches and split the time of each."""
    result = []
    parts = min(limit, len(train))
    steps = column(train, "step")
    first = steps[0] - (steps[1] - steps[0]) if len(steps) > 1 else 0.0
    for k in range(parts):
        low, high = k * len(train) // parts, (k + 1) * len(train) // parts
        lines = train[low:high]
        seconds = sum(_seconds(r.seconds) for r in lines)
        wait = sum(_seconds(r.wait_s) for r in lines)
        compute = sum(_seconds(r.compute_s) for r in lines)
        whole = max(seconds, wait + compute)
        if whole > 0:
            shares = {"wait": wait / whole, "compute": compute / whole}
            start = max(first, 0.0) if low == 0 else steps[low - 1]
            other = max(1 - shares["wait"] - shares["compute"], 0.0)
            result.append(TimeSlice(start=start, end=steps[high - 1], other=other, **shares))
    return result


def _seconds(value: float) -> float:
    """Return a duration, 0 for what is none: a clock may have been set back."""
    return value if math.isfinite(value) and value > 0 else 0.0

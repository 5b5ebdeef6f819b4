"""How fast a training is, and how many steps fit into ``train.minutes``: decided on rank 0, from measured times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from resnext_core.runs.checkpoint_folder import RunProgress
from resnext_core.runs.records import Fit
from resnext_core.training.training import Training

#: The first fit is made after so many steps, or this share of the time, not counting the first call of the trainer.
FIRST_STEPS, FIRST_SHARE = 10, 0.02
#: Afterwards the pace is checked in each such part of the time, and after the first evaluation.
CHECKS = 20
#: A pace of fewer than FIRST_STEPS steps counts after so many of these parts: more steps could take all the time left.
FEW = 2
#: A fit plans to use this share of the time. It is made again where the expected end is not within these shares.
PLANNED, EARLIEST, LATEST = 0.98, 0.95, 1.0


def now() -> float:
    """Return seconds of a clock that is never set back."""
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A step, and the seconds that passed until it: of steps alone, and all."""

    step: int
    stepping_s: float
    seconds: float


class Pace:
    """Measures a training that began after `progress`, and proposes its length.

    Its time are the seconds of steps, evaluations and checkpoints since the first step, those before a resume too.
    """

    def __init__(self, training: Training, progress: RunProgress, minutes: float) -> None:
        self._training, self._minutes, self._budget = training, minutes, 60 * minutes
        self._before, self._started = progress.seconds or 0.0, now()
        self._closing_s = 0.0  # of the time since the start, in evaluations
        self._mark: _Mark | None = None  # None before the first call of the trainer, which may compile
        self._step_s: float | None = None
        self._fitted = self._evaluated = bool(progress.fits)
        fits = [r.eval_s for r in training.run.read_records() if isinstance(r, Fit)] if self._fitted else []
        self._eval_s = fits[-1] if fits else None
        self._check_at = self._next_check() if self._fitted else 0.0

    @property
    def seconds(self) -> float:
        """The time used so far."""
        return self._before + now() - self._started

    def stepped(self, step: int) -> None:
        """Note that the training stands after `step`."""
        if self._mark is None:
            self._mark = self._mark_at(step)

    @contextmanager
    def closing(self, evaluates: bool) -> Iterator[None]:
        """Count the time of the block, the end of an epoch, as an evaluation where it `evaluates`."""
        started = now()
        yield
        took = now() - started
        if not evaluates:
            return
        self._closing_s += took
        if self._mark is not None:  # else it is of a resumed run, whose state was saved before
            self._eval_s = took
            if not self._evaluated:
                self._evaluated, self._check_at = True, 0.0

    def proposal(self, step: int) -> Fit | None:
        """Return how long the training should be, seen from its first `step` steps; None where it stays as it is."""
        step_s = self._measured(step)
        if step_s is None:
            return None
        seconds, training = self.seconds, self._training
        images, batch = len(training.val or ()), training.config.train.batch_size
        # Before the first evaluation: a forward pass at the price of a whole step, so rather too much.
        eval_s = self._eval_s if self._eval_s is not None else step_s * images / batch
        call_s = step_s * training.steps_per_call
        total = None
        if seconds + call_s + eval_s > self._budget:
            total = self._least(step)
        elif self._due(step):
            self._step_s, self._check_at = step_s, self._next_check()
            expected = self._expected(step, training.course.total, seconds, step_s, eval_s)
            if not (self._fitted and EARLIEST <= expected / self._budget <= LATEST):
                total = self._longest(step, seconds, step_s, eval_s)
        if total is None or (self._fitted and total == training.course.total):
            return None
        self._fitted = True
        return Fit(
            step=step, total=total, epochs=round(total / training.steps_per_epoch, 3), minutes=self._minutes,
            trained_s=round(seconds, 2), step_s=round(step_s, 5), eval_s=round(eval_s, 3),
        )  # fmt: skip

    # -- what is measured ----------------------------------------------------------------------

    def _mark_at(self, step: int) -> _Mark:
        return _Mark(step=step, stepping_s=self._stepping_s(), seconds=self.seconds)

    def _stepping_s(self) -> float:
        return now() - self._started - self._closing_s

    def _measured(self, step: int) -> float | None:
        """Return the seconds of a step, over the last part of the time; None before there are any."""
        if self._mark is None or step <= self._mark.step:
            return self._step_s
        here, mark = self._mark_at(step), self._mark
        measured = (here.stepping_s - mark.stepping_s) / (here.step - mark.step)
        if self._step_s is None:
            return measured
        least = 1 if here.step - mark.step >= FIRST_STEPS else FEW
        if here.seconds - mark.seconds < least * self._budget / CHECKS:
            return self._step_s
        self._mark, self._step_s = here, measured
        return measured

    def _due(self, step: int) -> bool:
        if self._step_s is not None:
            return self.seconds >= self._check_at
        assert self._mark is not None
        measured_s = self._stepping_s() - self._mark.stepping_s
        return step - self._mark.step >= FIRST_STEPS or measured_s >= FIRST_SHARE * self._budget

    def _next_check(self) -> float:
        return (int(self.seconds / self._budget * CHECKS) + 1) * self._budget / CHECKS

    # -- what follows --------------------------------------------------------------------------

    def _least(self, step: int) -> int:
        """Return the shortest training that goes on from `step`: no step more where it is evaluated just now."""
        epoch, within = divmod(step, self._training.steps_per_epoch)
        return step if within == 0 and self._training.evaluates_after(epoch) else step + 1

    def _longest(self, step: int, seconds: float, step_s: float, eval_s: float) -> int:
        """Return the most steps of a training that ends in time."""
        low = high = self._least(step)
        if step_s > 0:
            high = max(low, step + int((PLANNED * self._budget - seconds) / step_s) + 1)
        while low < high:
            middle = -(-(low + high) // 2)
            if self._expected(step, middle, seconds, step_s, eval_s) <= PLANNED * self._budget:
                low = middle
            else:
                high = middle - 1
        return low

    def _expected(self, step: int, total: int, seconds: float, step_s: float, eval_s: float) -> float:
        """Return the time of a training of `total` steps of which `step` took `seconds`."""
        evaluations = self._training.evaluations_in(step, total)
        return seconds + max(total - step, 0) * step_s + evaluations * eval_s

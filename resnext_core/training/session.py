"""A training while it runs: where it stands, what it saves, and the error that waits for the next exchange of news."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.ranks.exchange import exchange
from resnext_core.ranks.signals import StopRequest
from resnext_core.runs.checkpoint import Checkpoint, complete_checkpoint, save_checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress, read_summary, step_name
from resnext_core.runs.records import Fit, Note
from resnext_core.runs.saver import Saver
from resnext_core.runs.unreadable import Unreadable
from resnext_core.serving.golden import make_golden
from resnext_core.training.meter import Meter
from resnext_core.training.nonfinite import Diverged, LossWatch
from resnext_core.training.pace import Pace
from resnext_core.training.same import check_same
from resnext_core.training.trainer import Trainer
from resnext_core.training.training import Epoch, Training


@dataclass(kw_only=True, eq=False)
class Session:
    """A training while it runs. It stands after `progress`, of which `saved` is on disk (None: nothing).

    `failure` is the first error between two steps: nothing more is attempted, and the next exchange of news ends the
    run on all ranks. `ending` is True while that happens. `bad_images` are by part of the data, train and val. `pace`
    is measured on rank 0 of a run that has a time.
    """

    trainer: Trainer
    training: Training
    saver: Saver
    stop: StopRequest
    losses: LossWatch
    bad_images: Mapping[str, Unreadable]
    progress: RunProgress
    saved: RunProgress | None
    meter: Meter | None = None
    pace: Pace | None = None
    failure: Exception | None = None
    ending: bool = False

    @classmethod
    @contextmanager
    def open(cls, trainer: Trainer, training: Training, resume: Checkpoint | None) -> Iterator[Session]:
        """Yield the session of a training from its start or from a checkpoint; signals ask it to stop.

        It fits the course of the training as it goes, or as it went.

        Raises DataError where the checkpoint is of another training.
        """
        progress = RunProgress(step=0, epoch_closed=True)
        if resume is not None:
            check_same(training, resume)
            trainer.load_state(resume.state)
            progress = resume.progress
        training.course.fits = progress.fits
        parts = {"train": training.train, "val": training.val}
        background = training.config.train.background_saving
        with StopRequest() as stop, Saver(training.report_saved, background=background) as saver:
            session = cls(
                trainer=trainer, training=training, saver=saver, stop=stop,
                losses=LossWatch(
                    training.run.path / "nonfinite", training.train, tolerant=training.tolerates_nonfinite
                ),
                bad_images={name: Unreadable(part, name) for name, part in parts.items() if part is not None},
                progress=progress, saved=None if resume is None else progress,
            )  # fmt: skip
            if training.config.train.minutes is not None and training.rank.is_main:
                session.pace = Pace(training, progress, training.config.train.minutes)
            if resume is not None:
                _share_known_bad_images(session)
            yield session

    @property
    def awaits_end_of_epoch(self) -> bool:
        """True where a run resumes after the last step of an epoch that was not closed."""
        return not self.progress.epoch_closed and self.training.ends_epoch(self.progress.step)

    @property
    def complete(self) -> bool:
        """True after the last step, or where the training ends early."""
        ended = self.progress.step >= self.training.course.total
        return self.progress.epoch_closed and (ended or self.training.why_ended(self.progress) is not None)

    @property
    def goes_on(self) -> bool:
        """False where this rank has failed or is asked to stop: the next exchange of news ends all ranks."""
        return self.failure is None and not self.stop.requested

    @contextmanager
    def holding_errors(self) -> Iterator[None]:
        """Hold an error of the block back until the next exchange of news, where all ranks save and end.

        A diverged loss is raised at once: its state is not worth saving.
        """
        try:
            yield
        except Diverged:
            raise
        except Exception as error:
            self.failure = self.failure or error

    def attempt(self, call: Callable[[], object]) -> None:
        """Do `call`, unless something has failed already; its error is held back."""
        if self.failure is None:
            with self.holding_errors():
                call()

    # -- steps -------------------------------------------------------------------------------

    def start_meter(self, epoch: Epoch) -> Meter:
        """Return the meter of the steps of `epoch`."""
        batch_size = self.training.config.train.batch_size
        self.meter = Meter(
            self.training.listen,
            batch_size=batch_size,
            total=self.training.course.expected,
            epoch=epoch.number,
        )
        return self.meter

    def proposed_fit(self) -> Fit | None:
        """Return how long the training should be from here, where rank 0 finds that it should be fitted again."""
        return None if self.pace is None else self.pace.proposal(self.progress.step)

    def fit(self, fit: Fit) -> None:
        """Make the training as long as `fit` says, from the next step on; every rank does so at the same step."""
        self.progress = replace(self.progress, fits=(*self.progress.fits, (self.progress.step, fit.total)))
        self.training.course.fits = self.progress.fits
        self.attempt(partial(self.training.listen, fit))
        if self.meter is not None:
            self.meter.total = fit.total

    def account(self, epoch: Epoch, steps: range, lrs: NDArray[Any], losses: NDArray[Any]) -> None:
        """Check and record the losses (len(steps),) of the steps just taken; the run then stands after them."""
        with self.holding_errors():
            self._record_losses(epoch, steps, lrs, losses)
        self.progress = replace(self.progress, step=steps.stop, epoch_closed=False)
        if self.pace is not None:
            self.pace.stepped(steps.stop)
            self.progress = replace(self.progress, seconds=round(self.pace.seconds, 3))

    def _record_losses(self, epoch: Epoch, steps: range, lrs: NDArray[Any], losses: NDArray[Any]) -> None:
        assert self.meter is not None
        training = self.training
        for i in np.flatnonzero(~np.isfinite(losses)).tolist() or [len(losses) - 1]:
            record = self.losses.check(
                steps[i] + 1, epoch.number, float(losses[i]), float(lrs[i]), epoch.samples(steps[i]),
                write=training.rank.is_main,
            )  # fmt: skip
            if record is not None:
                training.listen(record)
        self.meter.add(steps.stop, losses, float(lrs[-1]), copy=self.trainer.usage().copy_seconds)
        ends = epoch.ends_with(steps) or training.saves_at(steps.stop)
        if ends or self.meter.steps >= training.config.train.log_every:
            self.meter.write(self.trainer.counters())

    # -- saving ------------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """Report a checkpoint that is written by now, and save where one is due within an epoch."""
        self.attempt(self.saver.report_written)
        if self.training.saves_at(self.progress.step):
            self.attempt(self.save)

    def save(self, *, report: bool = True) -> None:
        """Take the state and have it written, on rank 0; the other ranks go on.

        Without `report` it has no record yet: :meth:`save_metrics` completes it.
        """
        trainer, training, progress = self.trainer, self.training, self.progress
        if not training.rank.is_main:
            return
        started = time.perf_counter()
        self.saver.wait()  # the record of the one before belongs before the position that this one keeps
        ema = training.config.train.ema_decay is not None
        state, spec = trainer.state(), training.weights.spec
        weights = training.weights.replace(
            tensors={t.name: state.tensors[("ema/" if ema else "weights/") + t.name] for t in spec.tensors},
            origin={**training.weights.origin, "run": training.run.path.name, "step": progress.step},
            metrics={},
            golden=make_golden(trainer.predictor(ema=ema), spec, training.config.precision.compute),
        )
        records, facts = training.run.position(), training.facts()
        self.saver.save(
            lambda blocked_s: save_checkpoint(
                training.run.checkpoints, weights, state, progress, run=facts, keep=training.config.train.keep,
                records=records, blocked_s=blocked_s,
            ),
            since=started, report=report,
        )  # fmt: skip
        self.saved = progress

    def save_metrics(self, metrics: Mapping[str, Any], *, report: bool = True) -> None:
        """Have what was saved before the evaluation written again with its result, on rank 0; takes no state."""
        training, progress = self.training, self.progress
        if not training.rank.is_main:
            return
        started = time.perf_counter()
        self.saver.wait()
        records = training.run.position()
        self.saver.save(
            lambda blocked_s: complete_checkpoint(
                training.run.checkpoints, progress, metrics, keep=training.config.train.keep, records=records,
                blocked_s=blocked_s,
            ),
            since=started, report=report,
        )  # fmt: skip
        self.saved = progress

    def save_last_fit(self) -> None:
        """Have the last checkpoint say that the training ends there, where that was decided after it was saved."""
        saved, progress = self.saved, self.progress
        if not self.training.rank.is_main or saved is None or saved.fits == progress.fits:
            return
        self.saver.wait()
        last = read_summary(self.training.run.checkpoints / step_name(progress.step))
        self.save_metrics(last.metrics, report=False)

    # -- the end -----------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Record a line for people."""
        self.training.listen(Note(step=self.progress.step, text=text))

    def note_bad_images(self) -> None:
        """Record how many images could not be read, and the first of them."""
        loaders = {"train": self.training.train_loader, "val": self.training.val_loader}
        for part, bad in self.bad_images.items():
            loader = loaders[part]
            text = bad.summary(loader.listed if loader is not None else frozenset[int]())
            if text:
                self.note(text)


def _share_known_bad_images(session: Session) -> None:
    """Give every rank the unreadable images that the records of a resumed run name."""
    training, known = session.training, list[list[Any]]()
    if training.rank.is_main:
        records = training.run.read_records()
        known = [
            [part, i, why] for part, bad in session.bad_images.items() for i, why in bad.recorded(records)
        ]
    _, news = exchange(training.rank, training.collectives, False, {"known": known} if known else {})
    for part, sample, reason in news[0].get("known", ()):
        session.bad_images[part].add(sample, reason, session.progress.step)

"""A training and where it stands: what it is made of, saving it, and ending it together with the other ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np

from resnext_core.config import Config
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import steps_per_epoch
from resnext_core.errors import BackendUnavailable, DataError, Interrupted, ResnextError, one_line
from resnext_core.interfaces import Trainer
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.exchange import exchange
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.signals import StopRequest
from resnext_core.runs.checkpoint import complete_checkpoint, save_checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress, Summary
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Note, Saved
from resnext_core.runs.saver import Saver
from resnext_core.runs.unreadable import Unreadable
from resnext_core.serving.golden import make_golden
from resnext_core.training.meter import Meter
from resnext_core.training.nonfinite import Diverged, LossWatch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Everything a training run is made of. `val` None trains without evaluation; `emit` takes every record."""

    config: Config
    weights: Weights
    train: Index
    train_loader: Loader
    val: Index | None
    val_loader: Loader | None
    rank: RankInfo
    collectives: Collectives
    run: RunFolder
    steps_per_call: int
    emit: Listener

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.config.train.batch_size)

    @property
    def tolerates_nonfinite(self) -> bool:
        """True where a step whose loss is not a number is skipped: by policy, or as an overflow of the loss scale."""
        return self.config.train.nonfinite == "skip" or self.config.precision.loss_scale != "none"

    def saves_at(self, step: int) -> bool:
        """True where a checkpoint is due within an epoch."""
        every = self.config.train.checkpoint_steps
        return every is not None and step % every == 0 and step % self.steps_per_epoch != 0

    def chunk(self, step: int) -> int:
        """Return how many steps to take in one call after `step`: as the backend likes, but not past a checkpoint."""
        every = self.config.train.checkpoint_steps
        return self.steps_per_call if every is None else min(self.steps_per_call, every - step % every)

    def evaluates(self, epoch: int) -> bool:
        """True where an evaluation follows `epoch` (from 1)."""
        train = self.config.train
        if self.val is None:
            return False
        return epoch >= train.epochs or (epoch >= train.eval_start and epoch % train.eval_every == 0)

    def awaits_evaluation(self, progress: RunProgress) -> bool:
        """True at the end of an epoch whose evaluation has not been; the checkpoint is completed after it."""
        epoch, within = divmod(progress.step, self.steps_per_epoch)
        return not progress.epoch_closed and within == 0 and self.evaluates(epoch)

    def saved(self, summary: Summary) -> None:
        """Write the record of a checkpoint."""
        self.emit(checkpoint_record(summary, self.steps_per_epoch))

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint for the same images to be seen."""
        train = self.config.train
        return {
            "seed": train.seed,
            "batch_size": train.batch_size,
            "train_images": len(self.train),
            "train_digest": self.train.dataset_digest,
            "variant": self.weights.spec.variant,
        }


@dataclass(kw_only=True, eq=False)
class Work:
    """What the parts of the loop share, and where the run stands: after `progress`, of which `saved` is on disk."""

    trainer: Trainer
    job: Job
    saver: Saver
    stop: StopRequest
    watch: LossWatch
    bad: Mapping[str, Unreadable]  # by part
    progress: RunProgress
    saved: RunProgress | None
    meter: Meter | None = None
    fault: Exception | None = None
    ending: bool = False

    def attempt(self, call: Callable[[], T], *, anyway: bool = False) -> T | None:
        """Return what `call` does; its error waits for the next exchange, where all ranks end, the step being saved.

        Once something has failed nothing more is tried, unless `anyway`. A loss that is not a number is not held back.
        """
        if self.fault is not None and not anyway:
            return None
        try:
            return call()
        except Diverged:
            raise
        except Exception as error:
            self.fault = self.fault or error
            return None


def save(work: Work, *, tell: bool = True) -> None:
    """Take the state and have it written, on rank 0; the other ranks go on.

    Without `tell` it has no record yet, since it will be completed.
    """
    trainer, job, progress = work.trainer, work.job, work.progress
    if not job.rank.is_main:
        return
    started = time.perf_counter()
    work.saver.wait()  # the record of the one before belongs before the position that this one keeps
    ema = job.config.train.ema_decay is not None
    state = trainer.state()
    weights = job.weights.replace(
        tensors={
            t.name: state.tensors[("ema/" if ema else "weights/") + t.name] for t in job.weights.spec.tensors
        },
        origin={**job.weights.origin, "run": job.run.path.name, "step": progress.step},
        metrics={},
        golden=make_golden(trainer.predictor(ema=ema), job.weights.spec, job.config.precision.compute),
    )
    records, facts = job.run.position(), job.facts()
    work.saver.save(
        lambda blocked_s: save_checkpoint(
            job.run.checkpoints, weights, state, progress, run=facts, keep=job.config.train.keep,
            records=records, blocked_s=blocked_s,
        ),
        since=started, tell=tell,
    )  # fmt: skip
    work.saved = progress


def complete(work: Work, metrics: Mapping[str, Any]) -> None:
    """Have what was saved before the evaluation written again with its result, on rank 0; takes no state again."""
    job, progress = work.job, work.progress
    if not job.rank.is_main:
        return
    started = time.perf_counter()
    work.saver.wait()
    records = job.run.position()
    work.saver.save(
        lambda blocked_s: complete_checkpoint(
            job.run.checkpoints, progress, metrics, keep=job.config.train.keep, records=records,
            blocked_s=blocked_s,
        ),
        since=started,
    )  # fmt: skip
    work.saved = progress


def agree(work: Work) -> None:
    """Hear whether a rank must stop, has failed or met unreadable images; where the run must end, save and raise.

    Every rank calls this before each chunk of steps, before an evaluation, and after each of its batches.
    """
    job = work.job
    news: dict[str, Any] = {}
    loaders = {"train": job.train_loader, "val": job.val_loader}
    bad = [
        [split, sample, reason]
        for split, loader in loaders.items()
        if loader is not None
        for sample, reason in loader.take_failures()
        if sample not in work.bad[split]
    ]
    notes = [text for loader in loaders.values() if loader for text in loader.take_notes()]
    if bad or notes:
        news |= {"bad": bad, "notes": notes}
    if work.fault is not None:
        news["fault"] = _text(work.fault)
    try:
        stop, heard = exchange(job.rank, job.collectives, work.stop.requested, news)
    except Exception as error:  # a rank is lost: nobody is left to agree with
        end(work, work.fault or error, together=False)
    for rank, words in enumerate(heard):
        for text in words.get("notes", ()):
            who = f"rank {rank}: " if rank != job.rank.rank else ""
            work.attempt(partial(note, job, work.progress.step, who + text))
        for split, sample, reason in words.get("bad", ()):
            record = work.bad[split].add(sample, reason, work.progress.step)
            if record is not None:
                work.attempt(partial(job.emit, record))
    excess = work.bad["train"].excess(job.config.data.max_bad, job.config.data.dir)
    failed = [f"rank {rank} failed: {words['fault']}" for rank, words in enumerate(heard) if "fault" in words]
    if failed:
        end(work, work.fault or Interrupted("; ".join(failed)))
    if excess is not None and any(words.get("bad") for words in heard):
        end(work, excess)
    if stop:
        end(work, None)


def end(work: Work, error: Exception | None, *, together: bool = True) -> NoReturn:
    """Save where the run stands and raise `error`, or Interrupted without one; `together` with the other ranks."""
    job, work.ending = work.job, True
    saved, failure = _keep(work)
    if together and job.rank.world > 1:
        # Also a barrier: a rank that leaves early would have the launcher stop rank 0 while it writes.
        with suppress(BackendUnavailable):
            saved = bool(job.collectives.all_reduce_sum(np.array([int(saved)], np.int64))[0])
    step, run = work.progress.step, job.run.path
    if isinstance(error, Interrupted) and not saved:
        error = DataError(str(error))
    if error is None:
        if failure is not None:
            raise failure
        raise Interrupted(f"stopped after step {step}; continue with --resume {run}")
    word = ""
    if failure is not None:
        word = f"the state after step {step} could not be saved: {_text(failure)}"
    elif saved:
        word = f"saved after step {step}, continue with --resume {run}"
    if word and isinstance(error, ResnextError):
        error.args = (f"{error}; {word}",)
    elif word:  # it will be seen as a traceback
        with suppress(Exception):
            note(job, step, f"{_text(error)}; {word}")
    raise error


def _keep(work: Work) -> tuple[bool, Exception | None]:
    """Save the steps that are not saved yet, on rank 0; return whether all are, and what went wrong if it did."""
    job = work.job
    if not job.rank.is_main:
        return False, None
    with suppress(Exception):  # what ended the run matters more
        if work.meter is not None and work.meter.steps:
            work.meter.write(work.trainer.counters())
    with suppress(Exception):  # then it is tried again
        work.saver.wait()
    if work.progress.step == 0:
        return False, None
    try:
        if work.saved != work.progress or work.saver.failed:
            save(work)
        work.saver.wait()
    except Exception as error:
        return False, error
    with suppress(Exception):
        sum_up(work)
    return True, None


def remember(work: Work) -> None:
    """Let every rank know which images a resumed run has met that cannot be read."""
    job, known = work.job, list[list[Any]]()
    if job.rank.is_main:
        records = job.run.read_records()
        known = [[split, i, why] for split, bad in work.bad.items() for i, why in bad.recorded(records)]
    _, heard = exchange(job.rank, job.collectives, False, {"known": known} if known else {})
    for split, sample, reason in heard[0].get("known", ()):
        work.bad[split].add(sample, reason, work.progress.step)


def sum_up(work: Work) -> None:
    """Write down which images could not be read."""
    for split, bad in work.bad.items():
        loader = work.job.train_loader if split == "train" else work.job.val_loader
        listed = loader.listed if loader is not None else frozenset[int]()
        text = bad.summary(listed)
        if text:
            note(work.job, work.progress.step, text)


def note(job: Job, step: int, text: str) -> None:
    job.emit(Note(step=step, text=text))


def _text(error: Exception) -> str:
    text = one_line(error)
    return text if isinstance(error, ResnextError) else f"{type(error).__name__}: {text}"


def checkpoint_record(saved: Summary, steps_per_epoch: int) -> Saved:
    """Return the record of a checkpoint, the same when it was just written and when it is read again."""
    return Saved(
        step=saved.progress.step, epoch=saved.progress.step // steps_per_epoch, seconds=saved.saving.seconds,
        blocked_s=saved.saving.blocked_s, path=saved.name, bytes=saved.saving.bytes,
    )  # fmt: skip

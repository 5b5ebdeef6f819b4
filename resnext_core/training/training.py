"""What a training is made of, and which steps, checkpoints and evaluations follow from that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.data.balance import BalancedOrder
from resnext_core.data.branches import draw_branches
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.mix import draw_mixes
from resnext_core.data.sampler import (
    Order,
    Task,
    epoch_length,
    epoch_permutation,
    rank_task,
    steps_per_epoch,
)
from resnext_core.errors import counted
from resnext_core.interfaces import Batch, Mix
from resnext_core.metrics import METRICS
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.checkpoint_folder import RunProgress, Summary
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener, Saved
from resnext_core.training.averaging import ema_decays
from resnext_core.training.course import Course
from resnext_core.training.sizes import size_at, training_preprocess
from resnext_core.training.teacher import Teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """Everything a training is made of. Without `val` nothing is evaluated; `listen` gets every record.

    `teacher` is whose predictions are learnt too, opened on this rank; None without one.
    """

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
    listen: Listener
    teacher: Teacher | None = None

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.config.train.batch_size)

    @cached_property
    def course(self) -> Course:
        """How long the training is, and its learning rate at each step; its session fits it to ``train.minutes``."""
        return Course(self.config, self.steps_per_epoch)

    def ends_epoch(self, step: int) -> bool:
        """True where an epoch ends after `step` steps; the last one may end early."""
        return step % self.steps_per_epoch == 0 or step == self.course.total

    def why_ended(self, progress: RunProgress) -> str | None:
        """Return why a training ends early where it stands, None where it does not: its best metric does not rise."""
        train = self.config.train
        if train.patience is None or progress.waits < train.patience or progress.step >= self.course.total:
            return None
        evaluations = counted(train.patience, "evaluation")
        best = (
            ""
            if progress.best is None
            else f"; best {100 * progress.best:.2f} % after step {progress.best_step}"
        )
        return f"{METRICS[train.best].label} has not risen in {evaluations} (train.patience){best}"

    @property
    def tolerates_nonfinite(self) -> bool:
        """True where a step whose loss is not finite is skipped: by policy, or as an overflow of the loss scale."""
        return self.config.train.nonfinite == "skip" or self.config.precision.loss_scale != "none"

    def epochs_after(self, step: int) -> Iterator[Epoch]:
        """Yield the epochs that are not complete after `step` steps, each with its remaining steps.

        The order of the next one is drawn beside the training: that of a million images takes a tenth of a second.
        """
        order = _Ahead(partial(self.order, step // self.steps_per_epoch))
        endless = self.config.train.minutes is not None  # a fit can add steps while the last ones are read
        while endless or step < self.course.total:
            number = step // self.steps_per_epoch + 1
            remaining = range(step, number * self.steps_per_epoch)
            current = order.result()
            if endless or remaining.stop < self.course.total:
                order = _Ahead(partial(self.order, number))
            yield Epoch(training=self, number=number, steps=remaining, order=current)
            step = remaining.stop

    def order(self, epoch: int) -> Order:
        """Return the order of the images in `epoch` (from 0)."""
        if self._balanced is not None:
            return self._balanced.epoch(epoch)
        return Order(images=epoch_permutation(len(self.train), self.config.train.seed, epoch))

    @cached_property
    def _balanced(self) -> BalancedOrder | None:
        config = self.config
        if not config.data.balance:
            return None
        return BalancedOrder(
            labels=self.train.labels, classes=len(self.train.classes), seed=config.train.seed,
            balance=config.data.balance,
            length=epoch_length(len(self.train), config.train.batch_size, config.augment.repeats),
        )  # fmt: skip

    @cached_property
    def image_size(self) -> int:
        """The side in pixels of training images, of the last ones where it grows."""
        return training_preprocess(self.config, self.weights.preprocess).size

    def saves_at(self, step: int) -> bool:
        """True where a checkpoint is due after `step` steps, within an epoch."""
        every = self.config.train.checkpoint_steps
        return every is not None and step % every == 0 and not self.ends_epoch(step)

    def saves_after(self, epoch: int) -> bool:
        """True where a checkpoint is due at the end of `epoch` (from 1), evaluated or not."""
        return epoch == self.course.last_epoch or epoch % self.config.train.checkpoint_every == 0

    def evaluates_after(self, epoch: int) -> bool:
        """True where an evaluation follows `epoch` (from 1)."""
        if self.val is None:
            return False
        return epoch >= self.course.last_epoch or self._evaluates_regularly(epoch)

    def _evaluates_regularly(self, epoch: int) -> bool:
        train = self.config.train
        return epoch >= train.eval_start and epoch % train.eval_every == 0

    def evaluations_in(self, step: int, total: int) -> int:
        """Return how many evaluations a training of `total` steps does after `step` of them."""
        train = self.config.train
        if self.val is None or total <= step:
            return 0
        first, last = max(step // self.steps_per_epoch + 1, train.eval_start), total // self.steps_per_epoch
        regular = max(last // train.eval_every - (first - 1) // train.eval_every, 0)
        ends_regularly = total % self.steps_per_epoch == 0 and self._evaluates_regularly(last)
        return regular + (not ends_regularly)

    def awaits_evaluation(self, progress: RunProgress) -> bool:
        """True at the end of an epoch whose evaluation is still to come; it completes the checkpoint."""
        course = Course(self.config, self.steps_per_epoch, progress.fits)
        if progress.epoch_closed or (progress.step % self.steps_per_epoch and progress.step != course.total):
            return False
        return self.val is not None and (
            progress.step >= course.total or self._evaluates_regularly(course.epoch_of(progress.step))
        )

    def report_saved(self, summary: Summary) -> None:
        """Record a checkpoint: the same whether it was just written or is read again."""
        step, saving = summary.progress.step, summary.saving
        self.listen(
            Saved(
                step=step, epoch=step // self.steps_per_epoch, seconds=saving.seconds, blocked_s=saving.blocked_s,
                path=summary.name, bytes=saving.bytes,
            )
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Return what tells whether a resumed run is the training of its checkpoint; see :mod:`.same`."""
        train, augment = self.config.train, self.config.augment
        growth = None
        if augment.start_size is not None:
            growth = [augment.start_size, list(augment.size_epochs or ()), augment.size_step]
        return {
            "seed": train.seed,
            "batch_size": train.batch_size,
            "train_images": len(self.train),
            "train_digest": self.train.dataset_digest,
            "variant": self.weights.spec.variant,
            "repeats": augment.repeats,
            "image_size": self.image_size,
            "growth": growth,
            "balance": self.config.data.balance,
            "freeze": train.freeze,
            "teacher": None if self.teacher is None else self.teacher.identity,
            "optimizer": self.config.optimizer.kind,
            "ema": train.ema_decay is not None,
            "best": train.best,
            "epochs": train.epochs,
            "minutes": train.minutes,
        }


class _Ahead:
    """An order of images that is drawn beside the training.

    Not an executor: a training that fails leaves its generator of epochs to the garbage collector, which may come
    while a thread is being started; an executor would then wait for its thread there, and deadlock.
    """

    def __init__(self, draw: Callable[[], Order]) -> None:
        self._draw = draw
        self._order: Order | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="resnext-order")
        self._thread.start()

    def result(self) -> Order:
        """Wait for the order and return it; raises what drawing it has raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._order is not None
        return self._order

    def _run(self) -> None:
        try:
            self._order = self._draw()
        except BaseException as error:
            self._error = error


@dataclass(frozen=True, kw_only=True, eq=False)
class Epoch:
    """The remaining `steps` (from 0 over the whole training) of the epoch `number` (from 1).

    The last epoch of a training that is fitted to a time may end before them.

    `order` is what the epoch's steps take in turn, each image ``augment.repeats`` times.
    """

    training: Training
    number: int
    steps: range
    order: Order

    def tasks(self) -> Iterator[Task]:
        """Yield what this rank reads for each step."""
        rank = self.training.rank
        for step in self.steps:
            yield self._task(step, rank.rank, rank.world)

    def chunks(self) -> Iterator[range]:
        """Yield the steps of each call of the trainer: as many as the backend likes, but none past a checkpoint."""
        every, step = self.training.config.train.checkpoint_steps, self.steps.start
        while step < self.steps.stop:
            most = self.training.steps_per_call
            if every is not None:
                most = min(most, every - step % every)
            chunk = self.within(range(step, step + most))
            if not chunk:
                return
            yield chunk
            step = chunk.stop

    def within(self, steps: range) -> range:
        """Return those of `steps` that the epoch has, as far as is known."""
        return range(
            steps.start, min(steps.stop, self.steps.stop, max(self.training.course.total, steps.start))
        )

    def ends_with(self, steps: range) -> bool:
        """True where `steps` are the last ones of the epoch, as far as is known."""
        return steps.stop >= min(self.steps.stop, self.training.course.total)

    def lrs(self, steps: range) -> NDArray[np.float32]:
        """Return the learning rates of `steps`: float32 (len(steps),)."""
        return self.training.course.lrs(steps)

    def ema_decays(self, steps: range) -> NDArray[np.float64] | None:
        """Return the decays of the EMA at `steps`: float64 (len(steps),), None without an EMA."""
        config, training = self.training.config, self.training
        return ema_decays(
            steps, config=config.train, warmup_epochs=config.schedule.warmup_epochs,
            steps_per_epoch=training.steps_per_epoch, epochs=training.course.epochs, position=training.course.position,
        )  # fmt: skip

    def drawn(self, steps: range, batches: Iterable[Batch]) -> list[Batch]:
        """Return the batches of `steps` with what is drawn for each as a whole; fewer where there are fewer.

        That is how its images are mixed, and which residual branches are left out.
        """
        return [
            replace(batch, mix=self._mixes(step, batch), branches=self._branches(step))
            for step, batch in zip(steps, batches, strict=False)
        ]

    def _mixes(self, step: int, batch: Batch) -> tuple[Mix, ...]:
        config, rank = self.training.config, self.training.rank
        accumulate = config.train.accumulate
        return draw_mixes(
            config.mix, batch.images.shape[1:3], seed=config.train.seed, step=step,
            epoch=self.training.course.epoch_at(step),
            micro_batches=range(rank.rank * accumulate, (rank.rank + 1) * accumulate),
        )  # fmt: skip

    def _branches(self, step: int) -> NDArray[np.float32] | None:
        config, rank = self.training.config, self.training.rank
        if config.model.stochastic_depth == 0:
            return None
        share = config.train.batch_size // rank.world
        return draw_branches(
            config.model.stochastic_depth, len(self.training.weights.spec.blocks), seed=config.train.seed, step=step,
            global_batch=config.train.batch_size, rows=slice(rank.rank * share, (rank.rank + 1) * share),
        )  # fmt: skip

    def samples(self, step: int) -> list[int]:
        """Return the images of all ranks in `step`."""
        samples: list[int] = self._task(step, 0, 1).indices.tolist()
        return samples

    def _task(self, step: int, rank: int, world: int) -> Task:
        training, config, within = self.training, self.training.config, step % self.training.steps_per_epoch
        size = size_at(config.augment, training.image_size, self.number - 1)
        return rank_task(
            self.order, within, config.train.batch_size, rank, world,
            epoch=self.number - 1, repeats=config.augment.repeats, size=size,
        )  # fmt: skip

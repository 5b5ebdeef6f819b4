"""The end of an epoch: a checkpoint, and an evaluation on the validation part of the data where one is due."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from resnext_core.data.sampler import eval_tasks
from resnext_core.errors import BackendUnavailable
from resnext_core.ranks.exchange import from_main
from resnext_core.runs.records import Eval, Progress
from resnext_core.serving.evaluate import Evaluation, evaluate
from resnext_core.serving.gallery import Gallery
from resnext_core.training.news import end_run, exchange_news
from resnext_core.training.session import Session
from resnext_core.training.trainer import Trainer
from resnext_core.training.training import Training


def close_epoch(session: Session) -> None:
    """Save and evaluate as the configuration says.

    What will be evaluated is saved before, since an evaluation may fail, and completed with its result after.
    """
    session.meter = None
    epoch = session.training.course.epoch_of(session.progress.step)
    evaluates = session.training.evaluates_after(epoch)
    with nullcontext() if session.pace is None else session.pace.closing(evaluates):
        _close_epoch(session, epoch, evaluates)


def _close_epoch(session: Session, epoch: int, evaluates: bool) -> None:
    training = session.training
    if evaluates and session.saved != session.progress:
        session.attempt(partial(session.save, report=False))
    exchange_news(session)
    if not evaluates:
        session.progress = replace(session.progress, epoch_closed=True)
        if training.saves_after(epoch):
            session.attempt(session.save)
        return
    result, samples = _evaluate(session)
    if session.progress.best is None:
        session.attempt(partial(_warn_at_chance, session, result))
    score, step = result.metrics[training.config.train.best], session.progress.step
    is_best = session.progress.best is None or score > session.progress.best
    if is_best:
        session.progress = replace(session.progress, best=score, best_step=step, waits=0)
    else:
        session.progress = replace(session.progress, waits=session.progress.waits + 1)
    loss = result.calibration.nll
    record = Eval(
        step=step, epoch=epoch, split="val", metrics=result.metrics, expected=result.expected, scored=result.scored,
        failed=result.failed, seconds=round(result.seconds, 3), best=is_best, recall=result.recall,
        loss=loss if math.isfinite(loss) else None,
    )  # fmt: skip
    session.attempt(partial(training.listen, record))
    if is_best and training.rank.is_main:  # what a report shows of a run that is not evaluated further
        found = {"split": "val", **result.to_dict(), "samples": samples}
        session.attempt(partial(training.run.write_result, "evaluation", found))
    session.progress = replace(session.progress, epoch_closed=True)
    if session.pace is not None:
        session.progress = replace(session.progress, seconds=round(session.pace.seconds, 3))
    session.attempt(partial(session.save_metrics, {"split": "val", **result.metrics}))


def read_ahead(session: Session, epoch: int) -> None:
    """Have the images of the evaluation after `epoch`, if there is one, read while its last steps are computed."""
    training = session.training
    if training.evaluates_after(epoch) and training.val is not None and training.val_loader is not None:
        size, rank = training.config.eval.batch_size, training.rank
        tasks = eval_tasks(len(training.val), size, rank.rank, rank.world)
        session.attempt(partial(training.val_loader.read_ahead, tasks))


def _evaluate(session: Session) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Evaluate on the validation part, and return images worth a look too.

    A stop or an error ends it at the next batch, and resuming evaluates first.
    """
    training = session.training
    assert training.val is not None
    assert training.val_loader is not None
    share = -(-len(training.val) // training.rank.world)
    exchanges = -(-share // training.config.eval.batch_size)  # one a batch, on every rank the same

    def on_progress(done: int, total: int) -> None:
        nonlocal exchanges
        session.attempt(
            partial(
                training.listen, Progress(step=session.progress.step, what="eval", done=done, total=total)
            )
        )
        exchanges -= 1
        exchange_news(session)

    gallery = Gallery(training.val)
    try:
        _share_statistics(session.trainer, training)
        result = evaluate(
            session.trainer.predictor(ema=training.config.train.ema_decay is not None), training.val_loader,
            training.val, batch_size=training.config.eval.batch_size, rank=training.rank,
            collectives=training.collectives, tta=training.config.eval.tta, on_batch=gallery.add,
            on_progress=on_progress,
        )  # fmt: skip
        return result, gallery.samples(training.rank, training.collectives)
    except Exception as error:
        if session.ending:
            raise
        session.failure = session.failure or error
        if exchanges and not isinstance(error, BackendUnavailable):
            exchange_news(session)
        end_run(session, session.failure, together=False)


def _warn_at_chance(session: Session, result: Evaluation) -> None:
    """Note a first accuracy that guessing would reach too."""
    chance = 1 / len(result.classes)
    if len(result.classes) > 1 and result.top1_interval[0] <= chance:
        session.note(
            f"warning: the first evaluation has top-1 {100 * result.top1:.2f} %, no better than chance "
            f"({100 * chance:.2f} %); if the next ones stay there, check labels, class folders and optimizer.lr"
        )


def _share_statistics(trainer: Trainer, training: Training) -> None:
    """Give every rank the running statistics of rank 0, those of its checkpoints: all evaluate one network.

    In training a rank's statistics stay its own. Rank 0's are not touched, so a resumed run has the same.
    """
    if training.rank.world == 1:
        return
    state = trainer.state()
    running = {t.name for t in training.weights.spec.tensors if not t.trainable}
    names = [n for n in sorted(state.tensors) if n.split("/", 1)[1] in running]
    own = np.concatenate([state.tensors[n].ravel() for n in names])
    shared = from_main(training.rank, training.collectives, own)
    if training.rank.is_main:
        return
    ends = np.cumsum([state.tensors[n].size for n in names])[:-1]
    parts = zip(names, np.split(shared, ends), strict=True)
    tensors = {n: part.reshape(state.tensors[n].shape) for n, part in parts}
    trainer.load_state(replace(state, tensors={**state.tensors, **tensors}))

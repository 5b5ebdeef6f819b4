"""What the ranks of a training tell each other between two steps, and how all of them end together."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import numpy as np

from resnext_core.errors import BackendUnavailable, DataError, Interrupted, ResnextError, one_line
from resnext_core.ranks.exchange import exchange
from resnext_core.runs.records import Fit, from_dict
from resnext_core.training.session import Session


def exchange_news(session: Session, *, fits: bool = False) -> None:
    """Learn whether a rank must stop, has failed or met unreadable images; where the run must end, save and raise.

    Every rank calls this before each chunk of steps, before an evaluation, and after each of its batches; with `fits`
    before a chunk, where the length of the training may be fitted to its time.
    """
    training = session.training
    news: dict[str, Any] = {}
    if fits and (proposed := session.proposed_fit()) is not None:
        news["fit"] = proposed.to_dict()
    loaders = {"train": training.train_loader, "val": training.val_loader}
    bad = [
        [part, sample, reason]
        for part, loader in loaders.items()
        if loader is not None
        for sample, reason in loader.take_failures()
        if sample not in session.bad_images[part]
    ]
    notes = [text for loader in loaders.values() if loader for text in loader.take_notes()]
    if bad or notes:
        news |= {"bad": bad, "notes": notes}
    if session.failure is not None:
        news["fault"] = describe_error(session.failure)
    try:
        stop, all_news = exchange(training.rank, training.collectives, session.stop.requested, news)
    except Exception as error:  # a rank is lost: there is nobody to exchange news with
        end_run(session, session.failure or error, together=False)
    for rank, theirs in enumerate(all_news):
        for text in theirs.get("notes", ()):
            whose = f"rank {rank}: " if rank != training.rank.rank else ""
            session.attempt(partial(session.note, whose + text))
        for part, sample, reason in theirs.get("bad", ()):
            record = session.bad_images[part].add(sample, reason, session.progress.step)
            if record is not None:
                session.attempt(partial(training.listen, record))
    failed = [
        f"rank {rank} failed: {theirs['fault']}" for rank, theirs in enumerate(all_news) if "fault" in theirs
    ]
    if failed:
        end_run(session, session.failure or Interrupted("; ".join(failed)))
    data = training.config.data
    excess = session.bad_images["train"].excess(data.max_bad, data.dir)
    if excess is not None and any(theirs.get("bad") for theirs in all_news):
        end_run(session, excess)
    if stop:
        end_run(session, None)
    if "fit" in all_news[0]:
        fit = from_dict(all_news[0]["fit"])
        assert isinstance(fit, Fit)
        session.fit(fit)


def end_run(session: Session, error: Exception | None, *, together: bool = True) -> NoReturn:
    """Save where the run stands and raise `error`, or Interrupted without one; `together` with the other ranks."""
    training, session.ending = session.training, True
    saved, failure = _save_last_steps(session)
    if together and training.rank.world > 1:
        # Also a barrier: a rank that leaves early would have the launcher stop rank 0 while it writes.
        with suppress(BackendUnavailable):
            saved = bool(training.collectives.all_reduce_sum(np.array([int(saved)], np.int64))[0])
    step, run = session.progress.step, training.run.path
    if isinstance(error, Interrupted) and not saved:
        error = DataError(str(error))
    if error is None:
        if failure is not None:
            raise failure
        raise Interrupted(f"stopped after step {step}; continue with --resume {run}")
    outcome = ""
    if failure is not None:
        outcome = f"the state after step {step} could not be saved: {describe_error(failure)}"
    elif saved:
        outcome = f"saved after step {step}, continue with --resume {run}"
    if outcome and isinstance(error, ResnextError):
        error.args = (f"{error}; {outcome}",)
    elif outcome:  # it will be seen as a traceback
        with suppress(Exception):
            session.note(f"{describe_error(error)}; {outcome}")
    raise error


def finish_run(session: Session) -> None:
    """Wait for the last checkpoint and record which images could not be read; raises what failed at the end."""
    session.attempt(session.save_last_fit)
    session.attempt(session.saver.wait)
    if session.failure is not None:
        end_run(session, session.failure, together=False)
    session.note_bad_images()


def describe_error(error: Exception) -> str:
    """Return an error in one line, with its type where it is unexpected."""
    return (
        one_line(error) if isinstance(error, ResnextError) else f"{type(error).__name__}: {one_line(error)}"
    )


def _save_last_steps(session: Session) -> tuple[bool, Exception | None]:
    """Save the steps that are not saved yet, on rank 0; return whether all are, and the error where not."""
    if not session.training.rank.is_main:
        return False, None
    with suppress(Exception):  # what ended the run matters more
        if session.meter is not None and session.meter.steps:
            session.meter.write(session.trainer.counters())
    with suppress(Exception):  # then it is tried again
        session.saver.wait()
    if session.progress.step == 0:
        return False, None
    try:
        if session.saved != session.progress or session.saver.failed:
            session.save()
        session.saver.wait()
    except Exception as error:
        return False, error
    with suppress(Exception):
        session.note_bad_images()
    return True, None

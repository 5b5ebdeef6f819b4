"""The training loop, in order of use. A backend does the arithmetic; everything else is decided here."""

from __future__ import annotations

from contextlib import closing
from itertools import islice, tee

from resnext_core.runs.checkpoint import Checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress
from resnext_core.training.evaluation import close_epoch, read_ahead
from resnext_core.training.news import exchange_news, finish_run
from resnext_core.training.session import Session
from resnext_core.training.trainer import Trainer
from resnext_core.training.training import Training


def fit(trainer: Trainer, training: Training, resume: Checkpoint | None = None) -> RunProgress:
    """Train to the last epoch and return where it ended; raises Interrupted after saving on a signal.

    An error between two steps, on any rank, waits for the next exchange of news; there all ranks save and end, and it
    is raised. An error in the middle of a step is raised at once: its state may be half updated.
    """
    with Session.open(trainer, training, resume) as session:
        if session.awaits_end_of_epoch:
            close_epoch(session)
        epochs, ahead = tee(training.epochs_after(session.progress.step))
        tasks = (task for epoch in ahead for task in epoch.tasks())
        with closing(training.train_loader.batches(tasks)) as loaded:  # the next epoch is read while one ends
            for epoch in epochs:
                if session.complete:
                    break
                meter = session.start_meter(epoch)
                for steps in epoch.chunks():
                    with session.holding_errors():
                        with meter.waiting():
                            batches = epoch.drawn(steps, islice(loaded, len(steps) if session.goes_on else 0))
                        if training.teacher is not None:
                            with meter.teaching():
                                batches = training.teacher.taught(batches)
                    # The run ends here where a rank has failed or is asked to stop, or is fitted to its time.
                    exchange_news(session, fits=True)
                    steps = epoch.within(steps)
                    if not steps:
                        break
                    if epoch.ends_with(steps):
                        read_ahead(session, epoch.number)
                    lrs = epoch.lrs(steps)
                    with meter.computing():
                        losses = trainer.run_steps(batches[: len(steps)], lrs, epoch.ema_decays(steps))
                    session.account(epoch, steps, lrs, losses)
                    session.save_if_due()
                if not session.progress.epoch_closed:
                    close_epoch(session)
        finish_run(session)
    return session.progress

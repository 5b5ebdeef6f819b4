"""Whether a training goes on as the one of a checkpoint: what both must share."""

from __future__ import annotations

from typing import Any

from resnext_core.errors import DataError
from resnext_core.runs.checkpoint import Checkpoint
from resnext_core.training.course import Course
from resnext_core.training.training import Training

#: What a user sets for facts of a run whose names do not say it.
_KEYS = {
    "repeats": "augment.repeats",
    "image_size": "model.image_size",
    "growth": "what augment.start_size, size_epochs and size_step say",
    "balance": "data.balance",
    "freeze": "train.freeze",
    "teacher": "train.teacher",
    "optimizer": "optimizer.kind",
    "ema": "whether train.ema_decay is set",
    "best": "train.best",
    "epochs": "train.epochs, whose schedule was fitted to a time,",
}


def check_same(training: Training, resume: Checkpoint) -> None:
    """Raise DataError where the checkpoint is of another training, or where its end cannot be put off as asked."""
    now, progress = training.facts(), resume.progress
    # Checkpoints of earlier releases do not have them.
    former = {
        "repeats": 1,
        "image_size": now["image_size"],
        "growth": None,
        "balance": 0.0,
        "freeze": 0,
        "teacher": None,
        "optimizer": "sgd",
        "ema": any(name.startswith("ema/") for name in resume.state.tensors),
        "best": now["best"],
        "epochs": now["epochs"],
        "minutes": now["minutes"],
    }
    then: dict[str, Any] = {**former, **resume.run}
    free = {"minutes"}
    if not progress.fits:  # a schedule that counts epochs is a function of the step, however long it is
        free.add("epochs")
    if progress.best is None:  # nothing to compare with
        free.add("best")
    changed = [
        f"{_KEYS.get(k, k)} was {then.get(k)} and is {v}"
        for k, v in now.items()
        if k not in free and then.get(k) != v
    ]
    if changed:
        raise DataError(
            f"cannot resume {resume.path}: {'; '.join(changed)}; set it back to what it was, or start a new run"
        )
    course = Course(training.config, training.steps_per_epoch, progress.fits)
    minutes = now["minutes"]
    if minutes not in (None, then["minutes"]) and progress.step >= course.expected:
        raise DataError(
            f"cannot resume {resume.path} for {minutes:g} minutes: its schedule has ended, after {progress.step} "
            "steps; start a new run from its weights with --pretrained"
        )

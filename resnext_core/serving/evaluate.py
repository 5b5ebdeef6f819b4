"""Exact evaluation: every image of the index scored once, for any batch size and number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.errors import DataError, UsageError, counted
from resnext_core.interfaces import Batch, Predictor
from resnext_core.metrics import metric_lines
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.calibration import Calibration
from resnext_core.serving.metrics import Counts, wilson_interval
from resnext_core.serving.mirrored import Mirrored

#: What else is looked at of an image: its mirror image.
Tta = Literal["none", "flip"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The result of an evaluation over all ranks.

    `expected` images are in the index, `scored` went through the network, `failed` could not be decoded;
    they count as wrong, so `top1` and `top5` are shares of `expected`. `metrics` has the value of each of
    :data:`resnext_core.metrics.METRICS` by name. `confusion` is int64 (true class, predicted class) over the scored,
    `support` int64 (classes,) counts the images of each class, scored or failed. `calibration`
    is of the scored ones. `image_size` is in pixels, `tta` what else was looked at.
    """

    expected: int
    scored: int
    failed: int
    correct1: int
    correct5: int
    metrics: Mapping[str, float]
    dataset_digest: str
    confusion: NDArray[Any]
    support: NDArray[Any]
    classes: tuple[str, ...]
    calibration: Calibration
    image_size: int
    tta: Tta = "none"
    seconds: float
    failures: Mapping[str, str]

    @property
    def top1(self) -> float:
        return self.metrics["top1"]

    @property
    def top5(self) -> float:
        return self.metrics["top5"]

    @property
    def recall(self) -> list[float | None]:
        """The share of the images of each class that were recognised; None for a class without images."""
        pairs = zip(self.confusion.diagonal().tolist(), self.support.tolist(), strict=True)
        return [round(hits / images, 6) if images else None for hits, images in pairs]

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `top1`: low, high."""
        return wilson_interval(self.correct1, self.expected)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "expected": self.expected,
            "scored": self.scored,
            "failed": self.failed,
            "correct1": self.correct1,
            "correct5": self.correct5,
            **self.metrics,
            "top1_interval": list(self.top1_interval),
            "dataset_digest": self.dataset_digest,
            "images_per_s": self.expected / self.seconds if self.seconds > 0 else None,
            "seconds": round(self.seconds, 3),
            "image_size": self.image_size,
            "tta": self.tta,
            "calibration": self.calibration.to_dict(),
            "confusion": self.confusion.tolist(),
            "classes": list(self.classes),
            "support": self.support.tolist(),
            "recall": self.recall,
            "failures": dict(self.failures),
        }

    def line(self) -> str:
        """Return the result in one line for people."""
        low, high = self.top1_interval
        headline, *others = metric_lines(self.metrics)
        failed = f", {self.failed} could not be read" if self.failed else ""
        words = [
            f"{headline} (95 % interval {100 * low:.2f} to {100 * high:.2f})", *others,
            f"{self.scored} of {counted(self.expected, 'image')}",
        ]  # fmt: skip
        words += ["each with its mirror image"] if self.tta == "flip" else []
        return ", ".join(words) + failed


def evaluate(
    predictor: Predictor,
    loader: Loader,
    index: Index,
    *,
    batch_size: int,
    rank: RankInfo,
    collectives: Collectives,
    tta: Tta = "none",
    on_batch: Callable[[Batch, NDArray[Any]], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every image of `index` exactly once; the integers are the same for any `batch_size` and world.

    With `tta` ``flip`` the mean of the probabilities of an image and its mirror image is scored, see
    :class:`~resnext_core.serving.mirrored.Mirrored`. `on_batch` sees each batch with its logits, `on_progress` (images
    done, images of this rank). Raises UsageError when the index has no labels and DataError when the counts do not add
    up.
    """
    if (index.labels < 0).any():
        raise UsageError(
            f"{index.root} has no labels to evaluate against; put its images into class folders, or "
            "give a list of 'path label' lines"
        )
    started = time.perf_counter()
    compute = Mirrored(predictor).logits if tta == "flip" else predictor.logits
    counts, calibration = Counts.zeros(len(index.classes)), Calibration()
    tasks = list(eval_tasks(len(index), batch_size, rank.rank, rank.world))
    total, done, image_size = sum(int(t.valid.sum()) for t in tasks), 0, 0
    with closing(loader.batches(tasks)) as batches:
        for task, batch in zip(tasks, batches, strict=True):
            logits = compute(batch.images)
            counts.add(logits, batch.labels, batch.valid)
            calibration.add(logits[batch.valid], batch.labels[batch.valid])
            counts.add_failed(index.labels[task.indices[task.valid & ~batch.valid]])
            done, image_size = done + int(task.valid.sum()), batch.images.shape[1]
            if on_batch is not None:
                on_batch(batch, logits)
            if on_progress is not None:
                on_progress(done, total)
    summed = Counts.from_array(collectives.all_reduce_sum(counts.to_array()))
    if summed.scored + summed.failed != len(index):
        raise DataError(
            f"evaluation scored {summed.scored} and failed {summed.failed} of {counted(len(index), 'image')}; "
            "the counts must add up, do not use this result"
        )
    return Evaluation(
        expected=len(index),
        scored=summed.scored,
        failed=summed.failed,
        correct1=summed.correct1,
        correct5=summed.correct5,
        metrics=summed.metrics(),
        dataset_digest=index.dataset_digest,
        confusion=summed.confusion,
        support=summed.support,
        classes=index.classes,
        calibration=Calibration.from_array(collectives.all_reduce_sum(calibration.to_array())),
        image_size=image_size,
        tta=tta,
        seconds=time.perf_counter() - started,
        failures=_failures(loader, index, rank, collectives),
    )


def _failures(loader: Loader, index: Index, rank: RankInfo, collectives: Collectives) -> dict[str, str]:
    """Return path and reason of every image that any rank could not read; other ranks' reasons stay with them."""
    reasons = dict(loader.failures)
    if rank.world > 1:
        bad = np.zeros(len(index), np.int64)
        bad[list(reasons)] = 1
        for i in np.flatnonzero(collectives.all_reduce_sum(bad)).tolist():
            reasons.setdefault(i, "could not be read by another rank; its log says why")
    return {str(index.path(i)): reasons[i] for i in sorted(reasons)}

"""The gate: top-1 of the network in 8 bits beside that of its source on the images that decide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from resnext_core.config import Config
from resnext_core.data.index import Index
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import eval_tasks
from resnext_core.errors import DataError, counted
from resnext_core.extensions import Decoder
from resnext_core.interfaces import Batch
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.runs.records import Listener, Progress
from resnext_core.serving.metrics import paired_interval
from resnext_onnx.graph import IMAGES, LOGITS
from resnext_onnx.quantize.run import Array, session

#: Bytes of pixels that are kept for the next look; more are read and decoded again each time.
_KEPT = 2**29


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a network in 8 bits did beside its source on `images` images, of which `failed` could not be read.

    An unreadable image is wrong for both. `agreed` images have the same first guess, of those that could be read.
    `lost` ones only the source has right, `gained` ones only the network in 8 bits.
    """

    images: int
    failed: int
    agreed: int
    correct: int
    correct_source: int
    lost: int
    gained: int

    @property
    def top1(self) -> float:
        return self.correct / self.images

    @property
    def top1_source(self) -> float:
        return self.correct_source / self.images

    @property
    def agreement(self) -> float:
        """The share of the readable images with the same first guess."""
        return self.agreed / (self.images - self.failed)

    @property
    def drop(self) -> float:
        """By how many points top-1 is below that of the source."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def drop_interval(self) -> tuple[float, float]:
        """The 95 % interval of :attr:`drop`, in points; the images are the same, so it is that of paired shares."""
        low, high = paired_interval(self.lost, self.gained, self.images)
        return 100 * low, 100 * high

    def holds(self, max_drop: float, min_agreement: float) -> bool:
        """Return whether the drop is at most `max_drop` points and the agreement at least `min_agreement`."""
        return self.drop <= max_drop + 1e-9 and self.agreement >= min_agreement

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self) | {
            "top1": self.top1, "top1_source": self.top1_source, "agreement": self.agreement, "drop": self.drop,
            "drop_interval": list(self.drop_interval),
        }  # fmt: skip

    def __str__(self) -> str:
        low, high = self.drop_interval
        return (
            f"top-1 {self.top1:.2%}, source {self.top1_source:.2%}: drop {self.drop:.2f} points (95 % interval "
            f"{low:.2f} to {high:.2f}), first guesses agree on {self.agreement:.2%}{self.unread}"
        )

    @property
    def unread(self) -> str:
        """How many images could not be read, to put behind a sentence; empty where there are none."""
        return f"; {counted(self.failed, 'image')} cannot be read" if self.failed else ""


class Gate:
    """The images of one part of the data and the first guesses of the `source` on them."""

    def __init__(
        self, index: Index, preprocess: PreprocessSpec, config: Config, decoder: Decoder, threads: int | None,
        listen: Listener,
    ) -> None:  # fmt: skip
        if not index.labelled:
            raise DataError(
                f"{index.root} has no labels: the drop in top-1 needs them; choose another --split"
            )
        self.index, self.preprocess, self.config, self.decoder = index, preprocess, config, decoder
        self.threads, self.listen = threads, listen
        self._kept: list[Batch] | None = None
        self._source: Array | None = None

    def source(self, model: onnx.ModelProto) -> None:
        """Compute what the others are compared with; DataError where no image can be read."""
        self._source, labels = self._guesses(model, "validate float32")
        if not (labels >= 0).any():
            raise DataError(f"{self.index.root}: no image can be read; use 'data scan'")

    def judge(self, model: onnx.ModelProto, what: str = "validate int8") -> Verdict:
        """Return how `model` does beside the source."""
        assert self._source is not None
        guesses, labels = self._guesses(model, what)
        source, read = self._source, labels >= 0
        right, right_source = read & (guesses == labels), read & (source == labels)
        return Verdict(
            images=len(labels),
            failed=int((~read).sum()),
            agreed=int((read & (guesses == source) & (guesses >= 0)).sum()),
            correct=int(right.sum()),
            correct_source=int(right_source.sum()),
            lost=int((right_source & ~right).sum()),
            gained=int((right & ~right_source).sum()),
        )

    def _guesses(self, model: onnx.ModelProto, what: str) -> tuple[Array, Array]:
        """Return each image's first guess, -1 where logits are not finite, and its label, -1 if it cannot be read."""
        opened, guesses, labels = session(model, self.threads), [], []
        with closing(self._batches()) as batches:
            for done, batch, valid in batches:
                logits = opened.run([LOGITS], {IMAGES: np.ascontiguousarray(batch.images)})[0]
                finite = np.isfinite(logits).all(axis=1)
                guesses.append(np.where(finite, logits.argmax(axis=1), -1)[valid])
                labels.append(np.where(batch.valid, batch.labels, -1)[valid])
                self.listen(Progress(what=what, done=done, total=len(self.index)))
        return np.concatenate(guesses), np.concatenate(labels)

    def _batches(self) -> Iterator[tuple[int, Batch, Array]]:
        """Yield how many images are done, a batch, and which of its rows are images and no padding."""
        size = self.config.eval.batch_size
        tasks, done = list(eval_tasks(len(self.index), size)), 0
        kept: list[Batch] = []
        fits = len(self.index) * self.preprocess.size**2 * 3 <= _KEPT
        if self._kept is not None:
            for task, batch in zip(tasks, self._kept, strict=True):
                done += int(task.valid.sum())
                yield done, batch, task.valid
            return
        with eval_loader(self.index, self.preprocess, self.config, decoder=self.decoder) as loader:
            for task, batch in zip(tasks, loader.batches(tasks), strict=True):
                if fits:
                    kept.append(batch)
                done += int(task.valid.sum())
                yield done, batch, task.valid
        if fits:
            self._kept = kept

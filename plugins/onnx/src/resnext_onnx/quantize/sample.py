"""The images that quantisation learns from: a balanced sample of train, and another one to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.data.index import Index
from resnext_core.data.opening import eval_loader
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.errors import DataError, UsageError, quoted
from resnext_core.extensions import Decoder
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.runs.records import Listener, Note, Progress

Array = NDArray[Any]

#: Fewest images of each of the two samples.
LEAST = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Images as the network sees them, uint8 (N, S, S, 3), with int32 labels (N,)."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.images)


def check_count(count: int) -> None:
    """Raise UsageError for a number of calibration images that is too small."""
    if type(count) is not int or count < LEAST:
        raise UsageError(f"--calibration must be an integer of {LEAST} images or more, not {count!r}")


def pick(labels: Array, classes: Sequence[str], count: int, seed: int, where: str) -> tuple[Array, Array]:
    """Return up to `count` images to calibrate with and as many others to choose by: int64 places in `labels`.

    Both take the classes in turn, each in an order that `seed` decides, and share no image; a class with few images
    gives all it has. Raises DataError where a class has no two images, or where fewer than :data:`LEAST` images are
    left.
    """
    order = epoch_permutation(len(labels), seed, 0)
    members = [order[labels[order] == label] for label in range(len(classes))]
    for name, found in zip(classes, members, strict=True):
        if len(found) < 2:
            number = "no images" if len(found) == 0 else "one image"
            raise DataError(
                f"{where} has {number} of the class {quoted(name)}; calibration needs two or more of every class"
            )
    halves = [_in_turn([found[half::2] for found in members])[:count] for half in (0, 1)]
    fewest = min(map(len, halves))
    if fewest < LEAST:
        raise DataError(
            f"{where} has {len(labels)} images; quantisation needs {2 * LEAST} or more: {LEAST} to calibrate with and "
            f"{LEAST} to choose by"
        )
    return halves[0], halves[1]


def _in_turn(members: Sequence[Array]) -> Array:
    """Return the first of each, then the second of each, and so on."""
    depth = np.concatenate([np.arange(len(found)) for found in members])
    return np.concatenate(members)[np.argsort(depth, kind="stable")]


def read(
    index: Index, places: Array, preprocess: PreprocessSpec, config: Config, decoder: Decoder, what: str,
    listen: Listener,
) -> Sample:  # fmt: skip
    """Return the images at `places` of `index`, through the artefact's own preprocessing; unreadable ones are left out.

    Raises DataError where fewer than :data:`LEAST` can be read, or none of some class.
    """
    size = config.eval.batch_size
    tasks = [Task.of(0, places[start : start + size]) for start in range(0, len(places), size)]
    images, labels, done = [], [], 0
    with eval_loader(index, preprocess, config, decoder=decoder) as loader:
        for batch in loader.batches(tasks):
            images.append(batch.images[batch.valid])
            labels.append(batch.labels[batch.valid])
            done += len(batch)
            listen(Progress(what=f"read {what}", done=done, total=len(places)))
        failures = dict(loader.failures)
    sample = Sample(images=np.concatenate(images), labels=np.concatenate(labels))
    lost = set(np.unique(index.labels[places]).tolist()) - set(np.unique(sample.labels).tolist())
    if lost or len(sample) < LEAST:
        of_class = f" of the class {quoted(index.classes[min(lost)])}" if lost else ""
        path, why = next((index.path(i), reason) for i, reason in failures.items())
        raise DataError(
            f"{index.root}: too few images{of_class} can be read, e.g. {path}: {why}; use 'data scan'"
        )
    if failures:
        path, why = next((index.path(i), reason) for i, reason in failures.items())
        listen(
            Note(
                text=f"{len(failures)} of {len(places)} {what} cannot be read and "
                f"{'is' if len(failures) == 1 else 'are'} left out, e.g. {path}: {why}"
            )
        )
    return sample

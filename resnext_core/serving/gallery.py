"""The images of an evaluation that are worth a look: confident mistakes and right ones of every class."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.index import Index
from resnext_core.files import absolute
from resnext_core.interfaces import Batch
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.exchange import exchange
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.metrics import softmax

#: Mistakes and right predictions that are kept, at most: two rows of a report each.
MISTAKES = RIGHT = 14


class Gallery:
    """Keeps few images of all that go by, the same for any batch size and number of ranks.

    Classes take turns: the first of each class comes before the second of any. Of mistakes the first are the most
    confident ones, of right predictions those that stand first in the data.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        #: (probability, -position, predicted class) of mistakes by true class; the least confident of them first.
        self._wrong: dict[int, list[tuple[float, int, int]]] = {}
        #: (-position, probability) of right ones by class; the last of them first.
        self._right: dict[int, list[tuple[int, float]]] = {}

    def add(self, batch: Batch, logits: NDArray[Any]) -> None:
        """Look at a batch and its logits (N, classes)."""
        rows = np.flatnonzero(batch.valid & ~np.isnan(logits).any(axis=1))
        predicted = logits[rows].argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
        positions, labels = batch.index[rows].tolist(), batch.labels[rows].tolist()
        for row, best, position, true in zip(
            rows.tolist(), predicted.tolist(), positions, labels, strict=True
        ):
            if best != true:
                mistake = (float(softmax(logits[row])[best]), -position, best)
                _keep(self._wrong.setdefault(true, []), mistake, MISTAKES)
                continue
            kept = self._right.setdefault(true, [])
            if len(kept) < RIGHT or -position > kept[0][0]:
                _keep(kept, (-position, float(softmax(logits[row])[best])), RIGHT)

    def take(self, batch: Batch, logits: NDArray[Any], why: Callable[[int], str]) -> None:
        """Do what :meth:`add` does, for a pass that also says why images could not be read."""
        self.add(batch, logits)

    def samples(
        self, rank: RankInfo | None = None, collectives: Collectives | None = None
    ) -> list[dict[str, Any]]:
        """Return absolute `path`, `true`, `predicted` and `probability` of each: mistakes first, most confident first.

        Every rank of an evaluation must call, and all return the same.
        """
        own = {  # what other ranks add can only move an image back: those in front here are enough
            "wrong": _in_turn(self._wrong, MISTAKES),
            "right": _in_turn(self._right, RIGHT),
        }
        _, found = exchange(rank or RankInfo(), collectives or SingleProcess(), False, own)
        wrong = sorted((entry for _, entry in _chosen(found, "wrong", MISTAKES)), reverse=True)
        right = sorted((true, -position, share) for true, (position, share) in _chosen(found, "right", RIGHT))
        return [self._sample(-position, best, share) for share, position, best in wrong] + [
            self._sample(position, true, share) for true, position, share in right
        ]

    def _sample(self, position: int, predicted: int, probability: float) -> dict[str, Any]:
        index = self._index
        return {
            "path": absolute(index.path(position)), "true": index.classes[index.labels[position]],
            "predicted": index.classes[predicted], "probability": probability,
        }  # fmt: skip


def _keep(heap: list[Any], entry: tuple[Any, ...], most: int) -> None:
    """Add an entry to the `most` largest that a heap keeps."""
    heapq.heappush(heap, entry)
    if len(heap) > most:
        heapq.heappop(heap)


def _in_turn(
    by_class: Mapping[int, Iterable[tuple[Any, ...]]], most: int
) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the first `most` of (class, entry): the largest of each class, then the second of each, and so on."""
    turns = [
        (turn, true, entry)
        for true, entries in by_class.items()
        for turn, entry in enumerate(sorted(entries, reverse=True))
    ]
    turns.sort(key=lambda found: found[2], reverse=True)
    turns.sort(key=lambda found: found[0])
    return [(true, entry) for _, true, entry in turns[:most]]


def _chosen(found: Iterable[Mapping[str, Any]], kind: str, most: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return what all ranks together choose of one kind."""
    by_class: dict[int, list[tuple[Any, ...]]] = {}
    for part in found:
        for true, entry in part[kind]:
            by_class.setdefault(true, []).append(tuple(entry))
    return _in_turn(by_class, most)

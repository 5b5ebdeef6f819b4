"""The images of an evaluation that are worth a look: the most confident mistakes, and a right one of some classes."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.index import Index
from resnext_core.interfaces import Batch
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.exchange import exchange
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.metrics import softmax

#: Mistakes and right predictions that are kept, at most.
MISTAKES, RIGHT = 24, 12


class Gallery:
    """Keeps few images of all that go by, the same for any batch size and number of ranks."""

    def __init__(self, index: Index) -> None:
        self._index = index
        #: (probability, -position, predicted class) of mistakes; the least confident of them first.
        self._wrong: list[tuple[float, int, int]] = []
        #: (position, probability) of the first image of a class that is right, by class.
        self._right: dict[int, tuple[int, float]] = {}

    def add(self, batch: Batch, logits: NDArray[Any]) -> None:
        """Look at a batch and its logits (N, classes)."""
        rows = np.flatnonzero(batch.valid & ~np.isnan(logits).any(axis=1))
        predicted = logits[rows].argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
        positions, labels = batch.index[rows].tolist(), batch.labels[rows].tolist()
        for row, best, position, true in zip(
            rows.tolist(), predicted.tolist(), positions, labels, strict=True
        ):
            if best == true and (true not in self._right or position < self._right[true][0]):
                self._right[true] = (position, float(softmax(logits[row])[best]))
            elif best != true:
                heapq.heappush(self._wrong, (float(softmax(logits[row])[best]), -position, best))
                if len(self._wrong) > MISTAKES:
                    heapq.heappop(self._wrong)

    def take(self, batch: Batch, logits: NDArray[Any], why: Callable[[int], str]) -> None:
        """Do what :meth:`add` does, for a pass that also says why images could not be read."""
        self.add(batch, logits)

    def samples(
        self, rank: RankInfo | None = None, collectives: Collectives | None = None
    ) -> list[dict[str, Any]]:
        """Return `path`, `true`, `predicted` and `probability` of each: mistakes first, most confident first.

        Every rank of an evaluation must call, and all return the same.
        """
        own = {"wrong": self._wrong, "right": [[true, *found] for true, found in self._right.items()]}
        _, found = exchange(rank or RankInfo(), collectives or SingleProcess(), False, own)
        wrong = sorted((entry for part in found for entry in part["wrong"]), reverse=True)[:MISTAKES]
        first = sorted((position, true, share) for part in found for true, position, share in part["right"])
        right = {
            true: (position, share) for position, true, share in reversed(first)
        }  # the first of each class
        return [self._sample(-position, best, share) for share, position, best in wrong] + [
            self._sample(position, true, share) for true, (position, share) in sorted(right.items())[:RIGHT]
        ]

    def _sample(self, position: int, predicted: int, probability: float) -> dict[str, Any]:
        index = self._index
        return {
            "path": str(index.path(position)), "true": index.classes[index.labels[position]],
            "predicted": index.classes[predicted], "probability": probability,
        }  # fmt: skip

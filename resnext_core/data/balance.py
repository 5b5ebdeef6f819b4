"""Balanced sampling: epochs in which small classes are shown more often, as a pure function of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.sampler import Order, draw_words, epoch_permutation, member_words

#: Quotas are exact in integers below this: images of an epoch times the sum of the weights of all classes.
_MOST = 1 << 62
#: Weights are at most this: so many bits fewer than those of a double that other machines round them alike.
_WEIGHT = 1 << 40

#: Classes are called imbalanced where the largest has more than so many times the images of the smallest.
UNLIKE = 5
#: What can be done about it.
REMEDIES = "loss.class_weights, loss.logit_adjustment and data.balance, and train.best=balanced_accuracy"


def class_counts(labels: NDArray[np.int32], classes: int) -> NDArray[np.int64]:
    """Return how many of `labels`, all known, are of each class: int64 (classes,)."""
    return np.bincount(labels, minlength=classes).astype(np.int64)


def unlike_classes(counts: NDArray[np.int64]) -> tuple[int, int] | None:
    """Return the largest and the smallest class that has images, None where they are alike enough."""
    present = np.flatnonzero(counts)
    if not len(present):
        return None
    most, least = int(present[counts[present].argmax()]), int(present[counts[present].argmin()])
    return (most, least) if counts[most] > UNLIKE * counts[least] else None


def draw_weights(counts: NDArray[np.int64], balance: float, length: int) -> NDArray[np.int64]:
    """Return integers in proportion to which the classes are drawn: int64 (K,).

    They are in proportion to n ** (1 - balance) for `counts` n, exactly where `balance` is 0 or 1, else rounded; 0 for
    a class without images. `length` is the number of draws of an epoch: the sum of the weights times it fits int64.
    """
    known = counts > 0
    if balance in (0, 1):
        return np.where(known, counts if balance == 0 else 1, 0).astype(np.int64)
    unit = min(_MOST // (length * int(known.sum())), _WEIGHT)
    most = int(counts.max())
    shares = [(int(n) / most) ** (1 - balance) for n in counts]
    return np.array(
        [max(round(unit * share), 1) if n else 0 for n, share in zip(counts, shares, strict=True)]
    )


def shown_shares(counts: NDArray[np.int64], balance: float) -> NDArray[np.float64]:
    """Return the share of each class in the images that epochs show: float64 (K,), with the sum 1."""
    weights = draw_weights(counts, balance, int(counts.sum())).astype(np.float64)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


@dataclass(frozen=True, kw_only=True, eq=False)
class BalancedOrder:
    """The order of balanced epochs: each takes `length` images, a class in proportion to n ** (1 - `balance`).

    `labels` int32 (N,) are those of all images, n is the number of images of a class. In each epoch a class has its
    share of `length`, rounded down or up at random, in proportion; the numbers add up to `length`. A class shows all of
    its images in a random order before it repeats one, also from one epoch to the next.
    """

    labels: NDArray[np.int32]
    classes: int
    seed: int
    balance: float
    length: int

    def epoch(self, epoch: int) -> Order:
        """Return the order of `epoch` (from 0); its cost grows with the number of the epoch by microseconds."""
        before, after = self._drawn(epoch), self._drawn(epoch + 1)
        classes = np.repeat(np.arange(self.classes), after - before)
        classes = classes[epoch_permutation(self.length, self.seed, epoch)]
        images = np.empty(self.length, np.int64)
        images[np.argsort(classes, kind="stable")] = np.concatenate(
            [self._members(label, int(before[label]), int(after[label])) for label in range(self.classes)]
        )
        return Order(images=images, views=appearances(images))

    @cached_property
    def _weights(self) -> NDArray[np.int64]:
        return draw_weights(class_counts(self.labels, self.classes), self.balance, self.length)

    @cached_property
    def _by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images class by class, and where each class begins and the last one ends."""
        counts = class_counts(self.labels, self.classes)
        return np.argsort(self.labels, kind="stable"), np.concatenate([[0], np.cumsum(counts)])

    def _drawn(self, epochs: int) -> NDArray[np.int64]:
        """Return how many images of each class the first `epochs` have shown: int64 (classes,).

        One epoch is a systematic sample (Madow, Annals of Mathematical Statistics 20, 1949, 333): the classes lie side
        by side on a line, each as long as its share of the epoch, and are shown once for every point of a grid of
        distance 1 on them, whose start is drawn at random. In integers, in units of 1 / the sum of the weights.
        """
        ends = np.cumsum(self._weights)
        whole = int(ends[-1])
        starts = [(word * whole) >> 64 for word in draw_words(self.seed, epochs)]
        points = (self.length * ends[None, :] + np.array(starts, np.int64)[:, None]) // whole
        return np.diff(points.sum(axis=0), prepend=0)

    def _members(self, label: int, start: int, stop: int) -> NDArray[np.int64]:
        """Return what a class shows from its image number `start` on, up to `stop`, over the whole training."""
        if start == stop:
            return np.empty(0, np.int64)
        images, ends = self._by_class
        own = images[ends[label] : ends[label + 1]]
        first, last = start // len(own), -(-stop // len(own))
        keys = member_words(self.seed, label, first * len(own), last * len(own)).reshape(-1, len(own))
        shown: NDArray[np.int64] = own[np.argsort(keys, axis=1, kind="stable")].ravel()
        return shown[start - first * len(own) : stop - first * len(own)]


def appearances(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each of `images` was among those before it: int64 (n,)."""
    order = np.argsort(images, kind="stable")
    ordered = images[order]
    places = np.arange(len(images))
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(images) else np.empty(0, np.bool_)
    views = np.empty(len(images), np.int64)
    views[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return views

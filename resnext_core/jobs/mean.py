"""The mean of weights of one network, and which of them are worth a share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.model.weights import Weights
from resnext_core.runs.records import Listener, Note


class Mean:
    """Adds up weights in float64, one network in memory at a time."""

    def __init__(self) -> None:
        self._first: Weights | None = None
        self._path = Path()
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._parts: list[dict[str, Any]] = []

    def add(self, weights: Weights, path: Path, share: float, listen: Listener) -> None:
        """Add `share` times `weights`; DataError where they are not the same network as the first."""
        if self._first is None:
            self._first, self._path = weights.replace(tensors=weights.tensors, metrics={}), path
            self._sums = {n: np.zeros(a.shape) for n, a in weights.tensors.items()}
        for what in ("spec", "classes", "preprocess"):
            if getattr(weights, what) != getattr(self._first, what):
                raise DataError(
                    f"{path} and {self._path} are not the same network: {_difference(what, weights, self._first)}"
                )
        digest = weights.digest
        if digest in (part["digest"] for part in self._parts):
            listen(Note(text=f"{path} has the same tensors as another of the weights"))
        self._parts.append({"source": str(path), "digest": digest, "share": share})
        for name, array in weights.tensors.items():
            self._sums[name] += share * array.astype(np.float64)

    def weights(self) -> Weights:
        """Return the mean, rounded to float32 once."""
        assert self._first is not None
        tensors = {name: total.astype(np.float32) for name, total in self._sums.items()}
        return self._first.replace(tensors=tensors, origin={"average": self._parts})


def _difference(what: str, one: Weights, other: Weights) -> str:
    """Return in a few words what is unlike in a field of two weights."""
    mine, theirs = getattr(one, what), getattr(other, what)
    if what == "classes":
        if len(mine) != len(theirs):
            return f"{len(mine)} classes and {len(theirs)}"
        i = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
        return f"class {i} is {mine[i]!r} and {theirs[i]!r}"
    a, b = mine.to_dict(), theirs.to_dict()
    key = next(key for key in a if a[key] != b.get(key))
    return f"{key} is {a[key]} and {b[key]}"


def greedy(
    paths: Sequence[Path],
    read: Callable[[Path], Weights],
    score: Callable[[Weights], float],
    words: Callable[[float], str],
    listen: Listener,
) -> list[Path]:
    """Return those of `paths` whose mean is chosen greedily: the best alone, then each that does not make it worse.

    `read` returns the weights of a path, `score` says how good weights are, more is better, and `words` how a line has
    it. Source: Wortsman et al., "Model soups", arXiv:2203.05482, recipe 1.
    """
    scores = {}
    for path in paths:
        scores[path] = score(read(path))
        listen(Note(text=f"{path}: {words(scores[path])}"))
    ranked = sorted(paths, key=lambda path: -scores[path])  # equal ones stay in their order
    chosen, best = ranked[:1], scores[ranked[0]]
    for path in ranked[1:]:
        mean = Mean()
        for part in (*chosen, path):
            mean.add(read(part), part, 1 / (len(chosen) + 1), lambda record: None)
        found = score(mean.weights())
        verdict = "taken" if found >= best else "left out"
        listen(Note(text=f"{path} {verdict}: {words(found)} with it, {words(best)} without"))
        if found >= best:
            chosen, best = [*chosen, path], found
    return chosen

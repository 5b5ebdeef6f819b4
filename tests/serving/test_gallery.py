"""The images of a report: confident mistakes of every class, whatever the batches and ranks were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext_core.data.index import Index
from resnext_core.interfaces import Batch
from resnext_core.serving.gallery import MISTAKES, RIGHT, Gallery, _chosen, _in_turn
from resnext_core.serving.metrics import softmax

COUNT, CLASSES = 200, tuple(f"c{i}" for i in range(15))


@pytest.fixture(scope="module")
def index() -> Index:
    labels = np.arange(COUNT) % 15
    return Index(
        paths=[f"{i:03}.png" for i in range(COUNT)], labels=labels.astype(np.int32), classes=CLASSES,
        root=Path("/data"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def logits(index: Index) -> Any:
    rows = np.random.default_rng(0).normal(size=(COUNT, 15)).astype(np.float32) * 2
    rows[np.arange(0, COUNT, 2), index.labels[::2]] += 8  # every other one is right
    rows[7, 3] = np.nan
    return rows


@pytest.mark.parametrize("size", [1, 7, 200])
def test_it_keeps_the_most_confident_mistakes(index: Index, logits: Any, size: int) -> None:
    gallery = Gallery(index)
    unreadable = 9
    for start in range(0, COUNT, size):
        positions = np.arange(start, min(start + size, COUNT))
        batch = Batch(
            images=np.zeros((len(positions), 1, 1, 3), np.uint8), labels=index.labels[positions], index=positions,
            valid=positions != unreadable,
        )  # fmt: skip
        gallery.add(batch, logits[positions])
    samples = gallery.samples()
    shares, predicted = softmax(logits).max(axis=1), logits.argmax(axis=1)
    mistaken = [
        i
        for i in range(COUNT)
        if predicted[i] != index.labels[i] and i != unreadable and not np.isnan(logits[i]).any()
    ]
    by_class = {
        k: sorted((i for i in mistaken if index.labels[i] == k), key=lambda i: -shares[i]) for k in range(15)
    }
    turns = sorted(mistaken, key=lambda i: (by_class[index.labels[i]].index(i), -shares[i]))
    expected = sorted(turns[:MISTAKES], key=lambda i: (-shares[i], i))
    assert len({index.labels[i] for i in expected}) == MISTAKES, "one of each class"
    wrong, right = samples[:MISTAKES], samples[MISTAKES:]
    assert [s["path"] for s in wrong] == [f"/data/{i:03}.png" for i in expected]
    assert [s["probability"] for s in wrong] == pytest.approx(shares[expected])
    assert [(s["true"], s["predicted"]) for s in wrong] == [
        (CLASSES[index.labels[i]], CLASSES[predicted[i]]) for i in expected
    ]
    assert all(s["true"] == s["predicted"] for s in right)
    good = [i for i in range(COUNT) if predicted[i] == index.labels[i] and i not in (7, unreadable)]
    firsts = {int(k): next(i for i in good if index.labels[i] == k) for k in index.labels[good]}
    chosen = sorted(sorted(firsts, key=firsts.__getitem__)[:RIGHT])
    assert [s["path"] for s in right] == [f"/data/{firsts[k]:03}.png" for k in chosen]


def test_classes_take_turns_and_ranks_choose_the_same(index: Index) -> None:
    """A class of confident mistakes leaves room for the others; what ranks send is enough to choose as one would."""
    rng = np.random.default_rng(1)
    mistakes = [
        (int(rng.integers(3)) ** 2, (round(float(p), 6), -i, 1)) for i, p in enumerate(rng.random(400))
    ]
    whole = _grouped(mistakes)
    together = _in_turn(whole, MISTAKES)
    assert [sum(true == k for true, _ in together) for k in (0, 1, 4)] in ([5, 5, 4], [5, 4, 5], [4, 5, 5])
    for world in (2, 3, 7):
        parts = [{"wrong": _in_turn(_grouped(mistakes[r::world]), MISTAKES)} for r in range(world)]
        assert _chosen(parts, "wrong", MISTAKES) == together


def _grouped(entries: list[tuple[int, Any]]) -> dict[int, list[Any]]:
    return {k: [entry for true, entry in entries if true == k] for k, _ in entries}


def test_nothing_seen_is_nothing_to_show(index: Index) -> None:
    assert Gallery(index).samples() == []

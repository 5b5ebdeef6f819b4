"""The images of a report: the most confident mistakes of all, whatever the batches and ranks were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext_core.data.index import Index
from resnext_core.interfaces import Batch
from resnext_core.serving.gallery import MISTAKES, RIGHT, Gallery
from resnext_core.serving.metrics import softmax

COUNT, CLASSES = 200, tuple(f"c{i}" for i in range(15))


@pytest.fixture(scope="module")
def index() -> Index:
    labels = np.arange(COUNT) % 15
    return Index(
        paths=[f"{i:03}.png" for i in range(COUNT)], labels=labels.astype(np.int32), classes=CLASSES,
        root=Path("data"),
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
    expected = sorted(mistaken, key=lambda i: (-shares[i], i))[:MISTAKES]
    wrong, right = samples[:MISTAKES], samples[MISTAKES:]
    assert [s["path"] for s in wrong] == [f"data/{i:03}.png" for i in expected]
    assert [s["probability"] for s in wrong] == pytest.approx(shares[expected])
    assert [(s["true"], s["predicted"]) for s in wrong] == [
        (CLASSES[index.labels[i]], CLASSES[predicted[i]]) for i in expected
    ]
    assert [s["true"] for s in right] == list(CLASSES[:RIGHT])
    assert all(s["true"] == s["predicted"] for s in right)
    firsts = [
        next(i for i in range(COUNT) if index.labels[i] == k == predicted[i] and i != 7) for k in range(RIGHT)
    ]
    assert [s["path"] for s in right] == [f"data/{i:03}.png" for i in firsts]


def test_nothing_seen_is_nothing_to_show(index: Index) -> None:
    assert Gallery(index).samples() == []

"""Balanced epochs: exact shares of the classes, whole cycles of each class, and the same for any number of ranks."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.data import balance
from resnext_core.data.balance import (
    BalancedOrder,
    appearances,
    class_counts,
    draw_weights,
    shown_shares,
)
from resnext_core.data.sampler import Order, epoch_length, member_words, rank_task

#: Images of each class; the fifth has none.
SIZES = (50, 20, 7, 1, 0, 3)


def order(b: float, length: int = 77, seed: int = 3, sizes: tuple[int, ...] = SIZES) -> BalancedOrder:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    return BalancedOrder(labels=labels, classes=len(sizes), seed=seed, balance=b, length=length)


def shown(orders: BalancedOrder, epoch: int) -> NDArray[np.int64]:
    """Return how many images of each class an epoch shows."""
    return class_counts(orders.labels[orders.epoch(epoch).images], orders.classes)


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (0.0, [Fraction(n, 81) for n in SIZES]),
        (1.0, [Fraction(bool(n), 5) for n in SIZES]),
        (0.5, [n**0.5 / sum(m**0.5 for m in SIZES) for n in SIZES]),
        (0.2, [n**0.8 / sum(m**0.8 for m in SIZES) if n else 0 for n in SIZES]),
    ],
)
def test_a_class_has_its_share_of_every_epoch_rounded_down_or_up(b: float, expected: list[Fraction]) -> None:
    orders = order(b)
    np.testing.assert_allclose(shown_shares(np.array(SIZES), b), np.array(expected, float), rtol=1e-9)
    for epoch in range(20):
        counts = shown(orders, epoch)
        assert counts.sum() == 77
        for count, share in zip(counts, expected, strict=True):
            assert count - floor(77 * share) in ((0,) if 77 * share == floor(77 * share) else (0, 1))


@pytest.mark.parametrize(("b", "length"), [(0.0, 10), (1.0, 7), (1.0, 77), (0.5, 9)])
def test_the_mean_share_is_exact(b: float, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over every start that the grid of an epoch can have, a class is shown `length` x its weight times."""
    sizes = (4, 9, 0, 1)
    monkeypatch.setattr(balance, "_WEIGHT", 12)  # at 0.5 the weights are 8, 12 and 4 of 24
    orders = order(b, length, sizes=sizes)
    weights = draw_weights(np.array(sizes), b, length)
    whole = int(weights.sum())
    words = [-(-(start << 64) // whole) for start in range(whole)]  # one for each start, from 0
    monkeypatch.setattr(balance, "draw_words", lambda seed, epochs: words[:epochs])
    counts = orders._drawn(whole)
    assert counts.tolist() == (length * weights).tolist()


@pytest.mark.parametrize("b", [0.0, 0.3, 1.0])
def test_a_class_shows_all_its_images_before_one_comes_again(b: float) -> None:
    orders = order(b)
    images = np.concatenate([orders.epoch(epoch).images for epoch in range(30)])
    labels = orders.labels[images]
    firsts = set()
    for label, size in enumerate(SIZES):
        own = images[labels == label]
        assert size or not len(own)
        for start in range(0, len(own) - size + 1, max(size, 1)):
            assert set(own[start : start + size]) == set(np.flatnonzero(orders.labels == label))
        firsts |= {tuple(own[start : start + size]) for start in range(0, len(own) - size + 1, max(size, 1))}
        if size == 7 and b:
            assert len({first for first in firsts if len(first) == 7}) > 5  # each time in another order


def test_classes_come_at_random_places() -> None:
    """Not one after the other: in a balanced epoch of two classes, every place has each half of the time."""
    orders = order(1.0, length=10, sizes=(90, 10))
    labels = np.stack([orders.labels[orders.epoch(epoch).images] for epoch in range(400)])
    assert (np.abs(labels.mean(axis=0) - 0.5) < 5 * 0.5 / 20).all()  # five standard deviations of 400 draws


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    alone = order(0.7).epoch(17)
    after_others = order(0.7)
    for epoch in (3, 16):
        after_others.epoch(epoch)
    assert np.array_equal(alone.images, after_others.epoch(17).images)
    assert not np.array_equal(alone.images, order(0.7).epoch(16).images)
    assert not np.array_equal(alone.images, order(0.7, seed=4).epoch(17).images)


def test_an_order_that_must_never_change() -> None:
    """Runs go on in later releases."""
    found = order(0.5, length=12, sizes=(9, 4, 1)).epoch(2)
    assert found.images.tolist() == [11, 0, 2, 6, 6, 5, 10, 7, 3, 1, 13, 8]
    assert found.views is not None
    assert found.views.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_without_balance_an_epoch_is_a_permutation() -> None:
    orders = order(0.0, length=sum(SIZES))
    for epoch in range(3):
        assert sorted(orders.epoch(epoch).images) == list(range(81))


def test_words_of_a_class_can_be_had_from_any_place_on() -> None:
    words = member_words(5, 2, 0, 60)
    for start in range(25):
        assert np.array_equal(member_words(5, 2, start, start + 11), words[start : start + 11])
    assert not np.isin(member_words(5, 3, 0, 60), words).any()


def test_appearances_count_from_zero() -> None:
    assert appearances(np.array([4, 1, 4, 4, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    assert appearances(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("repeats", [1, 3, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_take_what_one_takes_and_no_view_twice(repeats: int, world: int) -> None:
    batch, n = 12, 81
    length = epoch_length(n, batch, repeats)
    found: Order = order(1.0, length).epoch(4)
    assert found.views is not None
    rows, steps = [], n // batch
    for step in range(steps):
        tasks = [
            rank_task(found, step, batch, r, world, epoch=4, repeats=repeats, size=24) for r in range(world)
        ]
        whole = rank_task(found, step, batch, 0, 1, epoch=4, repeats=repeats, size=24)
        assert {task.size for task in tasks} == {24}
        assert np.array_equal(np.concatenate([task.indices for task in tasks]), whole.indices)
        assert np.array_equal(np.concatenate([task.row_views() for task in tasks]), whole.row_views())
        rows += list(zip(whole.indices.tolist(), whole.row_views().tolist(), strict=True))
    assert len(rows) == steps * batch
    assert len(set(rows)) == len(rows)
    entries = np.repeat(found.images, repeats)[: len(rows)]
    assert sorted(image for image, _ in rows) == sorted(entries.tolist())
    for image in range(n):  # the views of an image are numbered without a gap, where all of them are shown
        views = sorted(view for i, view in rows if i == image)
        assert len(rows) % repeats or views == list(range(len(views)))


def test_a_step_behind_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="no step 2"):
        rank_task(np.arange(20), 2, 8, 0, 1, epoch=0)
    with pytest.raises(ValueError, match="no step 5"):
        rank_task(np.arange(20), 5, 8, 0, 1, epoch=0, repeats=2)


def test_a_class_of_one_image_beside_many_costs_little() -> None:
    """Its cycles are drawn together: half a million of them."""
    orders = order(1.0, length=1_000_000, sizes=(999_999, 1))
    found = orders.epoch(1)
    assert shown(orders, 1).tolist() == [500_000, 500_000]
    assert found.views is not None
    assert found.views.max() == 499_999

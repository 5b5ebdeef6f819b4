"""Mixup and cutmix: draws against the published formulas and distributions; what they mean for rows and pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.config import MixConfig
from resnext_core.data.mix import (
    check_micro_batch,
    cutmix_box,
    draw_mix,
    draw_mixes,
    mixed_pixels,
    mixed_rows,
    show_mix,
    symmetric_beta,
)
from resnext_core.data.sampler import mix_rng
from resnext_core.errors import UsageError
from resnext_core.interfaces import Mix, MixedRows

BOTH = MixConfig(mixup=0.2, cutmix=1.0)
SIZE = (24, 40)


def draws(config: MixConfig, count: int, size: tuple[int, int] = SIZE) -> list[Mix]:
    return [draw_mix(config, size, mix_rng(7, step, 0)) for step in range(count)]


# -- what is drawn ---------------------------------------------------------------------------------


def test_draws_are_the_same_for_ever() -> None:
    """These may never change: resumed runs rest on them."""
    one = draw_mix(MixConfig(mixup=1.0), SIZE, mix_rng(1, 0, 0))
    two = draw_mix(MixConfig(cutmix=1.0, partner="rolled"), SIZE, mix_rng(1, 12, 3))
    assert (one.kind, one.box, one.partner) == ("mixup", (0, 0, 0, 0), "reversed")
    assert one.lam == pytest.approx(0.5870537512, abs=1e-9)
    assert (two.kind, two.box, two.partner) == ("cutmix", (18, 10, 24, 28), "rolled")


def test_a_draw_depends_on_seed_step_and_micro_batch_alone() -> None:
    keys = [(seed, step, micro) for seed in (1, 2) for step in (0, 1, 2) for micro in (0, 1)]
    found = {key: draw_mix(BOTH, SIZE, mix_rng(*key)) for key in keys}
    assert len(set(found.values())) == len(keys)
    assert all(draw_mix(BOTH, SIZE, mix_rng(*key)) == mix for key, mix in found.items())


def test_ranks_draw_what_one_rank_draws_that_accumulates() -> None:
    def drawn(numbers: range) -> tuple[Mix, ...]:
        return draw_mixes(BOTH, SIZE, seed=3, step=17, epoch=1, micro_batches=numbers)

    alone = drawn(range(6))
    assert len(set(alone)) == 6
    for world in (2, 3, 6):
        each = 6 // world
        assert sum((drawn(range(r * each, (r + 1) * each)) for r in range(world)), ()) == alone


def test_epochs_after_the_last_mixed_one_are_not_mixed() -> None:
    def epochs(config: MixConfig) -> list[int]:
        return [
            len(draw_mixes(config, SIZE, seed=1, step=5, epoch=epoch, micro_batches=range(2)))
            for epoch in (1, 2, 3, 4)
        ]

    assert epochs(BOTH) == [2, 2, 2, 2]
    assert epochs(MixConfig(mixup=0.2, off_epoch=2)) == [2, 2, 0, 0]
    assert epochs(MixConfig()) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [
        (0.5, lambda x: 2 / math.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 6 * x**5 - 15 * x**4 + 10 * x**3),
    ],
)
def test_shares_have_the_beta_distribution(
    alpha: float, cdf: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    """Kolmogorov's distance to distribution functions in closed form: above 1.95 / √n in one of 1000 samples."""
    count = 20_000
    found = np.sort([mix.lam for mix in draws(MixConfig(mixup=alpha), count)])
    expected = cdf(found)
    distance = max(np.abs(expected - (np.arange(count) + k) / count).max() for k in (0, 1))
    assert distance < 1.95 / math.sqrt(count)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2, 8.0, 200.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    """Of the published alphas among others: within five standard errors."""
    count = 20_000
    found = np.array([mix.lam for mix in draws(MixConfig(mixup=alpha), count)]) - 0.5
    assert (np.abs(found) <= 0.5).all()
    variance, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(found.mean()) < 5 * math.sqrt(variance / count)
    assert abs(np.square(found).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / count)


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e3, 1e300])
def test_shares_are_shares_for_any_alpha_and_any_numbers(alpha: float) -> None:
    last = 1 - 2.0**-53
    for first in (0.0, 2.0**-53, 0.3, last):
        for second in (0.0, 0.25, 0.5, last):
            assert 0 <= symmetric_beta(alpha, first, second) <= 1, (first, second)


def test_cutmix_boxes_are_those_of_timm_and_torchvision() -> None:
    """By both published roundings, for a thousand boxes in images that are not square."""
    rng = np.random.default_rng(3)
    for _ in range(1000):
        height, width = (int(n) for n in rng.integers(1, 300, 2))
        lam, row, column = float(rng.random()), int(rng.integers(height)), int(rng.integers(width))
        halves = cutmix_box(lam, (height, width), row, column, "halves")
        sides = cutmix_box(lam, (height, width), row, column, "sides")
        for i, (at, side) in enumerate(((row, height), (column, width))):
            cut = int(side * np.sqrt(1 - lam))  # timm: a whole side, then halved
            assert (sides[i], sides[i + 2]) == (
                np.clip(at - cut // 2, 0, side),
                np.clip(at + (cut + 1) // 2, 0, side),
            )
            half = int(0.5 * math.sqrt(1 - lam) * side)  # torchvision: half a side
            assert (halves[i], halves[i + 2]) == (max(at - half, 0), min(at + half, side))


def test_the_share_of_cutmix_is_the_area_outside_the_box() -> None:
    height, width = SIZE
    for mix in draws(MixConfig(cutmix=1.0), 500):
        outside = np.ones(SIZE)
        outside[mix.box[0] : mix.box[2], mix.box[1] : mix.box[3]] = 0
        assert mix.kind == "cutmix"
        assert mix.lam == pytest.approx(outside.mean(), abs=1e-12)
        assert 0 <= mix.box[0] <= mix.box[2] <= height
        assert 0 <= mix.box[1] <= mix.box[3] <= width


def test_boxes_are_distributed_as_the_published_ones() -> None:
    """How often each pixel is inside, and the mean share, against NumPy's generators: within five standard errors."""
    count, (height, width) = 20_000, (8, 12)
    ours, theirs = np.zeros((height, width)), np.zeros((height, width))
    shares = []
    for mix in draws(MixConfig(cutmix=1.0), count, (height, width)):
        ours[mix.box[0] : mix.box[2], mix.box[1] : mix.box[3]] += 1
        shares.append(mix.lam)
    rng = np.random.default_rng(5)
    ratios = np.sqrt(1 - rng.beta(1.0, 1.0, count))
    for ratio, y, x in zip(
        ratios, rng.integers(height, size=count), rng.integers(width, size=count), strict=True
    ):
        tall, wide = int(height * ratio) // 2, int(width * ratio) // 2
        theirs[max(y - tall, 0) : y + tall, max(x - wide, 0) : x + wide] += 1
    spread = np.sqrt(2 * 0.25 / count)
    assert np.abs(ours - theirs).max() / count < 5 * spread
    assert abs(np.mean(shares) - (1 - theirs.mean() / count)) < 5 * np.std(shares) * math.sqrt(2 / count)


def test_how_often_each_is_drawn() -> None:
    count = 10_000
    config = MixConfig(mixup=0.2, cutmix=1.0, prob=0.8, switch_prob=0.3)
    kinds = [mix.kind for mix in draws(config, count)]
    for kind, expected in (("none", 0.2), ("cutmix", 0.24), ("mixup", 0.56)):
        assert abs(kinds.count(kind) / count - expected) < 5 * math.sqrt(expected * (1 - expected) / count)
    assert {mix.kind for mix in draws(MixConfig(mixup=0.2, switch_prob=1.0), 50)} == {"mixup"}
    assert {mix.kind for mix in draws(MixConfig(cutmix=1.0, switch_prob=0.0), 50)} == {"cutmix"}
    assert {mix.kind for mix in draws(MixConfig(mixup=0.2, cutmix=1.0, prob=0.0), 50)} == {"none"}


def test_mixing_needs_two_images() -> None:
    check_micro_batch(2)
    with pytest.raises(UsageError, match=r"this one has 1; raise train\.batch_size"):
        check_micro_batch(1)


# -- what it means ---------------------------------------------------------------------------------


def published(
    pixels: NDArray[np.float64], targets: NDArray[np.float64], mix: Mix, partners: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mix normalised (N, C, H, W) and targets (N, K) image by image, as the papers have it."""
    images, soft = pixels.copy(), targets.copy()
    for i, j in enumerate(partners):
        if mix.kind == "mixup":
            images[i] = mix.lam * pixels[i] + (1 - mix.lam) * pixels[j]
        else:
            top, left, bottom, right = mix.box
            images[i][:, top:bottom, left:right] = pixels[j][:, top:bottom, left:right]
        soft[i] = mix.lam * targets[i] + (1 - mix.lam) * targets[j]
    return images, soft


def soft_targets(
    rows: MixedRows, labels: NDArray[np.int32], one_hot: NDArray[np.float64]
) -> NDArray[np.float64]:
    share = rows.share[:, None]
    return share * one_hot[labels] + (1 - share) * one_hot[rows.labels]


CUTMIX = Mix(kind="cutmix", lam=1 - 4 * 7 / 99, box=(2, 3, 6, 10))


@pytest.mark.parametrize(
    ("partner", "partners"), [("reversed", [5, 4, 3, 2, 1, 0]), ("rolled", [5, 0, 1, 2, 3, 4])]
)
@pytest.mark.parametrize("mix", [Mix(kind="mixup", lam=0.3), CUTMIX], ids=["mixup", "cutmix"])
def test_rows_and_pixels_are_those_of_timm_and_torchvision(
    mix: Mix, partner: str, partners: list[int]
) -> None:
    """``x.flip(0)`` is timm's partner, ``x.roll(1, 0)`` torchvision's; smoothing comes before mixing."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 6).astype(np.int32)
    pixels = rng.standard_normal((6, 9, 11, 3))
    one_hot = np.full((4, 4), 0.1 / 4) + 0.9 * np.eye(4)
    drawn = Mix(kind=mix.kind, lam=mix.lam, box=mix.box, partner=partner)  # type: ignore[arg-type]
    rows = mixed_rows([drawn], labels, np.ones(6, bool), (9, 11))
    images, soft = published(pixels.transpose(0, 3, 1, 2), one_hot[labels], mix, partners)
    np.testing.assert_allclose(mixed_pixels(pixels, rows).transpose(0, 3, 1, 2), images, atol=1e-14, rtol=0)
    np.testing.assert_allclose(soft_targets(rows, labels, one_hot), soft, atol=1e-14, rtol=0)


def test_mixing_before_and_after_normalisation_is_the_same() -> None:
    images = np.random.default_rng(2).integers(0, 256, (4, 9, 11, 3)).astype(np.float64)
    mean, std = np.array([141.0, 117.0, 87.0]), np.array([71.0, 53.0, 37.0])
    for mix in (Mix(kind="mixup", lam=0.37), CUTMIX):
        rows = mixed_rows([mix], np.zeros(4, np.int32), np.ones(4, bool), (9, 11))
        after = mixed_pixels((images - mean) / std, rows)
        np.testing.assert_allclose((mixed_pixels(images, rows) - mean) / std, after, atol=1e-12, rtol=0)


def test_each_micro_batch_is_mixed_by_its_own_draw() -> None:
    labels = np.arange(9, dtype=np.int32)
    mixes = [Mix(kind="mixup", lam=0.25, partner="rolled"), Mix(partner="rolled"), Mix(
        kind="cutmix", lam=0.75, box=(0, 0, 2, 4), partner="rolled")]  # fmt: skip
    rows = mixed_rows(mixes, labels, np.ones(9, bool), (4, 8))
    assert rows.partner.tolist() == [2, 0, 1, 0, 1, 2, 2, 0, 1]
    assert rows.labels.tolist() == [2, 0, 1, 3, 4, 5, 8, 6, 7]
    assert rows.share.tolist() == [0.25] * 3 + [1.0] * 3 + [0.75] * 3
    assert rows.blend.tolist() == [0.25] * 3 + [1.0] * 3 + [0.0] * 3
    assert rows.box.tolist() == [[0, 0, 4, 8]] * 3 + [[0, 0, 0, 0]] * 3 + [[0, 0, 2, 4]] * 3
    assert [a.dtype.name for a in (rows.partner, rows.labels, rows.share, rows.box, rows.blend)] == [
        "int32", "int32", "float64", "int32", "float64",
    ]  # fmt: skip
    last = rows.part(slice(6, 9))
    assert (last.partner.tolist(), last.labels.tolist()) == ([2, 0, 1], [8, 6, 7])


@pytest.mark.parametrize("partner", ["reversed", "rolled"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_row_that_could_not_be_read_is_mixed_with_none(kind: str, partner: str) -> None:
    """Whoever would have it as a partner stays as it is, and so does the row itself; by either rule rows 1 and 2."""
    mix = Mix(kind=kind, lam=0.5, box=(0, 0, 4, 4), partner=partner)  # type: ignore[arg-type]
    valid, labels = np.array([True, False, True, True]), np.array([3, 0, 5, 6], np.int32)
    images = np.random.default_rng(4).standard_normal((4, 4, 8, 3)).astype(np.float32)
    rows = mixed_rows([mix], labels, valid, (4, 8))
    assert rows.share.tolist() == [0.5, 1.0, 1.0, 0.5]
    assert rows.partner.tolist() == [3, 1, 2, 0 if partner == "reversed" else 2]
    assert rows.labels.tolist() == labels[rows.partner].tolist()
    pixels = mixed_pixels(images, rows)
    assert pixels[1:3].tobytes() == images[1:3].tobytes(), "a row that is not mixed is the same bits"
    assert not np.isclose(pixels[[0, 3]], images[[0, 3]]).all(axis=(1, 2, 3)).any()


def test_the_middle_row_of_an_odd_batch_is_not_mixed_with_itself() -> None:
    rows = mixed_rows([Mix(kind="mixup", lam=0.5)], np.arange(3, dtype=np.int32), np.ones(3, bool), (4, 4))
    assert rows.partner.tolist() == [2, 1, 0]
    assert rows.share.tolist() == [0.5, 1.0, 0.5]


def test_rows_that_are_not_mixed_are_their_own_partners() -> None:
    """Counted within their micro-batch, as those of mixed rows."""
    rows = mixed_rows([Mix(), Mix()], np.arange(6, dtype=np.int32), np.ones(6, bool), (4, 4))
    assert (rows.partner.tolist(), rows.labels.tolist()) == ([0, 1, 2] * 2, [0, 1, 2, 3, 4, 5])
    assert rows.share.tolist() == rows.blend.tolist() == [1.0] * 6
    assert not rows.box.any()


def test_a_mixed_batch_can_be_shown() -> None:
    images = np.random.default_rng(6).integers(0, 256, (4, 9, 11, 3), np.uint8)
    shown = show_mix(images, CUTMIX)
    assert shown.dtype == np.uint8
    expected = images.copy()
    expected[:, 2:6, 3:10] = images[::-1, 2:6, 3:10]
    assert np.array_equal(shown, expected)
    blended = show_mix(images, Mix(kind="mixup", lam=0.25, partner="rolled"))
    exact = images / 4 + np.roll(images, 1, axis=0) * 0.75
    assert np.abs(blended - exact).max() <= 0.5
    alone = show_mix(images, CUTMIX, np.array([True, True, True, False]))
    assert np.array_equal(alone[0], images[0])

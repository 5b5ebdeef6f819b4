"""Augmentation: the crop's distribution, flip, colour, scaled decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import picture, pixels
from PIL import Image, ImageEnhance

from resnext_core.config import AugmentConfig
from resnext_core.data.operations import operated
from resnext_core.data.plan import Box, color_jitter, random_box
from resnext_core.data.render import load_train, resize_box
from resnext_core.data.sampler import sample_rng
from resnext_core.model.preprocess import PreprocessSpec, pillow_filter

PLAIN_VIEW = AugmentConfig(scale=(1, 1), ratio=(1, 1), flip=0, color_jitter=(0, 0, 0))


class Draws:
    """Stands in for a generator: gives out the numbers it was made of, and nothing but ``random``."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self, n: int | None = None) -> np.ndarray | float:
        taken, self.numbers = self.numbers[: n or 1], self.numbers[n or 1 :]
        return np.array(taken) if n else taken[0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 1000))
def test_a_crop_is_inside_the_image(width: int, height: int, sample: int) -> None:
    box = random_box(width, height, AugmentConfig(), sample_rng(0, 0, sample))
    assert box.left >= 0
    assert box.top >= 0
    assert box.width >= 1
    assert box.height >= 1
    assert box.left + box.width <= width
    assert box.top + box.height <= height


def test_crops_have_the_right_distribution() -> None:
    boxes = [random_box(400, 400, AugmentConfig(), sample_rng(1, 0, i)) for i in range(3000)]
    share = np.array([b.width * b.height for b in boxes]) / 400**2
    ratio = np.array([b.width / b.height for b in boxes])
    assert 0.078 < share.min() < 0.09
    assert share.max() <= 1
    rng = np.random.default_rng(0)
    wanted, log_ratio = rng.uniform(0.08, 1, 100_000), rng.uniform(np.log(3 / 4), np.log(4 / 3), 100_000)
    fits = wanted * np.exp(abs(log_ratio)) <= 1  # the large ones often do not
    assert abs(share.mean() - wanted[fits].mean()) < 0.015
    assert abs(share.std() - wanted[fits].std()) < 0.015
    assert 0.74 < ratio.min() < 0.77
    assert 1.30 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.02
    assert 0.4 < np.mean([b.left / max(400 - b.width, 1) for b in boxes]) < 0.6
    assert min(b.left for b in boxes) == 0


def test_fallback_is_the_largest_centred_crop() -> None:
    rng = sample_rng(0, 0, 0)
    augment = AugmentConfig(scale=(1, 1))
    assert random_box(1000, 10, augment, rng) == Box(left=493, top=0, width=13, height=10)
    assert random_box(10, 1000, augment, rng) == Box(left=0, top=493, width=10, height=13)
    assert random_box(1, 1, augment, rng) == Box(left=0, top=0, width=1, height=1)


def test_crop_arithmetic() -> None:
    augment = AugmentConfig(scale=(0.25, 0.75), ratio=(0.5, 2.0))
    # area 0.5 * 200 * 100, ratio exp(0) = 1: a square of 100; then the place
    assert random_box(200, 100, augment, Draws(0.5, 0.5, 0.5, 0.999)) == Box(
        left=50, top=0, width=100, height=100
    )


@pytest.mark.parametrize("kind", ["antialias", "bicubic", "plain"])
def test_flip_and_resize(tmp_path: Path, kind: str) -> None:
    spec = PreprocessSpec(size=20, resize=20, filter=kind)  # type: ignore[arg-type]
    image, path = picture(40, 40), tmp_path / "x.png"
    image.save(path)
    straight = load_train(path, spec, PLAIN_VIEW, sample_rng(0, 0, 0))
    flipped = load_train(path, spec, AugmentConfig(**{**vars(PLAIN_VIEW), "flip": 1.0}), sample_rng(0, 0, 0))
    assert straight.shape == (20, 20, 3)
    assert np.array_equal(straight[:, ::-1], flipped)
    assert not np.array_equal(straight, flipped)
    if kind != "plain":
        kernel = Image.Resampling.BILINEAR if kind == "antialias" else Image.Resampling.BICUBIC
        assert np.array_equal(straight, np.asarray(image.resize((20, 20), kernel)))


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (97, 101), (1, 90), (90, 1)])
@pytest.mark.parametrize("kind", ["antialias", "bicubic"])
def test_a_crop_is_resized_along_rows_first(
    shape: tuple[int, int], kind: Literal["antialias", "bicubic"]
) -> None:
    image, kernel = picture(*shape), pillow_filter(kind)
    for sample in range(40):
        box = random_box(*image.size, AugmentConfig(), sample_rng(3, 0, sample))
        if sample % 2:  # as on an image that was decoded at a smaller scale
            box = Box(
                left=box.left + 0.375 if box.width > 1 else box.left,
                top=box.top,
                width=max(box.width - 0.5, 0.5),
                height=max(box.height - 0.625, 0.375),
            )
        columns = (box.left, 0, box.left + box.width, image.height)
        wide = image.resize((24, image.height), kernel, box=columns)
        expected = wide.resize((24, 24), kernel, box=(0, box.top, 24, box.top + box.height))
        assert np.array_equal(resize_box(image, box, 24, kind), expected)


def test_half_of_the_images_are_flipped(tmp_path: Path) -> None:
    spec, path = PreprocessSpec(size=8, resize=8), tmp_path / "x.png"
    picture(8, 8).save(path)
    augment = AugmentConfig(**{**vars(PLAIN_VIEW), "flip": 0.5})
    flips = [
        np.array_equal(load_train(path, spec, augment, sample_rng(0, 0, i)), pixels(8, 8)[:, ::-1])
        for i in range(400)
    ]
    assert 0.42 < np.mean(flips) < 0.58


@pytest.mark.parametrize("op", [0, 1, 2])
@pytest.mark.parametrize("draw", [0.0, 0.25, 0.9])
def test_each_colour_operation_is_pillows(op: int, draw: float) -> None:
    image = picture(30, 40)
    strengths = tuple(0.4 if i == op else 0.0 for i in range(3))
    draws = [0.1, 0.2, 0.3, 0.5, 0.5, 0.5]
    draws[3 + op] = draw
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[op]
    expected = np.asarray(enhance(image).enhance(1 + 0.4 * (2 * draw - 1)))
    assert np.array_equal(np.asarray(operated(image, color_jitter(strengths, Draws(*draws)))), expected)  # type: ignore[arg-type]


def test_colour_operations_come_in_random_order() -> None:
    image, strengths = picture(30, 40), (0.8, 0.8, 0.8)
    orders = [
        (0.1, 0.2, 0.3),
        (0.1, 0.3, 0.2),
        (0.2, 0.1, 0.3),
        (0.2, 0.3, 0.1),
        (0.3, 0.1, 0.2),
        (0.3, 0.2, 0.1),
    ]
    results = {
        operated(image, color_jitter(strengths, Draws(*o, 1.0, 0.9, 0.1))).tobytes()  # type: ignore[arg-type]
        for o in orders
    }
    assert len(results) == 6


def test_strength_zero_changes_nothing_and_no_other_draw() -> None:
    image = picture(30, 40)
    rng = sample_rng(0, 0, 1)
    assert operated(image, color_jitter((0, 0, 0), rng)) is image
    used = sample_rng(0, 0, 1)
    assert len(list(color_jitter((0.4, 0.4, 0.4), used))) == 3
    assert rng.random() == used.random()


def test_scaled_decoding_shows_the_same_view(tmp_path: Path) -> None:
    smooth = picture(101, 151).resize((1201, 803), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    spec = PreprocessSpec(size=32, resize=36)
    off = []
    for sample in range(12):
        views = [
            load_train(
                tmp_path / "x.jpg", spec, AugmentConfig(scaled_decode=scaled, color_jitter=(0, 0, 0)),
                sample_rng(4, 0, sample),
            ).astype(int)
            for scaled in (False, True)
        ]  # fmt: skip
        off.append(abs(views[0] - views[1]).mean())
    assert 0 < np.mean(off) < 3

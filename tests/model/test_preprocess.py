"""Preprocessing: geometry, both filters against independent implementations, normalisation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import picture, pixels
from PIL import Image

from resnext_core.config import PreprocessConfig
from resnext_core.errors import UsageError
from resnext_core.model.preprocess import (
    PreprocessSpec,
    eval_pixels,
    geometry,
    normalize,
    preprocess_spec,
    resize_plain,
)

#: Results of MindSpore 2.10's Resize (OpenCV inside) on the image of test_plain_has_opencvs_integers.
OPENCV_3X3 = [[67, 144, 78], [138, 159, 179], [167, 130, 93]]
OPENCV_7X6 = [
    [37, 92, 124, 27, 58, 114],
    [144, 127, 109, 110, 93, 75],
    [205, 133, 79, 153, 135, 100],
    [157, 85, 30, 105, 179, 234],
    [108, 127, 134, 86, 130, 185],
    [60, 115, 165, 141, 136, 137],
    [21, 76, 150, 224, 170, 98],
]

KERNELS = {"antialias": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def exact_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The two-tap bilinear filter with half-pixel centres in float64, straight from its definition."""

    def positions(size: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = ((np.arange(new) + 0.5) * size / new - 0.5).clip(0, size - 1)
        first = np.floor(centre).astype(int)
        return first, np.minimum(first + 1, size - 1), centre - first

    y0, y1, fy = positions(image.shape[0], height)
    x0, x1, fx = positions(image.shape[1], width)
    fy, fx = fy[:, None, None], fx[None, :, None]
    rows = image[y0] * (1 - fy) + image[y1] * fy
    return rows[:, x0] * (1 - fx) + rows[:, x1] * fx


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(0, 99))
def test_plain_is_bilinear_within_a_level(h: int, w: int, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    got = resize_plain(image, height, width)
    assert got.shape == (height, width, 3)
    assert got.dtype == np.uint8
    assert abs(got - exact_bilinear(image, height, width)).max() < 1.01
    assert np.array_equal(resize_plain(image, h, w), image)


def test_plain_has_opencvs_integers() -> None:
    image = (np.arange(5 * 4 * 3).reshape(5, 4, 3) * 37 % 256).astype(np.uint8)
    assert resize_plain(image, 3, 3)[..., 0].tolist() == OPENCV_3X3
    assert resize_plain(image, 7, 6)[..., 1].tolist() == OPENCV_7X6


def test_plain_equals_mindspore() -> None:
    vision = pytest.importorskip("mindspore.dataset.vision")
    for h, w, height, width in [(75, 100, 64, 64), (30, 20, 64, 64), (64, 64, 32, 32), (37, 53, 36, 29)]:
        image = pixels(h, w)
        theirs = np.asarray(vision.Resize((height, width), vision.Inter.BILINEAR)(image))
        assert np.array_equal(resize_plain(image, height, width), theirs), (h, w, height, width)


@pytest.mark.parametrize(
    ("height", "width", "mode", "expected"),
    [
        (375, 500, "squash", (256, 256, 16, 16)),
        (375, 500, "shorter-side", (256, 341, 16, 58)),  # (341 - 224) / 2 = 58.5, to the even one
        (500, 375, "shorter-side", (341, 256, 58, 16)),
        (100, 101, "shorter-side", (256, 258, 16, 17)),
        (256, 259, "shorter-side", (256, 259, 16, 18)),  # 17.5, to the even one
        (64, 64, "shorter-side", (256, 256, 16, 16)),
    ],
)
def test_geometry_is_torchvisions(height: int, width: int, mode: str, expected: tuple[int, ...]) -> None:
    place = geometry(height, width, PreprocessSpec(mode=mode))  # type: ignore[arg-type]
    assert (place.height, place.width, place.top, place.left) == expected


@pytest.mark.parametrize("mode", ["squash", "shorter-side"])
@pytest.mark.parametrize("kind", ["antialias", "bicubic", "plain"])
def test_eval_is_resize_then_crop(mode: str, kind: str) -> None:
    spec = PreprocessSpec(size=49, resize=60, mode=mode, filter=kind)  # type: ignore[arg-type]
    for height, width in [(80, 131), (131, 80), (30, 41), (60, 60), (9, 40)]:
        image = picture(height, width)
        place = geometry(height, width, spec)
        if kind in KERNELS:
            wide = image.resize((place.width, image.height), KERNELS[kind])
            whole = np.asarray(wide.resize((place.width, place.height), KERNELS[kind]))
            at_once = np.asarray(image.resize((place.width, place.height), KERNELS[kind]))
            assert np.abs(whole.astype(int) - at_once).max() <= 1  # whichever axis Pillow takes first
        else:
            whole = resize_plain(np.asarray(image), place.height, place.width)
        expected = whole[place.top : place.top + 49, place.left : place.left + 49]
        assert np.array_equal(eval_pixels(image, spec), expected), (height, width)


def keys_cubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981), equation 15, which has a = -1/2."""
    x = abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def exact_cubic(size: int, new_size: int) -> np.ndarray:
    """The weights of an antialiased cubic resize, (new_size, size), straight from its definition."""
    centre = (np.arange(new_size)[:, None] + 0.5) * size / new_size
    weights = keys_cubic((np.arange(size) + 0.5 - centre) / max(size / new_size, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(0, 9))
def test_bicubic_is_the_cubic_convolution_stretched_when_shrinking(
    h: int, w: int, size: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    spec = PreprocessSpec(size=size, resize=size, mode="squash", filter="bicubic")
    wide = np.einsum("xk,ykc->yxc", exact_cubic(w, size), image.astype(float))
    wide = np.rint(wide.clip(0, 255))
    exact = np.einsum("yk,kxc->yxc", exact_cubic(h, size), wide).clip(0, 255)
    assert abs(eval_pixels(Image.fromarray(image), spec) - exact).max() < 2.01  # 1 level in each direction


@pytest.mark.parametrize("kind", ["antialias", "bicubic"])
def test_long_images_cost_no_more(kind: str) -> None:
    """Beyond 16:1 only the crop is computed; a whole 1,280,000 x 64 image would be 245 MB."""
    image = Image.fromarray(np.tile(np.arange(20_000, dtype=np.uint8)[None, :, None], (1, 1, 3)))
    spec = PreprocessSpec(size=56, resize=64, mode="shorter-side", filter=kind)  # type: ignore[arg-type]
    got = eval_pixels(image, spec)
    assert got.shape == (56, 56, 3)
    # 56 of 64 columns of one source pixel: a flat piece, or two neighbours
    assert kind == "bicubic" or len(np.unique(got)) <= 3
    medium = picture(20, 20 * 20)
    place = geometry(20, 400, spec)
    whole = np.asarray(medium.resize((place.width, place.height), KERNELS[kind])).astype(int)
    expected = whole[place.top : place.top + 56, place.left : place.left + 56]
    assert abs(eval_pixels(medium, spec) - expected).max() <= (1 if kind == "antialias" else 2)


def test_normalize() -> None:
    spec = PreprocessSpec(size=4, resize=4, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    got = normalize(images, spec)
    assert got.shape == (2, 3, 4, 5)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    for c in range(3):
        np.testing.assert_allclose(
            got[:, c], (images[..., c] - spec.mean[c]) / spec.std[c], rtol=1e-6, atol=1e-6
        )


def test_spec_from_config() -> None:
    assert preprocess_spec(PreprocessConfig(), 224) == PreprocessSpec()
    assert preprocess_spec(PreprocessConfig(), 32).resize == 37
    config = PreprocessConfig(
        resize=40, mode="shorter-side", filter="plain", mean=(1, 2, 3), scaled_decode=True
    )
    spec = preprocess_spec(config, 32)
    assert (spec.size, spec.resize, spec.mode, spec.filter, spec.mean, spec.scaled_decode) == (
        32, 40, "shorter-side", "plain", (1.0, 2.0, 3.0), True,
    )  # fmt: skip
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(UsageError, match="below the crop size"):
        preprocess_spec(PreprocessConfig(resize=16), 32)


def test_import_is_light() -> None:
    code = "import sys, resnext_core.model.preprocess; print(sorted({'numpy', 'PIL', 'yaml'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "[]"

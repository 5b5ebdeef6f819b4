"""Operations of plans: each is Pillow's for the same parameters, or whole-number arithmetic that is checked by hand."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import pytest
from images import picture, pixels
from PIL import Image, ImageEnhance, ImageOps

from resnext_core.config import AugmentConfig
from resnext_core.data.auto_augment import Canvas, operation
from resnext_core.data.operation import Operation
from resnext_core.data.operations import OPERATIONS, operated
from resnext_core.data.plan import train_plan
from resnext_core.data.render import rendered
from resnext_core.data.sampler import sample_rng
from resnext_core.model.preprocess import PreprocessSpec

FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def applied(image: Image.Image, name: str, *values: float) -> np.ndarray:
    return np.asarray(operated(image, [Operation(name=name, values=values)]))


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.73, 1.0, 1.9])
def test_enhancements(factor: float) -> None:
    image = picture(33, 41)
    for name, enhance in {
        "brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color, "sharpness": ImageEnhance.Sharpness,
    }.items():  # fmt: skip
        assert np.array_equal(applied(image, name, factor), enhance(image).enhance(factor)), name


@pytest.mark.parametrize("seed", range(4))
def test_operations_without_parameters(seed: int) -> None:
    flat = np.full((20, 20, 3), (7, 0, 255), np.uint8)
    dull = (pixels(30, 37, seed) // 3 + 40).astype(np.uint8)
    for image in map(Image.fromarray, (flat, dull, dull[:3, :3], pixels(30, 37, seed))):
        assert np.array_equal(applied(image, "autocontrast"), ImageOps.autocontrast(image))
        assert np.array_equal(applied(image, "equalize"), ImageOps.equalize(image))
        assert np.array_equal(applied(image, "invert"), 255 - np.asarray(image))


def test_levels() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    values = np.asarray(ramp)
    for bits in range(1, 9):
        assert np.array_equal(applied(ramp, "posterize", bits), ImageOps.posterize(ramp, bits))
    assert not applied(ramp, "posterize", 0).any()
    for threshold in (0, 1, 127.5, 128, 246.5, 255, 256):
        solarized = ImageOps.solarize(ramp, threshold)  # type: ignore[arg-type]
        assert np.array_equal(applied(ramp, "solarize", threshold), solarized)
    for amount in (0, 30, 110, 128):
        expected = np.where(values < 128, np.minimum(values.astype(int) + amount, 255), values)
        assert np.array_equal(applied(ramp, "solarize_add", amount), expected)


@pytest.mark.parametrize("name", FILTERS)
def test_rotation_is_pillows(name: str) -> None:
    image, canvas = picture(37, 37), Canvas(size=37, filter=name, fill=(124, 116, 104))
    for degrees in (-135, -30, -7.3, 0.01, 1, 29.999, 44, 91):
        rotated = image.rotate(degrees, Image.Resampling(FILTERS[name]), fillcolor=(124, 116, 104))
        assert np.array_equal(operated(image, operation("rotate", degrees, canvas, 0.0)), rotated), degrees


@pytest.mark.parametrize("name", FILTERS)
def test_shears_and_shifts_are_pillows(name: str) -> None:
    image, canvas = picture(36, 36), Canvas(size=36, filter=name, fill=(9, 8, 7))
    for value in (-0.99, -0.3, 0.123, 5, -7.25):
        for kind, matrix in {
            "shear_x": (1, value, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, value, 1, 0),
            "translate_x": (1, 0, value, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, value),
        }.items():
            expected = image.transform(
                image.size,
                Image.Transform.AFFINE,
                matrix,
                Image.Resampling(FILTERS[name]),
                fillcolor=(9, 8, 7),
            )
            assert np.array_equal(operated(image, operation(kind, value, canvas, 0.0)), expected), (
                kind,
                value,
            )


def test_a_shift_by_whole_pixels_moves_them() -> None:
    image = picture(20, 20)
    for name in FILTERS:
        canvas = Canvas(size=20, filter=name, fill=(1, 2, 3))
        moved = np.asarray(operated(image, operation("translate_x", 6, canvas, 0.0)))
        assert np.array_equal(moved[:, :14], np.asarray(image)[:, 6:])
        assert (moved[:, 14:] == (1, 2, 3)).all()


def test_what_changes_nothing_is_left_out() -> None:
    canvas = Canvas(size=20, filter="bilinear", fill=(0, 0, 0))
    for name, value in {
        "identity": None, "rotate": 0.0, "shear_x": -0.0, "shear_y": 0.0, "translate_x": 0, "translate_y": 0,
        "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "sharpness": 1.0, "posterize": 8, "solarize": 256,
        "solarize_add": 0,
    }.items():  # fmt: skip
        assert list(operation(name, value, canvas, 0.0)) == [], name
        if name in OPERATIONS:
            assert np.array_equal(
                applied(picture(20, 20), name, *([] if value is None else [value])), picture(20, 20)
            )


def test_a_random_filter_is_bilinear_or_bicubic() -> None:
    canvas = Canvas(size=20, filter="random", fill=(0, 0, 0))
    assert [next(operation("rotate", 9, canvas, coin)).values[6] for coin in (0.0, 0.49, 0.5, 0.99)] == [
        2,
        2,
        3,
        3,
    ]


def test_mixing_is_the_weighted_sum_rounded_once() -> None:
    image, weights = picture(30, 40), (20_000, 17, 30_519, 15_000)
    chains: list[list[Operation]] = [
        [Operation(name="invert")],
        [Operation(name="posterize", values=(3,)), Operation(name="sharpness", values=(1.9,))],
        [],
    ]
    plan = [Operation(name="branch")]
    for chain, weight in zip(chains, weights[1:], strict=True):
        plan += [*chain, Operation(name="add", values=(weight,))]
    plan.append(Operation(name="merge", values=(weights[0],)))
    parts = [image, *(operated(image, chain) for chain in chains)]
    exact = sum(w * np.asarray(p, np.float64) for w, p in zip(weights, parts, strict=True)) / 65536
    assert np.array_equal(operated(image, plan), np.floor(exact + 0.5))  # float64 is exact here


def test_mixing_an_image_with_itself_gives_the_image() -> None:
    adds = [Operation(name="add", values=(w,)) for w in (1, 65_000, 35)]
    same = [Operation(name="branch"), *adds, Operation(name="merge", values=(500,))]
    assert np.array_equal(operated(picture(30, 40), [*same, *same]), picture(30, 40))


def test_erasing_in_one_colour() -> None:
    image = picture(30, 40)
    erased, expected = applied(image, "erase", 3, 5, 10, 7, 124, 116, 104), pixels(30, 40)
    expected[5:12, 3:13] = (124, 116, 104)
    assert np.array_equal(erased, expected)
    assert np.array_equal(image, pixels(30, 40))  # the given image stays


def splitmix64(seed: int) -> int:
    """The next word by the published algorithm, in Python's integers."""
    z = seed & (2**64 - 1)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return z ^ (z >> 31)


def test_noise_to_the_bit() -> None:
    golden = 0x9E3779B97F4A7C15
    assert (
        splitmix64(1234567 + golden) == 6457827717110365317
    )  # the first word that the algorithm's author publishes
    seed, means, steps = 2**53 - 3, (8_105_165, 7_620_526, 6_784_942), (18_309, 17_909, 17_641)
    noisy = applied(picture(9, 8), "erase_noise", 2, 1, 3, 4, seed, *means, *steps)
    expected, i = pixels(9, 8), 0
    for y in range(1, 5):
        for x in range(2, 5):
            for c in range(3):
                i += 1
                total = sum(splitmix64(seed + i * golden).to_bytes(8, "little"))
                level = (means[c] + steps[c] * (total - 1020) + 32768) >> 16
                expected[y, x, c] = min(max(level, 0), 255)
    assert np.array_equal(noisy, expected)


def test_every_operation_gives_an_image_of_its_own() -> None:
    values: dict[str, tuple[float, ...]] = {
        "brightness": (0.5,), "contrast": (0.5,), "saturation": (0.5,), "sharpness": (0.0,), "posterize": (1,),
        "solarize": (99,), "solarize_add": (90,), "affine": (1, 0, 3, 0, 1, 0, 0, 5, 5, 5),
        "erase": (0, 0, 5, 5, 1, 2, 3), "erase_noise": (0, 0, 5, 5, 9, *[1 << 22] * 3, *[99] * 3),
    }  # fmt: skip
    image = picture(24, 24)
    results = {applied(image, name, *values.get(name, ())).tobytes() for name in OPERATIONS}
    assert len(results | {image.tobytes()}) == len(OPERATIONS) + 1
    assert np.array_equal(image, pixels(24, 24))


def whole_number_picture(height: int, width: int, seed: int) -> Image.Image:
    """A picture that is the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (7 + c) + y * (13 - c) + 50 * seed + (x * x * y >> 5)) % 256 for c in range(3)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


#: Of a batch from before there were further augmentations; without colour jitter, whose single-precision sums some
#: processors fuse.
DIGESTS = {"antialias": "84b424260e57e213", "bicubic": "26b2f1336d9b2f09", "plain": "3978cdd1519858d0"}
PLANS = "253ff2dfdd819aaf"


@pytest.mark.parametrize("kind", DIGESTS)
def test_recipes_without_new_augmentations_keep_their_pixels(
    kind: Literal["antialias", "bicubic", "plain"],
) -> None:
    spec, digest = PreprocessSpec(size=32, resize=36, filter=kind), hashlib.sha256()
    for sample in range(16):
        image = whole_number_picture(60 + 7 * sample, 150 - 5 * sample, sample)
        plan = train_plan(*image.size, spec, AugmentConfig(color_jitter=(0, 0, 0)), sample_rng(5, 2, sample))
        digest.update(rendered(image, 1.0, plan).tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[kind]


def test_recipes_without_new_augmentations_keep_their_plans() -> None:
    drawn = []
    for sample in range(16):
        plan = train_plan(500, 375, PreprocessSpec(), AugmentConfig(), sample_rng(5, 2, sample))
        factors = [(o.name, *[round(v, 9) for v in o.values]) for o in plan.operations]
        drawn.append((plan.box, plan.sides, plan.flip, factors))
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == PLANS

"""Automatic augmentation and erasing: what the text means, and the distributions of what is drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from images import picture

from resnext_core.config import AugmentConfig
from resnext_core.config.policies import (
    AugMix,
    RandAugment,
    TimmRandAugment,
    TrivialAugmentWide,
    parse_policy,
)
from resnext_core.data.auto_augment import draw_auto
from resnext_core.data.erasing import draw_erasing
from resnext_core.data.operation import Operation, exponential, normal
from resnext_core.data.operations import operated
from resnext_core.data.plan import Plan, train_plan
from resnext_core.data.sampler import sample_rng
from resnext_core.errors import UsageError
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=224, resize=256)
STILL = AugmentConfig(color_jitter=(0, 0, 0))


def drawn(
    auto: str, n: int = 4000, spec: PreprocessSpec = SPEC, **augment: object
) -> list[tuple[Operation, ...]]:
    """The operations of `n` images, all from one stream."""
    config = replace(STILL, auto=auto, **augment)  # type: ignore[arg-type]
    rng = sample_rng(3, 1, 0).stream("auto")
    return [tuple(draw_auto(config, spec, rng)) for _ in range(n)]


def kind(operation: Operation) -> tuple[str, float]:
    """The name of an operation, of affine ones by their matrix, and its parameter as the policy drew it."""
    if operation.name != "affine":
        return operation.name, operation.values[0] if operation.values else 0.0
    a, b, c, d, e, f = operation.values[:6]
    if (a, e) != (1, 1):
        return "rotate", math.degrees(math.atan2(-b, a))
    names = ("shear_x", "shear_y", "translate_x", "translate_y")
    [(name, value)] = [(n, v) for n, v in zip(names, (b, d, c, f), strict=True) if v]
    return name, value


def check_frequencies(found: Counter[str], expected: dict[str, float], n: int) -> None:
    """Every name is there about as often as expected: within 5 standard deviations."""
    assert set(found) == set(expected)
    for name, share in expected.items():
        assert abs(found[name] - n * share) < 5 * math.sqrt(n * share * (1 - share)), name


# -- the text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("none", None),
        ("rand", TimmRandAugment()),
        (
            "rand-m7-mstd0.5-inc1",
            TimmRandAugment(magnitude=7, deviation=0.5, increasing=1),
        ),
        ("rand-n3-p0.25-mmax20-m15", TimmRandAugment(layers=3, probability=0.25, most=20, magnitude=15)),
        ("randaugment", RandAugment(num_ops=2, magnitude=9, bins=31)),
        ("randaugment-n1-m4-b5", RandAugment(num_ops=1, magnitude=4, bins=5)),
        ("trivialaugment-wide", TrivialAugmentWide(bins=31)),
        ("augmix", AugMix(severity=3, width=3, depth=0)),
        ("augmix-m10-w2-d4", AugMix(severity=10, width=2, depth=4)),
    ],
)
def test_texts(text: str, policy: object) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be one of none, rand, randaugment, trivialaugment-wide, augmix"),
        ("rnad-m7", "must be one of"),
        ("randaug", "did you mean 'randaugment'"),
        ("rand-m7-w0", "unknown part 'w0'; rand takes m, n, p, mstd, mmax, inc, each followed by a number"),
        ("rand-", "unknown part ''"),
        ("rand-m-7", "unknown part 'm'"),
        ("rand-m31", "m must be an integer from 0 to 30, not 31"),
        ("rand-m7.5", "m must be an integer from 0 to 30, not 7.5"),
        ("rand-p2", "p must be a number from 0 to 1, not 2"),
        ("rand-inc0", "inc must be 1 or left out, not 0"),
        ("rand-m3-m4", "two parts set the same value, the second is 'm4'"),
        ("rand-m" + "9" * 50, "unknown part"),
        ("randaugment-m31", "counts the 31 magnitudes from 0 and must be at most 30, not 31"),
        ("randaugment-b1", "b must be an integer from 2 to 1000"),
        ("trivialaugment-wide-m3", "unknown part 'm3'"),
        ("augmix-m0", "m must be an integer from 1 to 10"),
    ],
)
def test_wrong_texts_are_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        AugmentConfig(auto=text)
    assert message in str(caught.value)
    assert "augment.auto" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- random numbers --------------------------------------------------------------------------------


def test_transforms_of_uniform_numbers() -> None:
    grid = (np.arange(400) + 0.5) / 400
    z = np.array([normal(u, v) for u in grid for v in grid])
    assert abs(z.mean()) < 1e-3
    assert abs(z.std() - 1) < 1e-2
    assert abs((abs(z) < 1).mean() - 0.6827) < 2e-3
    assert abs((abs(z) < 2).mean() - 0.9545) < 2e-3
    e = np.array([exponential(u) for u in grid])
    assert abs(e.mean() - 1) < 5e-3
    assert abs((e > 1).mean() - math.exp(-1)) < 5e-3
    for extreme in (0.0, 1 - 2**-53):
        assert math.isfinite(normal(extreme, 0.5))
        assert math.isfinite(exponential(extreme))


@pytest.mark.parametrize("auto", ["rand-m7-mstd0.5-inc1", "randaugment", "trivialaugment-wide", "augmix"])
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_turning_one_ingredient_on_does_not_change_another(auto: str, mode: str) -> None:
    jitter = AugmentConfig()
    erased = replace(jitter, erasing=0.8, erasing_mode=mode, erasing_count=3)  # type: ignore[arg-type]
    for i in range(40):
        base, some, other, both = (
            train_plan(500, 375, SPEC, config, sample_rng(3, 1, i))
            for config in (jitter, replace(jitter, auto=auto), erased, replace(erased, auto=auto))
        )
        assert replace(some, operations=()) == replace(base, operations=())
        assert replace(other, operations=()) == replace(base, operations=())
        automatic, boxes = some.operations[: -len(base.operations)], other.operations[len(base.operations) :]
        assert some.operations == automatic + base.operations
        assert other.operations == base.operations + boxes
        assert both.operations == automatic + base.operations + boxes


def test_images_epochs_seeds_and_views_differ_and_repeat() -> None:
    def one(seed: int, epoch: int, sample: int, view: int) -> Plan:
        augment = AugmentConfig(auto="augmix", erasing=1, erasing_mode="pixel")
        return train_plan(500, 375, SPEC, augment, sample_rng(seed, epoch, sample, view))

    places = list(itertools.product(range(2), repeat=4))
    assert len({one(*place) for place in places}) == 16
    for part in ("auto", "erasing"):  # and so does each stream by itself
        assert len({sample_rng(*place).stream(part).random() for place in places}) == 16  # type: ignore[arg-type]
    assert one(1, 0, 1, 0) == one(1, 0, 1, 0)
    assert one(1, 1, 1, 0) == train_plan(
        500, 375, SPEC, AugmentConfig(auto="augmix", erasing=1, erasing_mode="pixel"), sample_rng(1, 1, 1)
    )


# -- timm's RandAugment ----------------------------------------------------------------------------

TIMM = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "saturation",
    "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip


def test_timm_operations_are_uniform_and_applied_by_half() -> None:
    images = drawn("rand-m7-mstd0.5-inc1")
    found = Counter(kind(o)[0] for operations in images for o in operations)
    check_frequencies(found, dict.fromkeys(TIMM, 0.5 / 15), 8000)
    lengths = Counter(map(len, images))
    assert abs(lengths[1] / 4000 - 0.5) < 0.04
    assert abs(lengths[2] / 4000 - 0.25) < 0.04
    assert {len(o) for o in drawn("rand-n3-p1-inc1", 50)} == {3}


def test_timm_magnitudes_are_normal() -> None:
    values: dict[str, list[float]] = {name: [] for name in TIMM}
    for operations in drawn("rand-m7-mstd0.5-inc1-p1", 8000):
        for name, value in map(kind, operations):
            values[name].append(value)
    scales = {
        "rotate": 3, "shear_x": 0.03, "shear_y": 0.03, "translate_x": 0.045 * 224, "translate_y": 0.045 * 224,
    }  # fmt: skip
    for name, scale in scales.items():
        found = np.array(values[name]) / scale
        assert 0.42 < (found > 0).mean() < 0.58, name
        assert abs(abs(found).mean() - 7) < 0.1, name
        assert 0.43 < abs(found).std() < 0.57, name
        assert abs(found).max() < 10, name
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        found = (np.array(values[name]) - 1) / 0.09
        assert 0.42 < (found > 0).mean() < 0.58, name
        assert abs(abs(found).mean() - 7) < 0.1, name
    assert set(values["posterize"]) == {1, 2}  # 4 - int(2.8), and for a magnitude of 7.5 or more 4 - int(3)
    assert abs(np.mean(values["solarize"]) - (256 - 179.2 + 0.5)) < 2
    assert abs(np.mean(values["solarize_add"]) - (77 - 0.5)) < 1


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        ("rand-m10-inc1-p1", {"posterize": 0, "solarize": 0, "solarize_add": 110, "brightness": (0.1, 1.9)}),
        (
            "rand-m5-inc1-p1",
            {"posterize": 2, "solarize": 128, "solarize_add": 55, "brightness": (0.55, 1.45)},
        ),
        ("rand-m5-p1", {"posterize": 2, "solarize": 128, "solarize_add": 55, "brightness": (1.0,)}),
        ("rand-m9-p1", {"posterize": 3, "solarize": 230, "solarize_add": 99, "brightness": (1.72,)}),
        (
            "rand-m20-mmax20-inc1-p1",
            {"posterize": 0, "solarize": 0, "solarize_add": 128, "rotate": (-60, 60)},
        ),
        ("rand-m30-inc1-p1", {"posterize": 0, "solarize": 0, "solarize_add": 110, "rotate": (-30, 30)}),
    ],
)
def test_timm_parameters(auto: str, expected: dict[str, float | tuple[float, ...]]) -> None:
    found: dict[str, set[float]] = {}
    for operations in drawn(auto, 600):
        for name, value in map(kind, operations):
            found.setdefault(name, set()).add(round(value, 9))
    for name, value in expected.items():
        allowed = set(value) if isinstance(value, tuple) else {value}
        assert found.get(name, {1.0}) == allowed, name  # what changes nothing is not there


def test_timm_magnitudes_are_clipped_and_may_be_uniform() -> None:
    clipped = [abs(v) / 30 for o in drawn("rand-m10-mstd2-inc1-p1") for n, v in map(kind, o) if n == "rotate"]
    assert max(clipped) == pytest.approx(1)
    assert 0.4 < np.mean(np.array(clipped) > 0.999999) < 0.6
    uniform = [
        abs(v) / 24 for o in drawn("rand-m8-mstd101-inc1-p1") for n, v in map(kind, o) if n == "rotate"
    ]
    assert abs(np.mean(uniform) - 0.5) < 0.05
    assert abs(np.std(uniform) - math.sqrt(1 / 12)) < 0.03
    assert 0.97 < max(uniform) < 1


# -- torchvision's ---------------------------------------------------------------------------------

TORCHVISION = (
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "contrast", "saturation",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


def test_randaugment_has_one_magnitude() -> None:
    images = drawn("randaugment")
    found: dict[str, Counter[float]] = {}
    for operations in images:
        for name, value in map(kind, operations):
            found.setdefault(name, Counter())[round(value, 9)] += 1
    check_frequencies(
        Counter({n: c.total() for n, c in found.items()}), dict.fromkeys(TORCHVISION, 1 / 14), 8000
    )
    assert set(found["shear_x"]) == set(found["shear_y"]) == {-0.09, 0.09}
    assert set(found["translate_x"]) == set(found["translate_y"]) == {-30, 30}  # int(150 / 331 * 224 * 0.3)
    assert set(found["rotate"]) == {-9, 9}
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        assert set(found[name]) == {0.73, 1.27}
        assert abs(found[name][0.73] / found[name].total() - 0.5) < 0.1
    assert set(found["posterize"]) == {7}  # 8 - round(1.2)
    assert set(found["solarize"]) == {178.5}
    # an operation is left out where it is the identity
    assert abs(Counter(map(len, images))[2] / 4000 - (13 / 14) ** 2) < 0.03


def test_trivial_augment_wide_has_every_magnitude() -> None:
    images = drawn("trivialaugment-wide", 14_000)
    assert {len(o) for o in images} == {0, 1}
    found: dict[str, Counter[float]] = {}
    for operations in images:
        for name, value in map(kind, operations):
            found.setdefault(name, Counter())[round(value, 9)] += 1
    share = 1 / 14
    signed = share * 30 / 31  # of 31 magnitudes the first changes nothing
    check_frequencies(
        Counter({n: c.total() for n, c in found.items()}),
        {
            **dict.fromkeys(TORCHVISION, signed),
            "translate_x": signed, "translate_y": signed,
            "posterize": share * 28 / 31,  # 8 bits for three of them
            "solarize": share, "autocontrast": share, "equalize": share,
        },
        14_000,
    )  # fmt: skip
    steps = [k for k in range(-30, 31) if k]
    assert set(found["rotate"]) == {round(135 * k / 30, 9) for k in steps}
    assert set(found["shear_x"]) == {round(0.99 * k / 30, 9) for k in steps}
    assert set(found["translate_x"]) == {int(32 * k / 30) for k in steps}
    assert set(found["sharpness"]) == {round(1 + 0.99 * k / 30, 9) for k in steps}
    assert set(found["posterize"]) == {2, 3, 4, 5, 6, 7}
    assert set(found["solarize"]) == {8.5 * k for k in range(31)}
    levels = np.array([found["solarize"][8.5 * k] for k in range(31)])
    assert levels.min() > 0.4 * levels.mean()
    assert levels.max() < 1.6 * levels.mean()


def test_fill_and_filter() -> None:
    def affine(auto: str, spec: PreprocessSpec = SPEC, **augment: object) -> set[tuple[float, ...]]:
        return {
            o.values[6:]
            for operations in drawn(auto, 200, spec, **augment)
            for o in operations
            if o.name == "affine"
        }

    cubic = replace(SPEC, filter="bicubic")
    assert affine("rand-m7-inc1") == {(2, 124, 116, 104)}
    assert affine("rand-m7-inc1", cubic) == {(3, 124, 116, 104)}
    assert affine("trivialaugment-wide") == affine("randaugment") == affine("augmix") == {(2, 0, 0, 0)}
    assert affine("trivialaugment-wide", replace(SPEC, filter="plain")) == {(2, 0, 0, 0)}
    assert affine("trivialaugment-wide", auto_filter="nearest", auto_fill="mean") == {(0, 124, 116, 104)}
    assert affine("rand-m7-inc1", auto_filter="random", auto_fill="black") == {(2, 0, 0, 0), (3, 0, 0, 0)}


# -- AugMix ----------------------------------------------------------------------------------------


def chains(operations: tuple[Operation, ...]) -> tuple[float, list[tuple[float, list[Operation]]]]:
    """The weight of the original, and each chain with its weight."""
    assert operations[0] == Operation(name="branch")
    assert operations[-1].name == "merge"
    found: list[tuple[float, list[Operation]]] = []
    chain: list[Operation] = []
    for operation in operations[1:-1]:
        if operation.name == "add":
            found.append((operation.values[0], chain))
            chain = []
        else:
            chain.append(operation)
    assert chain == []
    return operations[-1].values[0], found


def test_augmix_weights() -> None:
    originals, parts = [], []
    for operations in drawn("augmix"):
        original, mixed = chains(operations)
        weights = [w for w, _ in mixed]
        assert original + sum(weights) == 65536
        assert all(w == int(w) and 0 <= w <= 65536 for w in (original, *weights))
        assert len(weights) == 3
        originals.append(original / 65536)
        parts.append(np.array(weights) / max(sum(weights), 1))
    assert abs(np.mean(originals) - 0.5) < 0.03  # Beta(1, 1) is uniform
    assert abs(np.std(originals) - math.sqrt(1 / 12)) < 0.02
    shares = np.array(parts)
    assert abs(shares.mean(0) - 1 / 3).max() < 0.02  # Dirichlet(1, 1, 1): mean 1/3, variance 1/18
    assert abs(shares.std(0) - math.sqrt(1 / 18)).max() < 0.02
    assert abs(np.corrcoef(shares.T)[0, 1] + 0.5) < 0.06


def test_augmix_chains() -> None:
    lengths: Counter[int] = Counter()
    found: dict[str, set[float]] = {}
    for operations in drawn("augmix"):
        for _, chain in chains(operations)[1]:
            lengths[len(chain)] += 1
            for name, value in map(kind, chain):
                found.setdefault(name, set()).add(round(value, 9))
    assert set(found) == set(TORCHVISION)
    assert found["rotate"] == {
        round(k * 30 / 9, 9) for k in (-2, -1, 1, 2)
    }  # the first 3 of 10, the first changes nothing
    assert found["posterize"] == {4, 3}  # 4 - round(k * 4 / 9)
    assert found["solarize"] == {255, round(255 * 8 / 9, 9), round(255 * 7 / 9, 9)}
    assert found["translate_x"] == {int(224 / 3 * k / 9) for k in (-2, -1, 1, 2)}
    assert set(lengths) == {0, 1, 2, 3}
    kept = 1 - 9 / 13 / 3  # nine of thirteen operations are nothing at the first magnitude
    expected = {3: kept**3 / 3, 2: (kept**2 + 3 * kept**2 * (1 - kept)) / 3}
    for length, share in expected.items():
        assert abs(lengths[length] / 12_000 - share) < 0.03, length


def test_augmix_of_other_width_depth_and_severity() -> None:
    for operations in drawn("augmix-w5-d2-m10", 100):
        mixed = chains(operations)[1]
        assert len(mixed) == 5
        assert max(len(chain) for _, chain in mixed) <= 2
    image = picture(224, 224)
    assert operated(image, drawn("augmix-w1-d1", 1)[0]).size == image.size


# -- erasing ---------------------------------------------------------------------------------------


def erased(n: int = 4000, **augment: object) -> list[list[Operation]]:
    config = replace(STILL, erasing=1.0, **augment) if "erasing" not in augment else replace(STILL, **augment)  # type: ignore[arg-type]
    rng = sample_rng(3, 1, 0).stream("erasing")
    return [list(draw_erasing(config, SPEC, rng)) for _ in range(n)]


def test_boxes() -> None:
    boxes = np.array([o.values[:4] for operations in erased() for o in operations])
    left, top, width, height = boxes.T
    assert (boxes == boxes.astype(int)).all()
    assert len(boxes) == 4000
    assert min(left.min(), top.min()) == 0
    assert width.min() > 0
    assert height.min() > 0
    assert (left + width).max() == (top + height).max() == 224
    assert max(width.max(), height.max()) < 224
    share, ratio = width * height / 224**2, height / width
    assert 0.019 < share.min() < 0.022
    assert 0.32 < share.max() < 0.336  # sides are rounded
    rng = np.random.default_rng(0)  # the published rule, by rejection
    wanted = rng.uniform(0.02, 1 / 3, 200_000)
    logs = rng.uniform(math.log(0.3), -math.log(0.3), 200_000)
    fits = wanted * np.exp(abs(logs)) < 1
    assert abs(share.mean() - wanted[fits].mean()) < 0.005
    assert abs(np.log(ratio).std() - logs[fits].std()) < 0.02
    assert abs(np.log(ratio).mean()) < 0.05
    assert abs((left / (224 - width)).mean() - 0.5) < 0.03
    assert abs((top / (224 - height)).mean() - 0.5) < 0.03


def test_probability_count_and_bounds() -> None:
    some = erased(erasing=0.3, erasing_count=3)
    assert abs(np.mean([bool(o) for o in some]) - 0.3) < 0.04
    numbers = Counter(len(o) for o in some if o)
    assert set(numbers) == {1, 2, 3}
    assert all(abs(numbers[k] / numbers.total() - 1 / 3) < 0.07 for k in numbers)
    for operations in some:  # the area is divided by the number of boxes
        assert all(o.values[2] * o.values[3] < 0.34 * 224**2 / len(operations) for o in operations)
    narrow = erased(200, erasing_area=(0.1, 0.1), erasing_ratio=(4.0, 4.0))
    assert {o.values[2:4] for (o,) in narrow} == {(35, 142)}  # sqrt(0.1 / 4) and sqrt(0.1 * 4) of 224
    assert not any(erased(200, erasing_area=(1.0, 1.0)))  # never fits: nothing is erased
    assert not any(erased(200, erasing=0.0))


def test_colours() -> None:
    mean, std = np.array(SPEC.mean), np.array(SPEC.std)
    constant = {o.values[4:] for operations in erased(300) for o in operations}
    assert constant == {(124, 116, 104)}
    assert (abs(np.array([*constant]) - mean) / std).max() < 0.01  # 0 after normalisation, up to rounding
    colours = np.array([o.values[4:] for operations in erased(erasing_mode="rand") for o in operations])
    z = (colours - mean) / std
    assert abs(np.median(z, axis=0)).max() < 0.06
    inside = abs(z) < 1  # beyond two deviations bytes end
    assert abs(inside.mean(0) - 0.6827).max() < 0.03
    assert abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.06
    assert colours.min() == 0
    assert colours.max() == 255


def test_noise_is_normal_after_normalisation() -> None:
    [[operation]] = [o for o in erased(40, erasing_mode="pixel") if o[0].values[2] * o[0].values[3] > 12_000][
        :1
    ]
    left, top, width, height, seed = map(int, operation.values[:5])
    assert operation.values[4] == seed < 2**53
    image = np.asarray(operated(picture(224, 224), [operation]))[top : top + height, left : left + width]
    z = (image.astype(float) - SPEC.mean) / SPEC.std
    assert abs(np.median(z, axis=(0, 1))).max() < 0.04
    for deviation, share in ((0.5, 0.3829), (1, 0.6827), (1.5, 0.8664)):
        assert abs((abs(z) < deviation).mean() - share) < 0.012
    assert abs(np.corrcoef(z.reshape(-1, 3).T) - np.eye(3)).max() < 0.05
    assert abs(np.corrcoef(z[:, 1:].ravel(), z[:, :-1].ravel())[0, 1]) < 0.03
    seeds = [
        o.values[4] for operations in erased(300, erasing_mode="pixel", erasing_count=3) for o in operations
    ]
    assert len(set(seeds)) == len(seeds)


def test_boxes_do_not_depend_on_what_fills_them() -> None:
    const, rand, pixel = (
        [[o.values[:4] for o in operations] for operations in erased(100, erasing_mode=mode, erasing_count=3)]
        for mode in ("const", "rand", "pixel")
    )
    assert const == rand == pixel


def test_operations_do_not_depend_on_the_size_of_the_file() -> None:
    augment = AugmentConfig(auto="trivialaugment-wide", erasing=1.0, color_jitter=(0, 0, 0))
    for i in range(20):
        large, thin = (
            train_plan(*size, SPEC, augment, sample_rng(0, 0, i)) for size in ((500, 375), (90, 1200))
        )
        assert large.operations == thin.operations
        assert large.box != thin.box

"""Operations and their parameters against torchvision's and timm's own functions, where those are installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from images import picture
from PIL import Image

from resnext_core.config import AugmentConfig
from resnext_core.config.policies import TimmRandAugment, parse_policy
from resnext_core.data.auto_augment import (
    AUG_MIX,
    RAND_AUGMENT,
    TIMM,
    TRIVIAL_WIDE,
    Canvas,
    Space,
    operation,
    timm_value,
)
from resnext_core.data.erasing import draw_erasing
from resnext_core.data.operations import operated
from resnext_core.data.sampler import sample_rng
from resnext_core.model.preprocess import PreprocessSpec

SIZE, FILL = 56, (124, 116, 104)
IMAGE = picture(SIZE, SIZE)
#: Their names of operations, and ours.
NAMES = {
    "Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
    "TranslateY": "translate_y", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y", "Rotate": "rotate",
    "Brightness": "brightness", "Color": "saturation", "Contrast": "contrast", "Sharpness": "sharpness",
    "Posterize": "posterize", "Solarize": "solarize", "SolarizeAdd": "solarize_add", "Invert": "invert",
    "AutoContrast": "autocontrast", "Equalize": "equalize",
}  # fmt: skip


def given_to(name: str, magnitude: float) -> float:
    """The parameter that torchvision gives to Pillow."""
    if name.startswith("Translate"):
        return -int(magnitude)  # ours maps from output to input
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1.0 + magnitude
    return {"Posterize": int(magnitude), "Solarize": 255.0 * magnitude}.get(name, magnitude)


@pytest.mark.parametrize("filter", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("called", "space", "bins"),
    [("RandAugment", RAND_AUGMENT, 31), ("TrivialAugmentWide", TRIVIAL_WIDE, 31), ("AugMix", AUG_MIX, 10)],
)
def test_torchvision(called: str, space: Space, bins: int, filter: str) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = getattr(v2, called)(interpolation=v2.InterpolationMode(filter), fill=list(FILL))
    canvas = Canvas(size=SIZE, filter=filter, fill=FILL)
    assert {NAMES[name] for name in theirs._AUGMENTATION_SPACE} == set(space.names)
    for name, (magnitudes_of, signed) in theirs._AUGMENTATION_SPACE.items():
        magnitudes = magnitudes_of(bins, SIZE, SIZE)
        cases = [(0, 0.0)] if magnitudes is None else list(enumerate(map(float, magnitudes)))
        for (bin, size), sign in ((case, sign) for case in cases for sign in ((1, -1) if signed else (1,))):
            magnitude = size * sign
            if name == "Posterize" and magnitude == 0:
                continue  # refused since Pillow 13
            value = None if magnitudes is None else given_to(name, magnitude)
            if value is not None:
                ours = space.value(NAMES[name], bin, bins, sign < 0, SIZE)
                # Theirs are single-precision, and a shift of 15.999999 pixels is cut off to 15.
                assert ours == pytest.approx(value, rel=2e-5, abs=1 if name.startswith("Translate") else 2e-5)
            expected = theirs._apply_image_or_video_transform(
                IMAGE, name, magnitude, interpolation=theirs.interpolation, fill=theirs._fill
            )
            found = operated(IMAGE, operation(NAMES[name], value, canvas, 0.0))
            assert np.array_equal(found, expected), (name, magnitude)


@pytest.mark.parametrize("text", ["rand-m7-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m6-inc1-n3", "rand-m3"])
def test_timm(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    policy = parse_policy(text)
    assert isinstance(policy, TimmRandAugment)
    theirs = timm.rand_augment_transform(text, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC})
    assert theirs.num_layers == policy.layers
    canvas = Canvas(size=SIZE, filter="bicubic", fill=FILL)
    names = []
    for theirs_op in theirs.ops:
        name = NAMES[theirs_op.name.removesuffix("Increasing")]
        names.append(name)
        assert theirs_op.prob == policy.probability
        assert theirs_op.magnitude == policy.magnitude
        assert theirs_op.magnitude_std == policy.deviation
        for magnitude in np.linspace(0, 10, 41).tolist():
            for coin in (0.0, 1.0):
                monkeypatch.setattr(timm.random, "random", lambda coin=coin: coin)
                values: tuple[Any, ...] = (
                    theirs_op.level_fn(magnitude, theirs_op.hparams) if theirs_op.level_fn else ()
                )
                if name == "posterize" and values == (0,):
                    continue  # refused since Pillow 13
                expected = theirs_op.aug_fn(IMAGE, *values, **theirs_op.kwargs)
                value = timm_value(name, magnitude / 10, policy, coin > 0.5, canvas)
                found = operated(IMAGE, operation(name, value, canvas, 0.0))
                assert np.array_equal(found, expected), (name, magnitude, values, value)
    assert sorted(names) == sorted(TIMM)


@pytest.mark.parametrize("count", [1, 3])
def test_erased_shares_are_timms(count: int) -> None:
    erasing, torch = pytest.importorskip("timm.data.random_erasing"), pytest.importorskip("torch.nn")
    erasing.random.seed(0)
    theirs_op = erasing.RandomErasing(probability=1.0, max_count=count, device="cpu")
    ones = torch.Parameter(torch.Parameter().new_ones((1, 56, 56)), requires_grad=False)
    theirs = np.array([1 - float(theirs_op(ones.clone()).mean()) for _ in range(4000)])
    spec, config = PreprocessSpec(size=56, resize=64), AugmentConfig(erasing=1.0, erasing_count=count)
    ours = np.zeros(4000)
    for i in range(4000):
        kept = np.ones((56, 56))
        for box in draw_erasing(config, spec, sample_rng(0, 0, i).stream("erasing")):
            left, top, width, height = map(int, box.values[:4])
            kept[top : top + height, left : left + width] = 0
        ours[i] = 1 - kept.mean()
    assert abs(theirs.mean() - ours.mean()) < 0.01
    quantiles = np.linspace(0.05, 0.95, 19)
    assert abs(np.quantile(theirs, quantiles) - np.quantile(ours, quantiles)).max() < 0.025

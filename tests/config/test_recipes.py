"""Published recipes against values derived by hand from their sources: learning rates, decay groups, targets, sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from numpy.typing import NDArray

from resnext_core.config import Config, load_config
from resnext_core.config.policies import TimmRandAugment, TrivialAugmentWide, parse_policy
from resnext_core.interfaces import MixedRows
from resnext_core.jobs.recipes import read_recipe
from resnext_core.model.preprocess import evaluated_at, preprocess_spec
from resnext_core.model.spec import model_spec
from resnext_core.plugins import load_plugins
from resnext_core.reference.loss import step_targets
from resnext_core.training.averaging import ema_decays
from resnext_core.training.rules import rules_of
from resnext_core.training.schedule import lr_at, scaled_lr
from resnext_core.training.sizes import size_at, training_size

IMAGENET = 1_281_167
PUBLISHED = ["tv2-600e", "rsb-a1", "rsb-a2", "rsb-a3", "nvidia-250e", "fast-16e"]
PATHS = {name: shipped.path for name, shipped in load_plugins().recipes.items()}

#: The learning rate of some steps, from their epochs: whole, and in fractions.
Curve = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


def recipe(name: str) -> Config:
    if name not in PATHS:
        pytest.skip("of a plugin that is not installed")
    return load_config([read_recipe(name, load_plugins())], load_plugins().option_types())[0]


def cosine(share: NDArray[Any]) -> NDArray[Any]:
    return (1 + np.cos(np.pi * share)) / 2


def torchvision(epoch: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
    """LinearLR(start_factor=0.01, total_iters=5), then CosineAnnealingLR(T_max=595), stepped after each epoch."""
    return np.where(epoch < 5, 0.5 * (0.01 + 0.99 * epoch / 5), 0.5 * cosine((epoch - 5) / 595))


def rsb(base: float, epochs: int) -> Curve:
    """mmengine's LinearLR(start_factor=1e-4) over the steps of 5 epochs, CosineAnnealingLR(eta_min=1e-6) by epoch."""

    def curve(epoch: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
        warm = base * (1e-4 + (1 - 1e-4) * exact / 5)
        return np.where(epoch < 5, warm, 1e-6 + (base - 1e-6) * cosine((epoch - 5) / (epochs - 5)))

    return curve


def nvidia(epoch: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
    """lr_cosine_policy(1.024, 8, 250): the epoch alone counts."""
    return np.where(epoch < 8, 1.024 * (epoch + 1) / 8, 1.024 * cosine((epoch - 8) / 242))


def ffcv(epoch: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
    """get_cyclic_lr: linear between the points (0, 1.7e-4), (2, 1.7) and (16, 0)."""
    return np.interp(exact, [0, 2, 16], [1.7e-4, 1.7, 0])


CURVES: dict[str, tuple[int, int, Curve]] = {
    "tv2-600e": (8 * 128, 600, torchvision),
    "rsb-a1": (8 * 256, 600, rsb(5e-3, 600)),
    "rsb-a2": (8 * 256, 300, rsb(5e-3, 300)),
    "rsb-a3": (8 * 256, 100, rsb(8e-3, 100)),
    "nvidia-250e": (8 * 128, 250, nvidia),
    "fast-16e": (8 * 512, 16, ffcv),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rates_of_every_epoch(name: str) -> None:
    config, (batch, epochs, curve) = recipe(name), CURVES[name]
    assert (config.train.batch_size, config.train.epochs) == (batch, epochs)
    steps = IMAGENET // batch
    within = {e * steps + s for e in range(epochs) for s in (0, 1, steps // 2, steps - 1)}
    step = np.array(sorted(within | set(range(0, 8 * steps, 16))))
    values = [
        lr_at(
            int(s), config=config.schedule, base_lr=scaled_lr(config.optimizer, batch), steps_per_epoch=steps,
            epochs=epochs,
        )
        for s in step
    ]  # fmt: skip
    np.testing.assert_allclose(values, curve(step // steps, step / steps), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_moving_averages(name: str) -> None:
    """torchvision's AveragedModel: every 32nd step of an epoch, a copy until the counter is no longer set back to 0."""
    train = recipe(name).train
    steps = IMAGENET // train.batch_size
    decays = ema_decays(
        range(7 * steps), config=train, warmup_epochs=5, steps_per_epoch=steps, epochs=train.epochs
    )
    if name != "tv2-600e":
        assert decays is None
        return
    assert decays is not None
    alpha = (1 - 0.99998) * 8 * 128 * 32 / 600
    assert 1 - alpha == pytest.approx(0.998908, abs=1e-6)
    expected = np.ones((7, 1251))
    expected[:5, ::32] = 0
    expected[5:, ::32] = 1 - alpha
    expected[5, 0] = 0  # the counter is still 0 when it is asked for the first time after the warm-up
    np.testing.assert_allclose(decays, expected.ravel(), rtol=1e-12)


# -- what decays ---------------------------------------------------------------------------------

#: Convolutions of each network: the stem, three a block, one a stage in the shortcut. As many batch normalisations.
CONVOLUTIONS = {
    "resnext50_32x4d": 53,
    "resnext101_32x4d": 104,
    "resnext101_64x4d": 104,
    "resnext152_64x4d": 155,
}


@pytest.mark.parametrize(
    ("name", "variant", "decay", "bias"),
    [
        ("tv2-600e", "resnext101_64x4d", 2e-5, True),
        ("tv2-600e", "resnext50_32x4d", 2e-5, True),
        ("tv2-600e", "resnext152_64x4d", 2e-5, True),
        ("rsb-a1", "resnext50_32x4d", 0.01, False),
        ("rsb-a2", "resnext50_32x4d", 0.02, False),
        ("rsb-a3", "resnext50_32x4d", 0.02, False),
        ("nvidia-250e", "resnext101_32x4d", 1 / 16384, True),
        ("fast-16e", "resnext50_32x4d", 1e-4, True),
    ],
)
def test_decay_groups(name: str, variant: str, decay: float, bias: bool) -> None:
    config = recipe(name)
    if name != "tv2-600e":
        assert config.model.variant == variant
    rules = rules_of(model_spec(variant), config.optimizer, config.train.freeze)
    decaying = {tensor for tensor, rule in rules.items() if rule.weight_decay}
    weights = {t for t in rules if t.startswith("conv1.") or ".conv" in t or ".downsample.0." in t} | {
        "fc.weight"
    }
    assert decaying == weights | ({"fc.bias"} if bias else set())
    assert len(decaying) == CONVOLUTIONS[variant] + 1 + bias
    assert len(rules) - len(decaying) == 2 * CONVOLUTIONS[variant] + (not bias)
    assert {rules[t].weight_decay for t in decaying} == {decay}
    assert {rule.lr_scale for rule in rules.values()} == {1.0}
    assert {t for t, rule in rules.items() if rule.trust} == decaying  # LAMB's trust ratio follows the decay


@pytest.mark.parametrize("name", ["rsb-a1", "rsb-a2", "rsb-a3"])
def test_lamb_clips_although_the_table_of_the_paper_does_not_say_so(name: str) -> None:
    optimizer = recipe(name).optimizer
    assert (optimizer.kind, optimizer.clip_norm, optimizer.eps) == ("lamb", 1.0, 1e-6)
    assert (optimizer.trust_all, optimizer.trust_clip) == (False, False)


# -- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "smoothing"),
    [
        ("tv2-600e", "ce", 0.1), ("rsb-a1", "bce", 0.1), ("rsb-a2", "bce", 0.0), ("rsb-a3", "bce", 0.0),
        ("nvidia-250e", "ce", 0.1), ("fast-16e", "ce", 0.1),
    ],
)  # fmt: skip
def test_targets_of_a_mixed_image(name: str, kind: str, smoothing: float) -> None:
    loss = recipe(name).loss
    assert (loss.kind, loss.bce_sum) == (kind, False)
    mix = MixedRows(
        partner=np.array([1, 0], np.int32), labels=np.array([7, 3], np.int32), share=np.full(2, 0.25),
        box=np.tile(np.array([0, 0, 8, 8], np.int32), (2, 1)), blend=np.full(2, 0.25),
    )  # fmt: skip
    targets = step_targets(loss, 1000, np.array([3, 7]), mix)
    off = smoothing / 1000
    expected = np.full((2, 1000), off)
    expected[0, 3] = expected[1, 7] = off + 0.25 * (1 - smoothing)
    expected[0, 7] = expected[1, 3] = off + 0.75 * (1 - smoothing)
    np.testing.assert_allclose(targets, expected, rtol=1e-12)
    np.testing.assert_allclose(targets.sum(axis=1), 1)


# -- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trained", "size", "resize", "filter_"),
    [
        ("tv2-600e", 176, 224, 232, "antialias"),
        ("rsb-a1", 224, 224, 236, "bicubic"),
        ("rsb-a2", 224, 224, 236, "bicubic"),
        ("rsb-a3", 160, 224, 235, "bicubic"),  # floor(224 / 0.95)
        ("nvidia-250e", 224, 224, 256, "antialias"),
        ("fast-16e", 192, 256, 292, "antialias"),  # 256 from 224/256 of the image
    ],
)
def test_sizes(name: str, trained: int, size: int, resize: int, filter_: str) -> None:
    config = recipe(name)
    spec = preprocess_spec(config.preprocess, training_size(config))
    assert (spec.size, spec.filter, spec.mode) == (trained, filter_, "shorter-side")
    assert (
        model_spec(config.model.variant, pool_padding=config.model.pool_padding).pool_padding == "symmetric"
    )
    if config.eval.size is not None:
        spec = evaluated_at(spec, config.eval.size, config.eval.crop_pct)
    assert (spec.size, spec.resize) == (size, resize)


def test_images_of_fast_grow_as_ffcvs_do() -> None:
    """160 up to epoch 11 from 0, 192 from 13 on; in epoch 12 it is 176 = 5.5 x 32, and NumPy rounds that to 6 x 32."""
    config = recipe("fast-16e")
    sizes = [size_at(config.augment, training_size(config), epoch) for epoch in range(16)]
    assert sizes == [160] * 12 + [192] * 4


@pytest.mark.parametrize(("name", "magnitude"), [("rsb-a1", 7), ("rsb-a2", 7), ("rsb-a3", 6)])
def test_rsb_takes_timms_randaugment(name: str, magnitude: int) -> None:
    augment = recipe(name).augment
    assert parse_policy(augment.auto) == TimmRandAugment(
        magnitude=magnitude, layers=2, probability=0.5, deviation=0.5, most=10, increasing=1
    )
    assert augment.color_jitter == (0, 0, 0)
    assert augment.repeats == (1 if name == "rsb-a3" else 3)


def test_tv2_takes_trivialaugment_on_black_and_small_boxes() -> None:
    augment = recipe("tv2-600e").augment
    assert parse_policy(augment.auto) == TrivialAugmentWide(bins=31)
    assert (augment.auto_filter, augment.auto_fill, augment.repeats) == ("bilinear", "black", 4)
    assert (augment.erasing, augment.erasing_area, augment.erasing_ratio) == (0.1, (0.02, 0.33), (0.3, 3.3))


@pytest.mark.parametrize(
    ("name", "mixup", "cutmix"),
    [
        ("tv2-600e", 0.2, 1.0), ("rsb-a1", 0.2, 1.0), ("rsb-a2", 0.1, 1.0), ("rsb-a3", 0.1, 1.0),
        ("nvidia-250e", 0.2, 0.0), ("fast-16e", 0.0, 0.0),
    ],
)  # fmt: skip
def test_mixes(name: str, mixup: float, cutmix: float) -> None:
    mix = recipe(name).mix
    assert (mix.mixup, mix.cutmix, mix.prob, mix.switch_prob, mix.off_epoch) == (
        mixup,
        cutmix,
        1.0,
        0.5,
        None,
    )


# -- before a training ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted({*PUBLISHED, "photos", "photos-imbalanced", "imagenet-150e", "finetune"})
)
def test_the_reference_backend_could_train_it(
    cli: CommandLine, photos: Path, weights_file: Path, name: str
) -> None:
    """Nothing that a recipe asks for is missing, and nothing contradicts: all findings are good."""
    if name not in PATHS:
        pytest.skip("of a plugin that is not installed")
    start = (
        ["--pretrained", weights_file, "--set", "model.variant=resnext_tiny"] if name == "finetune" else []
    )
    outcome = cli.ok(
        "--backend",
        "reference",
        "doctor",
        "--json",
        "--run",
        PATHS[name],
        "--data",
        photos,
        "--batch-size",
        12,
        *start,
    )
    levels = {note["topic"]: note["level"] for note in outcome.json()["notes"]}
    assert {topic for topic, level in levels.items() if level == "error"} == set()
    assert levels["lr"] == "ok"

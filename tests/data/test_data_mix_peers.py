"""Mixup and cutmix against timm's and torchvision's own, given the same numbers, where those are installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.config import MixConfig
from resnext_core.data.mix import draw_mix, mixed_pixels, mixed_rows, symmetric_beta
from resnext_core.data.sampler import mix_rng
from resnext_core.interfaces import Mix

CONFIG = MixConfig(mixup=0.8, cutmix=1.0, prob=0.9, switch_prob=0.4, box="sides")
ROWS, CLASSES, SIZE, SMOOTHING = 6, 5, (13, 22), 0.1
DRAWS = 300


def inputs() -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Normalised images (N, C, H, W) and labels."""
    rng = np.random.default_rng(3)
    return rng.standard_normal((ROWS, 3, *SIZE)), rng.integers(0, CLASSES, ROWS).astype(np.int32)


def ours(mix: Mix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Images and targets, smoothed as the two smooth, after mixing by `mix`."""
    images, labels = inputs()
    rows = mixed_rows([mix], labels, np.ones(ROWS, bool), SIZE)
    targets = np.full((CLASSES, CLASSES), SMOOTHING / CLASSES) + (1 - SMOOTHING) * np.eye(CLASSES)
    share = rows.share[:, None]
    soft = share * targets[labels] + (1 - share) * targets[rows.labels]
    return mixed_pixels(images.transpose(0, 2, 3, 1), rows).transpose(0, 3, 1, 2), soft


def numbers(step: int) -> SimpleNamespace:
    """What the draw of a step is made of: two decisions, the share before a box is cut off, and the box's centre."""
    used, which, first, second, down, across = mix_rng(1, step, 0).random(6)
    cutmix = which < CONFIG.switch_prob
    alpha = CONFIG.cutmix if cutmix else CONFIG.mixup
    return SimpleNamespace(
        used=used, which=which, lam=symmetric_beta(alpha, first, second), row=int(down * SIZE[0]),
        column=int(across * SIZE[1]),
    )  # fmt: skip


def same(found: tuple[Any, Any], mix: Mix) -> None:
    for theirs, expected in zip(found, ours(mix), strict=True):
        np.testing.assert_allclose(theirs, expected, atol=1e-6, rtol=0)


def test_timm_does_the_same_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    timm = pytest.importorskip("timm.data.mixup", reason="timm is not installed")
    mixup = timm.Mixup(
        mixup_alpha=CONFIG.mixup, cutmix_alpha=CONFIG.cutmix, prob=CONFIG.prob, switch_prob=CONFIG.switch_prob,
        label_smoothing=SMOOTHING, num_classes=CLASSES,
    )  # fmt: skip
    images, labels = inputs()
    kinds = []
    for step in range(DRAWS):
        drawn = numbers(step)
        decisions: Iterator[float] = iter([drawn.used, drawn.which])
        centre: Iterator[int] = iter([drawn.row, drawn.column])
        monkeypatch.setattr(np.random, "rand", lambda it=decisions: next(it))
        monkeypatch.setattr(np.random, "beta", lambda a, b, lam=drawn.lam: lam)
        monkeypatch.setattr(np.random, "randint", lambda low, high, size=None, it=centre: next(it))
        found = mixup(torch.from_numpy(images.copy()), torch.from_numpy(labels).long())
        mix = draw_mix(CONFIG, SIZE, mix_rng(1, step, 0))
        same(found, mix)
        kinds.append(mix.kind)
    assert min(kinds.count(kind) for kind in ("none", "mixup", "cutmix")) > DRAWS / 20


def test_torchvision_does_the_same_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two classes; which of them, its users choose at random."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is not installed")
    images, labels = inputs()
    rolled = replace(CONFIG, prob=1.0, partner="rolled", box="halves")
    classes = {
        "mixup": v2.MixUp(alpha=1.0, num_classes=CLASSES),
        "cutmix": v2.CutMix(alpha=1.0, num_classes=CLASSES),
    }
    kinds = []
    for step in range(DRAWS):
        drawn, mix = numbers(step), draw_mix(rolled, SIZE, mix_rng(1, step, 0))
        centre: Iterator[int] = iter([drawn.column, drawn.row])
        transform = classes[mix.kind]
        transform._dist = SimpleNamespace(
            sample=lambda _, lam=drawn.lam: torch.tensor(lam, dtype=torch.float64)
        )
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda high, size, it=centre: torch.tensor([next(it)]))
            found, soft = transform(torch.from_numpy(images.copy()), torch.from_numpy(labels).long())
        same((found, soft.double() * (1 - SMOOTHING) + SMOOTHING / CLASSES), mix)
        kinds.append(mix.kind)
    assert min(kinds.count(kind) for kind in ("mixup", "cutmix")) > DRAWS / 20

"""Mixup and cutmix: how the images of a micro-batch are mixed, drawn from the seed and the step, and what that means.

What is drawn is a description; engines apply it on their device. A micro-batch has one draw, as a batch of one process
has in timm and torchvision. It depends on the micro-batch's number in the step, counted over all ranks: so N ranks see
what one rank sees that accumulates the same micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import MixConfig
from resnext_core.data.sampler import mix_rng
from resnext_core.errors import UsageError
from resnext_core.interfaces import Mix, MixedRows

#: The fewest images that can be mixed with each other.
LEAST = 2


def check_micro_batch(images: int) -> None:
    """Raise UsageError where a micro-batch has no two images to mix."""
    if images < LEAST:
        raise UsageError(
            f"mix.mixup and mix.cutmix mix the images of a micro-batch, and this one has {images}; raise "
            "train.batch_size, lower train.accumulate, or set both to 0"
        )


def draw_mixes(
    config: MixConfig, size: tuple[int, ...], *, seed: int, step: int, epoch: int, micro_batches: range
) -> tuple[Mix, ...]:
    """Return how each of the micro-batches is mixed; empty where `epoch` (from 1) is not mixed.

    `size` is (height, width) of the images, `step` counts from 0 over the whole training, and `micro_batches` are
    numbers within the step, over all ranks.
    """
    if not config.on or (config.off_epoch is not None and epoch > config.off_epoch):
        return ()
    return tuple(draw_mix(config, size, mix_rng(seed, step, number)) for number in micro_batches)


def draw_mix(config: MixConfig, size: tuple[int, ...], rng: np.random.Generator) -> Mix:
    """Return how one micro-batch is mixed; six numbers are drawn, whatever they decide."""
    used, which, first, second, down, across = (float(rng.random()) for _ in range(6))
    if used >= config.prob:
        return Mix(partner=config.partner)
    cutmix = which < config.switch_prob if config.mixup and config.cutmix else config.cutmix > 0
    lam = symmetric_beta(config.cutmix if cutmix else config.mixup, first, second)
    if not cutmix:
        return Mix(kind="mixup", lam=lam, partner=config.partner)
    height, width = size
    box = cutmix_box(lam, size, int(down * height), int(across * width), config.box)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Mix(kind="cutmix", lam=1 - area / (height * width), box=box, partner=config.partner)


def symmetric_beta(alpha: float, first: float, second: float) -> float:
    """Return a value of Beta(alpha, alpha), alpha > 0, from two uniform ones in [0, 1).

    Bailey's polar method gives a value T of Student's distribution with 2·alpha degrees of freedom (Mathematics of
    Computation 62, 1994, 779), and 1/2 + T / (2·√(2·alpha + T²)) is one of the symmetric Beta distribution (Devroye,
    "Random variate generation in one line of code", 1996). Exact for every alpha, without rejection: so a draw takes
    two numbers.
    """
    logarithm = math.log(first) / alpha if first > 0 else -math.inf
    root = math.exp(logarithm)  # first ** (1 / alpha)
    spread = root / -math.expm1(logarithm) if root > 0 else 0.0
    cosine = math.cos(2 * math.pi * second)
    return 0.5 + 0.5 * cosine / math.sqrt(cosine * cosine + spread)


def cutmix_box(
    lam: float, size: tuple[int, ...], row: int, column: int, rounding: Literal["halves", "sides"] = "halves"
) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the box around the pixel (`row`, `column`), cut off at the border.

    Its sides are ⌊√(1 - lam) · side⌋. With ``halves`` it reaches half of that, rounded down, to both sides of the
    pixel, as in torchvision; with ``sides`` an odd side keeps its last pixel, as in timm 1.0.31 (earlier ones were as
    torchvision).
    """
    height, width = size
    ratio = math.sqrt(1 - lam)
    tall, wide = int(ratio * height), int(ratio * width)
    odd = 1 if rounding == "sides" else 0
    bottom, right = row + (tall + odd) // 2, column + (wide + odd) // 2
    return max(row - tall // 2, 0), max(column - wide // 2, 0), min(bottom, height), min(right, width)


def mixed_rows(
    mixes: Sequence[Mix], labels: NDArray[np.int32], valid: NDArray[np.bool_], size: tuple[int, ...]
) -> MixedRows:
    """Return `mixes`, one for each micro-batch, row by row.

    `labels` int32 (N,) and `valid` bool (N,) are those of the rank's batch, `size` (height, width) of its images. A row
    that is not valid, or whose partner is not, stays as it is: black pixels would be mixed into an image that counts.
    """
    count = len(labels)
    rows = np.arange(count // len(mixes), dtype=np.int32)
    partner = np.tile(rows, len(mixes))
    label, share, blend = labels.copy(), np.ones(count), np.ones(count)
    box = np.zeros((count, 4), np.int32)
    for number, mix in enumerate(mixes):
        part = slice(number * len(rows), (number + 1) * len(rows))
        others = partner_rows(mix, len(rows))
        mixed = valid[part] & valid[part][others] & (others != rows) & (mix.kind != "none")
        partner[part] = np.where(mixed, others, rows)
        label[part] = labels[part][partner[part]]
        share[part][mixed] = mix.lam
        blend[part][mixed] = mix.lam if mix.kind == "mixup" else 0.0
        box[part][mixed] = (0, 0, *size) if mix.kind == "mixup" else mix.box
    return MixedRows(partner=partner, labels=label, share=share, box=box, blend=blend)


def partner_rows(mix: Mix, count: int) -> NDArray[np.int32]:
    """Return which of the `count` rows of a micro-batch each is mixed with: int32 (count,)."""
    rows = np.arange(count, dtype=np.int32)
    return rows[::-1].copy() if mix.partner == "reversed" else np.roll(rows, 1)


def mixed_pixels(pixels: NDArray[Any], mix: MixedRows) -> NDArray[Any]:
    """Return the images of one micro-batch after mixing: (N, H, W, C) of the type of `pixels`, float32 or float64."""
    down, across = np.arange(pixels.shape[1])[None, :, None], np.arange(pixels.shape[2])[None, None, :]
    top, left, bottom, right = (mix.box[:, i, None, None] for i in range(4))
    inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
    kept = np.where(inside, mix.blend[:, None, None], 1.0)[..., None].astype(pixels.dtype)
    mixed: NDArray[Any] = kept * pixels + (1 - kept) * pixels[mix.partner]
    return mixed


def show_mix(
    images: NDArray[np.uint8], mix: Mix, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return how a micro-batch of uint8 (N, H, W, 3) looks when it is mixed, rounded to uint8; for people.

    `valid` bool (N,) are the rows that could be read, None all.
    """
    count = len(images)
    valid = np.ones(count, np.bool_) if valid is None else valid
    rows = mixed_rows([mix], np.zeros(count, np.int32), valid, images.shape[1:3])
    shown: NDArray[np.uint8] = np.rint(mixed_pixels(images.astype(np.float64), rows)).astype(np.uint8)
    return shown

"""Plans: everything random about a training image, drawn before it is decoded, as data that any decoder can execute.

Source: the random resized crop is that of Szegedy et al. (arXiv:1409.4842, section 6) in torchvision's form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from resnext_core.config import AugmentConfig
from resnext_core.data.auto_augment import draw_auto
from resnext_core.data.erasing import draw_erasing
from resnext_core.data.operation import Operation as Operation
from resnext_core.data.operation import Streams, Uniforms
from resnext_core.model.preprocess import PreprocessSpec

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of an image, in its pixels; fractions where the image was decoded at a smaller scale."""

    left: float
    top: float
    width: float
    height: float

    def scaled(self, scale: float) -> Box:
        """Return the same part of an image that was decoded at `scale`."""
        return Box(
            left=self.left * scale,
            top=self.top * scale,
            width=self.width * scale,
            height=self.height * scale,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a training image is made from a file: a pure function of the file.

    `box`, in pixels of the whole image, is resized with `filter` to `size` x `size`, mirrored where `flip` says so, and
    goes through `operations` in order. With `scaled_decode` a JPEG may be decoded at 1/2, 1/4 or 1/8 while it keeps
    `sides`. Before all that the image is turned, as EXIF's `orientation` says (1: not at all): `box` and `sides`
    (width, height) are those of the turned image.
    """

    box: Box
    sides: tuple[int, int]
    size: int
    filter: Literal["antialias", "bicubic", "plain"]
    flip: bool
    scaled_decode: bool
    operations: tuple[Operation, ...] = ()
    orientation: int = 1


def train_plan(
    width: int,
    height: int,
    spec: PreprocessSpec,
    augment: AugmentConfig,
    rng: Streams,
    orientation: int = 1,
) -> Plan:
    """Draw the plan of an image of `width` x `height` pixels, as it is stored, that is turned by `orientation`."""
    if orientation >= 5:
        width, height = height, width
    box = random_box(width, height, augment, rng)
    flip = float(rng.random()) < augment.flip
    operations: list[Operation] = []
    if augment.auto != "none":
        operations += draw_auto(augment, spec, rng.stream("auto"))
    operations += color_jitter(augment.color_jitter, rng)
    if augment.erasing:
        operations += draw_erasing(augment, spec, rng.stream("erasing"))
    return Plan(
        box=box,
        sides=(math.ceil(spec.size * width / box.width), math.ceil(spec.size * height / box.height)),
        size=spec.size,
        filter=spec.filter,
        flip=flip,
        scaled_decode=augment.scaled_decode,
        operations=tuple(operations),
        orientation=orientation,
    )


def random_box(width: int, height: int, augment: AugmentConfig, rng: Uniforms) -> Box:
    """Draw the crop: its area share uniform in `scale`, its aspect ratio log-uniform in `ratio`.

    After ten draws that do not fit, the largest centred crop with an aspect ratio in `ratio`.
    """
    low, high = (math.log(r) for r in augment.ratio)
    for _ in range(_TRIES):
        share, aspect, across, down = rng.random(4).tolist()
        area = width * height * (augment.scale[0] + share * (augment.scale[1] - augment.scale[0]))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(
                left=int(across * (width - w + 1)), top=int(down * (height - h + 1)), width=w, height=h
            )
    w, h = width, height
    if width / height < augment.ratio[0]:
        h = min(height, max(1, round(width / augment.ratio[0])))
    elif width / height > augment.ratio[1]:
        w = min(width, max(1, round(height * augment.ratio[1])))
    return Box(left=(width - w) // 2, top=(height - h) // 2, width=w, height=h)


def color_jitter(strengths: tuple[float, float, float], rng: Uniforms) -> Iterator[Operation]:
    """Draw changes of brightness, contrast and saturation in random order, each by a factor in [1 − s, 1 + s].

    Six numbers are always drawn, so that turning one off does not change the others.
    """
    draws: list[float] = rng.random(6).tolist()
    for op in sorted(range(3), key=draws.__getitem__):
        if strengths[op] > 0:
            factor = 1 + strengths[op] * (2 * draws[3 + op] - 1)
            yield Operation(name=("brightness", "contrast", "saturation")[op], values=(max(factor, 0.0),))

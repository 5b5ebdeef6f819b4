"""Automatic augmentation, drawn: RandAugment in timm's and in torchvision's form, TrivialAugmentWide, AugMix.

The two RandAugments are different augmentations: they share neither operations nor magnitudes. Sources: timm
``timm/data/auto_augment.py``; torchvision ``transforms/v2/_auto_augment.py``, on Pillow images. Signs, choices and
magnitudes have their distributions; the random numbers are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from resnext_core.config import AugmentConfig
from resnext_core.config.policies import (
    AugMix,
    RandAugment,
    TimmRandAugment,
    TrivialAugmentWide,
    parse_policy,
)
from resnext_core.data.operation import Operation, Uniforms, as_byte, chosen, exponential, normal
from resnext_core.model.preprocess import PreprocessSpec

#: Weights of AugMix are in units of 2^-16.
ONE = 65536
#: Pillow's numbers of the filters.
FILTERS: Mapping[str, int] = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def draw_auto(augment: AugmentConfig, spec: PreprocessSpec, rng: Uniforms) -> Iterator[Operation]:
    """Draw the operations of ``augment.auto`` for an image of spec.size; those that change nothing are left out."""
    policy = parse_policy(augment.auto)
    fill = augment.auto_fill or ("mean" if isinstance(policy, TimmRandAugment) else "black")
    canvas = Canvas(
        size=spec.size,
        filter=augment.auto_filter or ("bicubic" if spec.filter == "bicubic" else "bilinear"),
        fill=tuple(map(as_byte, spec.mean)) if fill == "mean" else (0, 0, 0),
    )
    if isinstance(policy, TimmRandAugment):
        yield from _timm_rand_augment(policy, canvas, rng)
    elif isinstance(policy, RandAugment):
        for _ in range(policy.num_ops):
            yield from _torchvision(RAND_AUGMENT, policy.bins, policy.magnitude, canvas, rng)
    elif isinstance(policy, TrivialAugmentWide):
        yield from _torchvision(TRIVIAL_WIDE, policy.bins, None, canvas, rng)
    elif isinstance(policy, AugMix):
        yield from _aug_mix(policy, canvas, rng)


# -- operations by their parameters ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The image that is drawn for: its side in pixels, the filter of its geometry, the colour outside it as bytes.

    `filter` ``random`` is bilinear or bicubic, by the number `coin` in [0, 1).
    """

    size: int
    filter: str
    fill: tuple[int, ...]

    def affine(self, matrix: tuple[float, ...], coin: float) -> Iterator[Operation]:
        """Yield the affine map from output to input pixels, nothing for the identity."""
        if matrix == (1, 0, 0, 0, 1, 0):
            return
        name = ("bilinear", "bicubic")[coin >= 0.5] if self.filter == "random" else self.filter
        yield Operation(name="affine", values=(*matrix, FILTERS[name], *self.fill))

    def rotation(self, degrees: float) -> tuple[float, ...]:
        """Return the map of a rotation about the centre, counterclockwise, with Pillow's rounding to 15 digits."""
        angle = -math.radians(degrees % 360.0)
        cos, sin, centre = round(math.cos(angle), 15), round(math.sin(angle), 15), self.size / 2
        return (
            cos, sin, cos * -centre + sin * -centre + centre,
            -sin, cos, -sin * -centre + cos * -centre + centre,
        )  # fmt: skip


def _shear_x(canvas: Canvas, factor: float) -> tuple[float, ...]:
    return (1, factor, 0, 0, 1, 0)


def _shear_y(canvas: Canvas, factor: float) -> tuple[float, ...]:
    return (1, 0, 0, factor, 1, 0)


def _translate_x(canvas: Canvas, pixels: float) -> tuple[float, ...]:
    return (1, 0, pixels, 0, 1, 0)


def _translate_y(canvas: Canvas, pixels: float) -> tuple[float, ...]:
    return (1, 0, 0, 0, 1, pixels)


#: By name: what takes the canvas and the parameter, and gives the map from output to input pixels.
_GEOMETRY: Mapping[str, Callable[[Canvas, float], tuple[float, ...]]] = {
    "rotate": Canvas.rotation,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_ENHANCE = ("brightness", "contrast", "saturation", "sharpness")
_UNCHANGED: Mapping[str, float] = {
    **dict.fromkeys(_ENHANCE, 1.0),
    "posterize": 8,
    "solarize": 256,
    "solarize_add": 0,
}


def operation(name: str, value: float | None, canvas: Canvas, coin: float) -> Iterator[Operation]:
    """Yield the operation `name` with its parameter, nothing where it changes nothing."""
    if name in _GEOMETRY:
        yield from canvas.affine(_GEOMETRY[name](canvas, value or 0.0), coin)
    elif name != "identity" and (value is None or value != _UNCHANGED.get(name)):
        yield Operation(name=name, values=() if value is None else (value,))


# -- timm ------------------------------------------------------------------------------------------

TIMM = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "saturation",
    "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip


def _timm_rand_augment(policy: TimmRandAugment, canvas: Canvas, rng: Uniforms) -> Iterator[Operation]:
    """Draw an image's operations; six numbers an operation, used or not."""
    for _ in range(policy.layers):
        choice, use, radius, angle, sign, coin = rng.random(6).tolist()
        name = TIMM[chosen(choice, len(TIMM))]
        if use >= policy.probability:
            continue
        magnitude = policy.magnitude
        if policy.deviation > 100:
            magnitude *= radius
        elif policy.deviation > 0:
            magnitude += policy.deviation * normal(radius, angle)
        level = min(max(magnitude, 0.0), policy.most) / 10
        yield from operation(name, timm_value(name, level, policy, sign < 0.5, canvas), canvas, coin)


def timm_value(
    name: str, level: float, policy: TimmRandAugment, negative: bool, canvas: Canvas
) -> float | None:
    """Return the parameter of an operation at `level`, the magnitude over 10; `negative` is the coin for its sign."""
    signed = -level if negative else level
    if name in _ENHANCE:
        return max(0.1, 1 + 0.9 * signed) if policy.increasing else 1.8 * level + 0.1
    if name == "posterize":
        return max(4 - int(4 * level), 0) if policy.increasing else min(int(4 * level), 8)
    if name == "solarize":
        return max(256 - int(256 * level), 0) if policy.increasing else min(int(256 * level), 256)
    if name == "solarize_add":
        return min(int(110 * level), 128)
    return {
        "rotate": 30 * signed,
        "shear_x": 0.3 * signed,
        "shear_y": 0.3 * signed,
        "translate_x": 0.45 * signed * canvas.size,
        "translate_y": 0.45 * signed * canvas.size,
    }.get(name)


# -- torchvision -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Space:
    """The operations to choose from, and the largest parameter of each.

    `bits` is how many bits ``posterize`` keeps at the first magnitude and at the last, `translate` the largest shift as
    a share of the side, or in pixels where it is above 1.
    """

    names: tuple[str, ...]
    shear: float
    translate: float
    rotate: float
    enhance: float
    bits: tuple[int, int]

    def value(self, name: str, bin: int, bins: int, negative: bool, size: int) -> float | None:
        """Return the parameter of `name` at magnitude `bin` of `bins`; None where it has none."""
        share = bin / (bins - 1)
        signed = -share if negative else share
        if name in _ENHANCE:
            return 1 + self.enhance * signed
        if name == "posterize":
            return round(self.bits[0] - share * (self.bits[0] - self.bits[1]))
        if name == "solarize":
            return 255 * (bins - 1 - bin) / (bins - 1)  # whole where it can be: levels are compared with it
        if name.startswith("shear"):
            return self.shear * signed
        if name.startswith("translate"):  # whole pixels, and the map is from output to input
            return -int(self.translate * signed * (size if self.translate < 1 else 1))
        return self.rotate * signed if name == "rotate" else None


_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_ALL = ("identity", *_GEOMETRIC, *_ENHANCE, "posterize", "solarize", "autocontrast", "equalize")
RAND_AUGMENT = Space(names=_ALL, shear=0.3, translate=150 / 331, rotate=30, enhance=0.9, bits=(8, 4))
TRIVIAL_WIDE = Space(names=_ALL, shear=0.99, translate=32, rotate=135, enhance=0.99, bits=(8, 2))
AUG_MIX = Space(names=_ALL[1:], shear=0.3, translate=1 / 3, rotate=30, enhance=0.9, bits=(4, 0))


def _torchvision(
    space: Space, bins: int, bin: int | None, canvas: Canvas, rng: Uniforms, most: int = 0
) -> Iterator[Operation]:
    """Draw one operation at magnitude `bin` of `bins`; None draws it too, below `most` where that is given."""
    choice, where, sign, coin = rng.random(4).tolist()
    name = space.names[chosen(choice, len(space.names))]
    bin = chosen(where, most or bins) if bin is None else bin
    yield from operation(name, space.value(name, bin, bins, sign < 0.5, canvas.size), canvas, coin)


def _aug_mix(policy: AugMix, canvas: Canvas, rng: Uniforms) -> Iterator[Operation]:
    """Draw the chains and their weights: Dirichlet(1, 1, …) of what Beta(1, 1) leaves of the original."""
    draws = rng.random(1 + policy.width).tolist()
    original = round(ONE * draws[0])
    parts = [exponential(u) for u in draws[1:]]
    total, before, reached = sum(parts) or 1.0, 0.0, 0
    yield Operation(name="branch")
    for part in parts:
        before += part
        edge = round((ONE - original) * min(before / total, 1.0))
        depth = 1 + chosen(float(rng.random()), 3)
        for _ in range(policy.depth or depth):
            yield from _torchvision(AUG_MIX, 10, None, canvas, rng, most=policy.severity)
        yield Operation(name="add", values=(edge - reached,))
        reached = edge
    yield Operation(name="merge", values=(ONE - reached,))

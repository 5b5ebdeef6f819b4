"""What each operation of a plan does to an RGB image, by its name: the definition that decoders follow to the bit.

All are Pillow's, or whole-number arithmetic. Levels are 0..255 and each colour is treated alike; v is a level.

``brightness``, ``contrast``, ``saturation``, ``sharpness`` (factor)
    ImageEnhance: d + factor · (v − d) in single precision, clipped and cut off, where d is 0; the mean gray of the
    image, rounded half up; the pixel's gray; the 3 x 3 mean with weight 5 of 13 in the middle, rounded, and v itself
    at the border. Gray is (19595 R + 38470 G + 7471 B + 32768) >> 16. Factor 1 leaves the image as it is.
``autocontrast`` (), ``equalize`` (), ``invert`` ()
    ImageOps. Autocontrast: int(v · s − low · s) clipped, with s = 255 / (high − low) in double precision, from the
    lowest and highest level of the colour. Equalize: with step = (pixels − pixels of the highest level) // 255, v
    becomes (step // 2 + pixels below v) // step. A colour of one level, or with step 0, stays.
``posterize`` (bits), ``solarize`` (threshold), ``solarize_add`` (amount)
    v with all but the upper `bits` (0 to 8) set to 0; 255 − v where v >= threshold; min(255, v + amount) where v < 128.
``affine`` (a, b, c, d, e, f, filter, R, G, B)
    Image.transform: the output's pixel (x, y) is the input at (a·X + b·Y + c, d·X + e·Y + f) with X = x + 0.5,
    Y = y + 0.5 in double precision, or the colour R, G, B outside the image. `filter` 2 is bilinear: rows first, in
    double precision, the border repeated, the fraction cut off; 3 is bicubic with a = −1 in the same way, clipped;
    0 is nearest: where b = d = 0, c + a / 2 and f + e / 2 with a and e added for each pixel, the fraction cut off, else
    the same in whole units of 1/65536, each coefficient rounded half up.
``branch`` (), ``add`` (weight), ``merge`` (weight)
    The mixing of AugMix, with whole weights that sum to 65536. Branch remembers the image and starts a sum of 0. Add
    adds weight · image to the sum and returns to the remembered one. Merge gives
    (sum + weight · remembered + 32768) >> 16.
``erase`` (left, top, width, height, R, G, B)
    A box in one colour.
``erase_noise`` (left, top, width, height, seed, three means, three steps)
    A box of noise: the value number i (from 0; by rows, then pixels, then colours) is
    (mean + step · (S − 1020) + 32768) >> 16 clipped to 0..255, where S is the sum of the eight bytes of word i of
    splitmix64 (Steele et al., OOPSLA 2014) from `seed`: mixed(seed + (i + 1) · 0x9E3779B97F4A7C15 mod 2^64). S has mean
    1020 and is nearly normal. The seed is a whole number below 2^53, means and steps are in units of 2^-16 level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from resnext_core.data.operation import Operation


def operated(image: Image.Image, operations: Iterable[Operation]) -> Image.Image:
    """Return an RGB image after `operations`. Between a ``branch`` and its ``merge`` a sequence cannot be cut."""
    original, total = image, np.zeros((), np.uint32)
    for operation in operations:
        if operation.name == "branch":
            original, total = image, np.zeros((image.height, image.width, 3), np.uint32)
        elif operation.name in ("add", "merge"):
            merges = operation.name == "merge"
            source = original if merges else image
            total += np.uint32(operation.values[0]) * np.asarray(source, np.uint32)
            image = Image.fromarray(((total + 32768) >> 16).astype(np.uint8)) if merges else original
        else:
            image = OPERATIONS[operation.name](image, *operation.values)
    return image


# -- colour ----------------------------------------------------------------------------------------


def _black(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size)


def _mean_gray(image: Image.Image) -> Image.Image:
    counts = image.convert("L").histogram()
    mean = int(np.dot(counts, np.arange(256)) / sum(counts) + 0.5)
    return Image.new("RGB", image.size, (mean, mean, mean))


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _smooth(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.SMOOTH)


def _towards(degenerate: Callable[[Image.Image], Image.Image]) -> Callable[..., Image.Image]:
    """Return Pillow's ImageEnhance of a property: the image as it is at factor 1, without the property at 0."""
    return lambda image, factor: Image.blend(degenerate(image), image, factor)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    cut = 8 - int(bits)  # Pillow 13 refuses 0 bits
    return image.point([v >> cut << cut for v in range(256)] * 3)


def _solarize_add(image: Image.Image, amount: float) -> Image.Image:
    return image.point([min(255, v + int(amount)) if v < 128 else v for v in range(256)] * 3)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return image.point([v if v < threshold else 255 - v for v in range(256)] * 3)


# -- geometry --------------------------------------------------------------------------------------


def _affine(image: Image.Image, *values: float) -> Image.Image:
    colour = tuple(int(v) for v in values[7:])
    matrix, filter = values[:6], Image.Resampling(int(values[6]))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, filter, fillcolor=colour)


# -- erasing ---------------------------------------------------------------------------------------


def _erase(image: Image.Image, *values: float) -> Image.Image:
    left, top, width, height, *colour = (int(v) for v in values)
    image = image.copy()
    image.paste(tuple(colour), (left, top, left + width, top + height))
    return image


def _erase_noise(image: Image.Image, *values: float) -> Image.Image:
    left, top, width, height, seed = (int(v) for v in values[:5])
    sums = _byte_sums(seed, height * width * 3).reshape(height, width, 3)
    mean, step = (np.array(v, np.int64) for v in (values[5:8], values[8:]))
    levels = (mean + step * (sums - 1020) + 32768) >> 16
    image = image.copy()
    image.paste(Image.fromarray(levels.clip(0, 255).astype(np.uint8)), (left, top))
    return image


def _byte_sums(seed: int, count: int) -> NDArray[np.int64]:
    """Return the sums of the bytes of the first `count` words of splitmix64 from `seed`: int64 (count,), 0..2040."""
    words = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    pairs = np.uint64(0x00FF00FF00FF00FF)
    sums = (words & pairs) + ((words >> np.uint64(8)) & pairs)  # four sums of two bytes, 16 bits each
    sums *= np.uint64(0x0001000100010001)  # their sum is in the upper 16 bits
    return (sums >> np.uint64(48)).astype(np.int64)


#: By name: what takes the image and the values of an :class:`Operation`; see the description of this module.
OPERATIONS: Mapping[str, Callable[..., Image.Image]] = {
    "brightness": _towards(_black),
    "contrast": _towards(_mean_gray),
    "saturation": _towards(_gray),
    "sharpness": _towards(_smooth),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "affine": _affine,
    "erase": _erase,
    "erase_noise": _erase_noise,
}

"""From a file to uint8 pixels: by the preprocessing spec for evaluation, a random crop for training.

Sources: the random resized crop is that of Szegedy et al. (arXiv:1409.4842, section 6) in torchvision's
form; the colour operations are Pillow's ImageEnhance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.config import AugmentConfig
from resnext_core.data.decode import MAX_PIXELS, BadImage, decode, opened, opened_bytes, read_image
from resnext_core.model.preprocess import PreprocessSpec, eval_pixels, resize_plain

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of an image, in its pixels; fractions where the image was decoded at a smaller scale."""

    left: float
    top: float
    width: float
    height: float


def load_eval(path: str | Path, spec: PreprocessSpec, remarks: list[str] | None = None) -> NDArray[np.uint8]:
    """Read `path` for evaluation: uint8 (size, size, 3). Raises BadImage. `remarks` as for read_image."""
    minimum = spec.resize if spec.scaled_decode else None
    return eval_pixels(read_image(path, minimum=minimum, remarks=remarks), spec)


def load_eval_bytes(
    content: bytes, spec: PreprocessSpec, *, name: str = "given", most_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """As :func:`load_eval`, of an image file in memory, which messages call `name`: uint8 (size, size, 3).

    Raises BadImage, also where its header states more than `most_pixels`; no pixel is decoded then.
    """
    sides = (spec.resize, spec.resize) if spec.scaled_decode else None
    with opened_bytes(content, name) as source:
        width, height = source.size
        if width * height > most_pixels:
            raise BadImage(name, f"{width} x {height} is more than {most_pixels} pixels")
        return eval_pixels(decode(source, name, sides)[0], spec)


def load_train(
    path: str | Path,
    spec: PreprocessSpec,
    augment: AugmentConfig,
    rng: np.random.Generator,
    remarks: list[str] | None = None,
) -> NDArray[np.uint8]:
    """Read `path` for training: uint8 (size, size, 3). Raises BadImage. `remarks` as for read_image.

    The crop is drawn from the size in the header. With `augment.scaled_decode` a JPEG is then decoded at 1/2, 1/4 or
    1/8 if that leaves the crop at least `spec.size` on both sides.
    """
    with opened(path) as source:
        width, height = source.size
        box = random_box(width, height, augment, rng)
        sides = (math.ceil(spec.size * width / box.width), math.ceil(spec.size * height / box.height))
        image, scale = decode(source, path, sides if augment.scaled_decode else None, remarks)
    return _finish(image, _scaled(box, scale), spec, augment, rng)


def random_box(width: int, height: int, augment: AugmentConfig, rng: np.random.Generator) -> Box:
    """Draw the crop: its area share uniform in `scale`, its aspect ratio log-uniform in `ratio`.

    After ten draws that do not fit, the largest centred crop with an aspect ratio in `ratio`.
    """
    low, high = (math.log(r) for r in augment.ratio)
    for _ in range(_TRIES):
        share, aspect, across, down = rng.random(4)
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


def color_jitter(
    image: Image.Image, strengths: tuple[float, float, float], rng: np.random.Generator
) -> Image.Image:
    """Change brightness, contrast and saturation in random order, each by a factor in [1 − s, 1 + s].

    Six numbers are always drawn, so that turning one off does not change the others.
    """
    draws = rng.random(6)
    for op in np.argsort(draws[:3], kind="stable"):
        if strengths[op] > 0:
            factor = 1 + strengths[op] * (2 * float(draws[3 + op]) - 1)
            image = Image.blend(_DEGENERATE[op](image), image, max(factor, 0.0))
    return image


def _black(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size)


def _mean_gray(image: Image.Image) -> Image.Image:
    counts = image.convert("L").histogram()
    mean = int(np.dot(counts, np.arange(256)) / sum(counts) + 0.5)
    return Image.new("RGB", image.size, (mean, mean, mean))


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


#: The image at factor 0, for brightness, contrast and saturation.
_DEGENERATE = (_black, _mean_gray, _gray)


def _finish(
    image: Image.Image, box: Box, spec: PreprocessSpec, augment: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Resize `box` of `image`, flip, change colours."""
    flip = float(rng.random()) < augment.flip
    image = _resized(image, box, spec)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(color_jitter(image, augment.color_jitter, rng))


def _resized(image: Image.Image, box: Box, spec: PreprocessSpec) -> Image.Image:
    if spec.filter == "plain":
        left, top = min(int(box.left), image.width - 1), min(int(box.top), image.height - 1)
        right = min(max(left + 1, round(box.left + box.width)), image.width)
        bottom = min(max(top + 1, round(box.top + box.height)), image.height)
        pixels = np.asarray(image.crop((left, top, right, bottom)))
        return Image.fromarray(resize_plain(pixels, spec.size, spec.size))
    edges = (
        box.left,
        box.top,
        min(box.left + box.width, image.width),
        min(box.top + box.height, image.height),
    )
    return image.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=edges)


def _scaled(box: Box, scale: float) -> Box:
    return Box(left=box.left * scale, top=box.top * scale, width=box.width * scale, height=box.height * scale)

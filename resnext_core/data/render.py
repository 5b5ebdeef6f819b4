"""From a file to uint8 pixels with Pillow: by the preprocessing spec for evaluation, by a plan for training.

This is the definition of both; other decoders give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.config import AugmentConfig
from resnext_core.data.content import Content, read_file
from resnext_core.data.decode import MAX_PIXELS, BadImage, decode, opened_bytes
from resnext_core.data.exif import upright
from resnext_core.data.operation import Streams
from resnext_core.data.operations import operated
from resnext_core.data.plan import Box, Plan, train_plan
from resnext_core.model.preprocess import (
    FILTER_REACH,
    PreprocessSpec,
    eval_pixels,
    pillow_filter,
    resize_plain,
)


def load_eval(path: str | Path, spec: PreprocessSpec, remarks: list[str] | None = None) -> NDArray[np.uint8]:
    """Read `path` for evaluation: uint8 (size, size, 3). Raises BadImage. `remarks` as for read_image."""
    return load_eval_bytes(read_file(path), spec, name=path, remarks=remarks)


def load_eval_bytes(
    content: Content,
    spec: PreprocessSpec,
    *,
    name: str | Path = "given",
    most_pixels: int = MAX_PIXELS,
    remarks: list[str] | None = None,
) -> NDArray[np.uint8]:
    """As :func:`load_eval`, of an image file in memory, which messages call `name`: uint8 (size, size, 3).

    Raises BadImage, also where its header states more than `most_pixels`; no pixel is decoded then.
    """
    sides = (spec.resize, spec.resize) if spec.scaled_decode else None
    turn = upright(content, remarks) if spec.oriented else 1
    with opened_bytes(content, name) as source:
        width, height = source.size
        if width * height > most_pixels:
            raise BadImage(name, f"{width} x {height} is more than {most_pixels} pixels")
        return eval_pixels(decode(source, name, sides, remarks, turn)[0], spec)


def load_train(
    path: str | Path,
    spec: PreprocessSpec,
    augment: AugmentConfig,
    rng: Streams,
    remarks: list[str] | None = None,
) -> NDArray[np.uint8]:
    """Read `path` for training: uint8 (size, size, 3). Raises BadImage. `remarks` as for read_image.

    The plan is drawn from the size in the header, before anything is decoded.
    """
    content = read_file(path)
    turn = upright(content, remarks) if spec.oriented else 1
    return load_train_bytes(
        content,
        lambda width, height: train_plan(width, height, spec, augment, rng, turn),
        name=path,
        remarks=remarks,
    )


def load_train_bytes(
    content: Content,
    draw: Callable[[int, int], Plan],
    *,
    name: str | Path = "given",
    remarks: list[str] | None = None,
) -> NDArray[np.uint8]:
    """As :func:`load_train`, of an image file in memory, by the plan that `draw` gives for its width and height."""
    with opened_bytes(content, name) as source:
        plan = draw(*source.size)
        sides = plan.sides if plan.scaled_decode else None
        image, scale = decode(source, name, sides, remarks, plan.orientation)
    return rendered(image, scale, plan)


def rendered(image: Image.Image, scale: float, plan: Plan) -> NDArray[np.uint8]:
    """Execute `plan` on an RGB image that was decoded at `scale`: uint8 (size, size, 3)."""
    image = _resized(image, plan.box.scaled(scale), plan)
    if plan.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(operated(image, plan.operations))


def _resized(image: Image.Image, box: Box, plan: Plan) -> Image.Image:
    if plan.filter == "plain":
        left, top = min(int(box.left), image.width - 1), min(int(box.top), image.height - 1)
        right = min(max(left + 1, round(box.left + box.width)), image.width)
        bottom = min(max(top + 1, round(box.top + box.height)), image.height)
        pixels = np.asarray(image.crop((left, top, right, bottom)))
        return Image.fromarray(resize_plain(pixels, plan.size, plan.size))
    return resize_box(image, box, plan.size, plan.filter)


def resize_box(
    image: Image.Image, box: Box, size: int, filter: Literal["antialias", "bicubic"]
) -> Image.Image:
    """Resize `box` of an RGB image to `size` x `size`: rows first, then columns, each rounded to 8 bits.

    Two calls of Pillow fix this order, as in :func:`resnext_core.model.preprocess.eval_pixels`: in a single call,
    Pillow 13 starts with the columns of tall images, unlike earlier releases. The filter may reach beyond the box, but
    not beyond the image. Edges of a box are multiples of 1/8, so that the single-precision arithmetic in Pillow is
    exact; only the rows that the second pass needs go through the first.
    """
    kernel = pillow_filter(filter)
    bottom = min(box.top + box.height, image.height)
    reach = FILTER_REACH[filter] * max((bottom - box.top) / size, 1.0)
    first = max(math.floor(box.top - reach) - 1, 0)
    last = min(math.ceil(bottom + reach) + 1, image.height)
    part = image.crop((0, first, image.width, last)) if (first, last) != (0, image.height) else image
    sides = (box.left, 0, min(box.left + box.width, image.width), last - first)
    wide = part.resize((size, last - first), kernel, box=sides)
    return wide.resize((size, size), kernel, box=(0, box.top - first, size, bottom - first))

"""Reading an image file into 8-bit RGB: one policy for every odd file, and one line for every bad one.

The policy, complete:

- JPEG, PNG, BMP, GIF, WebP, TIFF and PPM, told by content, never by suffix. Nothing else is tried, so no file
  can start an external program.
- Animations and multi-page files: the first frame.
- EXIF orientation is ignored. (TIFF's own orientation tag is part of that format's decoding and is honoured.)
- Alpha is dropped, not blended; the colour under a transparent pixel counts. Palettes are looked up.
- Grayscale is repeated over the three colours. CMYK becomes RGB as Pillow does, with Adobe's inversion.
- 16-bit grayscale keeps the upper 8 bits (v >> 8), as decoders do for 16-bit colour. Values outside 16 bits
  and floating point have no defined white and are refused.
- Files cut short, broken, empty or not images, and images above 178,956,970 pixels, raise :class:`BadImage`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from resnext_core.errors import DataError

#: More pixels than this are refused before any of them is decoded (Pillow's own bound).
MAX_PIXELS = 178_956_970

#: Given the (width, height) of an image, the sides (width, height) that its decoded form must at least have.
Minimum = Callable[[tuple[int, int]], tuple[int, int]]


class BadImage(DataError):
    """An image file that cannot be decoded; the message is one line, `reason` is it without the path."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.reason = reason


def read_image(path: str | Path, *, minimum: int | None = None) -> Image.Image:
    """Return the decoded image in mode RGB, by the policy of this module; raises BadImage.

    With `minimum` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, while both of its sides stay at
    least `minimum` pixels.
    """
    with opened(path) as image:
        if minimum is not None:
            scale_decoding(image, (minimum, minimum))
        return to_rgb(image)


@contextmanager
def opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """Yield the image with its header read and no pixel decoded; whatever goes wrong inside is BadImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata and size; what matters is raised
        try:
            with open(path, "rb") as stream:
                if not stream.peek(1):
                    raise BadImage(path, "the file is empty")
                with Image.open(stream, formats=_formats()) as image:
                    width, height = image.size
                    if width * height > MAX_PIXELS:
                        raise BadImage(path, f"{width} x {height} is more than {MAX_PIXELS} pixels")
                    yield image
        except (BadImage, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadImage(path, f"not an image of a known format ({', '.join(_formats())})") from None
        except Exception as error:  # decoders raise anything at all on hostile bytes
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BadImage(path, " ".join(reason.split())[:300] or type(error).__name__) from error


def scale_decoding(image: ImageFile.ImageFile, sides: tuple[int, int]) -> None:
    """Let the decoder reduce `image` (not loaded yet) while it keeps at least `sides` (width, height)."""
    image.draft(None, (max(sides[0], 1), max(sides[1], 1)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` fully and return it in mode RGB."""
    image.load()
    image.info.pop("transparency", None)  # else Pillow makes a conversion depend on it
    if image.mode == "RGB":
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white; save the image with 8 or 16 bits")
    if image.mode in ("RGBa", "La"):
        return image.convert(image.mode.upper()).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        raise ValueError("pixels outside 16 bits have no defined white; save the image with 8 or 16 bits")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats of the policy that this Pillow can decode, having loaded their decoders."""
    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    wanted = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
    return tuple(name for name in wanted if name in Image.OPEN)

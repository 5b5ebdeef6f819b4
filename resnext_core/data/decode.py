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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from resnext_core.errors import DataError

#: More pixels than this are refused before any of them is decoded (Pillow's own bound).
MAX_PIXELS = 178_956_970
#: How the text begins that Git has in place of a large file until that is fetched.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class BadImage(DataError):
    """An image file that cannot be decoded; the message is one line, `reason` is it without the path."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.reason = reason

    @property
    def errno(self) -> int | None:
        """The number of the operating system's error where that is the cause, None where the image itself is bad."""
        return self.__cause__.errno if isinstance(self.__cause__, OSError) else None


def read_image(path: str | Path, *, minimum: int | None = None) -> Image.Image:
    """Return the decoded image in mode RGB, by the policy of this module; raises BadImage.

    With `minimum` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, while both of its sides stay at
    least `minimum` pixels.
    """
    with opened(path) as file:
        return decode(file, path, None if minimum is None else (minimum, minimum))[0]


@contextmanager
def opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """Yield the image with its header read and no pixel decoded; raises BadImage when that fails."""
    with ExitStack() as stack:
        with _guarded(path):
            stream = stack.enter_context(open(path, "rb"))
            start = stream.peek(len(_LFS_POINTER))
            if not start:
                raise BadImage(path, "the file is empty")
            if start.startswith(_LFS_POINTER):
                raise BadImage(path, "a Git LFS pointer, not an image; run git lfs pull")
            file = stack.enter_context(Image.open(stream, formats=_formats()))
            width, height = file.size
            if width * height > MAX_PIXELS:
                raise BadImage(path, f"{width} x {height} is more than {MAX_PIXELS} pixels")
        yield file


def decode(
    file: ImageFile.ImageFile, path: str | Path, sides: tuple[int, int] | None = None
) -> tuple[Image.Image, float]:
    """Decode what :func:`opened` gave: the image in mode RGB and its scale. Raises BadImage.

    With `sides` (width, height) the decoder may reduce to 1/2, 1/4 or 1/8 while it keeps at least those;
    the decoded sides are then the original ones times the scale, rounded up.
    """
    with _guarded(path):
        scale, width = 1.0, file.width
        if sides is not None:
            drafted = file.draft(None, (max(sides[0], 1), max(sides[1], 1)))
            scale = drafted[1][2] / width if drafted is not None else 1.0
        return _to_rgb(file), scale


@contextmanager
def _guarded(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into BadImage, and let nothing be printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata and size; what matters is raised
        try:
            yield
        except (BadImage, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadImage(path, f"not an image of a known format ({', '.join(_formats())})") from None
        except Exception as error:  # decoders raise anything at all on hostile bytes
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BadImage(path, " ".join(reason.split())[:300] or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image.info.pop("transparency", None)  # else Pillow makes a conversion depend on it
    if image.mode == "RGB":
        return image
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

"""16-bit samples as 8 bits: which bits are used, and which images are suspicious (policy: :mod:`.decode`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from resnext_core.data.png import Png

#: Remark about an image that was read, but probably not as intended.
DARK_16_BITS = "16-bit image whose values stay below 4096: it may hold 12-bit data"


def declared_bits(image: Image.Image, png: Png | None) -> tuple[int, bool] | None:
    """Return how many of 16 bits are used according to the file, and whether they are certainly stored unscaled."""
    if png is not None:
        bits = png.significant
        return (bits, False) if bits is not None and bits < 16 else None
    tags: Any = getattr(image, "tag_v2", {})
    depth, most = (np.atleast_1d(tags.get(tag, 0)) for tag in (258, 281))  # BitsPerSample, MaxSampleValue
    for bits in range(9, 16):
        if (depth == bits).all() or (most == (1 << bits) - 1).all():
            return bits, True
    return None


def eight_bits(values: NDArray[Any], declared: tuple[int, bool] | None, remarks: list[str]) -> Image.Image:
    """Convert (H, W) or (H, W, 3) values of 16 bits to 8 bits."""
    most = int(values.max(initial=0))
    if values.size and not 0 <= values.min() <= most <= 0xFFFF:
        raise ValueError("pixels with more than 16 bits are unsupported; convert to 8 or 16 bits")
    values = values.astype(np.uint16)
    if declared is not None and most < 1 << declared[0]:
        bits, unscaled = declared
        if unscaled or (values & ((1 << (16 - bits)) - 1)).any():
            return Image.fromarray((values << (16 - bits) >> 8).astype(np.uint8))
    elif 0 < most < 4096:
        remarks.append(DARK_16_BITS)
    return Image.fromarray((values >> 8).astype(np.uint8))


def rawmode_16(image: ImageFile.ImageFile) -> str | None:
    """Return the raw mode in which Pillow reads 16-bit samples, for instance ``RGB;16B``; otherwise None."""
    modes = {str(tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]) for tile in image.tile}
    mode = modes.pop() if len(modes) == 1 else ""
    return (
        mode if mode[-4:-1] == ";16" and mode[-1] in "BLN" else None
    )  # BGR;16 is a pixel of 5, 6 and 5 bits


def eight_bit_colour(
    image: Image.Image,
    again: Callable[[], ImageFile.ImageFile],
    rawmode: str,
    declared: tuple[int, bool] | None,
    remarks: list[str],
) -> Image.Image:
    """Convert 16-bit colours to 8 bits, in mode RGB.

    Pillow gives only the upper bytes, in `image`. The lower ones are read if they are needed: `again` opens the
    file once more.
    """
    upper = image.convert("RGB")
    bound = max(4096, 1 << declared[0]) if declared is not None else 4096
    if int(np.asarray(upper).max(initial=0)) << 8 >= bound:
        return upper
    values = np.asarray(upper).astype(np.uint16) << 8 | _lower_bytes(again, rawmode)
    return eight_bits(values, declared, remarks)


def _lower_bytes(again: Callable[[], ImageFile.ImageFile], rawmode: str) -> NDArray[np.uint8]:
    """Decode with the two bytes of each sample swapped: uint8 (H, W, 3)."""
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[rawmode[-1]]
    # LA;16B has no swapped form; its four bytes per pixel are read as four channels: upper, lower, and alpha's.
    exchanged = "RGBA" if rawmode == "LA;16B" else rawmode[:-1] + other
    with again() as image:
        image.tile = [_with_rawmode(tile, exchanged) for tile in image.tile]
        image.load()
        pixels = np.asarray(image)[..., :3]
    return np.repeat(pixels[..., 1:2], 3, axis=-1) if rawmode == "LA;16B" else pixels


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    arguments = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return type(tile)(*tile[:3], arguments) if hasattr(tile, "_fields") else (*tile[:3], arguments)

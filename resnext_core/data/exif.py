"""The EXIF orientation of an image file, read without trusting the rest of its metadata, and images turned by it.

The C++ program reads the same bytes in the same way. References: Exif 3.0 (CIPA DC-008), section 4.6.2 on the file
structure and 4.6.5.1.6 on Orientation; PNG, third edition, section 11.3.3.4 on eXIf; WebP, RFC 9649, section 2.7. The
turns are those of Pillow's ``ImageOps.exif_transpose``.
"""

from __future__ import annotations

import struct

from PIL import Image

from resnext_core.data.content import JPEG, Content
from resnext_core.data.jpeg import exif_of_jpeg
from resnext_core.data.png import SIGNATURE, exif_of_png

#: How an image that is stored with an orientation becomes upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX, _TAG = b"Exif\0\0", 0x0112
_SHORT, _LONG = 3, 4
#: Start of the remark about EXIF data in which no orientation can be read; the reason follows.
BROKEN_EXIF = "its EXIF data is broken, so that its orientation is unknown"


class BrokenExif(ValueError):
    """EXIF data in which the orientation cannot be read; the message is the reason."""


def upright(content: Content, remarks: list[str] | None = None) -> int:
    """Return by which orientation a file is to be turned; 1 where its EXIF data is broken, with a remark."""
    try:
        return orientation(content)
    except BrokenExif as error:
        if remarks is not None:
            remarks.append(f"{BROKEN_EXIF}: {error}")
        return 1


def orientation(content: Content) -> int:
    """Return the orientation, 1 to 8, of a JPEG, PNG or WebP file; 1 if it states none. Raises BrokenExif.

    EXIF is that of the APP1 segments before the first scan of a JPEG, joined, of the first eXIf chunk of a PNG,
    wherever it is, and of the first EXIF chunk of an extended WebP. Other formats have none here.
    """
    if isinstance(content, bytes) and content.startswith(JPEG):
        return exif_orientation(exif_of_jpeg(content))
    if isinstance(content, bytes) and content.startswith(SIGNATURE):
        try:
            return exif_orientation(exif_of_png(content))
        except ValueError as error:
            raise BrokenExif(str(error)) from error
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X":
        return exif_orientation(_exif_of_webp(content))
    return 1


def exif_orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, in EXIF data; 1 if it states none. Raises BrokenExif.

    The tag is looked up in the first directory; its first entry counts. Type and count are SHORT or LONG, and 1.
    A value of 0 is none: it occurs and means unknown.
    """
    while data.startswith(_PREFIX):
        data = data[len(_PREFIX) :]
    if not data:
        return 1
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if (
        order is None
        or len(data) < 8
        or 42 not in struct.unpack("<H", data[2:4]) + struct.unpack(">H", data[2:4])
    ):
        raise BrokenExif("it has no TIFF header")
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    if at + 2 > len(data):
        raise BrokenExif("it is truncated")
    (entries,) = struct.unpack_from(f"{order}H", data, at)
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        if entry + 12 > len(data):
            raise BrokenExif("it is truncated")
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, entry)
        if tag != _TAG:
            continue
        if kind not in (_SHORT, _LONG) or count != 1:
            raise BrokenExif(f"its orientation has type {kind} and count {count}")
        value: int = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", data, entry + 8)[0]
        if value > 8:
            raise BrokenExif(f"its orientation is {value}, not 1 to 8")
        return max(value, 1)
    return 1


def _exif_of_webp(data: Content) -> bytes:
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack("<4sI", data[at : at + 8])
        if kind == b"EXIF":
            return bytes(data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return b""


def turns_sides(orientation: int) -> bool:
    """Return whether width and height change places."""
    return orientation >= 5


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image that is stored with `orientation` (1 to 8) as it is meant to be seen."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image

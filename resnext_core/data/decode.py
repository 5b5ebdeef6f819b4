"""Reading an image file into 8-bit RGB: one policy for every unusual file, and a one-line error for every bad one.

The policy, complete. The C++ program follows it for JPEG and PNG, and reads no other format.

- JPEG, PNG, BMP, GIF, WebP, TIFF and PPM, recognised by content, never by suffix. Nothing else is tried, so no file
  can start an external program. Pipes, sockets, devices and directories are refused without being opened.
- Animations and multi-page files: the first frame.
- EXIF orientation is ignored, unless the preprocessing says `apply`: then a JPEG, PNG or WebP is turned as it says
  (:mod:`.exif`). Broken EXIF is ignored, and a remark is added. (TIFF's own orientation tag is part of that format's
  decoding and is always applied.)
- Alpha is dropped, not blended; the colour under a transparent pixel is used. Palettes are converted to RGB; an index
  beyond a PNG's palette is black.
- Grayscale is repeated over the three colours. CMYK is converted to RGB as in Pillow, with Adobe's inversion.
- Samples of 16 bits keep the upper 8 (v >> 8). If the file states that fewer of them are used and no value is
  larger, those are scaled up: 12 bits by 16. A PNG states this with sBIT, where values of n bits are stored scaled;
  they count as unscaled if all are below 2^n and one has a bit below the upper n. A TIFF states it with 9 to 15
  BitsPerSample, or with a MaxSampleValue of 2^n - 1 for these n. 16-bit values that are all below 4096 in a file
  without such a statement are not changed, and a remark is added.
- Values outside 16 bits and floating point are not supported.
- All other metadata is ignored. For the pixels of a PNG only IHDR, PLTE and IDAT are used; their checksums must match,
  other critical chunks are an error, ancillary chunks are skipped without decompressing them, and nothing after the
  last IDAT is read.
  In a JPEG, APPn and comments are skipped, except JFIF's and Adobe's, which define the colours. JPEG and PNG
  files above 2 GiB are an error.
- A JPEG has no checksum: damaged data that libjpeg decodes to the last row is read. Data that ends before that is
  truncated and an error; a missing end marker after it is not.
- Files that are truncated, broken, empty or not images, and images above 178,956,970 pixels, raise :class:`BadImage`.
"""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from resnext_core.data.content import JPEG, Content, Mapped, check_bytes, read_file
from resnext_core.data.content import BadImage as BadImage
from resnext_core.data.depth import declared_bits, eight_bit_colour, eight_bits, rawmode_16
from resnext_core.data.exif import turned, turns_sides
from resnext_core.data.jpeg import without_metadata
from resnext_core.data.png import SIGNATURE, Png, read_png
from resnext_core.errors import reason

#: More pixels than this are refused before any of them is decoded (Pillow's own bound).
MAX_PIXELS = 178_956_970
#: Start of a Git LFS pointer, which stands for a large file until that is fetched.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An image with its header read; `png` is the pixel data of a PNG, None for other formats."""

    image: ImageFile.ImageFile
    stream: IO[bytes]
    png: Png | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    @property
    def alpha(self) -> bool:
        """True if it has an alpha channel, or transparent colours, which are dropped."""
        if self.png is not None:
            return self.png.alpha
        return self.image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in self.image.info

    @property
    def bits(self) -> int:
        """Bits of a sample in the file; 8 for whatever has at most as many."""
        if self.png is not None:
            return max(self.png.depth, 8)
        tags: Any = getattr(self.image, "tag_v2", {})
        bits = 16 if self.image.mode[0] in "IF" else 8
        with suppress(TypeError, ValueError):  # a TIFF may state anything
            bits = max(bits, *(int(value) for value in np.atleast_1d(tags.get(258, 8))))
        return bits

    @property
    def format(self) -> str | None:
        """Pillow's name of the format."""
        return self.image.format


def read_image(
    path: str | Path, *, minimum: int | None = None, remarks: list[str] | None = None
) -> Image.Image:
    """Return the decoded image in mode RGB, by the policy of this module; raises BadImage.

    With `minimum` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, while both of its sides stay at
    least `minimum` pixels. A remark about an image that is probably not read as intended is added to `remarks`.
    """
    with opened(path) as source:
        return decode(source, path, None if minimum is None else (minimum, minimum), remarks)[0]


def opened(path: str | Path) -> AbstractContextManager[Source]:
    """Return a context: the image with its header read and no pixel decoded; raises BadImage when that fails."""
    return opened_bytes(read_file(path), path)


@contextmanager
def opened_bytes(content: Content, name: str | Path) -> Iterator[Source]:
    """As :func:`opened`, of an image file in memory, which messages call `name`."""
    with ExitStack() as stack:
        with _guarded(name):
            source = _source(stack, name, content)
        yield source


def _source(stack: ExitStack, path: str | Path, content: Content) -> Source:
    """Return the image in `content` with its header read; `stack` closes what it opens."""
    head = content[: len(_LFS_POINTER)]
    if not head:
        raise BadImage(path, "the file is empty")
    if head.startswith(_LFS_POINTER):
        raise BadImage(path, "a Git LFS pointer, not an image; run git lfs pull")
    png = None
    if isinstance(content, Mapped):
        stream: IO[bytes] = cast(IO[bytes], content)  # it has what Pillow uses of a stream
    else:
        if head.startswith((SIGNATURE, JPEG)):
            check_bytes(path, len(content))
        if head.startswith(SIGNATURE):
            png = read_png(content)
            _check_size(path, png.width, png.height)
            content = png.stream
        elif head.startswith(JPEG):
            content = without_metadata(content)
        stream = io.BytesIO(content)
    image = stack.enter_context(_identified(stream))
    _check_size(path, *image.size)
    return Source(image=image, stream=stream, png=png)


def decode(
    source: Source,
    path: str | Path,
    sides: tuple[int, int] | None = None,
    remarks: list[str] | None = None,
    orientation: int = 1,
) -> tuple[Image.Image, float]:
    """Decode an image from :func:`opened`: the image in mode RGB and its scale. Raises BadImage.

    It is turned last, as EXIF's `orientation` says. With `sides` (width, height, when it is turned) the decoder may
    reduce to 1/2, 1/4 or 1/8 while it keeps at least those; the decoded sides are then the original ones times the
    scale, rounded up. `remarks` are as for :func:`read_image`.
    """
    with _guarded(path):
        scale, width = 1.0, source.image.width
        if sides is not None:
            least = sides[::-1] if turns_sides(orientation) else sides
            drafted = source.image.draft(None, (max(least[0], 1), max(least[1], 1)))
            scale = drafted[1][2] / width if drafted is not None else 1.0
        try:
            return turned(_to_rgb(source, remarks if remarks is not None else []), orientation), scale
        except OSError as error:  # libtiff and others give only a number
            if str(error).startswith("decoder error"):
                raise ValueError(f"broken {source.format} data ({error})") from error
            raise


def _check_size(path: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(path, f"{width} x {height} is more than {MAX_PIXELS} pixels")


def _identified(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Open `stream` with Pillow. A broken file that has a format's first bytes is reported as that format."""
    try:
        return Image.open(stream, formats=_formats())
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        stream.seek(0)
        head = stream.read(16)
        for name in _formats():
            factory, accepts = Image.OPEN[name]
            if accepts is not None and accepts(head):
                raise ValueError(f"a broken {name}{_why(factory, stream)}") from error
        raise


def _why(factory: Callable[[IO[bytes], str], ImageFile.ImageFile], stream: IO[bytes]) -> str:
    """Return the error of a format's decoder on `stream`, which Pillow does not report."""
    stream.seek(0)
    try:
        factory(stream, "")
    except Exception as error:
        text = str(error)
        return f": {text}" if text and not text.isdecimal() else ""  # a number is the missing key
    return ""


@contextmanager
def _guarded(path: str | Path) -> Iterator[None]:
    """Turn any exception inside into BadImage, and suppress warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata and size; errors are raised
        try:
            yield
        except (BadImage, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadImage(path, f"not an image of a known format ({', '.join(_formats())})") from None
        except Exception as error:  # decoders may raise anything on malicious data
            raise BadImage(path, reason(error)[:300]) from error


def _to_rgb(source: Source, remarks: list[str]) -> Image.Image:
    image = source.image
    rawmode = rawmode_16(image)
    image.load()
    if source.png is not None:
        _check_rows(image, source.png)
    image.info.pop("transparency", None)  # otherwise a conversion in Pillow depends on it
    if image.mode == "RGB" and rawmode is None:
        return image
    if image.mode.startswith("I"):
        return eight_bits(np.asarray(image), declared_bits(image, source.png), remarks).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels are unsupported; convert to 8 or 16 bits")
    if rawmode is not None and image.mode in ("RGB", "RGBA"):
        again = partial(Image.open, source.stream, formats=_formats())
        return eight_bit_colour(image, again, rawmode, declared_bits(image, source.png), remarks)
    if image.mode in ("RGBa", "La"):
        return image.convert(image.mode.upper()).convert("RGB")
    return image.convert("RGB")


def _check_rows(image: Image.Image, png: Png) -> None:
    """Raise ValueError if the image data ended early: Pillow leaves rows at 0 without an error."""
    if not png.interlaced:
        corner = image.getpixel((image.width - 1, image.height - 1))
        if any(corner) if isinstance(corner, tuple) else corner:
            return  # the fast path, for nearly every photograph
        last = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
        if last.strip(b"\0"):
            return
    if not png.whole():
        raise ValueError("the image data ends before the last row")


# -- decoders ------------------------------------------------------------------------------------


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats of the policy that this Pillow can decode, after loading and silencing their decoders."""
    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    _silence()
    wanted = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
    return tuple(name for name in wanted if name in Image.OPEN)


def _silence() -> None:
    """Keep decoders from printing messages that name no file on standard error; errors are raised.

    libtiff prints its errors. It has one handler per process, which is turned off once, in the library that
    Pillow has loaded; if Pillow hides it, the messages stay. Pillow's log is only written if the user has set it up.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    from PIL import _imaging

    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)  # a name is also looked up in the library's dependencies
        for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)

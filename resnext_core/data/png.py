"""The chunks of a PNG that define its pixels, with their checksums verified; metadata is ignored.

Pillow reads every chunk before the image data and may reject a file for its metadata; libpng has other limits. Both
get the same PNG (the C++ program does the same): IHDR, PLTE of a palette image, IDAT, IEND.
Reference: PNG, third edition (W3C, 2025), sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Samples a pixel and the depths in bits that a colour type may have.
_TYPES = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
#: Left, top, and steps across and down of the passes of an interlaced image.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PALETTE_BYTES = 768
_BLOCK = 1 << 20
#: The end of IHDR, and a complete IEND chunk.
_HEADER_END, _END = 33, b"\0\0\0\0IEND\xaeB`\x82"
#: Pillow's decoder gets one chunk, but at most this many bytes, at a time. If the last piece is so small that it may be
#: only the end of the compressed stream, Pillow already has the last row and would not read it.
_PIECE, _TAIL = 65536, 64
_LENGTH_AND_TYPE, _NUMBER = struct.Struct(">I4s"), struct.Struct(">I")


@dataclass(frozen=True, kw_only=True)
class Png:
    """The pixel data of a PNG: size, kind, and `stream`, a PNG file without anything else.

    `significant` is the largest number of significant bits of the colours, if the file states it (sBIT). `alpha` is
    True if it has an alpha channel, or transparent colours (tRNS).
    `parts` are the contents of the IDAT chunks.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    significant: int | None
    alpha: bool
    stream: bytes
    parts: Sequence[memoryview]

    def whole(self) -> bool:
        """True if the image data has every row. It is decompressed for this, a block at a time."""
        inflater, have, need = zlib.decompressobj(), 0, self._row_bytes
        try:
            for part in self.parts:
                data = bytes(part)
                while data and have < need:
                    have += len(inflater.decompress(data, _BLOCK))
                    data = inflater.unconsumed_tail
        except zlib.error:
            return False
        return have >= need

    @property
    def _row_bytes(self) -> int:
        """Bytes of all filtered rows."""
        bits = self.depth * _TYPES[self.colour][0]
        total = 0
        for left, top, across, down in _ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            width, height = -(-(self.width - left) // across), -(-(self.height - top) // down)
            if width > 0 and height > 0:
                total += height * (1 + (width * bits + 7) // 8)
        return total


def read_png(data: bytes) -> Png:
    """Return the pixel data of a PNG file; ValueError with the reason if it is damaged.

    Chunks that are not critical (profiles, EXIF, text, transparency, animation) are skipped, whatever they contain.
    """
    header = palette = significant = None
    parts: list[memoryview] = []
    first = (
        0  # where the run of IDAT begins; what comes before it is `plain` where it has nothing to leave out
    )
    plain = True
    transparent = False
    for at, kind, content, checksum in _chunks(data):
        if header is None and kind != b"IHDR":
            raise ValueError(f"the first chunk is {kind.decode()}, not IHDR")
        if kind[0] & 0x20:  # a lower-case letter: not critical
            plain = False
            transparent = transparent or kind == b"tRNS"
            if kind == b"sBIT" and significant is None and zlib.crc32(content, zlib.crc32(kind)) == checksum:
                significant = bytes(content)
            continue
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise ValueError(f"checksum mismatch in chunk {kind.decode()}")
        if kind == b"IDAT":
            first = first or at
            parts.append(content)
        elif kind == b"IHDR":
            if header is not None:
                raise ValueError("two IHDR chunks")
            header = _header(content)
        elif kind == b"PLTE":
            if palette is not None:
                raise ValueError("two PLTE chunks")
            palette = bytes(content)
        elif kind == b"IEND":
            raise ValueError("no image data before IEND")
        else:
            raise ValueError(f"unknown critical chunk {kind.decode()}")
    if header is None or not parts:
        raise ValueError("the file is truncated")
    width, height, depth, colour, interlaced = header
    if colour != 3:
        plain, palette = plain and palette is None, None  # it is a suggestion there
    elif palette is None or not palette or len(palette) % 3 or len(palette) > _PALETTE_BYTES:
        raise ValueError("palette image with a missing or invalid palette")
    elif len(palette) < 3 << depth:
        plain, palette = (
            False,
            palette.ljust(_PALETTE_BYTES, b"\0"),
        )  # an index beyond it is black, as in libpng
    return Png(
        width=width, height=height, depth=depth, colour=colour, interlaced=interlaced,
        significant=_bits(significant, colour, depth), alpha=transparent or colour in (4, 6),
        stream=_stream(data, parts, first, palette, plain), parts=parts,
    )  # fmt: skip


def exif_of_png(data: bytes) -> bytes:
    """Return the EXIF data of a PNG file (its first eXIf chunk), or nothing; ValueError if that chunk is damaged."""
    at, size = len(SIGNATURE), len(data)
    while at + 12 <= size:
        length, kind = _LENGTH_AND_TYPE.unpack_from(data, at)
        end = at + 8 + length
        if end + 4 > size or kind == b"IEND":
            break
        if kind == b"eXIf":
            content = data[at + 8 : end]
            if zlib.crc32(content, zlib.crc32(kind)) != _NUMBER.unpack_from(data, end)[0]:
                raise ValueError("checksum mismatch in chunk eXIf")
            return bytes(content)
        at = end + 4
    return b""


def _stream(
    data: bytes, parts: Sequence[memoryview], first: int, palette: bytes | None, plain: bool
) -> bytes:
    """Return a PNG of the header, `palette` and the image data: the file itself if it has nothing else."""
    end = first + sum(12 + len(part) for part in parts)
    merge = len(parts[-1]) % _PIECE < _TAIL and sum(map(len, parts)) > _TAIL
    if plain and not merge and data[end:] == _END:
        return data
    colours = _chunk(b"PLTE", palette) if palette else b""
    images = _chunk(b"IDAT", b"".join(parts)) if merge else memoryview(data)[first:end]
    return b"".join([data[:_HEADER_END], colours, images, _END])


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, memoryview, int]]:
    """Yield position, type, content and checksum of each chunk, up to the last IDAT of the first consecutive ones.

    Stops also at the end of the file, if that is between two chunks.
    """
    view, at, size = memoryview(data), len(SIGNATURE), len(data)
    images = False
    while at + 8 <= size:
        length, kind = _LENGTH_AND_TYPE.unpack_from(data, at)
        if images and kind != b"IDAT":
            return
        images = kind == b"IDAT"
        if not (kind.isalpha() and kind.isascii()):
            raise ValueError(f"no chunk at byte {at}")
        end = at + 8 + length
        if end + 4 > size:
            raise ValueError(f"the file is truncated in chunk {kind.decode()}")
        yield at, kind, view[at + 8 : end], _NUMBER.unpack_from(data, end)[0]
        at = end + 4


def _header(content: memoryview) -> tuple[int, int, int, int, bool]:
    if len(content) != 13:
        raise ValueError(f"a header of {len(content)} bytes, not 13")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", content)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise ValueError(f"{width} x {height} is not a valid size")
    if depth not in _TYPES.get(colour, (0, ()))[1]:
        raise ValueError(f"invalid PNG: colour type {colour} with {depth} bits")
    if compression or filtering or interlace > 1:
        raise ValueError(
            f"unknown methods {compression}, {filtering}, {interlace} of compression, filters, interlace"
        )
    return width, height, depth, colour, bool(interlace)


def _bits(significant: bytes | None, colour: int, depth: int) -> int | None:
    """Return the largest number of an sBIT chunk, without that of alpha; None if the chunk is invalid."""
    colours = 1 if colour in (0, 4) else 3
    if significant is None or len(significant) != (3 if colour == 3 else _TYPES[colour][0]):
        return None
    most = max(significant[:colours])
    return most if min(significant[:colours]) > 0 and most <= (8 if colour == 3 else depth) else None


def _chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join(
        [_LENGTH_AND_TYPE.pack(len(content), kind), content, _NUMBER.pack(zlib.crc32(kind + content))]
    )

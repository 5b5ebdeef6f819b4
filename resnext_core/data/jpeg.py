"""The segments of a JPEG: its EXIF, and the file without metadata.

libjpeg ignores metadata, but Pillow parses it and may reject the file for it.
"""

from __future__ import annotations

#: Markers without a segment that libjpeg skips before the first scan: TEM and restarts.
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
#: APP0 to APP15 and the comment.
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
#: Frames, tables and restart interval: all markers with a segment from SOF0 to EXP, except the scan.
_NEEDED = frozenset({*range(0xC0, 0xE0)} - {0xD8, 0xD9, 0xDA} - _BARE)
#: Segments that define the colours; shorter ones are ignored (libjpeg's rule).
_COLOURS = {0xE0: (b"JFIF", 14), 0xEE: (b"Adobe", 12)}
_EXIF = b"Exif\0\0"


def without_metadata(data: bytes) -> bytes:
    """Return a JPEG file without its EXIF, profiles, previews and comments.

    The segments before the first scan are read as by libjpeg, without bytes outside of segments; from the first
    segment that it would reject, everything is kept.
    """
    view, parts = memoryview(data), []
    at, kept_from = 2, 0
    while True:
        start = _next_marker(data, at)
        end = _segment_end(data, start)
        keep = end == 0 or _needed(data[start + 1], view[start + 4 : end])
        if start > at or not keep:  # the part kept so far ends here
            parts.append(view[kept_from:at])
            kept_from = start if keep else end
        if end == 0:
            break
        at = end
    return b"".join([*parts, view[kept_from:]]) if parts else data


def exif_of_jpeg(data: bytes) -> bytes:
    """Return the EXIF data of a JPEG file, without its signature; empty if it has none.

    The segments are those of :func:`without_metadata`. Data that is larger than one segment is in several.
    """
    view, at = memoryview(data), 2
    parts: list[memoryview] = []
    while True:
        start = _next_marker(data, at)
        at = _segment_end(data, start)
        if at == 0:
            return b"".join(parts)
        content = view[start + 4 : at]
        if data[start + 1] == 0xE1 and content[: len(_EXIF)] == _EXIF:
            parts.append(content[len(_EXIF) :])


def _next_marker(data: bytes, at: int) -> int:
    """Return the position of the next marker's 0xFF, or the end of the file."""
    while (at := data.find(b"\xff", at)) >= 0:
        after = data[at + 1 : at + 2]
        if after == b"\xff":  # padding
            at += 1
        elif after == b"\0":  # a byte 0xFF, not a marker
            at += 2
        else:
            return at
    return len(data)


def _segment_end(data: bytes, start: int) -> int:
    """Return the end of the segment that starts there; 0 for a scan and for what libjpeg would reject."""
    marker = data[start + 1] if start + 1 < len(data) else 0
    if marker in _BARE:
        return start + 2
    if marker in _METADATA or marker in _NEEDED:
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        if length >= 2 and start + 2 + length <= len(data):
            return start + 2 + length
    return 0


def _needed(marker: int, content: memoryview) -> bool:
    if marker in _COLOURS:
        name, length = _COLOURS[marker]
        return len(content) >= length and content[: len(name)] == name
    return marker in _NEEDED

"""The members of an uncompressed tar archive and where their bytes lie, without reading those.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: Bytes of a header, and what sizes are rounded up to.
BLOCK = 512
#: Bytes that are read with each header: small members, such as labels, come with it.
_AHEAD = 4096
#: A name or a pax header longer than this is an error.
_LONGEST = 1 << 20
_ZEROS = bytes(BLOCK)

#: First bytes of compressed files.
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
)

FILE, LINK, FOLDER, OTHER = "file", "link", "folder", "other"
_TYPES = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": LINK, b"2": LINK, b"5": FOLDER}


@dataclass(frozen=True, slots=True)
class Member:
    """A member: `offset` and `size` of its content in bytes, and the first bytes of it, possibly all."""

    name: bytes
    kind: str
    offset: int
    size: int
    head: bytes


def members(read: Callable[[int, int], bytes], total: int) -> Iterator[Member]:
    """Yield the members of an archive of `total` bytes; `read(offset, size)` gives bytes of it.

    Raises ValueError, with the reason, where it is damaged, ends early, or is not an uncompressed tar archive.
    """
    at, name, size = 0, b"", -1  # what long headers have said about the next member
    while True:
        piece = read(at, min(_AHEAD, total - at)) if at < total else b""
        header = piece[:BLOCK]
        if len(header) < BLOCK:
            raise ValueError(f"it is cut short: it has {total} bytes and no end mark")
        if header == _ZEROS:
            _check_end(read, at, total)
            return
        _check_sum(header, at)
        kind = header[156:157]
        content = at + BLOCK
        stated = _number(header[124:136], at)
        if kind in b"LKxXg":
            long = read(content, stated) if content + stated <= total and stated <= _LONGEST else b""
            if len(long) < stated:
                raise ValueError(
                    f"the header at byte {at} has {stated} bytes, which are not there or too many"
                )
            if kind == b"L":
                name = long.rstrip(b"\0")
            elif kind in b"xX":
                records = _pax(long, at)
                name = records.get(b"path", name)
                size = int(records.get(b"size", b"-1"))
                if any(key.startswith(b"GNU.sparse") for key in records):
                    raise ValueError(
                        f"the member at byte {at} is a sparse file; make the archive without --sparse"
                    )
            at = content + _padded(stated)
            continue
        size = stated if size < 0 else size
        name = name or _short_name(header)
        if kind == b"S":
            raise ValueError(f"the member at byte {at} is a sparse file; make the archive without --sparse")
        known = _TYPES.get(kind, OTHER)
        held = size if known in (FILE, OTHER) else 0
        if content + held > total:
            raise ValueError(
                f"it is cut short: {name.decode(errors='replace')} ends at byte {content + held}, the file at {total}"
            )
        yield Member(name, known, content, size, piece[BLOCK : BLOCK + size])
        at, name, size = content + _padded(held), b"", -1


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _short_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        return prefix + b"/" + name if prefix else name
    return name


def _check_sum(header: bytes, at: int) -> None:
    """Raise ValueError unless the header's checksum is that of its bytes, with blanks in the checksum's place."""
    stated = header[148:156].strip(b"\0 ")
    found = sum(header) - sum(header[148:156]) + 8 * 0x20
    if not stated or stated.strip(b"01234567") or int(stated, 8) != found:
        for first, what in _COMPRESSED:
            if at == 0 and header.startswith(first):
                raise ValueError(
                    f"it is compressed ({what}), so that no image can be found in it; unpack it to a .tar"
                )
        raise ValueError(
            "it is not a tar archive" if at == 0 else f"it is damaged: there is no header at byte {at}"
        )


def _number(field: bytes, at: int) -> int:
    """Return a number: octal digits, or binary after a byte 0x80 (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if digits.strip(b"01234567"):
        raise ValueError(f"it is damaged: the header at byte {at} has no size")
    return int(digits or b"0", 8)


def _pax(data: bytes, at: int) -> dict[bytes, bytes]:
    """Return the records of a pax header: each is "<length> <key>=<value>\\n"."""
    records: dict[bytes, bytes] = {}
    while data:
        digits = data.split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        key, sign, value = data[len(digits) + 1 : length].partition(b"=")
        if not len(digits) < length <= len(data) or not sign or not value.endswith(b"\n"):
            raise ValueError(f"it is damaged: the pax header at byte {at} cannot be read")
        records[key], data = value[:-1], data[length:]
    if not records.get(b"size", b"0").isdigit():
        raise ValueError(f"it is damaged: the pax header at byte {at} has no size")
    return records


def _check_end(read: Callable[[int, int], bytes], at: int, total: int) -> None:
    """Raise ValueError if something follows the end mark: another archive, which would be lost."""
    while at < total:
        piece = read(at, min(1 << 20, total - at))
        if not piece:
            return
        if piece.strip(b"\0"):
            raise ValueError(
                "it has data after its end mark; if archives were joined with cat, give each as a shard of its own"
            )
        at += len(piece)

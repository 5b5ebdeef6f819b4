"""MessagePack as MindRecord has it: a map of numbers and texts.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

import struct

Value = int | float | str | bool | None

_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_CONSTANTS: dict[int, Value] = {0xC0: None, 0xC2: False, 0xC3: True}


def unpacked(content: bytes) -> dict[str, Value]:
    """Return the map in `content`, nothing before or after it; ValueError where it is damaged or has other values."""
    try:
        count, at = _count(content)
        found: dict[str, Value] = {}
        for _ in range(count):
            key, at = _value(content, at)
            found[str(key)], at = _value(content, at)
    except (IndexError, struct.error) as error:
        raise ValueError("the fields end early") from error
    if at != len(content):
        raise ValueError("there is more after the fields")
    return found


def _count(content: bytes) -> tuple[int, int]:
    kind = content[0]
    if 0x80 <= kind <= 0x8F:
        return kind & 0x0F, 1
    if kind in _MAPS:
        return _number(content, 1, _MAPS[kind])
    raise ValueError(f"the fields are no map (0x{kind:02x})")


def _value(content: bytes, at: int) -> tuple[Value, int]:
    kind = content[at]
    at += 1
    if kind <= 0x7F:
        return kind, at
    if kind >= 0xE0:
        return kind - 256, at
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], at
    if kind in _NUMBERS:
        return _number(content, at, _NUMBERS[kind])
    length = kind & 0x1F
    if kind in _TEXTS:
        length, at = _number(content, at, _TEXTS[kind])
    elif not 0xA0 <= kind <= 0xBF:
        raise ValueError(f"a value that is neither number nor text (0x{kind:02x})")
    if at + length > len(content):
        raise ValueError("the fields end early")
    return content[at : at + length].decode("utf-8", "surrogateescape"), at + length


def _number(content: bytes, at: int, form: str) -> tuple[int, int]:
    return struct.unpack_from(form, content, at)[0], at + struct.calcsize(form)

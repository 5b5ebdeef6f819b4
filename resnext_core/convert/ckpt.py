"""MindSpore's ``.ckpt`` files, read and written without MindSpore.

The file is a protobuf message (mindspore/train/checkpoint.proto): ``Checkpoint`` has `value` = 1 (repeated), a value
has `tag` = 1 and `tensor` = 2, a tensor has `dims` = 1 (repeated int64), `tensor_type` = 2 and `tensor_content` = 3.
A tensor larger than 512 MiB is stored as several consecutive values with the same tag. A file saved with
``crc_check`` ends with the text ``crc_num`` and ten bytes, the CRC-32 of everything before. Encrypted files are
an error. A scalar has no dims.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, quoted, reason, shown
from resnext_core.files import atomic_path
from resnext_core.interfaces import StoredTensors
from resnext_core.model.weights import MOST_TENSORS

_DTYPES = {
    "Float64": "<f8", "Float32": "<f4", "Float16": "<f2", "Int64": "<i8", "Int32": "<i4", "Int16": "<i2",
    "Int8": "i1", "UInt64": "<u8", "UInt32": "<u4", "UInt16": "<u2", "UInt8": "u1", "Bool": "?",
}  # fmt: skip
_TYPES = {np.dtype(code): name for name, code in _DTYPES.items()}
#: Text entries (``append_dict``) are arrays of 4-byte characters; they are not weights and are left out.
_TEXT = "str"
#: Read as float32: the upper half of its bits.
_BFLOAT16 = "BFloat16"
#: Bytes of a tensor in one value, as MindSpore writes.
_SLICE = 512 << 20
#: Limits of dimensions and of characters in a name: a file that exceeds them is not in this format.
_MOST_DIMS, _LONGEST_NAME = 16, 300
#: First bytes of each block that MindSpore has encrypted.
_ENCRYPTED = bytes.fromhex("d85e3a7f")
_CRC_MARK, _CRC_SIZE = b"crc_num", 10


class _Broken(ValueError):
    """The bytes are not in this format; the message says where."""


def read_stored(path: Path) -> StoredTensors:
    """Return the tensors by tag, in file order; DataError when the file is missing, truncated or in another format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    try:
        return _parse(memoryview(data))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a readable MindSpore checkpoint: {error}") from error


def write_ckpt(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write `tensors` atomically as MindSpore does; DataError on an unsupported dtype or a full disk."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for tag, array in tensors.items():
            if array.dtype.newbyteorder("=") not in _TYPES:
                raise DataError(f"{tag} is {array.dtype}, which MindSpore checkpoints do not support")
            kind = _TYPES[array.dtype.newbyteorder("=")]
            content = np.ascontiguousarray(array, dtype=_DTYPES[kind]).tobytes()
            dims = b"".join(b"\x08" + _varint(n) for n in array.shape)
            for start in range(0, len(content), _SLICE):
                piece = content[start : start + _SLICE]
                tensor = dims + _field(2, kind.encode()) + _field(3, piece)
                stream.write(_field(1, _field(1, tag.encode()) + _field(2, tensor)))


def _parse(data: memoryview) -> StoredTensors:
    if bytes(data[:4]) == _ENCRYPTED:
        raise _Broken("it is encrypted; load it in MindSpore with its key and save it without one")
    data = _without_crc(data)
    if not data:
        raise _Broken("it is empty")
    pieces: dict[str, list[tuple[tuple[int, ...], str, memoryview]]] = {}
    last = None
    for count, (number, value) in enumerate(_fields(data)):
        if count >= MOST_TENSORS:
            raise _Broken(f"it has more than {MOST_TENSORS} tensors")
        if number != 1 or not isinstance(value, memoryview):
            raise _Broken(f"unknown field {number} (is it another format?)")
        tag, dims, kind, content = _value(value)
        if tag in pieces and tag != last:
            raise _Broken(f"{quoted(tag)} appears twice")
        pieces.setdefault(tag, []).append((dims, kind, content))
        last = tag
    return StoredTensors(
        tensors={tag: _join(tag, parts) for tag, parts in pieces.items() if parts[0][1] != _TEXT},
        widened={tag: "bfloat16" for tag, parts in pieces.items() if parts[0][1] == _BFLOAT16},
        others={tag: "text, not a tensor" for tag, parts in pieces.items() if parts[0][1] == _TEXT},
    )


def _without_crc(data: memoryview) -> memoryview:
    """Check and remove the CRC trailer, if there is one."""
    length = len(_CRC_MARK) + _CRC_SIZE
    if len(data) < length or bytes(data[-length:-_CRC_SIZE]) != _CRC_MARK:
        return data
    body, said = data[:-length], int.from_bytes(data[-_CRC_SIZE:], "big")
    if binascii.crc32(body) != said:
        raise _Broken("checksum mismatch")
    return body


def _value(data: memoryview) -> tuple[str, tuple[int, ...], str, memoryview]:
    tag, tensor = None, None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, memoryview):
            tag = str(value, "utf-8")
        elif number == 2 and isinstance(value, memoryview):
            tensor = value
        else:
            raise _Broken(f"a value with the unknown field {number}")
    if tag is None or tensor is None:
        raise _Broken("it has a value without a name or without a tensor")
    if len(tag) > _LONGEST_NAME or not tag.isprintable():
        raise _Broken("it has a tensor whose name is not text")
    dims: list[int] = []
    kind, content = None, memoryview(b"")
    for number, value in _fields(tensor):
        if number == 1:
            for n in [value] if isinstance(value, int) else _varints(value):
                dims.append(n)
                if len(dims) > _MOST_DIMS:
                    raise _Broken(f"{quoted(tag)} has more than {_MOST_DIMS} dimensions")
        elif number == 2 and isinstance(value, memoryview):
            kind = str(value, "utf-8")
        elif number == 3 and isinstance(value, memoryview):
            content = value
        else:
            raise _Broken(f"{quoted(tag)} has the unknown field {number}")
    if kind not in _DTYPES and kind not in (_TEXT, _BFLOAT16):
        raise _Broken(f"{quoted(tag)} has an unknown type")
    return tag, tuple(dims), kind, content


def _join(tag: str, parts: list[tuple[tuple[int, ...], str, memoryview]]) -> NDArray[Any]:
    dims, kind, content = parts[0]
    if any((d, k) != (dims, kind) for d, k, _ in parts):
        raise _Broken(f"the parts of {quoted(tag)} have different shapes or types")
    raw = content if len(parts) == 1 else memoryview(b"".join(c for _, _, c in parts))
    dtype = np.dtype("<u2" if kind == _BFLOAT16 else _DTYPES[kind])
    if dims == (0,) and len(raw) == dtype.itemsize:  # how older versions write a scalar
        dims = ()
    count = 1
    for n in dims:
        count *= n
    if len(raw) != count * dtype.itemsize:
        raise _Broken(
            f"{quoted(tag)} has {len(raw)} bytes, not the {shown(count * dtype.itemsize)} of its shape "
            f"{shown(list(dims))}"
        )
    array = np.frombuffer(raw, dtype).reshape(dims)
    if kind == _BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and content of each field: an integer, or bytes."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _read_varint(data, position)
            yield number, value
        elif wire == 2:
            length, position = _read_varint(data, position)
            if length > len(data) - position:
                raise _Broken("it ends in the middle of a record")
            yield number, data[position : position + length]
            position += length
        else:
            raise _Broken(f"unknown field at byte {position}")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _read_varint(data, position)
        yield value


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 63, 7):
        if position >= len(data):
            raise _Broken("it ends in the middle of a record")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Broken(f"unknown field at byte {position}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content

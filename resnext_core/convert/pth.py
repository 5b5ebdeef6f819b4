"""Read PyTorch's files without PyTorch, in its zip format and the older one; nothing in them is executed.

A file is a pickle that refers to storages in the same file. The pickle is read as data (:mod:`.pickles`), the
network is found in it (:mod:`.nested`), and then only the storages of its tensors are read. Declared sizes are
checked first: no tensor may be larger than its storage, and no storage larger than the file.

Sources: torch/serialization.py and torch/_utils.py of PyTorch 0.4 to 2.13.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.convert.nested import find_state
from resnext_core.convert.pickles import Broken, Executes, Name, Object, Persistent, read_pickle
from resnext_core.errors import DataError, one_line, quoted, reason, shown
from resnext_core.files.types import LEGACY, ZIP
from resnext_core.interfaces import StoredTensors

#: NumPy's type by PyTorch's name, of a storage class or a dtype.
_DTYPES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1",
    "Bool": "?", "ComplexFloat": "c8", "ComplexDouble": "c16", "BFloat16": "u2",
    "float64": "f8", "float32": "f4", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
    "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "?", "complex64": "c8", "complex128": "c16",
    "bfloat16": "u2", "Untyped": "u1",
}  # fmt: skip
_BFLOAT16 = ("BFloat16", "bfloat16")
#: Limit of a zip directory in bytes: that of 100,000 storages.
_MOST_DIRECTORY = 16 << 20
_MOST_DIMENSIONS = 16
#: First number of a file in the older format.
_MAGIC = 0x1950A86A20F9469CFC6C


class _NotPlain(ValueError):
    """The entry is a tensor that NumPy cannot hold; the message says what it is."""


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor as declared by the pickle, in elements of its storage."""

    storage: str
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.kind])

    @property
    def reach(self) -> int:
        """Number of elements of the storage up to the last one used."""
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


#: Reads a storage: from its key and the number of bytes needed to an array of bytes.
_Reader = Callable[[str, int], memoryview]


def read_pth(path: Path) -> StoredTensors:
    """Return the tensors of the network in `path` by name, bfloat16 as float32.

    In checkpoints of training programs the network is found; `entry` of the result says where, and
    `others` lists the rest. Raises DataError on a file that is damaged, has no network, declares more than it
    holds, or could only be read by executing code in it.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(len(LEGACY))
            if head.startswith(ZIP):
                return _read_zip(path)
            stream.seek(0)
            return _read_legacy(path, memoryview(stream.read()))
    except Executes as error:
        raise DataError(
            f"{path} is not a readable torch file: it contains {shown(str(error))}, and reading that would "
            "execute it; save only its state_dict"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except (
        Broken,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        ValueError,
        EOFError,
    ) as error:
        raise DataError(f"{path} is not a readable torch file: {shown(one_line(error), 200)}") from error


# -- the two formats -------------------------------------------------------------------------------


def _read_zip(path: Path) -> StoredTensors:
    size = path.stat().st_size
    _check_directory(path, size)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickle = next((n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1), None)
        if pickle is None:
            some = ", ".join(quoted(n, 40) for n in list(entries)[:3]) or "nothing"
            raise Broken(f"it is a zip archive without PyTorch's data.pkl; it holds {some}")
        root = pickle.removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries:
            raise Broken(
                "it is a TorchScript program, not a state dict; load it with torch.jit.load and save its state_dict()"
            )

        def read(name: str, needed: int) -> memoryview:
            entry = entries.get(name)
            if entry is None:
                raise Broken(f"its entry {quoted(name)} is missing")
            # PyTorch does not compress: entries compressed by other programs may have up to twice the size of the file
            if entry.file_size > (size if entry.compress_type == zipfile.ZIP_STORED else 2 * size):
                raise Broken(
                    f"its entry {quoted(name)} declares {entry.file_size} bytes, the file has {size}"
                )
            if entry.file_size < needed:
                raise Broken(
                    f"its entry {quoted(name)} has {entry.file_size} bytes, not the {needed} of its tensors"
                )
            with archive.open(entry) as stream:
                data = stream.read(entry.file_size)
                if len(data) != entry.file_size or stream.read(1):  # reading to the end checks the checksum
                    raise Broken(f"its entry {quoted(name)} does not have its declared size or checksum")
            return memoryview(data)

        order = bytes(read(f"{root}byteorder", 0)) if f"{root}byteorder" in entries else b"little"
        content, _ = read_pickle(read(pickle, 1))
        return _stored(
            path, content, lambda key, needed: read(f"{root}data/{key}", needed), size, order == b"big"
        )


def _check_directory(path: Path, size: int) -> None:
    """Refuse a directory that is too large: each record of 46 bytes becomes an object of 700."""
    with path.open("rb") as stream:
        stream.seek(max(size - (1 << 16) - 200, 0))
        tail = stream.read()
    at, wide = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    length = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if length == 0xFFFFFFFF and wide >= 0:
        length = int.from_bytes(tail[wide + 40 : wide + 48], "little")
    if length > _MOST_DIRECTORY:
        raise Broken(f"its zip directory has {length} bytes")


def _read_legacy(path: Path, data: memoryview) -> StoredTensors:
    """Read the format before PyTorch 1.6: five pickles, the last one a list of storages, followed by the storages."""
    try:
        magic, position = read_pickle(data)
    except (Broken, Executes):
        magic = None
    if magic != _MAGIC:
        raise Broken("it is neither PyTorch's zip archive nor its older format")
    values = []
    for _ in range(4):  # protocol, system, content, keys
        value, position = read_pickle(data, position)
        values.append(value)
    content, keys = values[2:]
    if not isinstance(keys, list) or not isinstance(values[1], dict):
        raise Broken("its list of storages is missing")
    big = values[1].get("little_endian") is False
    sizes = _legacy_sizes(content)
    places: dict[str, memoryview] = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            raise Broken(f"its storage {quoted(key)} has no type")
        count = int.from_bytes(data[position : position + 8], "big" if big else "little")
        length = count * sizes[key]
        if position + 8 + length > len(data):
            raise Broken(
                f"its storage {quoted(key)} declares {shown(length)} bytes, and {len(data) - position} are left"
            )
        places[key] = data[position + 8 : position + 8 + length]
        position += 8 + length

    def read(key: str, needed: int) -> memoryview:
        if key not in places or len(places[key]) < needed:
            raise Broken(
                f"its storage {quoted(key)} is smaller than the {shown(needed)} bytes of its tensors"
            )
        return places[key]

    return _stored(path, content, read, len(data), big)


def _legacy_sizes(content: Any) -> dict[str, int]:
    """Return the element size in bytes of every storage that the pickle refers to, by its key."""
    sizes: dict[str, int] = {}
    open_values, seen = [content], set()
    while open_values:
        value = open_values.pop()
        if isinstance(value, Persistent):
            if isinstance(value.id, tuple) and len(value.id) >= 5 and value.id[0] == "storage":
                sizes[str(value.id[2])] = np.dtype(_DTYPES.get(_storage_kind(value.id[1]), "u1")).itemsize
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, (list, tuple)):
            open_values.extend(value)
        elif isinstance(value, Object):
            open_values.extend(value.args)
    return sizes


# -- tensors ---------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Return whether a value of a pickle is a tensor or parameter of PyTorch, of any layout."""
    return isinstance(value, Object) and value.name.startswith(
        ("torch._utils._rebuild", "torch._tensor._rebuild")
    )


def _stored(path: Path, content: Any, read: _Reader, size: int, big: bool) -> StoredTensors:
    state = find_state(path, content, is_tensor)
    declared: dict[str, _Tensor] = {}
    for name, value in state.tensors.items():
        try:
            declared[name] = _declared(value)
        except _NotPlain as error:
            raise DataError(f"{path}: {quoted(name)} is not a plain tensor: {error}") from error
    total = sum(t.count * t.dtype.itemsize for t in declared.values())
    if total > 2 * size + (1 << 16):  # storages may be shared by many tensors
        raise Broken(f"its tensors declare {shown(total)} bytes, the file has {size}")
    needed: dict[str, int] = {}
    for tensor in declared.values():
        reach = tensor.reach * tensor.dtype.itemsize if tensor.count else 0
        needed[tensor.storage] = max(needed.get(tensor.storage, 0), reach)
    raw = {key: read(key, length) for key, length in needed.items()}
    arrays = {name: _array(tensor, raw[tensor.storage], big) for name, tensor in declared.items()}
    widened = {name: "bfloat16" for name, tensor in declared.items() if tensor.kind in _BFLOAT16}
    return StoredTensors(tensors=arrays, widened=widened, others=state.others, entry=state.entry)


def _array(tensor: _Tensor, raw: memoryview, big: bool) -> NDArray[Any]:
    dtype = tensor.dtype.newbyteorder(">" if big else "<")
    if not tensor.count:
        return np.zeros(tensor.shape, tensor.dtype)
    flat = np.frombuffer(raw, dtype, count=tensor.reach)[tensor.offset :]
    strides = tuple(s * dtype.itemsize for s in tensor.strides)
    array = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    if tensor.kind in _BFLOAT16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.require(array, tensor.dtype, ["C", "A"])


def _declared(value: Any) -> _Tensor:
    """Return the tensor that a ``torch._utils._rebuild_...`` record declares, checked against its storage."""
    kind, args = value.name.rpartition(".")[2], value.args
    if kind in ("_rebuild_parameter", "_rebuild_parameter_with_state") and args and is_tensor(args[0]):
        return _declared(args[0])
    if (
        kind == "_rebuild_from_type_v2"
        and len(args) >= 3
        and isinstance(args[0], Name)
        and isinstance(args[2], tuple)
    ):
        of = args[1].text if isinstance(args[1], Name) else ""
        if of not in (
            "torch.Tensor",
            "torch.nn.parameter.Parameter",
            "torch.nn.parameter.Buffer",
            "torch._tensor.Tensor",
        ):
            raise _NotPlain(f"it is a {shown(of)}")
        return _declared(Object(args[0].text, args[2]))
    if kind not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3") or len(args) < 4:
        raise _NotPlain(f"it is made by {shown(kind)} (sparse, quantised, without data, ...)")
    storage, offset, shape, strides = args[:4]
    if isinstance(shape, Object):  # torch.Size
        shape = shape.args[0] if shape.args else ()
    if not isinstance(storage, Persistent) or not isinstance(storage.id, tuple) or len(storage.id) < 5:
        raise Broken("it has a tensor without a storage")
    _, of, key, _, count = storage.id[:5]
    element = (
        args[6].text.rpartition(".")[2]
        if kind.endswith("v3") and len(args) > 6 and isinstance(args[6], Name)
        else ""
    )
    element = element or _storage_kind(of)
    if element not in _DTYPES:
        raise _NotPlain(f"it is {shown(element)}")
    integers = (
        [offset, count, *shape, *strides]
        if isinstance(shape, tuple) and isinstance(strides, tuple)
        else [None]
    )
    if (
        any(type(n) is not int or n < 0 for n in integers)
        or len(shape) != len(strides)
        or len(shape) > _MOST_DIMENSIONS
    ):
        raise Broken("it has a tensor with an invalid shape")
    tensor = _Tensor(storage=str(key), kind=element, offset=offset, shape=shape, strides=strides)
    held = count if not kind.endswith("v3") else count // tensor.dtype.itemsize  # v3 counts bytes
    if tensor.count > held or (tensor.count and tensor.reach > held):
        raise Broken(
            f"a tensor of {shown(' x '.join(map(str, shape[:6])))} exceeds its storage of {shown(held)} numbers"
        )
    return tensor


def _storage_kind(of: Any) -> str:
    return of.text.rpartition(".")[2].removesuffix("Storage") if isinstance(of, Name) else "?"

"""Files of tensors by their suffix: safetensors and MindSpore checkpoints here, others by plugins."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from resnext_core.convert.ckpt import read_stored, write_ckpt
from resnext_core.convert.pth import read_pth
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.extras import install_hint, others_hint
from resnext_core.files import atomic_path
from resnext_core.files.types import is_torch
from resnext_core.interfaces import READY, StoredTensors, WeightFile, ask
from resnext_core.model.weights import reading, tensor_names

Tensors = Mapping[str, NDArray[Any]]
#: What plugins read, by ending.
PluginFiles = Mapping[str, WeightFile]


def _read_safetensors(path: Path) -> StoredTensors:
    """Read a safetensors file; bfloat16, which NumPy lacks, becomes float32."""
    tensors: dict[str, NDArray[Any]] = {}
    widened = {}
    with reading(path), safetensors.safe_open(path, framework="np") as stream:
        names = tensor_names(stream)
        half = [name for name in names if stream.get_slice(name).get_dtype() == "BF16"]
        found = _bfloat16(path, half) if half else {}
        for name in names:
            tensors[name] = found[name] if name in found else stream.get_tensor(name)
        widened = dict.fromkeys(half, "bfloat16")
    return StoredTensors(tensors=tensors, widened=widened)


def _bfloat16(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return bfloat16 tensors as float32; the library has checked the header before."""
    found = {}
    with path.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        header = json.loads(stream.read(length))
        for name in names:
            begin, end = header[name]["data_offsets"]
            stream.seek(8 + length + begin)
            half = np.frombuffer(stream.read(end - begin), "<u2")
            widened = (half.astype(np.uint32) << np.uint32(16)).view(np.float32)
            found[name] = widened.reshape(header[name]["shape"])
    return found


def _write_safetensors(path: Path, tensors: Tensors, tag: str) -> None:
    with atomic_path(path) as temporary:
        data = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        try:
            safetensors.numpy.save_file(data, temporary, metadata={"format": tag})
        except safetensors.SafetensorError as error:
            raise OSError(None, str(error)) from error


def _read_ckpt(path: Path) -> StoredTensors:
    return read_stored(path)


def _write_ckpt(path: Path, tensors: Tensors, tag: str) -> None:
    write_ckpt(path, tensors)


#: What core reads by itself.
BUILTIN = (
    WeightFile(
        suffixes=(".safetensors",), summary="safetensors", probe=lambda: READY, read=_read_safetensors,
        write=_write_safetensors,
    ),
    WeightFile(
        suffixes=(".ckpt",), summary="MindSpore checkpoint", probe=lambda: READY, read=_read_ckpt,
        write=_write_ckpt,
    ),
)  # fmt: skip


def container(path: Path, plugins: PluginFiles) -> WeightFile:
    """Return how files with the ending of `path` are read and written; the longest ending that is known decides.

    Raises UsageError on an unknown ending, naming the known ones or the extra of that name, BackendUnavailable
    with the reason where its library is missing.
    """
    known = {**plugins, **{suffix: kind for kind in BUILTIN for suffix in kind.suffixes}}
    ending = _ending(path, known)
    if ending is None:
        suffixes = "".join(path.suffixes[-2:])
        if hint := install_hint(suffixes, path.suffix):
            raise UsageError(f"{path.suffix} files need a plugin that is not installed: {hint}")
        raise UsageError(
            f"'{path.name}' has no known weights suffix; known: {', '.join(sorted(known))}{others_hint()}"
        )
    answer = ask(known[ending].probe)
    if not answer.usable:
        raise BackendUnavailable(f"{ending} files cannot be read or written here: {answer.reason}")
    return known[ending]


def default_naming(path: Path, plugins: PluginFiles) -> str | None:
    """Return the naming scheme that new files with the suffix of `path` take unless another is asked for, or None."""
    ending = _ending(path, plugins)
    return None if ending is None else plugins[ending].naming


def readable(path: Path, plugins: PluginFiles) -> bool:
    """Return whether the ending of `path` is that of a weight file of another program, readable here or not."""
    return (
        _ending(path, {**plugins, **dict.fromkeys(s for kind in BUILTIN for s in kind.suffixes)}) is not None
    )


def read_tensors(path: Path, plugins: PluginFiles) -> StoredTensors:
    """Return what any known file holds; DataError when it is missing, damaged or without tensors."""
    kind = container(path, plugins)
    if not path.is_file():
        raise DataError(f"no weights file {path}")
    # Lightning's checkpoints end in .ckpt too: they are PyTorch's files
    stored = read_pth(path) if path.name.endswith(".ckpt") and is_torch(path) else kind.read(path)
    if not stored.tensors:
        raise DataError(f"{path} holds no tensors")
    return stored


def _ending(path: Path, known: Iterable[str]) -> str | None:
    return max((suffix for suffix in known if path.name.endswith(suffix)), key=len, default=None)

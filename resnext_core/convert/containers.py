"""Files of tensors by their ending: safetensors and MindSpore's own here, others by plugins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from resnext_core.convert.ckpt import read_ckpt, write_ckpt
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.files import atomic_path
from resnext_core.interfaces import WeightFile
from resnext_core.weights import read_safetensors

Tensors = Mapping[str, NDArray[Any]]


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    return read_safetensors(path)[0]


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    with atomic_path(path) as temporary:
        data = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        try:
            safetensors.numpy.save_file(data, temporary)
        except safetensors.SafetensorError as error:
            raise OSError(None, str(error)) from error


#: What core reads by itself.
BUILTIN = (
    WeightFile(
        suffixes=(".safetensors",), summary="safetensors", probe=lambda: None, read=_read_safetensors,
        write=_write_safetensors,
    ),
    WeightFile(
        suffixes=(".ckpt",), summary="MindSpore checkpoint", probe=lambda: None, read=read_ckpt, write=write_ckpt
    ),
)  # fmt: skip

#: Which extra of resnext-core brings the reader of an ending.
_EXTRAS = {".pth": "gpu", ".pt": "gpu"}


def container(path: Path, plugins: Mapping[str, WeightFile]) -> WeightFile:
    """Return how files with the ending of `path` are read and written.

    Raises UsageError on an unknown ending, naming the known ones or the extra that brings it, BackendUnavailable
    with the reason where its library is missing.
    """
    known = {suffix: kind for kind in BUILTIN for suffix in kind.suffixes} | dict(plugins)
    kind = known.get(path.suffix)
    if kind is None:
        if path.suffix in _EXTRAS:
            raise UsageError(
                f"{path.suffix} files need a plugin that is not installed: "
                f"pip install 'resnext-core[{_EXTRAS[path.suffix]}]'"
            )
        raise UsageError(f"'{path.name}' has no known ending for weights; known: {', '.join(sorted(known))}")
    reason = kind.probe()
    if reason is not None:
        raise BackendUnavailable(f"{path.suffix} files cannot be read or written here: {reason}")
    return kind


def read_tensors(path: Path, plugins: Mapping[str, WeightFile]) -> dict[str, NDArray[Any]]:
    """Return the tensors of any known file by name; DataError when it is missing, damaged or empty."""
    kind = container(path, plugins)
    if not path.is_file():
        raise DataError(f"no weights file {path}")
    tensors = dict(kind.read(path))
    if not tensors:
        raise DataError(f"{path} holds no tensors")
    return tensors

"""What resnext-gpu offers to resnext. Imports no framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import StoredTensors, WeightFile


@hookimpl
def resnext_weight_files() -> Iterator[WeightFile]:
    yield WeightFile(
        suffixes=(".pth", ".pt", ".bin", ".pth.tar"),
        summary="torch state dict",
        probe=_probe,
        read=_read,
        write=_write,
    )


def _probe() -> str | None:
    if find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'resnext-core[gpu]'"
    return None


def _read(path: Path) -> StoredTensors:
    from resnext_gpu.weight_files import read_pth

    return read_pth(path)


def _write(path: Path, tensors: Mapping[str, Any], tag: str) -> None:
    from resnext_gpu.weight_files import write_pth

    write_pth(path, tensors, tag)

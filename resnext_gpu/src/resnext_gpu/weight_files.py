"""torch's ``.pth`` files: read by core, which needs no PyTorch and executes nothing; written by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnext_core.convert.pth import read_pth
from resnext_core.errors import one_line
from resnext_core.files import atomic_path

__all__ = ["read_pth", "write_pth"]


def write_pth(path: Path, tensors: Mapping[str, NDArray[Any]], tag: str) -> None:
    """Write a state dict in torch's zip format, atomically; the same tensors give the same bytes."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
    ):  # given a path, torch stores its name
        try:
            torch.save(state, stream)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(None, one_line(error)) from error

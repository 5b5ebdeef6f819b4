"""torch's ``.pth`` files: read by torch's weights-only loader, so that nothing in them is executed."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.files import atomic_path
from resnext_core.interfaces import StoredTensors

#: What training scripts wrap a state dict in; the first of these that is there is taken.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_pth(path: Path) -> StoredTensors:
    """Return the tensors of a state dict by name, in torch's zip or legacy format, bfloat16 as float32.

    A checkpoint of timm or of torchvision's references is looked into, the EMA first; what else is in it is listed.
    Raises DataError on a file that is damaged, without tensors, or that could only be read by executing what is in it.
    """
    content = _load(path)
    others: dict[str, str] = {}
    if isinstance(content, Mapping):
        found = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if found:
            taken = found[0]
            others = {f"{k}": _what(k, v, taken) for k, v in content.items() if k != taken}
            content = content[taken]
    if not isinstance(content, Mapping) or not any(isinstance(v, torch.Tensor) for v in content.values()):
        raise DataError(f"{path} is no state dict: it must map names to tensors")
    tensors: dict[str, NDArray[Any]] = {}
    widened: dict[str, str] = {}
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            others[str(key)] = "not a tensor"
            continue
        if value.dtype == torch.bfloat16:
            value, widened[str(key)] = value.float(), "bfloat16"
        try:
            tensors[str(key)] = value.detach().cpu().contiguous().numpy()
        except (RuntimeError, TypeError) as error:  # quantised, sparse, float8
            raise DataError(f"{path}: {str(key)[:80]!r} is no plain tensor: {_line(error)}") from error
    return StoredTensors(tensors=tensors, widened=widened, others=others)


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
            raise OSError(None, " ".join(str(error).split())) from error


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter(
                "ignore"
            )  # the namespace holds the flags that timm trained with: plain values
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on hostile bytes torch raises anything at all
        reason = _line(error)
        if "weights_only" in reason or "Unsupported global" in reason:
            what = re.search(r"GLOBAL\s+`?([\w.]+)", str(error))
            more = f"{what[1]} beside tensors" if what is not None else "more than tensors"
            reason = f"it holds {more}, and reading that would execute it; save its state_dict alone"
        raise DataError(f"{path} is not a readable torch file: {reason}") from error


def _what(key: Any, value: Any, taken: str) -> str:
    if key in _WRAPPERS:
        return f"other weights of the checkpoint; '{taken}' was taken"
    return "state of torch's optimizer" if key == "optimizer" else f"not weights: {type(value).__name__}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

"""torch's ``.pth`` files: read by torch's weights-only loader, so that nothing in them is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.files import atomic_path

#: What training scripts wrap a state dict in; the first of these that is there is taken.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_pth(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict by name, in torch's zip or legacy format, bfloat16 as float32.

    A checkpoint of timm or of torchvision's references is looked into, the EMA first. Raises DataError on a file
    that is damaged, that holds anything but tensors, or that could only be read by executing what is in it.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on hostile bytes torch raises anything at all
        reason = " ".join(str(error).split())
        if "weights_only" in reason or "Unsupported global" in reason:
            reason = (
                "it holds more than tensors, and reading that would execute it; save its state_dict alone"
            )
        raise DataError(f"{path} is not a readable torch file: {reason[:300]}") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise DataError(f"{path} is no state dict: it must map names to tensors")
    return {str(name): _array(tensor) for name, tensor in found.items()}


def write_pth(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a state dict in torch's zip format, atomically."""
    import torch

    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(None, " ".join(str(error).split())) from error


def _array(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

"""What to say when a training batch does not fit into the GPU's memory: a part of it that does."""

from __future__ import annotations

import numpy as np
import torch

from resnext_core.errors import UsageError
from resnext_core.interfaces import StepInput, TrainRequest
from resnext_gpu.step import Step


def out_of_memory(
    step: Step, request: TrainRequest, given: StepInput, device: torch.device, *, alone: bool
) -> UsageError:
    """Return the error for a step that ran out of memory; tries equal parts of the micro-batch until one fits.

    The trainer cannot go on afterwards. Nothing is tried where a rank cannot compute `alone` (with sync-BN).
    """
    micro = request.batch_size // request.accumulate
    parts = _parts_that_fit(step, given, micro, device) if alone else 0
    if parts:
        advice = f"{micro // parts} do: set train.accumulate={request.accumulate * parts}"
    else:
        advice = "use a larger train.accumulate, a smaller train.batch_size, or gpu.checkpointing=true"
    return UsageError(f"a micro-batch of {micro} images does not fit into the GPU's memory; {advice}")


def _parts_that_fit(step: Step, given: StepInput, micro: int, device: torch.device) -> int:
    """Return into how few equal parts `micro` must be split for the gradients of one to be computed; 0 if none fits."""
    parts = 2
    while parts <= micro:
        size = micro // parts
        if micro % parts == 0:
            try:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                step.try_backward(
                    torch.from_numpy(given.images[:size].copy()).to(device),
                    torch.from_numpy(given.labels[:size].astype(np.int64)).to(device),
                )
                return parts
            except torch.cuda.OutOfMemoryError:
                pass
        parts += 1
    return 0

"""Out of memory: how it is recognised, and what to say of a training batch that does not fit: which part of it does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from resnext_core.errors import UsageError, counted, one_line
from resnext_core.interfaces import StepInput, TrainRequest

if TYPE_CHECKING:
    from resnext_gpu.step import Step

#: What an error says that means out of memory and is no ``torch.cuda.OutOfMemoryError``: CUDA's own allocations
#: (c10/cuda/CUDAException.cpp, c10/cuda/driver_api.h), those of cuDNN 8 and 9 and of cuBLAS (ATen/cuda/Exceptions.cpp),
#: Triton's launcher (third_party/nvidia/backend/driver.c) and NCCL's (CUDACHECK in src/include/checks.h).
_SURE = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "Cuda failure 'out of memory'",
    "Cuda failure 2 'out of memory'",
)
#: What an error says that may mean it. cuDNN's search drops each plan whose workspace cannot be allocated, as it drops
#: those that cannot compute the convolution, and names no reason in the end (ATen/native/cudnn/Conv_v8.cpp: GET without
#: and FIND with ``cudnn.benchmark``). cuBLAS allocates when it is started.
_PERHAPS = (
    "unable to find an engine to execute this computation",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
)


@dataclass(frozen=True, kw_only=True)
class Exhausted:
    """An error that means out of memory, without the error, which would keep the tensors of the failed step alive.

    `sure` is False where it may be another, for which then `why` stands.
    """

    sure: bool
    why: str


def exhausted(error: BaseException) -> Exhausted | None:
    """Return what `error`, or one that it came from, says of memory; None where it says nothing of it."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, torch.cuda.OutOfMemoryError) or any(words in text for words in _SURE):
            return Exhausted(sure=True, why=one_line(seen, 200))
        if isinstance(seen, RuntimeError) and any(words in text for words in _PERHAPS):
            return Exhausted(sure=False, why=one_line(seen, 200))
        seen = seen.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """True where `error` means, or may mean, that the GPU's memory does not suffice."""
    return exhausted(error) is not None


def does_not_fit(what: str, found: Exhausted, advice: str, device: torch.device) -> UsageError:
    """Return the error for `what`; where it may be something else than memory, the line says so."""
    if found.sure:
        return UsageError(f"{what} not fit into the GPU's memory; {advice}")
    free = ""
    if device.type == "cuda":
        free = f" with {torch.cuda.mem_get_info(device)[0] >> 20} MiB free"
    return UsageError(
        f"{what} not fit into the GPU's memory, or its libraries cannot compute this{free} ({found.why}); {advice}; if "
        "there was memory, try gpu.channels_last=false or another precision.compute"
    )


@contextmanager
def fitting(what: str, advice: str, device: torch.device) -> Iterator[None]:
    """Turn out of memory inside the block into the UsageError of :func:`does_not_fit`."""
    try:
        yield
    except Exception as error:
        found = exhausted(error)
        if found is None:
            raise
        raise does_not_fit(what, found, advice, device) from error


def out_of_memory(
    step: Step, request: TrainRequest, given: StepInput, device: torch.device, found: Exhausted, *, alone: bool
) -> UsageError:  # fmt: skip
    """Return the error for a step that ran out of memory; tries equal parts of the micro-batch until one fits.

    The trainer cannot go on afterwards. Nothing is tried where a rank cannot compute `alone` (with sync-BN).
    """
    micro = request.batch_size // request.accumulate
    what = f"a micro-batch of {counted(micro, 'image')} does"
    parts = _parts_that_fit(step, given, micro, device) if alone else 0
    if parts:
        advice = f"{micro // parts} do: set train.accumulate={request.accumulate * parts}"
        return UsageError(f"{what} not fit into the GPU's memory; {advice}")
    advice = "use a larger train.accumulate, a smaller train.batch_size, or gpu.checkpointing=true"
    return does_not_fit(what, found, advice, device)


def _parts_that_fit(step: Step, given: StepInput, micro: int, device: torch.device) -> int:
    """Return into how few equal parts `micro` must be split for the gradients of one to be computed; 0 if none fits."""
    gc.collect()  # graphs of autograd in a circle would keep what the step had allocated
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
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        parts += 1
    return 0

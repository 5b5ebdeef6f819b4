"""Whether a batch fits the memory of a GPU, found out by steps for nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from resnext_core.interfaces import TrainRequest
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_gpu.device import device_of, open_device
from resnext_gpu.engine import GpuEngine
from resnext_gpu.options import GpuOptions

#: The share of the GPU's memory that a trial may take: the rest is for what PyTorch does not count (NCCL, cuDNN).
_SHARE = 0.95


def batch_fits(request: TrainRequest, options: GpuOptions) -> bool | None:
    """Return whether steps of `request`, on images of its ModelSpec's size, fit this rank's GPU; None without one.

    The rank tries alone, with the buffers that it would have among others. Nothing is compiled for it: a compiled
    network needs less. Raises UsageError where not even the tensors of the network fit.
    """
    several = request.rank.world > 1
    device = open_device(device_of(options, request.rank))
    if device.type != "cuda":
        return None
    alone = RankInfo(local_rank=request.rank.local_rank)
    how = replace(options, compile=False, sync_bn=False, cuda_graphs=options.cuda_graphs and not several)
    with _limited(device):
        return _fits(replace(request, rank=alone, collectives=SingleProcess()), how, buffered=several)


def _fits(request: TrainRequest, options: GpuOptions, *, buffered: bool) -> bool:
    engine = GpuEngine(request, options, buffered=buffered)
    try:
        return engine.rehearse()
    finally:
        engine.close()


@contextmanager
def _limited(device: torch.device) -> Iterator[None]:
    """Leave some of the GPU's memory free inside the block, and give back what the block took."""
    torch.cuda.set_per_process_memory_fraction(_SHARE, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        gc.collect()  # graphs of autograd in a circle, as in resnext_gpu.memory
        torch.cuda.empty_cache()

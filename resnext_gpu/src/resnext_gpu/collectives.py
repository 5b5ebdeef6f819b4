"""Joining the ranks over torch.distributed, and gathering bytes from them."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from resnext_core.errors import BackendUnavailable, one_line
from resnext_core.ranks.collectives import Collectives, GatheringCollectives, SingleProcess
from resnext_core.ranks.connect import master_address
from resnext_core.ranks.info import RankInfo
from resnext_gpu.device import device_of, open_device
from resnext_gpu.gradients import lost
from resnext_gpu.options import GpuOptions

#: Seconds before a group is left.
_SETTLE_S = 0.2


class TorchGroup:
    """Gathers over gloo, from memory to memory: counting does not wait for the GPU."""

    def __init__(self, world: int) -> None:
        self._world = world

    def gather(self, own: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        """Return the bytes of every rank; raises BackendUnavailable when a rank is lost."""
        given = torch.from_numpy(own)
        parts = [torch.empty_like(given) for _ in range(self._world)]
        try:
            distributed.all_gather(parts, given)
        except RuntimeError as error:
            raise lost(error) from error
        return [part.numpy() for part in parts]

    def close(self) -> None:
        """Leave the group; its threads have ended then."""
        if distributed.is_initialized():
            # gloo's threads let go of the last tensors a moment after the sum is there, and need the interpreter;
            # torch 2.4 would wait for them with the interpreter in its hands, for ever.
            time.sleep(_SETTLE_S)
            distributed.destroy_process_group()


def connect(rank: RankInfo, options: GpuOptions) -> Collectives:
    """Open the rank's device, join the others and return the collectives; gradients then go over NCCL, or gloo on CPU.

    Raises UsageError without a meeting point, BackendUnavailable when the device is missing or the ranks do not find
    each other in time.
    """
    if rank.world == 1:
        return SingleProcess()
    if options.compile or options.checkpointing:
        # Either imports this anyway. Imported while there is a group, its defaults keep the group and its threads alive
        # beyond `close`, and a thread that lets go of a tensor while the interpreter ends aborts the process.
        importlib.import_module("torch._dynamo")
    cuda = open_device(device_of(options, rank)).type == "cuda"
    if cuda:
        watch_over_nccl(os.environ)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=meeting_point(rank, os.environ),
            rank=rank.rank,
            world_size=rank.world,
            timeout=timedelta(seconds=options.timeout),
        )
        collectives = GatheringCollectives(TorchGroup(rank.world))
        collectives.barrier()
    except (RuntimeError, ValueError) as error:
        raise BackendUnavailable(
            f"rank {rank.rank} could not join {rank.world} ranks: {one_line(error, 200)}; "
            "check that rank 0 is running and its address can be reached"
        ) from error
    return collectives


def watch_over_nccl(environ: MutableMapping[str, str]) -> None:
    """Have PyTorch's watchdog end this process when a collective fails or takes longer than the group's timeout.

    The default of PyTorch (3, SkipCleanUp), said here because all else would be wrong: 0 waits for a lost rank for
    ever, and 2 aborts the collective and lets the step go on with gradients that are not summed
    (torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp). The process then ends by SIGABRT, which the launcher takes for a
    rank that lost another. A value of the user's stays.
    """
    if "NCCL_ASYNC_ERROR_HANDLING" not in environ:  # the old name
        environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")


def meeting_point(rank: RankInfo, environ: Mapping[str, str]) -> str:
    """Return where the ranks meet, as torch.distributed takes it.

    ``RESNEXT_MASTER`` first. torchrun has opened a store of its own at ``MASTER_PORT``, which ``env://`` joins; under
    mpirun or Slurm rank 0 opens it. Raises UsageError when there is no address.
    """
    own = "RESNEXT_MASTER" in environ
    if not own and rank.launcher == "torchrun" and "MASTER_ADDR" in environ:
        return "env://"
    host, port = master_address(environ)
    if not own:  # core's own collectives take the port above; torch's take the port itself
        port -= 1
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

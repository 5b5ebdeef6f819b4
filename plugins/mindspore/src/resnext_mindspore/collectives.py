"""Joining the ranks of a MindSpore cluster, and gathering bytes from them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from resnext_core.errors import BackendUnavailable, UsageError, one_line
from resnext_core.ranks.collectives import Collectives, GatheringCollectives, SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_mindspore.device import Device, open_device


class MindsporeGroup:
    """MindSpore's own group (mccl on CPU, nccl on GPU, hccl on Ascend)."""

    def __init__(self, rank: RankInfo, ms: Any) -> None:
        self._world = rank.world
        self._tensor = ms.Tensor
        self._gather = ms.ops.AllGather()

    def gather(self, own: np.ndarray) -> Sequence[np.ndarray]:
        """Return the bytes of every rank.

        They travel as int32, the one integer type that mccl gathers rightly: of int64 it copies half the bytes without
        an error.
        """
        gathered = self._gather(self._tensor(own.view(np.int32))).asnumpy()
        return list(np.ascontiguousarray(gathered).view(np.uint8).reshape(self._world, -1))

    def close(self) -> None:
        """Nothing to do: MindSpore leaves the group when the process ends."""


def connect(rank: RankInfo, device: Device) -> Collectives:
    """Open `device`, join the other ranks and return the collectives, which have been used once.

    HCCL connects the devices at the first collective only, so that is where a wrong network or a device in use shows:
    no rank has joined before all have passed a barrier. A process that msrun started as the cluster's scheduler serves
    until all ranks are gone and exits here.

    Raises UsageError where no launcher of MindSpore started this process, BackendUnavailable when the ranks
    do not find each other in time.
    """
    if rank.world == 1:
        return SingleProcess()
    if device.target != "Ascend" and "MS_SCHED_HOST" not in os.environ:
        raise UsageError(
            f"{rank.launcher} started {rank.world} ranks that MindSpore cannot join: "
            "use resnext-run --devices, or msrun"
        )
    ms = open_device(device, alone=False)
    try:
        with _unhurried_threads(device):
            ms.communication.init()
        if os.environ.get("MS_ROLE") == "MS_SCHED":
            sys.exit(0)
        found = GatheringCollectives(MindsporeGroup(rank, ms))
        found.barrier()
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise BackendUnavailable(f"rank {rank.rank} could not join {rank.world} ranks: {reason}") from error
    return found


@contextmanager
def _unhurried_threads(device: Device) -> Iterator[None]:
    """Let the threads that MindSpore's cluster starts in the block run only when the caller waits.

    MindSpore's client notes the two ends of a connection after it has asked for it. Where its event thread hears of the
    connection first, as it does on loopback, it takes it for broken, waits, and tries again: joining then takes half a
    minute instead of one second. Threads of the policy SCHED_BATCH do not interrupt one that runs on the same core.
    Afterwards the caller and the new threads have its cores and policy; threads from before are left alone. Where the
    system forbids any of it, joining only takes longer. Only for the CPU device: on an Ascend CANN starts processes of
    its own in the block, which would stay on the one core, and takes longer to start than joining does.
    """
    if device.target != "CPU" or "MS_SCHED_HOST" not in os.environ or not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores, policy, priority = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    others = _threads() - {threading.get_native_id()}
    with suppress(OSError):
        os.sched_setaffinity(0, {min(cores)})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        for thread in _threads() - others:
            with suppress(OSError):  # it may have ended
                os.sched_setaffinity(thread, cores)
                os.sched_setscheduler(thread, policy, priority)


def _threads() -> set[int]:
    return set(map(int, os.listdir("/proc/self/task")))

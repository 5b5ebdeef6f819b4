"""Joining the ranks of a MindSpore cluster, and exact sums over them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from resnext_core.errors import BackendUnavailable, UsageError, one_line
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_mindspore.device import Device, open_device


class MindsporeCollectives:
    """Collectives over MindSpore's own group (mccl on CPU, nccl on GPU, hccl on Ascend)."""

    def __init__(self, rank: RankInfo, ms: Any) -> None:
        self._world = rank.world
        self._tensor = ms.Tensor
        self._gather = ms.ops.AllGather()

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the int64, float64 or float32 sum over ranks, in rank order, so the same bits on every rank.

        The ranks exchange the bits as int32, the one integer type that mccl gathers rightly: of int64 it
        copies half the bytes without an error, and it reduces float32 alone. Raises UsageError on values
        that are neither integers nor floats.
        """
        values = np.asarray(values)
        if values.dtype.kind not in "iubf":
            raise UsageError(f"only integers and floats can be summed over ranks, not {values.dtype}")
        kind = np.float64 if values.dtype.kind == "f" else np.int64
        wide = np.ascontiguousarray(values, dtype=np.float32 if values.dtype == np.float32 else kind)
        if wide.size == 0:
            return wide.copy()
        bits = wide.reshape(-1).view(np.int32)
        gathered = np.ascontiguousarray(self._gather(self._tensor(bits.copy())).asnumpy())
        parts = gathered.reshape(self._world, -1).view(wide.dtype)
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total.reshape(wide.shape)

    def barrier(self) -> None:
        """Return once every rank has called."""
        self.all_reduce_sum(np.zeros(1, np.int64))

    def close(self) -> None:
        """Nothing to do: MindSpore leaves the group when the process ends."""


def connect(rank: RankInfo, device: Device) -> Collectives:
    """Open `device`, join the other ranks and return the collectives.

    A process that msrun started as the cluster's scheduler serves until all ranks are gone and exits here.

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
    ms = open_device(device)
    try:
        with _unhurried_threads():
            ms.communication.init()
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise BackendUnavailable(f"rank {rank.rank} could not join {rank.world} ranks: {reason}") from error
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        sys.exit(0)
    return MindsporeCollectives(rank, ms)


@contextmanager
def _unhurried_threads() -> Iterator[None]:
    """Let the threads that MindSpore's cluster starts in the block run only when the caller waits.

    MindSpore's client notes the two ends of a connection after it has asked for it. Where its event thread hears of the
    connection first, as it does on loopback, it takes it for broken, waits, and tries again: joining then takes half a
    minute instead of one second. Threads of the policy SCHED_BATCH do not interrupt one that runs on the same core.
    Afterwards the caller and the new threads have its cores and policy; threads from before are left alone. Where the
    system forbids any of it, joining only takes longer.
    """
    if "MS_SCHED_HOST" not in os.environ or not hasattr(os, "sched_setaffinity"):
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

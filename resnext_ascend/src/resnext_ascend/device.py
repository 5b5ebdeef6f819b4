"""Which device a rank computes on and how it meets the others, from options and environment."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from resnext_mindspore.device import Device, Operators, cores, open_device

from resnext_ascend import diagnose, rank_table
from resnext_ascend.beat import JOINED, JOINING, beat, last
from resnext_ascend.options import AscendOptions
from resnext_core.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from resnext_core.ranks.collectives import Collectives
    from resnext_core.ranks.info import RankInfo

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def device_of(options: AscendOptions, rank: RankInfo, environ: Mapping[str, str] | None = None) -> Device:
    """Return the device of a rank; a process alone takes ``DEVICE_ID``, as the ModelZoo's scripts set it.

    Raises UsageError where ``ASCEND_RT_VISIBLE_DEVICES`` is malformed or shows fewer devices.
    """
    environ = os.environ if environ is None else environ
    level: Any = options.jit_level
    slices = None if options.max_pool is None else options.max_pool == "slices"
    operators = Operators(split_groups=options.grouped_conv == "split", slice_pool=slices)
    if options.device == "cpu":
        threads = options.threads
        if threads is None and rank.world > 1:
            bound = environ.get("RESNEXT_CORES", "")
            threads = int(bound) if bound.isdecimal() else max(1, cores() // rank.world)
        return Device(target="CPU", mode=options.mode, threads=threads, jit_level=level, operators=operators)
    device_id = rank.local_rank
    if rank.world == 1:
        text = environ.get("DEVICE_ID", "0")
        if not text.isdecimal():
            raise UsageError(f"DEVICE_ID must be a number from 0, not {text!r}")
        device_id = int(text)
    shown = visible_devices(environ)
    if shown is not None and device_id >= len(shown):
        raise UsageError(
            f"rank {rank.rank} wants device {device_id}, but {VISIBLE} shows {len(shown)}, numbered from 0"
        )
    return Device(
        target="Ascend", device_id=device_id, mode=options.mode, jit_level=level, hf32=options.hf32,
        operators=operators,
    )  # fmt: skip


def visible_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the devices that ``ASCEND_RT_VISIBLE_DEVICES`` shows, None where it is not set.

    Raises UsageError on what CANN would misread: it stops at the first number that is not higher than the one before.
    """
    text = environ.get(VISIBLE)
    if text is None:
        return None
    words = text.split(",")
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) != len(words) or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise UsageError(f"{VISIBLE} must be ascending numbers without blanks, like 0,1,2, not {text!r}")
    return tuple(numbers)


_doubted: set[str] = set()


def prepare(
    options: AscendOptions, environ: MutableMapping[str, str] | None = None, *, world: int = 1
) -> None:
    """Set HCCL's variables and make sure that there is an Ascend, before MindSpore is opened.

    What may fail later is said on standard error, once a process. Raises BackendUnavailable with what is missing for
    one of `world` ranks.
    """
    environ = os.environ if environ is None else environ
    environ.update(options.hccl_environment())
    if options.device == "ascend":
        reason = diagnose.hardware(environ)
        if reason is None and world > 1:
            reason = diagnose.collectives()
        if reason is not None:
            raise BackendUnavailable(f"{reason} (a test without one: --set ascend.device=cpu)")
        for doubt in diagnose.doubts(environ):
            if doubt not in _doubted:
                _doubted.add(doubt)
                print(f"ascend: warning: {doubt}", file=sys.stderr, flush=True)


def meeting(rank: RankInfo, environ: Mapping[str, str], options: AscendOptions) -> str:
    """Return how the ranks find each other: ``single``, ``dynamic cluster``, ``rank table`` or ``mpirun``.

    Raises UsageError where nothing says it or the variables contradict each other, DataError on a bad rank table.
    """
    if rank.world == 1:
        return "single"
    if "MS_SCHED_HOST" in environ:
        if environ.get("MS_WORKER_NUM", str(rank.world)) != str(rank.world):
            raise UsageError(
                f"{rank.launcher} started {rank.world} ranks, MS_WORKER_NUM is {environ['MS_WORKER_NUM']}: "
                "unset what an earlier job left"
            )
        return "dynamic cluster"
    if options.device == "cpu":
        raise UsageError(
            f"{rank.launcher} started {rank.world} ranks that the test mode ascend.device=cpu cannot join: "
            "use resnext-run --devices, or msrun"
        )
    name, path = next(((n, environ[n]) for n in rank_table.VARIABLES if environ.get(n)), ("", ""))
    if path:
        if options.mode == "graph" and options.jit_level in ("O0", "O1"):
            raise UsageError(
                f"MindSpore compiles at level O2 where ranks are started from {name}, so there is no "
                f"ascend.jit_level={options.jit_level}: leave it null, or start with resnext-run --devices N "
                "--set ascend.rank_table=FILE"
            )
        table = rank_table.load(Path(path))
        if table.world != rank.world:
            raise UsageError(f"{name} {path} has {table.world} ranks, {rank.launcher} says {rank.world}")
        entry = table.ranks[rank.rank]
        if entry.device_id != rank.local_rank:
            raise UsageError(
                f"rank {rank.rank} is device {entry.device_id} in {name} {path}, "
                f"DEVICE_ID is {rank.local_rank}"
            )
        return "rank table"
    if rank.launcher == "mpirun":
        return "mpirun"
    raise UsageError(
        f"{rank.launcher} started {rank.world} ranks, but no address where they meet: "
        "use resnext-run --devices, msrun, mpirun, or set RANK_TABLE_FILE"
    )


class BeatingCollectives:
    """The engine's collectives, with a sign of life around each call."""

    def __init__(self, inner: Collectives) -> None:
        self._inner = inner

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        before = last()
        beat("sum over ranks")
        total = self._inner.all_reduce_sum(values)
        beat(before)  # what the rank was doing: sums are part of it
        return total

    def barrier(self) -> None:
        beat("barrier")
        self._inner.barrier()
        beat("barrier done")

    def close(self) -> None:
        self._inner.close()


def connect(rank: RankInfo, options: AscendOptions) -> Collectives:
    """Join the other ranks: HCCL's variables, device, then the group, in the order that MindSpore wants.

    Raises BackendUnavailable without an Ascend or when the ranks do not find each other, UsageError where the
    launcher and MindSpore disagree about who this is.
    """
    from resnext_mindspore.collectives import connect as join

    device = device_of(options, rank)
    if rank.world == 1:
        return join(rank, device)
    meeting(rank, os.environ, options)
    prepare(options, world=rank.world)
    open_device(device, alone=False)  # importing takes its time, in which nobody waits yet
    beat(JOINING)
    found = join(rank, device)
    from mindspore import communication

    mine = (communication.get_rank(), communication.get_group_size())
    if mine != (rank.rank, rank.world):
        raise UsageError(
            f"{rank.launcher} says rank {rank.rank} of {rank.world}, MindSpore says {mine[0]} of {mine[1]}: "
            "unset what an earlier job left in the environment, and RANK_TABLE_FILE, by which it may number ranks"
        )
    beat(JOINED)
    return BeatingCollectives(found)

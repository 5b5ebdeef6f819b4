"""Several processes: who am I (RankInfo, from the environment) and how we add up (Collectives)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from resnext_core.errors import UsageError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from resnext_core.interfaces import LaunchRequest


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """This process among `world`: `rank` overall, `local_rank` on its machine, and who started it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    launcher: str = "single"

    @property
    def is_main(self) -> bool:
        """True on rank 0, which alone writes."""
        return self.rank == 0


#: Environment variable with the process id of the launcher that started this rank on this machine.
LAUNCHER = "RESNEXT_LAUNCHER"

#: launcher, then the variables of rank, world size and local rank; the first complete one wins.
_LAUNCHERS = (
    ("resnext", "RESNEXT_RANK", "RESNEXT_WORLD_SIZE", "RESNEXT_LOCAL_RANK"),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("msrun", "RANK_ID", "RANK_SIZE", "DEVICE_ID"),
    ("dynamic cluster", "MS_NODE_ID", "MS_WORKER_NUM", "DEVICE_ID"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def rank_info(environ: Mapping[str, str] | None = None) -> RankInfo:
    """Read rank and world size from what torchrun, msrun, mpirun, Slurm or resnext itself set.

    Raises UsageError when the variables contradict themselves.
    """
    environ = os.environ if environ is None else environ
    for launcher, rank_name, world_name, local_name in _LAUNCHERS:
        if rank_name not in environ or world_name not in environ:
            continue
        try:
            rank, world = int(environ[rank_name]), int(environ[world_name])
            local = int(environ.get(local_name, rank))
        except ValueError:
            raise UsageError(f"{rank_name} and {world_name} must be integers") from None
        if not 0 <= rank < world:
            raise UsageError(f"{rank_name}={rank} does not fit {world_name}={world}")
        return RankInfo(rank=rank, world=world, local_rank=local, launcher=launcher)
    return RankInfo()


class Collectives(Protocol):
    """What ranks do together outside the training step."""

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the element-wise sum of int64, float64 or float32 `values` over all ranks, on every rank."""
        ...

    def barrier(self) -> None:
        """Return once every rank has called."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class SingleProcess:
    """The collectives of a world of one."""

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.copy()

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


def connect_tcp(rank: RankInfo, environ: Mapping[str, str] | None = None) -> Collectives:
    """Join the other ranks over TCP, for backends that bring no collectives; a world of one needs none.

    The meeting point is ``RESNEXT_MASTER`` (host:port, a free port on rank 0's machine); without it one
    above the port of torchrun (``MASTER_ADDR``, ``MASTER_PORT``) or msrun (``MS_SCHED_HOST``,
    ``MS_SCHED_PORT``), whose own port is taken. ``RESNEXT_JOB``, when set, must be equal on all ranks.
    Raises UsageError without an address, BackendUnavailable when the ranks do not find each other.
    """
    if rank.world == 1:
        return SingleProcess()
    from resnext_core.tcp import TcpCollectives  # sockets and threads only where there are several ranks

    environ = os.environ if environ is None else environ
    host, port = master_address(environ)
    return TcpCollectives(rank, host, port, job=environ.get("RESNEXT_JOB", ""))


def master_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port of the meeting point, see :func:`connect_tcp`; UsageError when there is none."""
    text = environ.get("RESNEXT_MASTER", "")
    offset = 0
    if not text:
        for host_name, port_name in (("MASTER_ADDR", "MASTER_PORT"), ("MS_SCHED_HOST", "MS_SCHED_PORT")):
            if host_name in environ and port_name in environ:
                text, offset = f"{environ[host_name]}:{environ[port_name]}", 1
                break
    if not text:
        raise UsageError(
            "several ranks need a meeting point: set RESNEXT_MASTER=host:port, the same on every rank"
        )
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) + offset < 65536:
        raise UsageError(f"the ranks' meeting point must be host:port, not '{text}'")
    return host.strip("[]"), int(port) + offset


def launch_local(request: LaunchRequest) -> int:
    """Start several processes on this machine and return their exit code; see :mod:`resnext_core.launch`."""
    from resnext_core.launch import launch_local as launch  # subprocesses only where they are asked for

    return launch(request)

"""Several processes: who am I (RankInfo, from the environment), and what starts them (LaunchRequest)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.errors import UsageError


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


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """Start `devices` processes of ``python -m module *argv`` and wait for them all.

    Each rank's output goes to a file of its own in `log_dir`; rank 0's also to the terminal.
    """

    module: str
    argv: Sequence[str]
    devices: int
    log_dir: Path
    options: Any = None

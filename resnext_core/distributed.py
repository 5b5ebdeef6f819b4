"""Several processes: who am I (RankInfo, from the environment) and how we add up (Collectives)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from resnext_core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


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


#: launcher, then the variables of rank, world size and local rank; the first complete one wins.
_LAUNCHERS = (
    ("resnext", "RESNEXT_RANK", "RESNEXT_WORLD_SIZE", "RESNEXT_LOCAL_RANK"),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("msrun", "RANK_ID", "RANK_SIZE", "DEVICE_ID"),
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

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the element-wise int64 or float64 sum of `values` over all ranks, on every rank."""
        ...

    def barrier(self) -> None:
        """Return once every rank has called."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class SingleProcess:
    """The collectives of a world of one."""

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        return values.copy()

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass

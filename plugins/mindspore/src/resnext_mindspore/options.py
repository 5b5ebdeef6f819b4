"""The configuration section ``mindspore``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnext_core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class MindsporeOptions:
    """Options of the backend ``mindspore``.

    `device` ``gpu`` is plumbing for MindSpore's legacy CUDA 11 plugin; use the backend ``gpu`` instead where
    you can. `mode` ``graph`` compiles a whole training step, ``pynative`` runs operator by operator (for
    debugging). `threads` are the CPU threads of one process; None leaves it to MindSpore, and
    divides the cores where several processes share a machine. `cluster_timeout` are the seconds that ranks
    wait for each other at the start.

    Raises UsageError on threads or timeouts that cannot be.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    mode: Literal["graph", "pynative"] = "graph"
    threads: int | None = None
    cluster_timeout: int = 120

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"mindspore.threads must be 1 or more, or null, not {self.threads}")
        if self.cluster_timeout < 1:
            raise UsageError(
                f"mindspore.cluster_timeout must be 1 second or more, not {self.cluster_timeout}"
            )

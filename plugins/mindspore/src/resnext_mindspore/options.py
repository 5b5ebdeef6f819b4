"""The configuration section ``mindspore``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from resnext_core.bounds import AtLeast, check_bounds


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
    threads: Annotated[int | None, AtLeast(1)] = None
    cluster_timeout: Annotated[int, AtLeast(1)] = 120

    def __post_init__(self) -> None:
        check_bounds("mindspore", self)

"""Running a job on several devices of this machine: one process each, which is a rank of the job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from resnext_core.config import Config
from resnext_core.errors import EXIT_OK, RanksFailed
from resnext_core.interfaces import Backend, LaunchRequest
from resnext_core.ranks.launch import launch_local

#: Where rank 0 prints its lines: on standard error where standard output is for one JSON result.
Lines = Literal["stdout", "stderr"]


def launch(
    backend: Backend, config: Config, command: Sequence[str], *, devices: int, logs: Path, lines: Lines
) -> None:
    """Run a command of ``resnext-run`` in `devices` processes and wait for them all.

    Rank 0 prints on this process's standard streams; the output of each is kept in `logs`. Raises RanksFailed with
    their exit code where they fail, after they have said why.
    """
    argv = ["--backend", backend.id, *command, *(["--json"] if lines == "stderr" else [])]
    request = LaunchRequest(
        module="resnext_core.cli", argv=argv, devices=devices, log_dir=logs,
        options=config.backends.get(backend.id),
    )  # fmt: skip
    code = (backend.launch or launch_local)(request)
    if code != EXIT_OK:
        raise RanksFailed(code, str(logs))

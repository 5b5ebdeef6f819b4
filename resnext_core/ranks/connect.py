"""Joining the other ranks: where they meet, and core's own collectives for backends that bring none."""

from __future__ import annotations

import os
from collections.abc import Mapping

from resnext_core.errors import UsageError
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo


def connect_tcp(rank: RankInfo, environ: Mapping[str, str] | None = None) -> Collectives:
    """Join the other ranks over TCP, for backends that bring no collectives; a world of one needs none.

    The meeting point is ``RESNEXT_MASTER`` (host:port, a free port on rank 0's machine); without it one
    above the port of torchrun (``MASTER_ADDR``, ``MASTER_PORT``) or msrun (``MS_SCHED_HOST``,
    ``MS_SCHED_PORT``), whose own port is taken. ``RESNEXT_JOB``, when set, must be equal on all ranks.
    Raises UsageError without an address, BackendUnavailable when the ranks do not find each other.
    """
    if rank.world == 1:
        return SingleProcess()
    from resnext_core.ranks.tcp import (
        TcpCollectives,  # sockets and threads only where there are several ranks
    )

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

"""Starting and supervising the ranks of a server: cores, progress, restarts from the last checkpoint."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from resnext_mindspore import launch as engine

from resnext_ascend import rank_table
from resnext_ascend.options import AscendOptions
from resnext_ascend.watch import Watch
from resnext_core.errors import (
    EXIT_DATA,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    BackendUnavailable,
    UsageError,
    counted,
    reason,
)
from resnext_core.interfaces import LaunchRequest
from resnext_core.ranks.launch import Group, launch_local

#: Ends that another try would only repeat, or that somebody wanted (143 and 130: a signal before a rank could save).
_FINAL = (EXIT_OK, EXIT_USAGE, EXIT_DATA, EXIT_INTERRUPTED, 143, 130)
#: MindSpore's own patience at the start is longer than ours by this, so that we name the rank that did not come. Its
#: scheduler counts from its own start, we from the first rank that waits, which has imported MindSpore by then.
_MARGIN_S = 300


@dataclass(frozen=True, kw_only=True)
class Servers:
    """This server among `count`, and the `master` (host, port) where all ranks meet."""

    count: int = 1
    number: int = 0
    master: tuple[str, int] | None = None
    server_id: str | None = None


def launch(request: LaunchRequest, options: AscendOptions, servers: Servers = Servers()) -> int:
    """Run the ranks of this server to their end; returns the exit code of the first that failed, or 0.

    See :func:`resnext_core.ranks.launch.launch_local` for logs, signals, and what happens when a rank fails. Besides, a
    rank that never comes or hangs is found, each rank gets its share of the cores, and with ``ascend.restarts`` a
    failed job on one server starts again from its last checkpoint, its logs in ``restart-<n>`` of the log folder.

    Raises UsageError on servers, addresses and tables that do not fit, BackendUnavailable when a port is taken or
    the master does not answer.
    """
    restarts = options.restarts if servers.count == 1 else 0
    for attempt in range(restarts + 1):
        folder = request.log_dir / f"restart-{attempt}" if attempt else request.log_dir
        code = _once(replace(request, log_dir=folder), options, servers)
        if code in _FINAL or attempt == restarts or "--resume" not in request.argv:
            return code
        print(
            f"the job ended with exit code {code}; restart {attempt + 1} of {restarts} from the last checkpoint",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return code


def _once(request: LaunchRequest, options: AscendOptions, servers: Servers) -> int:
    group = _group(request, options, servers)
    if group.world > 1:
        watch = Watch(
            request.log_dir, request.devices, first=group.first, world=group.world,
            start_timeout=options.cluster_timeout, hang_timeout=options.hang_timeout,
        )  # fmt: skip
        joined = group.environment
        group = replace(
            group, environment=lambda local: {**joined(local), **watch.environment(local)},
            suspect=watch.suspect,
        )  # fmt: skip
    share = len(_cores()) // request.devices
    if options.affinity and share:
        unbound = group.environment
        group = replace(
            group, environment=lambda local: {**unbound(local), "RESNEXT_CORES": str(share)},
            started=lambda local, process_id: _bind(process_id, local, share),
        )  # fmt: skip
    return launch_local(request, group)


def _group(request: LaunchRequest, options: AscendOptions, servers: Servers) -> Group:
    for name in rank_table.VARIABLES:  # beside a cluster, MindSpore would number ranks and form groups by it
        os.environ.pop(name, None)
    if not 0 <= servers.number < servers.count:
        raise UsageError(f"servers are numbered 0 to {servers.count - 1}, not {servers.number}")
    if options.rank_table is not None:
        return _by_table(request, options, servers)
    patience = options.cluster_timeout + _MARGIN_S
    if servers.master is None:
        if servers.count > 1:
            raise UsageError(f"{servers.count} servers need --master HOST:PORT, an address of the first one")
        return engine.group(request.devices, engine.local_cluster(request.devices, patience))
    address, port = _meet(servers.master, options, main=servers.number == 0)
    world = request.devices * servers.count
    return engine.group(
        world, engine.cluster(world, patience, address, port), first=servers.number * request.devices,
        scheduler=servers.number == 0,
    )  # fmt: skip


def _by_table(request: LaunchRequest, options: AscendOptions, servers: Servers) -> Group:
    """The ranks of a table, as a dynamic cluster.

    MindSpore's own start from ``RANK_TABLE_FILE`` compiles at jit level O2 (GE) whatever it is told: ms_context.cc,
    ``GetJitLevel``, "Set jit level to O2 for rank table startup method", unless ``MS_ROLE`` or ``MS_SCHED_HOST`` is
    set. So the table says who computes where, and the ranks find each other at the server of rank 0. The addresses of
    the devices HCCL then asks of the devices.
    """
    assert options.rank_table is not None
    path = Path(options.rank_table)
    table = rank_table.load(path)
    mine = table.of(servers.server_id or this_server(table))
    server = mine[0].server_id
    if len(mine) != request.devices:
        raise UsageError(
            f"the rank table {path} has {counted(len(mine), 'device')} of server {server}, --devices is "
            f"{request.devices}"
        )
    first = mine[0].rank
    if [entry.rank for entry in mine] != list(range(first, first + len(mine))):
        ranks = ", ".join(str(entry.rank) for entry in mine)
        raise UsageError(
            f"the ranks of server {server} in the rank table {path} must be consecutive, not {ranks}"
        )
    patience = options.cluster_timeout + _MARGIN_S
    main = server == table.servers[0]
    if len(table.servers) == 1:
        environment = engine.local_cluster(table.world, patience)
    else:
        address, port = _meet(servers.master or table.meeting_point(), options, main=main)
        environment = engine.cluster(table.world, patience, address, port)
    return engine.group(
        table.world, environment, first=first, scheduler=main,
        own=lambda local: {"DEVICE_ID": str(mine[local].device_id)},
    )  # fmt: skip


def this_server(table: rank_table.RankTable) -> str:
    """Return which server of `table` this machine is: the only one, or the one with an address of it.

    Raises UsageError when none is.
    """
    if len(table.servers) == 1:
        return table.servers[0]
    for server_id in table.servers:
        address = table.address(server_id)
        if address is None:
            continue
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, 0))
            return server_id
    raise UsageError(
        f"this machine is not in the rank table: name its server with --server-id ({', '.join(table.servers)})"
    )


def parse_master(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; UsageError on anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--master must be HOST:PORT, not '{text}'")
    return host.strip("[]"), int(port)


def _meet(master: tuple[str, int], options: AscendOptions, *, main: bool) -> tuple[str, int]:
    """Return address and port of the master once it can be used: by its own server (`main`), or by the others."""
    host, port = master
    address = _resolve(host)
    if main:
        _check_free(host, address, port)
    else:
        _wait_for(host, address, port, options.cluster_timeout)
    return address, port


def _resolve(host: str) -> str:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"the master's host '{host}' cannot be resolved: {reason(error)}") from error
    return str(found[0][4][0])


def _check_free(host: str, address: str, port: int) -> None:
    """Check the master's address and port before ranks wait for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise UsageError(
                f"the master {host} is not an address of this server, which is the first: {reason(error)}"
            ) from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise BackendUnavailable(
                f"port {port} of {host} cannot be used: {reason(error)}; choose another with --master"
            ) from error


def _wait_for(host: str, address: str, port: int, seconds: float) -> None:
    """Return once the scheduler on the first server answers."""
    deadline = time.monotonic() + seconds
    why = "no attempt was possible"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((address, port), timeout=2):
                return
        except OSError as error:
            why = reason(error)
            time.sleep(0.5)
    raise BackendUnavailable(
        f"the master {host}:{port} did not answer in {seconds:.0f} s ({why}): start the first server, check the "
        "address and the firewall"
    )


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _bind(process_id: int, local: int, share: int) -> None:
    """Bind a rank to its share of neighbouring cores; its child processes (image loaders) inherit this."""
    with suppress(OSError):  # it may have ended already
        os.sched_setaffinity(process_id, _cores()[local * share : (local + 1) * share])

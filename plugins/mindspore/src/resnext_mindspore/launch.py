"""Several MindSpore processes on one machine: how they find each other; core starts and watches them.

The ranks get the environment that msrun gives (a "dynamic cluster": one scheduler, N workers). msrun itself is
not used because it loses the exit code of the ranks, leaves them running when it is asked to stop, and
kills a rank that is still saving as soon as another has exited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from resnext_core.interfaces import LaunchRequest
from resnext_core.ranks.launch import Companion, Group, free_port, launch_local

#: Seconds that the other ranks have to end after a failure: one inside a collective cannot hear SIGTERM.
_GRACE_S = 5.0
#: What MindSpore's communication threads say when any process ends, whatever its log level.
_NOISE = "[INFO] DISTRIBUTED("


def launch(request: LaunchRequest, *, cluster_timeout: int) -> int:
    """Run `request.devices` ranks on this machine to their end; see :func:`resnext_core.ranks.launch.launch_local`.

    `cluster_timeout` is how long the ranks wait for each other, in seconds. The scheduler of their cluster writes to
    ``scheduler.log`` beside the logs of the ranks.
    """
    return launch_local(request, group(request.devices, local_cluster(request.devices, cluster_timeout)))


def group(
    world: int,
    environment: Mapping[str, str],
    *,
    first: int = 0,
    scheduler: bool = True,
    own: Callable[[int], Mapping[str, str]] = lambda local: {},
) -> Group:
    """Return the group of the ranks here, which begin with `first` of `world`.

    `environment` is what all processes share; with ``MS_SCHED_HOST`` in it they are a dynamic cluster, whose scheduler
    runs here where `scheduler` says so. `own` is the environment of a rank by its place on this machine.
    """
    shared = {"RANK_SIZE": str(world), **environment}

    def of_rank(local: int) -> dict[str, str]:
        rank = str(first + local)
        found = {**shared, "RANK_ID": rank, "DEVICE_ID": str(local)}
        if "MS_SCHED_HOST" in shared:
            found |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank}
        return {**found, **own(local)}

    companion = Companion(
        name="scheduler", module="resnext_mindspore.scheduler",
        environment={**shared, "MS_ROLE": "MS_SCHED", "RANK_ID": "0", "DEVICE_ID": "0"},
    )  # fmt: skip
    return Group(
        world=world, first=first, environment=of_rank, companion=companion if scheduler else None,
        grace=_GRACE_S, noise=_NOISE,
    )  # fmt: skip


def local_cluster(world: int, timeout: int) -> dict[str, str]:
    """Return the environment of a dynamic cluster that meets on this machine, at a free port."""
    return cluster(world, timeout, "127.0.0.1", free_port())


def cluster(world: int, timeout: int, host: str, port: int) -> dict[str, str]:
    """Return the environment of a dynamic cluster that meets at `host`:`port`."""
    return {
        "MS_WORKER_NUM": str(world),
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": str(timeout),
    }

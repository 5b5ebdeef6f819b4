"""The configuration section ``ascend``: typed, with the ranges that MindSpore and CANN state."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Literal

from resnext_core.bounds import AtLeast, Between, check_bounds
from resnext_core.errors import UsageError

#: Options that set the variable of HCCL of the same name, in capitals.
_VARIABLES = (
    "hccl_connect_timeout", "hccl_exec_timeout", "hccl_if_base_port", "hccl_if_ip", "hccl_socket_ifname",
    "hccl_socket_family",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AscendOptions:
    """Options of the backend ``ascend``.

    `device` ``cpu`` is a test mode: the same code on MindSpore's CPU device. `mode` ``graph`` compiles a whole
    training step, at `jit_level` ``O0`` (operator by operator), ``O1`` (with fused ones) or ``O2`` (a graph of GE,
    deprecated since MindSpore 2.9); None leaves it to MindSpore, which takes O2 on a 910A and O0 on its successors.
    ``pynative`` runs operator by operator, for debugging. With `sink` a call takes its steps without waiting for any
    of them; without, every step is waited for. `bn_statistics` ``averaged`` gives all ranks the mean of their running
    statistics after every step, ``local`` leaves them a rank's own, as the ModelZoo did. `threads` are CPU threads of a
    process in test mode. With `hf32` an Atlas A2 or later shortens float32 in convolutions and matrix products, as CANN
    does in convolutions by default; without, float32 is float32. `grouped_conv` ``split`` computes a grouped
    convolution as one a group, for a device on which the operator fails. `max_pool` ``slices`` computes the stem's pool
    without its operator; None does so where CANN has none, for float32 on a 910A. Both give the same numbers.

    `rank_table` starts ranks by that file, see ``resnext-run ascend rank-table``; without it they form a dynamic
    cluster. `affinity` binds each rank to its share of the cores. Ranks wait `cluster_timeout` seconds for each other
    at the start; a job none of whose ranks does anything for `hang_timeout` seconds is ended, and the rank that fell
    behind named (None: never). `restarts` is how often ``--devices`` starts again from the last checkpoint after a
    failure.

    The options `hccl_...` set the variables of these names for this job, None leaves them alone.

    Raises UsageError on values that cannot be.
    """

    device: Literal["ascend", "cpu"] = "ascend"
    mode: Literal["graph", "pynative"] = "graph"
    jit_level: Literal["O0", "O1", "O2"] | None = None
    hf32: bool = False
    grouped_conv: Literal["operator", "split"] = "operator"
    max_pool: Literal["operator", "slices"] | None = None
    sink: bool = True
    bn_statistics: Literal["local", "averaged"] = "local"
    threads: Annotated[int | None, AtLeast(1)] = None
    rank_table: str | None = None
    affinity: bool = True
    cluster_timeout: Annotated[int, AtLeast(1)] = 120
    hang_timeout: Annotated[int | None, AtLeast(1)] = 1800
    restarts: Annotated[int, AtLeast(0)] = 0
    hccl_connect_timeout: Annotated[int | None, Between(120, 7200)] = None
    hccl_exec_timeout: Annotated[int | None, AtLeast(1)] = None
    hccl_if_ip: str | None = None
    hccl_if_base_port: Annotated[int | None, Between(1024, 65520)] = None
    hccl_socket_ifname: str | None = None
    hccl_socket_family: Literal["AF_INET", "AF_INET6"] | None = None
    hccl_whitelist_disable: bool | None = None

    def __post_init__(self) -> None:
        check_bounds("ascend", self)
        if self.hccl_if_ip is not None:
            try:
                ipaddress.ip_address(self.hccl_if_ip)
            except ValueError:
                raise UsageError(
                    f"ascend.hccl_if_ip must be an IP address, not {self.hccl_if_ip!r}"
                ) from None
        names = self.hccl_socket_ifname
        if names is not None and (not names.strip("^=,") or any(c.isspace() for c in names)):
            raise UsageError(
                f"ascend.hccl_socket_ifname must be interface names like eth0,eth1 or ^docker, not {names!r}"
            )

    def hccl_environment(self) -> dict[str, str]:
        """Return the variables of HCCL that these options set."""
        given = {name: getattr(self, name) for name in _VARIABLES}
        found = {name.upper(): str(value) for name, value in given.items() if value is not None}
        if self.hccl_whitelist_disable is not None:
            found["HCCL_WHITELIST_DISABLE"] = str(int(self.hccl_whitelist_disable))
        return found

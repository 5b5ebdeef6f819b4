"""Rank tables of HCCL: made from device addresses, and checked, with the line of each error."""

from __future__ import annotations

import ipaddress
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_ascend.json_lines import Reader, compose, line_of
from resnext_core.errors import DataError, UsageError
from resnext_core.files.plain import MOST_JSON, read_text

#: Devices of a server are numbered below this (``device_id`` 0 to 15; HCCL's topoinfo_ranktableConcise.cc,
#: ``GetSingleDevice``: to 7 on a 910A).
DEVICES = 16
#: Numbers of devices of each server that a 910A takes; an Atlas A2 takes any, also different ones (HCCL's config.cc,
#: ``CheckDeviceNumValid``).
DEVICES_OF_910A = (1, 2, 4, 8)
#: Versions of the form with ``server_list``: 1.0, and 1.2 of Atlas A3 with its super pods.
VERSIONS = ("1.0", "1.2")
#: Environment variables in which MindSpore looks for a table (libd_collective.so of its Ascend plugin).
VARIABLES = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH")
#: Fields of a server with an address at which its processes can be reached, the best one first: Ascend Operator's
#: tables have a pod's in ``container_ip``, HCCL's own have the server's in ``host_ip``.
_ADDRESSES = ("container_ip", "server_ip", "pod_ip", "host_ip")
#: Ports where the ranks of a table may meet: below the ephemeral ones of Linux.
_PORTS = range(12000, 32000)
_ADDRESS = re.compile(r"\s*address_(\d+)\s*=\s*(\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One rank: its number, server, and device there; `device_ip` is None where the table has none."""

    rank: int
    server_id: str
    device_id: int
    device_ip: str | None


@dataclass(frozen=True, kw_only=True)
class RankTable:
    """A checked rank table; `ranks[r].rank == r`. `addresses` has those of servers that the table states."""

    version: str
    ranks: tuple[Entry, ...]
    addresses: Mapping[str, str] = field(default_factory=dict)

    @property
    def world(self) -> int:
        return len(self.ranks)

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers in the order of their ranks."""
        return tuple(dict.fromkeys(entry.server_id for entry in self.ranks))

    def of(self, server_id: str) -> tuple[Entry, ...]:
        """Return the ranks of a server; UsageError with those there are when it is not in the table."""
        found = tuple(entry for entry in self.ranks if entry.server_id == server_id)
        if not found:
            raise UsageError(f"the rank table has no server {server_id}; it has: {', '.join(self.servers)}")
        return found

    def address(self, server_id: str) -> str | None:
        """Return an address of a server: that of the table, or its id where that is an IP address; else None."""
        return self.addresses.get(server_id) or (server_id if _is_ip(server_id) else None)

    def fits_910a(self) -> bool:
        """Return whether a 910A would take the numbers of devices."""
        counts = {len(self.of(server)) for server in self.servers}
        return len(counts) == 1 and counts <= set(DEVICES_OF_910A)

    def meeting_point(self) -> tuple[str, int]:
        """Return host and port where all ranks meet: on the server of rank 0, at a port that follows from the table.

        Every server finds the same without being told, and jobs with other tables meet elsewhere. Raises UsageError
        where the table has no address of that server.
        """
        host = self.address(self.servers[0])
        if host is None:
            raise UsageError(
                f"server {self.servers[0]} of rank 0 has no address in the rank table (server_id is none, and there is "
                "no host_ip): give it with --master HOST:PORT"
            )
        text = repr([(entry.rank, entry.server_id, entry.device_id) for entry in self.ranks])
        return host, _PORTS[zlib.crc32(text.encode()) % len(_PORTS)]


def read_hccn(path: Path) -> dict[int, str]:
    """Return the address of each device from a configuration file of hccn (``address_0=192.168.100.101``).

    Raises DataError on a file that cannot be read or holds no address, two of a device, or no IP address.
    """
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}; hccn_tool writes /etc/hccn.conf") from error
    found: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        match = _ADDRESS.fullmatch(line)
        if match is None:
            continue
        device, address = int(match[1]), match[2]
        if device in found:
            raise DataError(f"{path}:{number}: address_{device} is set twice")
        if not _is_ip(address):
            raise DataError(f"{path}:{number}: address_{device} must be an IP address, not '{address}'")
        found[device] = address
    if not found:
        raise DataError(f"{path} has no line address_0=...: set the addresses with hccn_tool -i 0 -ip -s")
    return dict(sorted(found.items()))


def make(servers: Mapping[str, Mapping[int, str]]) -> str:
    """Return the text of a version 1.0 table of `servers`: the addresses of their devices by server and device.

    Servers go in the order of their ids as text, which is that of the ranks. Raises UsageError or DataError where the
    result would not pass :func:`check`.
    """
    if not servers:
        raise UsageError("a rank table needs a server: --server ID=FILE")
    rank, listed = 0, []
    for server_id in sorted(servers):
        devices = []
        for device_id, address in sorted(servers[server_id].items()):
            devices.append({"device_id": str(device_id), "device_ip": address, "rank_id": str(rank)})
            rank += 1
        listed.append({"server_id": server_id, "device": devices, "host_nic_ip": "reserve"})
    table = {
        "version": "1.0", "server_count": str(len(listed)), "server_list": listed, "status": "completed",
    }  # fmt: skip
    text = json.dumps(table, indent=2) + "\n"
    check(text, "the new table")
    return text


def load(path: Path) -> RankTable:
    """Read and check the rank table at `path`; DataError with the line of the error."""
    try:
        text = read_text(path, MOST_JSON)
    except DataError as error:
        raise DataError(f"cannot read the rank table {path}: {error}") from error
    return check(text, str(path))


def check(text: str, where: str = "rank table") -> RankTable:
    """Return the table in `text`, of version 1.0, 1.2 or 0.1; DataError with `where`, line, and what is wrong.

    The rules are those of HCCL's parser (topoinfo_ranktableConcise.cc and config.cc of CANN's hcomm): servers in any
    order, ranks 0 to n−1 once each, ``device_ip`` needed between servers only, ``server_count`` only checked.
    """
    root = compose(text, where)
    reader = Reader(where)
    table = reader.mapping(root, "the rank table")
    version = reader.text(table["version"], "version") if "version" in table else "0.1"
    if version not in (*VERSIONS, "0.1"):
        raise reader.error(table["version"], f"version must be {', '.join(VERSIONS)} or 0.1, not {version}")
    status = reader.text(reader.need(root, table, "status", "the rank table"), "status")
    if status != "completed":
        raise reader.error(table["status"], f"status must be completed, not {status}: the table is not ready")
    addresses: dict[str, str] = {}
    if version in VERSIONS:
        found = _servers(reader, root, table, addresses)
        _check_pods(reader, table, {entry.server_id for entry, _ in found})
    else:
        found = _groups(reader, root, table)
    return RankTable(version=version, ranks=_ordered(reader, found), addresses=addresses)


#: An entry with the nodes of its rank, server, device and address, for messages.
_Found = tuple[Entry, Mapping[str, Any]]


def _servers(reader: Reader, root: Any, table: Mapping[str, Any], addresses: dict[str, str]) -> list[_Found]:
    """Return the entries of a table of version 1 in the order of the file; fills in the `addresses` of servers."""
    node = reader.need(root, table, "server_list", "the rank table")
    servers = reader.items(node, "server_list")
    if "server_count" in table:
        count = reader.number(table["server_count"], "server_count")
        if count != len(servers):
            raise reader.error(
                table["server_count"], f"server_count is {count}, server_list has {len(servers)}"
            )
    found: list[_Found] = []
    seen: dict[str, Any] = {}
    for server in servers:
        fields = reader.mapping(server, "a server")
        id_node = reader.need(server, fields, "server_id", "the server")
        server_id = reader.text(id_node, "server_id")
        first = seen.setdefault(server_id, id_node)
        if first is not id_node:
            raise reader.error(id_node, f"server {server_id} appears twice, first on line {line_of(first)}")
        device_node = reader.need(server, fields, "device", f"server {server_id}")
        for name in reversed(("host_nic_ip", *_ADDRESSES)):
            if name not in fields or (name == "host_nic_ip" and fields[name].value == "reserve"):
                continue
            address = reader.text(fields[name], name)
            if not _is_ip(address):
                form = "an IP address or reserve" if name == "host_nic_ip" else "an IP address"
                raise reader.error(fields[name], f"{name} must be {form}, not '{address}'")
            if name != "host_nic_ip":
                addresses[server_id] = address
        reached = (
            len(servers) == 1 or "host_ip" in fields
        )  # without one, HCCL asks for the devices' own addresses
        for device in reader.items(device_node, f"device of server {server_id}"):
            found.append(_entry(reader, device, device, server_id, id_node, needs_ip=not reached))
    return found


def _check_pods(reader: Reader, table: Mapping[str, Any], servers: set[str]) -> None:
    """Check the super pods of an Atlas A3: each server is in one of them, if there are any."""
    if "super_pod_list" not in table:
        return
    pods: dict[str, Any] = {}
    housed: dict[str, Any] = {}
    for pod in reader.items(table["super_pod_list"], "super_pod_list"):
        fields = reader.mapping(pod, "a super pod")
        id_node = reader.need(pod, fields, "super_pod_id", "the super pod")
        pod_id = reader.text(id_node, "super_pod_id")
        if pods.setdefault(pod_id, id_node) is not id_node:
            raise reader.error(
                id_node, f"super_pod_id {pod_id} appears twice, first on line {line_of(pods[pod_id])}"
            )
        listed = reader.items(reader.need(pod, fields, "server_list", "the super pod"), "server_list")
        for server in listed:
            node = reader.need(server, reader.mapping(server, "a server"), "server_id", "the server")
            server_id = reader.text(node, "server_id")
            if server_id not in servers:
                raise reader.error(node, f"server {server_id} of super pod {pod_id} is not in server_list")
            if housed.setdefault(server_id, node) is not node:
                raise reader.error(node, f"server {server_id} is in two super pods")
    for server_id in sorted(servers - housed.keys()):
        raise reader.error(table["super_pod_list"], f"server {server_id} is in no super pod")


def _groups(reader: Reader, root: Any, table: Mapping[str, Any]) -> list[_Found]:
    """Return the entries of a version 0.1 table in the order of the file."""
    node = reader.need(root, table, "group_list", "the rank table")
    groups = reader.items(node, "group_list")
    if "group_count" in table and reader.number(table["group_count"], "group_count") != len(groups):
        raise reader.error(table["group_count"], f"group_count is not {len(groups)}, as group_list has")
    found: list[_Found] = []
    for group in groups:
        fields = reader.mapping(group, "a group")
        instances = reader.items(reader.need(group, fields, "instance_list", "the group"), "instance_list")
        here: list[_Found] = []
        for instance in instances:
            parts = reader.mapping(instance, "an instance")
            id_node = reader.need(instance, parts, "server_id", "the instance")
            server_id = reader.text(id_node, "server_id")
            devices = reader.items(reader.need(instance, parts, "devices", "the instance"), "devices")
            if len(devices) != 1:
                raise reader.error(instance, f"an instance must have one device, not {len(devices)}")
            here.append(_entry(reader, devices[0], instance, server_id, id_node))
        servers = len({entry.server_id for entry, _ in here})
        for key, real in (("device_num", len(here)), ("instance_count", len(here)), ("server_num", servers)):
            if key in fields and reader.number(fields[key], key) != real:
                raise reader.error(fields[key], f"{key} is {fields[key].value}, instance_list has {real}")
        found += here
    return found


def _entry(
    reader: Reader, device: Any, holder: Any, server_id: str, id_node: Any, *, needs_ip: bool = True
) -> _Found:
    """Return one rank: `device` has its id and address, `holder` its rank."""
    fields, ranked = reader.mapping(device, "a device"), reader.mapping(holder, "a device")
    nodes = {
        "server_id": id_node,
        "device_id": reader.need(device, fields, "device_id", "the device"),
        "rank_id": reader.need(holder, ranked, "rank_id", "the device"),
    }
    address = None
    if needs_ip or (getattr(fields.get("device_ip"), "value", "") != ""):
        nodes["device_ip"] = reader.need(device, fields, "device_ip", "the device")
        address = reader.text(nodes["device_ip"], "device_ip")
        for one in address.split(","):  # HCCL takes several
            if not _is_ip(one):
                raise reader.error(nodes["device_ip"], f"device_ip must be an IP address, not '{one}'")
    if "super_device_id" in fields:
        reader.number(fields["super_device_id"], "super_device_id")
    entry = Entry(
        rank=reader.number(nodes["rank_id"], "rank_id"), server_id=server_id,
        device_id=reader.number(nodes["device_id"], "device_id"), device_ip=address,
    )  # fmt: skip
    if entry.device_id >= DEVICES:
        raise reader.error(nodes["device_id"], f"device_id must be 0 to {DEVICES - 1}")
    return entry, nodes


def _ordered(reader: Reader, found: Sequence[_Found]) -> tuple[Entry, ...]:
    """Return the entries by rank; DataError where a rank, device or address appears twice or a rank is missing."""
    seen: dict[tuple[str, object], Any] = {}
    for entry, nodes in found:
        keys: list[tuple[str, object, str]] = [
            ("rank_id", entry.rank, f"rank_id {entry.rank}"),
            (
                "device_id", (entry.server_id, entry.device_id),
                f"device_id {entry.device_id} of server {entry.server_id}",
            ),
        ]  # fmt: skip
        if entry.device_ip is not None:
            keys += [("device_ip", one, f"device_ip {one}") for one in entry.device_ip.split(",")]
        for name, key, text in keys:
            first = seen.setdefault((name, key), nodes[name])
            if first is not nodes[name]:
                raise reader.error(nodes[name], f"{text} appears twice, first on line {line_of(first)}")
    ranks = {entry.rank for entry, _ in found}
    for entry, nodes in found:
        if entry.rank >= len(found):
            missing = next(rank for rank in range(len(found)) if rank not in ranks)
            raise reader.error(
                nodes["rank_id"],
                f"rank_id {entry.rank} is too high for {len(found)} ranks: rank {missing} is missing",
            )
    return tuple(sorted((entry for entry, _ in found), key=lambda entry: entry.rank))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

"""Rank tables of HCCL: made from device addresses, and checked, with the line of each error."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resnext_core.errors import DataError, UsageError, one_line
from resnext_core.files.plain import MOST_JSON, read_text

#: Numbers of devices of a server that HCCL takes.
DEVICES = (1, 2, 4, 8, 16)
_ADDRESS = re.compile(r"\s*address_(\d+)\s*=\s*(\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One rank: its number, server, and device there."""

    rank: int
    server_id: str
    device_id: int
    device_ip: str


@dataclass(frozen=True, kw_only=True)
class RankTable:
    """A checked rank table; `ranks[r].rank == r`."""

    version: str
    ranks: tuple[Entry, ...]

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
    """Return the table in `text`, of version 1.0 or 0.1; DataError with `where`, line, and what is wrong."""
    try:
        json.loads(text)
        root = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{where}: not readable JSON: {one_line(error)}") from error
    reader = _Reader(where)
    table = reader.mapping(root, "the rank table")
    version = reader.text(table["version"], "version") if "version" in table else "0.1"
    if version not in ("1.0", "0.1"):
        raise reader.error(table["version"], f"version must be 1.0 or 0.1, not {version}")
    status = reader.text(reader.need(root, table, "status", "the rank table"), "status")
    if status != "completed":
        raise reader.error(table["status"], f"status must be completed, not {status}: the table is not ready")
    found = _servers(reader, root, table) if version == "1.0" else _groups(reader, root, table)
    return RankTable(version=version, ranks=_ordered(reader, found))


#: An entry with the nodes of its rank, server, device and address, for messages.
_Found = tuple[Entry, Mapping[str, Any]]


def _servers(reader: _Reader, root: Any, table: Mapping[str, Any]) -> list[_Found]:
    """Return the entries of a version 1.0 table in the order of the file."""
    node = reader.need(root, table, "server_list", "the rank table")
    servers = reader.items(node, "server_list")
    count_node = reader.need(root, table, "server_count", "the rank table")
    count = reader.number(count_node, "server_count")
    if count != len(servers):
        raise reader.error(count_node, f"server_count is {count}, server_list has {len(servers)}")
    found: list[_Found] = []
    seen: dict[str, Any] = {}
    for server in servers:
        fields = reader.mapping(server, "a server")
        id_node = reader.need(server, fields, "server_id", "the server")
        server_id = reader.text(id_node, "server_id")
        first = seen.setdefault(server_id, id_node)
        if first is not id_node:
            raise reader.error(id_node, f"server {server_id} appears twice, first on line {_line(first)}")
        device_node = reader.need(server, fields, "device", f"server {server_id}")
        if "host_nic_ip" in fields:
            nic = reader.text(fields["host_nic_ip"], "host_nic_ip")
            if nic != "reserve" and not _is_ip(nic):
                raise reader.error(
                    fields["host_nic_ip"], f"host_nic_ip must be an IP address or reserve, not '{nic}'"
                )
        for device in reader.items(device_node, f"device of server {server_id}"):
            found.append(_entry(reader, device, device, server_id, id_node))
    return found


def _groups(reader: _Reader, root: Any, table: Mapping[str, Any]) -> list[_Found]:
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


def _entry(reader: _Reader, device: Any, holder: Any, server_id: str, id_node: Any) -> _Found:
    """Return one rank: `device` has its id and address, `holder` its rank."""
    fields, ranked = reader.mapping(device, "a device"), reader.mapping(holder, "a device")
    nodes = {
        "server_id": id_node,
        "device_id": reader.need(device, fields, "device_id", "the device"),
        "device_ip": reader.need(device, fields, "device_ip", "the device"),
        "rank_id": reader.need(holder, ranked, "rank_id", "the device"),
    }
    address = reader.text(nodes["device_ip"], "device_ip")
    if not _is_ip(address):
        raise reader.error(nodes["device_ip"], f"device_ip must be an IP address, not '{address}'")
    entry = Entry(
        rank=reader.number(nodes["rank_id"], "rank_id"), server_id=server_id,
        device_id=reader.number(nodes["device_id"], "device_id"), device_ip=address,
    )  # fmt: skip
    if entry.device_id >= max(DEVICES):
        raise reader.error(nodes["device_id"], f"device_id must be 0 to {max(DEVICES) - 1}")
    return entry, nodes


def _ordered(reader: _Reader, found: Sequence[_Found]) -> tuple[Entry, ...]:
    """Return the entries by rank; DataError where ranks, servers, devices or addresses do not fit together."""
    seen: dict[tuple[str, object], Any] = {}
    for entry, nodes in found:
        keys = (
            ("rank_id", entry.rank, f"rank_id {entry.rank}"),
            ("device_ip", entry.device_ip, f"device_ip {entry.device_ip}"),
            (
                "device_id", (entry.server_id, entry.device_id),
                f"device_id {entry.device_id} of server {entry.server_id}",
            ),
        )  # fmt: skip
        for name, key, text in keys:
            first = seen.setdefault((name, key), nodes[name])
            if first is not nodes[name]:
                raise reader.error(nodes[name], f"{text} appears twice, first on line {_line(first)}")
    listed: list[tuple[str, Any]] = []
    for entry, nodes in found:
        if not listed or listed[-1][0] != entry.server_id:
            earlier = next((node for name, node in listed if name == entry.server_id), None)
            if earlier is not None:
                raise reader.error(
                    nodes["server_id"],
                    f"server {entry.server_id} appears twice, first on line {_line(earlier)}",
                )
            if listed and entry.server_id < listed[-1][0]:
                raise reader.error(
                    nodes["server_id"], f"server {entry.server_id} must come before {listed[-1][0]}: "
                    "HCCL numbers ranks in the order of server_id, as text"
                )  # fmt: skip
            listed.append((entry.server_id, nodes["server_id"]))
    for expected, (entry, nodes) in enumerate(found):
        if entry.rank != expected:
            missing = expected not in {e.rank for e, _ in found}
            reason = f"rank {expected} is missing" if missing else f"rank {expected} must be here"
            raise reader.error(nodes["rank_id"], f"rank_id {entry.rank} is out of order: {reason}")
    counts = {name: sum(e.server_id == name for e, _ in found) for name, _ in listed}
    first_count = counts[listed[0][0]]
    for name, node in listed:
        if counts[name] != first_count:
            raise reader.error(
                node, f"server {name} has {counts[name]} devices, server {listed[0][0]} has {first_count}"
            )
        if counts[name] not in DEVICES:
            allowed = ", ".join(map(str, DEVICES))
            raise reader.error(node, f"server {name} has {counts[name]} devices; HCCL allows {allowed}")
    return tuple(entry for entry, _ in found)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


class _Reader:
    """Typed access to the nodes of a JSON text, which know their lines."""

    def __init__(self, where: str) -> None:
        self._where = where

    def error(self, node: Any, message: str) -> DataError:
        line = 1 if node is None else _line(node)
        return DataError(f"{self._where}:{line}: {message}")

    def mapping(self, node: Any, what: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be an object {{...}}")
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.value in found:
                raise self.error(key, f"{key.value} appears twice in {what}")
            found[key.value] = value
        return found

    def need(self, node: Any, fields: Mapping[str, Any], key: str, what: str) -> Any:
        if key not in fields:
            raise self.error(node, f"{what} has no {key}")
        return fields[key]

    def items(self, node: Any, what: str) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what} must be a list [...]")
        if not node.value:
            raise self.error(node, f"{what} is empty")
        return list(node.value)

    def text(self, node: Any, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.style != '"':
            shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or an object"
            raise self.error(node, f"{what} must be text in quotes, not {shown}")
        if not node.value.strip():
            raise self.error(node, f"{what} is empty")
        return str(node.value)

    def number(self, node: Any, what: str) -> int:
        text = self.text(node, what)
        if not (text.isascii() and text.isdecimal()):
            raise self.error(node, f"{what} must be a number from 0 in quotes, not '{text}'")
        return int(text)

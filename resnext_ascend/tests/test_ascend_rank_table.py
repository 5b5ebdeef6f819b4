"""Rank tables: what is made passes the check, and every broken one gets a message of its own with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from resnext_ascend import rank_table
from resnext_core.cli.main import main
from resnext_core.errors import DataError, UsageError


def servers(count: int, devices: int = 8) -> dict[str, dict[int, str]]:
    return {
        f"10.0.{s // 200}.{s % 200}": {d: f"192.168.{s}.{d + 1}" for d in range(devices)}
        for s in range(count)
    }


@pytest.mark.parametrize("count", [1, 2, 64])
def test_what_is_made_passes(count: int) -> None:
    """By an independent reading of the format: text everywhere, servers in order as text, ranks without a hole."""
    text = rank_table.make(servers(count))
    table = rank_table.check(text)
    assert table.world == 8 * count
    plain = json.loads(text)
    assert (plain["version"], plain["status"], plain["server_count"]) == ("1.0", "completed", str(count))
    ids = [s["server_id"] for s in plain["server_list"]]
    assert ids == sorted(servers(count))
    listed = [
        (d["rank_id"], s["server_id"], d["device_id"], d["device_ip"])
        for s in plain["server_list"]
        for d in s["device"]
    ]
    assert [rank for rank, *_ in listed] == [str(r) for r in range(8 * count)]
    for _, server, device, address in listed:
        assert servers(count)[server][int(device)] == address
    assert [(str(e.rank), e.server_id, str(e.device_id), e.device_ip) for e in table.ranks] == listed


def old_table(devices: int = 2) -> dict[str, Any]:
    """Return a table in the form before 1.0."""
    instances = [
        {
            "devices": [{"device_id": str(d), "device_ip": f"192.1.27.{d + 1}"}],
            "rank_id": str(d),
            "server_id": "10.0.0.1",
        }
        for d in range(devices)
    ]
    group = {
        "group_name": "job", "device_num": str(devices), "server_num": "1", "instance_count": str(devices),
        "instance_list": instances,
    }  # fmt: skip
    return {"version": "0.1", "group_count": "1", "group_list": [group], "status": "completed"}


def test_tables_before_1_0_pass_too() -> None:
    table = old_table()
    assert rank_table.check(json.dumps(table)).world == 2
    del table["version"]
    assert rank_table.check(json.dumps(table)).version == "0.1"


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = value

    return change


def _del(*path: Any) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        for key in path[:-1]:
            table = table[key]
        del table[path[-1]]

    return change


def _pods(*pods: Sequence[str]) -> Callable[[Any], None]:
    """Add super pods of these servers, which are named by the end of their address."""

    def change(table: Any) -> None:
        table["version"] = "1.2"
        table["super_pod_list"] = [
            {"super_pod_id": str(number), "server_list": [{"server_id": f"10.0.0.{s}"} for s in pod]}
            for number, pod in enumerate(pods)
        ]

    return change


FIRST, SECOND = ("server_list", 0, "device", 0), ("server_list", 1, "device", 1)
#: What is broken, the field whose line must be named (and which of its places), the words of the message.
BROKEN = [
    (_set("version", value="2.0"), '"version"', 0, "version must be 1.0, 1.2 or 0.1, not 2.0"),
    (_set("version", value=1.0), '"version"', 0, "version must be text in quotes, not 1.0"),
    (_set("status", value="initializing"), '"status"', 0, "status must be completed, not initializing"),
    (_del("status"), "{", 0, "the rank table has no status"),
    (_set("server_count", value="3"), '"server_count"', 0, "server_count is 3, server_list has 2"),
    (_set("server_count", value="two"), '"server_count"', 0, "must be a number from 0 in quotes, not 'two'"),
    (_set("server_count", value=2), '"server_count"', 0, "server_count must be text in quotes, not 2"),
    (_del("server_list"), "{", 0, "the rank table has no server_list"),
    (_set("server_list", value=[]), '"server_list"', 0, "server_list is empty"),
    (_set("server_list", value={}), '"server_list"', 0, "server_list must be a list"),
    (_set("server_list", 1, value="10.0.0.1"), '"10.0.0.1"', 0, "a server must be an object"),
    (_del("server_list", 1, "server_id"), "{", 6, "the server has no server_id"),
    (_set("server_list", 1, "server_id", value="10.0.0.0"), '"server_id"', 1, "server 10.0.0.0 appears twice"),
    (_set("server_list", 0, "device", value=[]), '"device"', 0, "device of server 10.0.0.0 is empty"),
    (_set("server_list", 0, "host_nic_ip", value="eth0"), '"host_nic_ip"', 0, "must be an IP address or reserve"),
    (_set(*FIRST, "device_id", value=0), '"device_id"', 0, "device_id must be text in quotes, not 0"),
    (_set(*FIRST, "device_id", value="16"), '"device_id"', 0, "device_id must be 0 to 15"),
    (_set(*SECOND, "device_id", value="0"), '"device_id"', 5, "device_id 0 of server 10.0.0.1 appears twice"),
    (_set(*FIRST, "device_ip", value="192.168.0"), '"device_ip"', 0, "must be an IP address, not '192.168.0'"),
    (_set(*SECOND, "device_ip", value="192.168.0.1"), '"device_ip"', 5, "device_ip 192.168.0.1 appears twice"),
    (_del(*FIRST, "device_ip"), "{", 2, "the device has no device_ip"),
    (_set(*SECOND, "rank_id", value="4"), '"rank_id"', 5, "rank_id 4 appears twice"),
    (_set(*SECOND, "rank_id", value="9"), '"rank_id"', 5, "rank_id 9 is too high for 8 ranks: rank 5 is missing"),
    (_set(*SECOND, "rank_id", value="-1"), '"rank_id"', 5, "rank_id must be a number from 0 in quotes, not '-1'"),
    (_set(*SECOND, "rank_id", value=""), '"rank_id"', 5, "rank_id is empty"),
    (_set("server_list", 0, "host_ip", value="a"), '"host_ip"', 0, "host_ip must be an IP address, not 'a'"),
    (_set(*FIRST, "super_device_id", value="x"), '"super_device_id"', 0, "must be a number from 0 in quotes, not 'x'"),
    (_set(*FIRST, "device_ip", value="192.168.7.1,x"), '"device_ip"', 0, "device_ip must be an IP address, not 'x'"),
    (_set(*FIRST, "device_ip", value=""), '"device_ip"', 0, "device_ip is empty"),
    (_pods("01", "1"), '"10.0.0.1"', -1, "server 10.0.0.1 is in two super pods"),
    (_pods("0"), '"super_pod_list"', 0, "server 10.0.0.1 is in no super pod"),
    (_pods("012"), '"10.0.0.2"', 0, "server 10.0.0.2 of super pod 0 is not in server_list"),
    (_set("super_pod_list", value=[{"server_list": []}]), "{", -1, "the super pod has no super_pod_id"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "mark", "place", "words"), BROKEN, ids=[words for *_, words in BROKEN])
def test_broken_tables_are_told_with_their_line(
    change: Callable[[Any], None], mark: str, place: int, words: str
) -> None:
    table = json.loads(rank_table.make(servers(2, 4)))
    change(table)
    text = json.dumps(table, indent=1)
    lines = [number for number, line in enumerate(text.splitlines(), 1) if mark in line]
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        rank_table.check(text, "table.json")
    found = re.match(r"table.json:(\d+): ", str(caught.value))
    assert found is not None
    assert int(found[1]) == lines[place], caught.value
    assert "\n" not in str(caught.value)


def test_each_broken_table_has_its_own_message() -> None:
    messages = set()
    for change, *_ in BROKEN:
        table = json.loads(rank_table.make(servers(2, 4)))
        change(table)
        with pytest.raises(DataError) as caught:
            rank_table.check(json.dumps(table, indent=1), "t")
        messages.add(str(caught.value).split(": ", 1)[1])
    assert len(messages) == len(BROKEN) > 20


def samples() -> dict[str, tuple[dict[str, Any], list[tuple[str, str]], tuple[str, ...]]]:
    """Tables of the forms that the vendor publishes, with values of ours: ranks by server and device, and addresses.

    From CANN's HCCL guide (rank table templates of Atlas training products, A2 and A3), MindCluster's description of
    Ascend Operator's hccl.json, MindSpore's tutorial of rank tables, and the tools hccl_tools and merge_hccl of its
    model repository, which number ranks in the order in which files are named.
    """

    def devices(first: int, count: int, **more: Any) -> list[dict[str, str]]:
        return [
            {"device_id": str(d), "rank_id": str(first + d)} | {k: v(first + d) for k, v in more.items()}
            for d in range(count)
        ]

    ip, super_id = (lambda r: f"192.168.3.{r + 1}"), (lambda r: str(37748736 + 65537 * r))
    done = {"status": "completed"}
    return {
        "hccl guide, one server without device_ip": (
            done | {"version": "1.0", "server_count": "1", "server_list": [
                {"server_id": "node_0", "device": devices(0, 2)},
            ]},
            [("node_0", "0"), ("node_0", "1")],
            (),
        ),
        "hccl guide, no server_count, servers named": (
            done | {"version": "1.0", "server_list": [
                {"server_id": "node_0", "device": devices(0, 2, device_ip=ip)},
                {"server_id": "node_1", "device": devices(2, 2, device_ip=ip)},
            ]},
            [("node_0", "0"), ("node_0", "1"), ("node_1", "0"), ("node_1", "1")],
            (),
        ),
        "hccl guide, host network cards": (
            done | {"version": "1.0", "server_count": "2", "server_list": [
                {"server_id": "node_0", "host_ip": "172.16.9.1", "device": devices(0, 1, device_ip=lambda r: "")},
                {"server_id": "node_1", "host_ip": "172.16.9.2", "device": devices(1, 1)},
            ]},
            [("node_0", "0"), ("node_1", "0")],
            ("172.16.9.1", "172.16.9.2"),
        ),
        "hccl guide, super pods": (
            done | {"version": "1.2", "server_count": "2", "server_list": [
                {"server_id": f"node_{s}", "host_ip": f"172.16.9.{s}", "device": devices(
                    2 * s, 2, super_device_id=super_id, device_ip=ip, device_port=lambda r: "16666",
                    backup_device_ip=lambda r: f"192.168.4.{r}", backup_device_port=lambda r: "16667",
                    host_port=lambda r: "16665",
                )} for s in (0, 1)
            ], "super_pod_list": [
                {"super_pod_id": str(s), "server_list": [{"server_id": f"node_{s}"}]} for s in (0, 1)
            ]},
            [("node_0", "0"), ("node_0", "1"), ("node_1", "0"), ("node_1", "1")],
            ("172.16.9.0", "172.16.9.1"),
        ),
        "ascend operator": (
            done | {"version": "1.0", "server_count": "1", "server_list": [{
                "server_id": "a-b-c-d", "host_ip": "172.16.9.1", "container_ip": "10.9.0.4",
                "hardware_type": "800I-A2-32G", "device": devices(0, 3, device_ip=ip),
            }]},
            [("a-b-c-d", "0"), ("a-b-c-d", "1"), ("a-b-c-d", "2")],
            ("10.9.0.4",),
        ),
        "mindspore, two clusters": (
            done | {"version": "1.0", "server_count": "1", "server_list": [{
                "server_id": "server_0", "server_ip": "10.1.1.1", "host_nic_ip": "reserve", "pod_ip": "10.1.1.2",
                "device": devices(0, 1, device_ip=ip, dpu_ip=lambda r: "8.2.17.60", numa_id=lambda r: ""),
            }], "cluster_list": [
                {"cluster_id": "c", "network_type": "ROCE", "server_list": [{"server_id": "server_0"}]},
            ]},
            [("server_0", "0")],
            ("10.1.1.1",),
        ),
        "merge_hccl, servers in the order of the files": (
            done | {"version": "1.0", "server_count": "2", "server_list": [
                {"server_id": "10.1.1.9", "host_nic_ip": "reserve", "device": devices(0, 1, device_ip=ip)},
                {"server_id": "10.1.1.10", "host_nic_ip": "reserve", "device": devices(1, 2, device_ip=ip)},
            ]},
            [("10.1.1.9", "0"), ("10.1.1.10", "0"), ("10.1.1.10", "1")],
            ("10.1.1.9", "10.1.1.10"),
        ),
        "ranks stated in another order than servers": (
            done | {"version": "1.0", "server_count": "2", "server_list": [
                {"server_id": "10.1.1.1", "device": devices(1, 1, device_ip=ip)},
                {"server_id": "10.1.1.2", "device": devices(0, 1, device_ip=ip)},
            ]},
            [("10.1.1.2", "0"), ("10.1.1.1", "0")],
            ("10.1.1.2", "10.1.1.1"),
        ),
        "several addresses of a device": (
            done | {"version": "1.0", "server_list": [{
                "server_id": "10.1.1.1", "device": devices(0, 2, device_ip=lambda r: f"192.168.3.{r},192.168.4.{r}"),
            }]},
            [("10.1.1.1", "0"), ("10.1.1.1", "1")],
            ("10.1.1.1",),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", samples())
def test_published_forms_are_read(name: str) -> None:
    text, ranks, addresses = samples()[name]
    table = rank_table.check(json.dumps(text))
    assert [(e.server_id, str(e.device_id)) for e in table.ranks] == ranks
    assert tuple(filter(None, map(table.address, table.servers))) == addresses


def test_all_servers_find_the_same_meeting_point() -> None:
    """Which follows from who computes where, and is below Linux' ephemeral ports."""
    text, *_ = samples()["ranks stated in another order than servers"]
    host, port = rank_table.check(json.dumps(text)).meeting_point()
    text["server_list"].reverse()
    assert rank_table.check(json.dumps(text, indent=7)).meeting_point() == (host, port)
    assert host == "10.1.1.2", "the server of rank 0"
    assert 1024 < port < 32768
    text["server_list"][0]["device"][0]["device_id"] = "5"
    assert rank_table.check(json.dumps(text)).meeting_point()[1] != port
    named, *_ = samples()["hccl guide, no server_count, servers named"]
    with pytest.raises(UsageError, match=r"server node_0 of rank 0 has no address.*: give it with --master"):
        rank_table.check(json.dumps(named)).meeting_point()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("group_count", value="2"), "group_count is not 1"),
        (_set("group_list", 0, "device_num", value="8"), "device_num is 8, instance_list has 2"),
        (_set("group_list", 0, "server_num", value="2"), "server_num is 2, instance_list has 1"),
        (_set("group_list", 0, "instance_list", 1, "rank_id", value="0"), "rank_id 0 appears twice"),
        (_set("group_list", 0, "instance_list", 0, "devices", value=[]), "devices is empty"),
        (_del("group_list", 0, "instance_list"), "the group has no instance_list"),
    ],
)
def test_broken_tables_before_1_0(change: Callable[[Any], None], words: str) -> None:
    table = old_table()
    change(table)
    with pytest.raises(DataError, match=words):
        rank_table.check(json.dumps(table, indent=1))


def test_what_is_no_json_is_told() -> None:
    with pytest.raises(DataError, match=r"t:2: not valid JSON"):
        rank_table.check('{\n "version": "1.0",,\n}', "t")
    with pytest.raises(DataError, match="version appears twice"):
        rank_table.check('{"version": "1.0", "version": "1.0"}')
    with pytest.raises(DataError, match="must be an object"):
        rank_table.check("[]")
    with pytest.raises(DataError, match="no server_list"):
        rank_table.check('{\t"version": "1.0",\t"status": "completed"}')


def test_hccn_files(tmp_path: Path) -> None:
    conf = tmp_path / "hccn.conf"
    conf.write_text("address_1=192.168.1.2\nnetmask_0=255.255.255.0\naddress_0=192.168.1.1\n")
    assert rank_table.read_hccn(conf) == {0: "192.168.1.1", 1: "192.168.1.2"}
    for text, words in (
        ("address_0=192.168.1.1\naddress_0=192.168.1.2\n", r"conf:2: address_0 is set twice"),
        ("address_0=somewhere\n", r"conf:1: address_0 must be an IP address"),
        ("netmask_0=255.255.255.0\n", "has no line address_0="),
    ):
        conf.write_text(text)
        with pytest.raises(DataError, match=words):
            rank_table.read_hccn(conf)
    with pytest.raises(DataError, match="No such file"):
        rank_table.read_hccn(tmp_path / "no.conf")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf, table = tmp_path / "hccn.conf", tmp_path / "table.json"
    conf.write_text("".join(f"address_{d}=192.168.1.{d + 1}\n" for d in range(8)))
    words = ["ascend", "rank-table", "make", "--server", f"10.0.0.2={conf}", "--devices", "0-3"]
    words += ["--server", "10.0.0.1=192.168.2.1,192.168.2.2,192.168.2.3,192.168.2.4"]
    assert main([*words, "--to", str(table)]) == 0
    assert main(["ascend", "rank-table", "check", str(table)]) == 0
    assert "version 1.0, 8 ranks, 2 servers of 4 devices" in capsys.readouterr().out
    first = json.loads(table.read_text())["server_list"][0]
    assert (first["server_id"], first["device"][0]["device_ip"]) == ("10.0.0.1", "192.168.2.1")
    assert main(words) == 0
    assert capsys.readouterr().out == table.read_text()
    uneven = [*words[:3], "--server", "10.0.0.2=192.168.2.1,192.168.2.2,192.168.2.3", "--to", str(table)]
    assert main(uneven) == 0
    assert main(["ascend", "rank-table", "check", str(table)]) == 0
    assert "HCCL refuses this on a 910A" in capsys.readouterr().out
    table.write_text(table.read_text().replace('"rank_id": "2"', '"rank_id": "1"'))
    assert main(["ascend", "rank-table", "check", str(table)]) == 3
    error = capsys.readouterr().err
    assert re.fullmatch(rf"resnext-run: {re.escape(str(table))}:\d+: rank_id 1 appears twice.*\n", error)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--server", "10.0.0.1"], 2, "--server takes ID=FILE"),
        (["--server", "10.0.0.1=no/hccn.conf"], 3, "No such file"),
        (["--server", "10.0.0.1=192.168.1.1", "--devices", "0,7"], 2, "has no device 7; it has 0"),
        (["--server", "10.0.0.1=192.168.1.1", "--devices", "all"], 2, "--devices must be like"),
        (["--server", "10.0.0.1=192.168.1.1,nowhere"], 3, "device_ip must be an IP address"),
        (["--servers", "10.0.0.1=192.168.1.1"], 2, "did you mean '--server'"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ascend", "rank-table", "make", *words]) == code
    assert says in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told() -> None:
    table = rank_table.check(rank_table.make(servers(2)))
    assert [e.rank for e in table.of("10.0.0.1")] == list(range(8, 16))
    with pytest.raises(UsageError, match=r"no server 10.9.9.9; it has: 10.0.0.0, 10.0.0.1"):
        table.of("10.9.9.9")

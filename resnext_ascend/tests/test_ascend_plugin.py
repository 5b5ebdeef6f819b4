"""The backend's record: what it says is missing, its options, and that looking at it imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path

import pytest
from resnext_ascend.device import device_of, meeting, prepare, visible_devices
from resnext_ascend.options import AscendOptions
from resnext_ascend.rank_table import make

from resnext_ascend import device, diagnose, plugin
from resnext_core.cli.main import main
from resnext_core.config import Layer, load_config
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.jobs.recipes import read_recipe
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo, rank_info
from resnext_core.testing.processes import imported_by

#: Where this machine has an Ascend, tests of its absence are of no use.
needs_none = pytest.mark.skipif(diagnose.hardware() is None, reason="an Ascend is here")


def test_record_imports_no_framework() -> None:
    code = (
        "from resnext_ascend import plugin\n"
        "record = next(iter(plugin.resnext_backends())); plugin.probe(); list(plugin.resnext_commands())\n"
        "assert record.id == 'ascend'"
    )
    assert imported_by(code, ["mindspore", "numpy", "torch", "yaml"]) == []


def test_entry_point_names_the_plugin() -> None:
    entries = [e for e in metadata.entry_points(group="resnext") if e.name == "ascend"]
    assert {e.value for e in entries} == {"resnext_ascend.plugin"}


def test_probe_says_what_mindspore_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin.probe().usable
    monkeypatch.setattr(metadata, "version", lambda name: "2.4.1")
    assert (
        plugin.probe().reason == "MindSpore needs numpy below 2 and 2.4.1 is installed: pip install 'numpy<2'"
    )
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert plugin.probe().reason == "MindSpore is not installed: pip install 'resnext-core[ascend]'"


@needs_none
def test_without_an_ascend_it_is_named_a_test_mode(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugin.probe().state == "test mode"
    assert "--set ascend.device=cpu" in plugin.probe().reason
    assert main(["backends"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ascend ")]
    assert "test mode" in line


def machine(root: Path) -> dict[str, str]:
    """Lay out a machine with a driver, two devices and CANN 8.5; returns its environment."""
    home = root / "usr/local/Ascend/ascend-toolkit/latest"
    (root / "usr/local/Ascend/driver").mkdir(parents=True)
    (root / "usr/local/Ascend/driver/version.info").write_text("Version=25.0.rc1\n")
    (home / "compiler").mkdir(parents=True)
    (home / "compiler/version.info").write_text("Version=8.5.0\nversion_dir=x\n")
    (root / "dev").mkdir()
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (root / "dev" / name).touch()
    return {"ASCEND_HOME_PATH": str(home)}


@pytest.fixture(autouse=True)
def _mindspore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "_mindspore", lambda: "2.10")
    monkeypatch.setattr(diagnose, "_plugin", lambda: True)


def test_a_whole_machine_lacks_nothing(tmp_path: Path) -> None:
    environ = machine(tmp_path)
    assert diagnose.hardware(environ, tmp_path) is None
    assert diagnose.cann_version(Path(environ["ASCEND_HOME_PATH"])) == "8.5"


def test_each_missing_part_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = machine(tmp_path)
    home = Path(environ["ASCEND_HOME_PATH"])
    found = [diagnose.hardware({}, tmp_path)]
    (home / "compiler/version.info").unlink()
    (home / "compiler").rmdir()
    home.rmdir()
    found.append(diagnose.hardware({}, tmp_path))
    for name in ("davinci0", "davinci1"):
        (tmp_path / "dev" / name).unlink()
    found.append(diagnose.hardware(environ, tmp_path))
    (tmp_path / "usr/local/Ascend/driver/version.info").unlink()
    found.append(diagnose.hardware(environ, tmp_path))
    monkeypatch.setattr(diagnose, "_plugin", lambda: False)
    found.append(diagnose.hardware(environ, tmp_path))
    beginnings = [
        "CANN is installed but not set up: source ",
        "CANN is not installed: install its toolkit, 8.2, 8.3, 8.5, 9.0 or 9.1, and source its set_env.sh",
        "no Ascend device found (no /dev/davinci0)",
        "no Ascend driver is installed",
        "this build of MindSpore has no Ascend plugin",
    ]
    for sentence, beginning in zip(found, beginnings, strict=True):
        assert sentence is not None
        assert sentence.startswith(beginning)


def test_what_may_fail_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in MindSpore, which goes on with another CANN and without what CANN's operator compiler imports."""
    environ = machine(tmp_path)
    there = {*diagnose.PACKAGES, "te", "hccl"}
    monkeypatch.setattr(diagnose, "_importable", lambda module: module in there)
    assert diagnose.doubts(environ) == ()
    assert diagnose.collectives() is None
    (Path(environ["ASCEND_HOME_PATH"]) / "compiler/version.info").write_text("Version=7.3.0.1.231\n")
    there -= {"te", "attr", "absl", "hccl"}
    version, packages, te = diagnose.doubts(environ)
    assert version == "MindSpore 2.10 was not made for CANN 7.3: it wants 8.2, 8.3, 8.5, 9.0 or 9.1"
    assert packages == "CANN's operator compiler needs packages: pip install attrs absl-py"
    assert te.startswith(
        "CANN's operator compiler, the package te, cannot be imported: source CANN's set_env.sh"
    )
    monkeypatch.setattr(diagnose, "hardware", lambda environ=None: None)
    monkeypatch.setattr(device, "_doubted", set())
    for _ in range(2):
        prepare(AscendOptions(), environ)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"ascend: warning: {doubt}" for doubt in (version, packages, te)], "once"
    with pytest.raises(BackendUnavailable, match="CANN's package hccl cannot be imported"):
        prepare(AscendOptions(), environ, world=2)


def test_the_extra_has_the_packages_of_cann() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    required = set(re.findall(r'"([a-z0-9-]+)(?:>=[\d.]+)?"', text))
    assert required >= set(diagnose.PACKAGES.values()) - {"pyyaml"}
    assert "pyyaml>=6" in text


def test_supported_versions_are_those_that_mindspore_checks() -> None:
    """The installed MindSpore has the list in its own check."""
    check = pytest.importorskip("mindspore.run_check._check_version")
    if not metadata.version("mindspore").startswith("2.10."):
        pytest.skip("another MindSpore")
    assert tuple(check.AscendEnvChecker(None).version) == diagnose.CANN["2.10"]


@needs_none
def test_no_ascend_is_one_line_with_exit_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "hardware", lambda environ=None: "no Ascend device found")
    with pytest.raises(BackendUnavailable, match="no Ascend device found"):
        prepare(AscendOptions())
    prepare(AscendOptions(device="cpu"))


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"device": "npu"}, "ascend.device"),
        ({"jit_level": "O3"}, "must be one of O0, O1, O2, not 'O3'"),
        (
            {"hccl_connect_timeout": 60},
            "ascend.hccl_connect_timeout must be between 120 and 7200, or null, not 60",
        ),
        ({"hccl_connect_timeout": 7201}, "must be between 120 and 7200"),
        ({"hccl_exec_timeout": 0}, "ascend.hccl_exec_timeout must be 1 or more"),
        ({"hccl_if_base_port": 80}, "must be between 1024 and 65520"),
        ({"hccl_if_ip": "eth0"}, "ascend.hccl_if_ip must be an IP address, not 'eth0'"),
        ({"hccl_socket_ifname": "eth0, eth1"}, "must be interface names"),
        ({"hccl_socket_ifname": "^"}, "must be interface names"),
        ({"hccl_socket_family": "inet"}, "ascend.hccl_socket_family"),
        ({"hccl_whitelist_disable": 1}, "must be true or false"),
        ({"threads": 0}, "ascend.threads must be 1 or more"),
        ({"cluster_timeout": 0}, "ascend.cluster_timeout must be 1 or more"),
        ({"hang_timeout": 0}, "ascend.hang_timeout must be 1 or more"),
        ({"restarts": -1}, "ascend.restarts must be 0 or more"),
        ({"hccl_conect_timeout": 600}, "did you mean 'hccl_connect_timeout'"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load_config([Layer(source="test", values={"ascend": values})], {"ascend": AscendOptions})


def test_hccl_options_are_its_variables() -> None:
    assert AscendOptions().hccl_environment() == {}
    options = AscendOptions(
        hccl_connect_timeout=600, hccl_exec_timeout=1800, hccl_if_ip="10.0.0.1", hccl_if_base_port=50000,
        hccl_socket_ifname="^docker,lo", hccl_socket_family="AF_INET6", hccl_whitelist_disable=True,
    )  # fmt: skip
    expected = {
        "HCCL_CONNECT_TIMEOUT": "600", "HCCL_EXEC_TIMEOUT": "1800", "HCCL_IF_IP": "10.0.0.1",
        "HCCL_IF_BASE_PORT": "50000", "HCCL_SOCKET_IFNAME": "^docker,lo", "HCCL_SOCKET_FAMILY": "AF_INET6",
        "HCCL_WHITELIST_DISABLE": "1",
    }  # fmt: skip
    assert options.hccl_environment() == expected
    environ = {"HCCL_IF_IP": "10.9.9.9", "HCCL_RDMA_TIMEOUT": "20"}
    options = AscendOptions(device="cpu", hccl_if_ip="10.0.0.1", hccl_whitelist_disable=False)
    prepare(options, environ)
    assert environ == {"HCCL_IF_IP": "10.0.0.1", "HCCL_WHITELIST_DISABLE": "0", "HCCL_RDMA_TIMEOUT": "20"}


# -- devices and ranks --------------------------------------------------------------------------


def test_the_device_of_a_rank() -> None:
    alone, second = RankInfo(), RankInfo(rank=9, world=16, local_rank=1, launcher="msrun")
    assert device_of(AscendOptions(), alone, {}).device_id == 0
    assert device_of(AscendOptions(), alone, {"DEVICE_ID": "5"}).device_id == 5
    found = device_of(AscendOptions(jit_level="O1"), second, {"DEVICE_ID": "1"})
    assert (found.target, found.device_id, found.mode, found.jit_level) == ("Ascend", 1, "graph", "O1")
    assert device_of(AscendOptions(device="cpu", threads=3), alone, {}).target == "CPU"
    with pytest.raises(UsageError, match="DEVICE_ID must be a number"):
        device_of(AscendOptions(), alone, {"DEVICE_ID": "npu0"})
    assert device_of(AscendOptions(), second, {"ASCEND_RT_VISIBLE_DEVICES": "4,5"}).device_id == 1
    with pytest.raises(UsageError, match="rank 9 wants device 1, but ASCEND_RT_VISIBLE_DEVICES shows 1"):
        device_of(AscendOptions(), second, {"ASCEND_RT_VISIBLE_DEVICES": "4"})


@pytest.mark.parametrize("text", ["", "1,0", "0, 1", "0,0", "0-3", "0,x"])
def test_visible_devices_that_cann_misreads_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ascending numbers without blanks"):
        visible_devices({"ASCEND_RT_VISIBLE_DEVICES": text})
    assert visible_devices({"ASCEND_RT_VISIBLE_DEVICES": "0,2,7"}) == (0, 2, 7)
    assert visible_devices({}) is None


def _meeting(environ: Mapping[str, str], **options: object) -> str:
    return meeting(rank_info(environ), environ, AscendOptions(**options))  # type: ignore[arg-type]


def test_every_launcher_is_recognised(tmp_path: Path) -> None:
    """By the variables that each of them sets, as its documentation states them."""
    table = tmp_path / "table.json"
    table.write_text(
        make(
            {
                "10.0.0.1": {0: "192.168.1.1", 1: "192.168.1.2"},
                "10.0.0.2": {0: "192.168.2.1", 1: "192.168.2.2"},
            }
        )
    )
    assert _meeting({}) == "single"
    ours = {"RANK_ID": "3", "RANK_SIZE": "4", "DEVICE_ID": "1"}
    cluster = {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": "4",
        "MS_SCHED_HOST": "10.0.0.1",
        "MS_SCHED_PORT": "8118",
    }
    msrun = {**cluster, **ours, "MS_NODE_ID": "3"}
    assert (rank_info(msrun).launcher, _meeting(msrun)) == ("msrun", "dynamic cluster")
    by_hand = {**cluster, "MS_NODE_ID": "3", "DEVICE_ID": "1"}
    found = rank_info(by_hand)
    assert (found.rank, found.world, found.local_rank, _meeting(by_hand)) == (3, 4, 1, "dynamic cluster")
    tabled = {**ours, "RANK_TABLE_FILE": str(table)}
    assert _meeting(tabled) == "rank table"
    assert _meeting({**ours, "MINDSPORE_HCCL_CONFIG_PATH": str(table)}) == "rank table"
    assert (
        _meeting(tabled, jit_level="O2") == _meeting(tabled, mode="pynative", jit_level="O0") == "rank table"
    )
    modelarts = {**tabled, "MA_JOB_DIR": "/home/ma-user/modelarts", "MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1"}
    assert _meeting(modelarts) == "rank table"
    mpirun = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert (rank_info(mpirun).local_rank, _meeting(mpirun)) == (1, "mpirun")


def test_launchers_that_contradict_themselves_are_told(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(make({"10.0.0.1": {0: "192.168.1.1", 1: "192.168.1.2"}}))
    ours = {"RANK_ID": "1", "RANK_SIZE": "2", "DEVICE_ID": "1"}
    with pytest.raises(UsageError, match="no address where they meet"):
        _meeting(ours)
    with pytest.raises(UsageError, match="MS_WORKER_NUM is 4"):
        _meeting({**ours, "MS_SCHED_HOST": "h", "MS_WORKER_NUM": "4"})
    with pytest.raises(UsageError, match="has 2 ranks, msrun says 3"):
        _meeting({**ours, "RANK_SIZE": "3", "RANK_TABLE_FILE": str(table)})
    with pytest.raises(UsageError, match=r"rank 1 is device 1 in RANK_TABLE_FILE .*, DEVICE_ID is 0"):
        _meeting({**ours, "DEVICE_ID": "0", "RANK_TABLE_FILE": str(table)})
    with pytest.raises(UsageError, match="compiles at level O2 where ranks are started from RANK_TABLE"):
        _meeting({**ours, "RANK_TABLE_FILE": str(table)}, jit_level="O0")
    with pytest.raises(DataError, match="No such file"):
        _meeting({**ours, "RANK_TABLE_FILE": str(tmp_path / "no.json")})
    with pytest.raises(UsageError, match=r"test mode ascend\.device=cpu cannot join"):
        _meeting({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, device="cpu")


@pytest.mark.parametrize(
    ("old", "new"),
    [("seed-ascend-150e", "modelzoo-ascend-150e"), ("seed-ascend-literal", "modelzoo-ascend-literal")],
)
def test_old_recipe_names_are_accepted(old: str, new: str) -> None:
    plugins = load_plugins()
    assert plugins.recipe(old) is plugins.recipe(new)
    assert old not in plugins.recipes
    assert read_recipe(new, plugins).values["model"]["variant"] == "resnext152_64x4d"

"""Several ranks on this machine, in test mode: the same numbers, and every bad end found, named and ended in time."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ascend_cases import batches, tiny_weights, train_request
from ascend_rank import LR
from resnext_ascend.launch import Servers, launch, parse_master, this_server
from resnext_ascend.options import AscendOptions
from resnext_ascend.rank_table import check, make
from resnext_ascend.watch import Watch

from resnext_core.config import PrecisionConfig
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.interfaces import LaunchRequest
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.kinks import exact_steps
from resnext_core.testing.processes import stop_when_ready
from resnext_core.training.trainer import Trainer

pytest.importorskip("mindspore.nn")
TESTS = Path(__file__).parent
#: Seconds in which a bad end must be over, on a busy machine too; unnoticed, it would take half an hour.
ENDED = 300.0


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", _python_path())
    monkeypatch.delenv("RANK_TABLE_FILE", raising=False)


def _python_path() -> str:
    found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(TESTS), *filter(None, found)]))


def request(what: str, folder: Path, devices: int = 2, *words: str) -> LaunchRequest:
    return LaunchRequest(
        module="ascend_rank", argv=[what, str(folder), *words], devices=devices, log_dir=folder / "logs"
    )


def options(**changes: object) -> AscendOptions:
    return AscendOptions(**({"device": "cpu", "cluster_timeout": 60} | changes))  # type: ignore[arg-type]


def results(folder: Path, world: int) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(world)]


def expected(world: int) -> Trainer:
    exact = PrecisionConfig(compute="float64")
    trainer = oracle_trainer(train_request(accumulate=world, precision=exact))
    trainer.losses = exact_steps(trainer, batches(3), LR)  # type: ignore[attr-defined]
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[dict[str, np.ndarray]]]:
    """What the ranks of a training have at its end; each is run once."""
    root = tmp_path_factory.mktemp("trained")

    def run(what: str, world: int) -> list[dict[str, np.ndarray]]:
        folder = root / what
        if not folder.exists():
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", _python_path())
                assert launch(request(what, folder, world), options()) == 0
        return results(folder, world)

    return run


@pytest.mark.parametrize(("what", "world"), [("train", 2), ("seeds", 3), ("averaged", 2)])
def test_ranks_compute_what_one_does(
    what: str, world: int, trained: Callable[[str, int], list[dict[str, np.ndarray]]]
) -> None:
    """Also when the others begin with other weights than rank 0; statistics are a rank's own, or the mean of all."""
    ranks, reference = trained(what, world), expected(world)
    for found in ranks:
        np.testing.assert_allclose(found["losses"], reference.losses, rtol=1e-5)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found["integers"], [world * 2**53 + sum(range(world))])
    for name, array in reference.state().tensors.items():
        same = [np.array_equal(found[name], ranks[0][name]) for found in ranks[1:]]
        if "running" not in name:
            assert all(same), name
            assert np.abs(ranks[0][name] - array).max() <= 1e-4 * np.abs(array).max(), name
        else:
            assert all(same) == (what == "averaged"), name


def test_averaged_statistics_are_the_mean_of_the_local_ones(
    trained: Callable[[str, int], list[dict[str, np.ndarray]]],
) -> None:
    """Averages of averages are linear, so that they can be had from a run that keeps them apart."""
    local, averaged = trained("train", 2), trained("averaged", 2)
    names = [t.name for t in tiny_weights().spec.tensors if not t.trainable]
    assert names
    for name in (f"weights/{n}" for n in names):
        mean = (local[0][name].astype(np.float64) + local[1][name]) / 2
        np.testing.assert_allclose(averaged[0][name], mean, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("early", 9, ("rank 1 of 2 ended with exit code 9", "the last words of rank 1")),
        ("exit", 9, ("rank 1 of 2 ended with exit code 9", "the last words of rank 1")),
        ("kill", 137, ("rank 1 of 2 was killed by SIGKILL (the system does that when memory runs out)",)),
        (
            "hang",
            4,
            ("rank 1 of 2 hangs: no progress for", "the last was: steps done", "rank 1 begins to hang"),
        ),
        (
            "never",
            4,
            ("rank 1 of 2 never started: the others have been waiting for it", "rank 1 begins to never"),
        ),
    ],
)
def test_a_bad_end_is_found_and_named(
    what: str, code: int, words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start, before = time.monotonic(), set(_children())
    # MindSpore's own sums on a CPU give up after 30 s, so a hang must be found before
    patience = {"never": {"cluster_timeout": 20}, "hang": {"hang_timeout": 20}}.get(what, {})
    assert launch(request(what, tmp_path), options(**patience)) == code
    assert time.monotonic() - start < ENDED, "nobody waits for what does not come"
    error = capfd.readouterr().err
    for text in words:
        assert text in error
    assert "rank 0 " not in error.replace("rank 0 begins", ""), "the other rank is not blamed"
    assert {p.name for p in (tmp_path / "logs").glob("*.log")} == {
        "rank-0.log",
        "rank-1.log",
        "scheduler.log",
    }
    assert set(_children()) <= before, "nobody is left"


def _children() -> list[int]:
    """Return the processes whose parent this is, without those that have ended; other tests may have some."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_ranks_that_see_other_checkpoints_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(request("apart", tmp_path), options()) == 3
    captured = capfd.readouterr()
    text = captured.err + captured.out + (tmp_path / "logs/rank-1.log").read_text()
    assert "rank 1 is at step 7, rank 0 at step 0: all servers must see the run folder" in text


def test_an_orderly_stop_lets_every_rank_save(tmp_path: Path) -> None:
    """And is no reason to start again."""
    code = (
        "import sys; from pathlib import Path\n"
        "from test_ascend_launch import launch, options, request\n"
        "folder = Path(sys.argv[1])\n"
        "sys.exit(launch(request('stop', folder, 2, '--resume'), options(restarts=3)))"
    )
    stop_when_ready(code, tmp_path, ranks=2)


def test_a_failed_job_starts_again_where_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(request("once", tmp_path, 2, "--resume"), options(restarts=2)) == 0
    error = capfd.readouterr().err
    assert "rank 1 of 2 ended with exit code 9" in error
    assert "the job ended with exit code 9; restart 1 of 2 from the last checkpoint" in error
    assert "restart 2" not in error
    assert (tmp_path / "logs/rank-1.log").is_file(), "what went wrong can still be read"
    assert (tmp_path / "logs/restart-1/rank-1.log").is_file()
    np.testing.assert_array_equal(results(tmp_path, 2)[0]["integers"], [2**54 + 1])
    (tmp_path / "failed").unlink()
    assert launch(request("once", tmp_path, 2, "--resume"), options()) == 9, "nobody asked"


# -- several servers ------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_servers_on_one_machine(tmp_path: Path) -> None:
    """Each with its launcher; the second waits until the first is there."""
    master = ("127.0.0.1", _free_port())
    codes: dict[int, int] = {}

    def start(number: int) -> None:
        own = LaunchRequest(
            module="ascend_rank", argv=["train", str(tmp_path)], devices=1,
            log_dir=tmp_path / f"logs-{number}",
        )  # fmt: skip
        codes[number] = launch(own, options(), Servers(count=2, number=number, master=master))

    threads = [threading.Thread(target=start, args=(number,)) for number in (1, 0)]
    for thread in threads:
        thread.start()
        time.sleep(1)
    for thread in threads:
        thread.join(timeout=300)
    assert codes == {0: 0, 1: 0}
    first, second = results(tmp_path, 2)
    np.testing.assert_allclose(first["losses"], expected(2).losses, rtol=1e-5)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(first["weights/fc.weight"], second["weights/fc.weight"])
    assert (tmp_path / "logs-0/scheduler.log").is_file()
    assert (tmp_path / "logs-1/rank-1.log").is_file()
    assert not (tmp_path / "logs-1/scheduler.log").exists()


def test_a_server_whose_others_do_not_come_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    servers = Servers(count=2, number=0, master=("127.0.0.1", _free_port()))
    start = time.monotonic()
    assert launch(request("train", tmp_path, 1), options(cluster_timeout=20), servers) == 4
    assert time.monotonic() - start < ENDED
    assert "for ranks of other servers that did not start" in capfd.readouterr().err


def test_meeting_points_that_cannot_be(tmp_path: Path) -> None:
    start = time.monotonic()
    work = request("train", tmp_path, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            BackendUnavailable, match=rf"port {port} of 127.0.0.1 cannot be used: Address already in use"
        ):
            launch(work, options(), Servers(count=2, number=0, master=("127.0.0.1", port)))
    with pytest.raises(UsageError, match=r"the master's host 'no-such-host.invalid' cannot be resolved"):
        launch(work, options(), Servers(count=2, number=1, master=("no-such-host.invalid", 8118)))
    with pytest.raises(UsageError, match=r"192.0.2.1 is not an address of this server, which is the first"):
        launch(work, options(), Servers(count=2, number=0, master=("192.0.2.1", 8118)))
    with pytest.raises(BackendUnavailable, match=r"did not answer in 2 s \(Connection refused\)"):
        launch(
            work, options(cluster_timeout=2), Servers(count=2, number=1, master=("127.0.0.1", _free_port()))
        )
    with pytest.raises(UsageError, match="2 servers need --master"):
        launch(work, options(), Servers(count=2))
    with pytest.raises(UsageError, match="servers are numbered 0 to 1, not 2"):
        launch(work, options(), Servers(count=2, number=2, master=("127.0.0.1", 8118)))
    for text in ("10.0.0.1", "10.0.0.1:", ":80", "10.0.0.1:0", "10.0.0.1:port"):
        with pytest.raises(UsageError, match="--master must be HOST:PORT"):
            parse_master(text)
    assert parse_master("[::1]:8118") == ("::1", 8118)
    assert time.monotonic() - start < ENDED


# -- what a rank is given -------------------------------------------------------------------------


def test_ranks_of_a_table_get_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of two servers, as a dynamic cluster: MindSpore, which would compile otherwise, sees no table."""
    path = tmp_path / "table.json"
    path.write_text(
        make(
            {
                "127.0.0.1": {4: "192.168.1.1", 6: "192.168.1.2"},
                "127.0.0.2": {4: "192.168.2.1", 6: "192.168.2.2"},
            }
        )
    )
    for name in ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH"):
        monkeypatch.setenv(name, str(path))
    host, port = check(path.read_text()).meeting_point()
    assert host == "127.0.0.1"
    chosen = AscendOptions(rank_table=str(path))
    assert launch(request("environment", tmp_path), chosen) == 0, "this is the first server"
    with socket.socket() as scheduler:
        scheduler.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        scheduler.bind((host, port))
        scheduler.listen()
        assert launch(request("environment", tmp_path), chosen, Servers(server_id="127.0.0.2")) == 0
    for rank, device in enumerate(("4", "6", "4", "6")):
        got = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        del got["cores"]
        got.pop("RESNEXT_CORES", None)
        assert got == {
            "RANK_ID": str(rank), "RANK_SIZE": "4", "DEVICE_ID": device, "MS_ROLE": "MS_WORKER",
            "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port), "MS_NODE_ID": str(rank),
        }  # fmt: skip
    assert (tmp_path / "logs/scheduler.log").is_file()


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = json.loads(
        make({"10.0.0.1": {4: "192.168.1.1"}, "10.0.0.2": {4: "192.168.2.1", 6: "192.168.2.2"}})
    )
    path.write_text(json.dumps(table))
    chosen = options(rank_table=str(path))
    with pytest.raises(UsageError, match=r"1 device of server 10\.0\.0\.1, --devices is 4"):
        launch(request("environment", tmp_path, 4), chosen, Servers(server_id="10.0.0.1"))
    with pytest.raises(UsageError, match="is not in the rank table: name its server with --server-id"):
        launch(request("environment", tmp_path), chosen)
    with pytest.raises(UsageError, match=r"10\.0\.0\.1 is not an address of this server, which is the first"):
        launch(request("environment", tmp_path, 1), chosen, Servers(server_id="10.0.0.1"))
    with pytest.raises(UsageError, match=r"192\.0\.2\.1 is not an address of this server"):
        launch(
            request("environment", tmp_path, 1), chosen,
            Servers(server_id="10.0.0.1", master=("192.0.2.1", 8118)),
        )  # fmt: skip
    table["server_list"][0]["device"][0]["rank_id"], table["server_list"][1]["device"][0]["rank_id"] = (
        "1",
        "0",
    )
    path.write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"ranks of server 10\.0\.0\.2 .* must be consecutive, not 0, 2"):
        launch(request("environment", tmp_path), chosen, Servers(server_id="10.0.0.2"))
    path.write_text("{}")
    with pytest.raises(DataError, match=r"table.json:1: the rank table has no status"):
        launch(request("environment", tmp_path), chosen)


def test_this_server_is_found_by_its_address() -> None:
    table = make({"127.0.0.1": {0: "192.168.1.1"}, "192.0.2.7": {0: "192.168.2.1"}})
    assert this_server(check(table)) == "127.0.0.1"
    named = json.loads(make({"192.0.2.7": {0: "192.168.2.1"}, "192.0.2.8": {0: "192.168.1.1"}}))
    named["server_list"][1] |= {"server_id": "node_1", "host_ip": "127.0.0.1"}
    assert this_server(check(json.dumps(named))) == "node_1"
    assert this_server(check(make({"192.0.2.7": {0: "192.168.2.1"}}))) == "192.0.2.7", "there is no other"


def test_a_table_in_test_mode_trains(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(make({"10.0.0.1": {0: "192.168.1.1", 1: "192.168.1.2"}}))
    assert launch(request("train", tmp_path), options(rank_table=str(table))) == 0
    assert len(results(tmp_path, 2)) == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_each_rank_gets_its_cores(tmp_path: Path) -> None:
    all_cores = sorted(os.sched_getaffinity(0))
    for affinity in (True, False):
        assert launch(request("environment", tmp_path), options(affinity=affinity)) == 0
        found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
        cores = [got["cores"] for got in found]
        assert [int(got.get("RESNEXT_CORES", 0)) for got in found] == [affinity * (len(all_cores) // 2)] * 2
        if affinity:
            assert all(cores)
            assert not set(cores[0]) & set(cores[1])
            assert set(cores[0]) | set(cores[1]) <= set(all_cores)
            assert len(cores[0]) == len(cores[1]) == len(all_cores) // 2
        else:
            assert cores == [all_cores, all_cores]


# -- who is to blame ------------------------------------------------------------------------------


class Clock:
    """Time that the test makes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_watch(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(tmp_path, 3, first=8, world=16, start_timeout=20, hang_timeout=100, clock=clock)

    def write(*lines: str) -> None:
        for local, line in enumerate(lines):
            if line:
                Path(next(iter(watch.environment(local).values()))).write_text(line)

    clock.now = 90
    assert watch.suspect() is None, "nobody waits yet: they may still be reading the list of images"
    write("1 joining\n", "", "1 joining\n")
    assert watch.suspect() is None
    clock.now = 111
    assert watch.suspect() == (9, "never started: the others have been waiting for it for 21 s")
    write("", "1 joining\n", "")
    assert watch.suspect() == (
        8,
        "waited 21 s for ranks of other servers that did not start (so do ranks 9, 10)",
    )
    here = Watch(tmp_path / "here", 1, start_timeout=20, hang_timeout=100, clock=clock)
    Path(here.environment(0).popitem()[1]).write_text("1 joining\n")
    assert here.suspect() is None
    clock.now = 132
    assert here.suspect() == (0, "did not find the others in 21 s, though all are running")
    write("2 joined\n", "2 joined\n", "2 joined\n")
    assert watch.suspect() is None
    write("7 steps\n", "6 steps done\n", "7 steps\n")
    clock.now = 231
    assert watch.suspect() is None
    clock.now = 332
    assert watch.suspect() == (9, "hangs: no progress for 101 s, the last was: steps done")
    write("", "", "8 sum over ranks\n")
    assert watch.suspect() is None, "a sign"
    clock.now = 500
    write("8 sum over ranks\n", "8 sum over ranks\n", "8 sum over ranks\n")
    assert watch.suspect() is None
    clock.now = 601
    assert watch.suspect() == (
        8,
        "and all others here have been hanging for 101 s, in the same place: sum over ranks",
    )
    write("", "", "")
    Path(next(iter(watch.environment(0).values()))).write_text("")
    assert watch.suspect() is not None, "half a write is no sign"
    forever = Watch(tmp_path, 3, start_timeout=20, hang_timeout=None, clock=clock)
    clock.now = 1e6
    assert forever.suspect() is None

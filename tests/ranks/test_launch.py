"""Launching local ranks: their logs and ends, and a diagnosis when one dies, hangs, or loses its companion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import eventually

from resnext_core.errors import UsageError
from resnext_core.interfaces import LaunchRequest
from resnext_core.ranks import launch
from resnext_core.ranks.launch import Companion, Group, free_port, launch_local

#: Seconds, far below those that a rank sleeps which has to be ended.
SLEEPING = 300.0


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write the source of a module that the ranks run, and return its name."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def write(source: str) -> str:
        (tmp_path / "rank_module.py").write_text(textwrap.dedent(source))
        return "rank_module"

    return write


PRELUDE = """
import os, sys, time, signal
import numpy as np
from resnext_core.ranks.connect import connect_tcp
from resnext_core.ranks.info import rank_info
rank = rank_info()
"""


def request(module: str, tmp_path: Path, devices: int = 2, argv: tuple[str, ...] = ()) -> LaunchRequest:
    return LaunchRequest(module=module, argv=argv, devices=devices, log_dir=tmp_path / "logs")


def test_launch_runs_all_ranks(
    module: Callable[[str], str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    name = module(
        PRELUDE
        + "c = connect_tcp(rank)\n"
        + "total = c.all_reduce_sum(np.array([rank.rank + 10]))[0]\n"
        + "print('sum', total, sys.argv[1:], rank.launcher, rank.local_rank, os.environ['OMP_NUM_THREADS'])\n"
        + "print('note', file=sys.stderr)\n"
        + "c.close()\n"
    )
    assert launch_local(request(name, tmp_path, devices=3, argv=("a b", "c"))) == 0
    threads = max(launch._processors() // 3, 1)
    logs = [(tmp_path / "logs" / f"rank-{rank}.log").read_text() for rank in range(3)]
    for rank, log in enumerate(logs):
        assert f"sum 33 ['a b', 'c'] resnext {rank} {threads}" in log
        assert "note" in log
    captured = capfd.readouterr()
    assert captured.out.count("sum 33") == 1  # rank 0 alone reaches the terminal
    assert captured.err.count("note") == 1
    assert launch_local(request(name, tmp_path, devices=3, argv=("again",))) == 0
    kept = (tmp_path / "logs" / "rank-1.log").read_text()
    assert "'a b'" in kept  # an earlier run's log is kept
    assert "'again'" in kept


def test_first_failing_rank_is_named_and_the_others_stopped(
    module: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(
        PRELUDE
        + "c = connect_tcp(rank)\n"
        + "if rank.rank == 1:\n    print('the reason'); sys.exit(3)\n"
        + "time.sleep(600)\n"
    )
    start = time.monotonic()
    assert launch_local(request(name, tmp_path, devices=3)) == 3
    assert time.monotonic() - start < SLEEPING
    error = capfd.readouterr().err
    assert "rank 1 of 3 ended with exit code 3" in error
    assert "the reason" in error


@pytest.mark.parametrize("end", ["sys.exit(e.exit_code)", "os.abort()"], ids=["exit 4", "abort"])
def test_the_culprit_is_named_not_who_lost_it(
    module: Callable[[str], str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """Rank 1 closes its connection a second before it exits: rank 0 ends first, as who lost another does."""
    monkeypatch.setattr(launch, "CULPRIT_S", 120.0)
    name = module(
        PRELUDE
        + "from resnext_core.errors import ResnextError\n"
        + "c = connect_tcp(rank)\n"
        + "if rank.rank == 1:\n    c.close(); time.sleep(1); sys.exit(3)\n"
        + "try:\n    c.barrier()\n"
        + f"except ResnextError as e:\n    print(e, flush=True); {end}\n"
    )
    assert launch_local(request(name, tmp_path)) == 3
    assert "rank 1 of 2 ended with exit code 3" in capfd.readouterr().err
    assert "rank 1 left" in (tmp_path / "logs" / "rank-0.log").read_text()


def test_a_killed_rank_makes_the_others_raise(
    module: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(
        PRELUDE
        + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # the launcher's, which may come at once
        + "c = connect_tcp(rank)\n"
        + "if rank.rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        + "try:\n    c.all_reduce_sum(np.ones(500_000))\n"
        + "except Exception as e:\n    print(type(e).__name__, e)\n"
    )
    assert launch_local(request(name, tmp_path, devices=3)) == 128 + signal.SIGKILL
    assert "rank 1 of 3 was killed by SIGKILL" in capfd.readouterr().err
    for rank in (0, 2):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert log.startswith("BackendUnavailable rank 1 was lost"), log


def test_a_rank_that_ignores_sigterm_is_killed(
    module: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.5)
    name = module(
        """
        import os, signal, sys, time
        if os.environ["RESNEXT_RANK"] == "1":
            time.sleep(0.5)
            sys.exit(5)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        """
    )
    start = time.monotonic()
    assert launch_local(request(name, tmp_path)) == 5
    assert time.monotonic() - start < SLEEPING


def test_sigterm_is_passed_on_and_waited_for(module: Callable[[str], str], tmp_path: Path) -> None:
    name = module(
        """
        import os, signal, sys, time
        rank = int(os.environ["RESNEXT_RANK"])
        def save(number, frame):
            time.sleep(0.2 + rank)  # rank 0 is ready to exit long before rank 1 has saved
            print("saved", flush=True)
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    script = (
        "import sys; from pathlib import Path; from resnext_core.ranks.launch import launch_local\n"
        "from resnext_core.interfaces import LaunchRequest\n"
        f"r = LaunchRequest(module={name!r}, argv=[], devices=2, log_dir=Path({str(tmp_path / 'logs')!r}))\n"
        "sys.exit(launch_local(r))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    logs = [tmp_path / "logs" / f"rank-{rank}.log" for rank in range(2)]
    assert eventually(lambda: all(log.exists() and "ready" in log.read_text() for log in logs))
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=120) == 75
    assert all("saved" in log.read_text() for log in logs)


def test_launch_refuses_no_devices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--devices"):
        launch_local(request("x", tmp_path, devices=0))


def test_a_launcher_that_is_killed_leaves_nothing_for_long(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    """Nothing in the folder of temporary files, and nothing in the run folder once it is launched again."""
    name = module("import os, time; time.sleep(0 if 'AGAIN' in os.environ else 60)")
    body = (
        "import sys; from pathlib import Path; from resnext_core.ranks.launch import launch_local\n"
        "from resnext_core.interfaces import LaunchRequest\n"
        f"r = LaunchRequest(module={name!r}, argv=[], devices=2, log_dir=Path({str(tmp_path / 'logs')!r}))\n"
        "sys.exit(launch_local(r))"
    )
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    parent = subprocess.Popen([sys.executable, "-c", body], env=env)
    assert eventually(lambda: len(psutil.Process(parent.pid).children()) == 2)
    ranks = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    for rank in ranks:
        rank.kill()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "logs").glob(".resnext-ends-*")) != []
    assert (
        subprocess.run([sys.executable, "-c", body], env={**env, "AGAIN": "1"}, check=False).returncode == 0
    )
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]


# -- ranks that meet in a way of their own -------------------------------------------------------


def group(**changes: Any) -> Group:
    return Group(
        **{"world": 4, "first": 2, "environment": lambda local: {"MINE": f"place {local}"}, **changes}
    )


def test_a_group_gives_its_ranks_names_and_environments(
    module: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As ranks 2 and 3 of 4; lines that are noise stay in the log."""
    name = module(
        """
        import os
        assert "RESNEXT_RANK" not in os.environ
        print("[INFO] of no use", flush=True)
        print(os.environ["MINE"], flush=True)
        print("[INFO] nor this", end="")
        """
    )
    started: list[int] = []
    given = group(noise="[INFO]", started=lambda local, process_id: started.append(local))
    assert launch_local(request(name, tmp_path), given) == 0
    assert capfd.readouterr().out == "place 0\n"
    assert started == [0, 1]
    for local in (0, 1):
        log = (tmp_path / f"logs/rank-{2 + local}.log").read_text()
        assert log == f"[INFO] of no use\nplace {local}\n[INFO] nor this"


def test_a_suspect_ends_the_job(
    module: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(
        """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("last words of", os.environ["MINE"], flush=True)
        print("[INFO] of no use", flush=True)
        time.sleep(600)
        """
    )
    log = tmp_path / "logs/rank-3.log"
    given = group(
        suspect=lambda: (3, "sleeps") if log.exists() and "[INFO]" in log.read_text() else None,
        noise="[INFO]", grace=0.2,
    )  # fmt: skip
    start = time.monotonic()
    assert launch_local(request(name, tmp_path), given) == 4
    assert time.monotonic() - start < SLEEPING
    error = capfd.readouterr().err
    assert "rank 3 of 4 sleeps; the others were stopped" in error
    assert "last words of place 1" in error
    assert "no use" not in error


@pytest.mark.parametrize("fails", [True, False])
def test_ranks_do_not_outlive_their_companion(
    fails: bool, module: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Which they may do where it ended well; and it does not outlive them."""
    name = module(
        """
        import os, sys, time
        if os.environ["MINE"] == "beside":
            print("the reason", flush=True)
            time.sleep(600 if os.environ["FAILS"] == "False" else 0)
            sys.exit(7)
        while os.environ["FAILS"] == "True" or "the reason" not in open(os.environ["REGISTRY"]).read():
            time.sleep(0.05)
        """
    )
    companion = Companion(name="registry", module=name, environment={"MINE": "beside", "FAILS": str(fails)})
    log = str(tmp_path / "logs/registry.log")
    ranks = lambda local: {"MINE": "rank", "FAILS": str(fails), "REGISTRY": log}  # noqa: E731
    start = time.monotonic()
    code = launch_local(
        request(name, tmp_path), group(world=2, first=0, environment=ranks, companion=companion)
    )
    assert time.monotonic() - start < SLEEPING
    assert code == (4 if fails else 0)
    error = capfd.readouterr().err
    assert ("the registry ended with exit code 7; the others were stopped" in error) == fails
    assert "the reason" in (tmp_path / "logs/registry.log").read_text()


@pytest.mark.parametrize("world", [2, 4])
def test_a_companion_waits_for_ranks_elsewhere(
    world: int, module: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not waited for where there are none."""
    name = module(
        """
        import os, time
        from pathlib import Path
        if os.environ["MINE"] == "beside":
            while len(list(Path(os.environ["FOLDER"]).glob("left-*"))) < 2:
                time.sleep(0.05)
            time.sleep(float(os.environ["TAKES"]))  # in which it is ended, where nobody waits for it
            print("the last rank has left", flush=True)
        else:
            Path(os.environ["FOLDER"], f"left-{os.getpid()}").touch()
        """
    )
    monkeypatch.setenv("FOLDER", str(tmp_path))
    takes = "1" if world == 4 else "600"
    companion = Companion(name="registry", module=name, environment={"MINE": "beside", "TAKES": takes})
    assert launch_local(request(name, tmp_path), group(world=world, first=0, companion=companion)) == 0
    assert ("the last" in (tmp_path / "logs/registry.log").read_text()) == (world == 4)


def test_a_rank_that_stops_in_good_order_lets_the_others_save(
    module: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also when it was told by somebody else, and not through the launcher."""
    name = module(
        """
        import os, sys, time
        time.sleep(0 if os.environ["RESNEXT_RANK"] == "0" else 1)
        print("saved", flush=True)
        sys.exit(75)
        """
    )
    assert launch_local(request(name, tmp_path)) == 75
    assert (tmp_path / "logs/rank-1.log").read_text() == "saved\n"
    assert "rank" not in capfd.readouterr().err


@pytest.mark.parametrize(("noted", "code"), [(0, 0), (75, 75), (3, 3), (None, 128 + signal.SIGSEGV)])
def test_a_crash_after_the_end_is_none(
    noted: int | None, code: int, module: Callable[[str], str], tmp_path: Path
) -> None:
    """As of a framework that is torn down, after all is saved: a rank is believed that has noted its exit code."""
    name = module(
        """
        import os, resource, signal, sys
        from resnext_core.ranks.children import note_end
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.argv[1] != "None":
            note_end(int(sys.argv[1]))
        os.kill(os.getpid(), signal.SIGSEGV)
        """
    )
    assert launch_local(request(name, tmp_path, argv=(str(noted),))) == code


@pytest.mark.parametrize(("words", "code"), [(["recipes"], 0), (["eval", "--weights", "no-such-file"], 3)])
def test_a_rank_of_resnext_run_notes_its_end(words: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *words], capture_output=True, check=False,
        env={**os.environ, "RESNEXT_END": str(tmp_path / "end")},
    )  # fmt: skip
    assert (done.returncode, (tmp_path / "end").read_text()) == (code, str(code))


def test_a_free_port_is_below_those_of_connections() -> None:
    assert all(16384 <= free_port() < 32768 for _ in range(20))

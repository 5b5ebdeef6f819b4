"""The command as a process: what it says, how it ends, several workers, signals under load."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serve_cases import photo, save, until, weights

from resnext_core.cli.main import main

#: The command, at a free port.
SERVE = (sys.executable, "-m", "resnext_core.cli", "serve", "--port", "0")


@contextmanager
def command(*words: object, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command at a free port; yields the process and its address, when it says that it is ready."""
    given = [*SERVE, "--backend", "reference", *map(str, words)]
    process = subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        else:
            raise AssertionError(process.communicate()[1])
        address = re.search(r"http://[^ ]+", line)
        assert address is not None
        yield process, address[0]
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    return process.returncode, err


class Load:
    """Clients that ask all the time, a connection a request; `codes` is what they got, `lost` what they did not get."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self.codes: list[int] = []
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url,)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str) -> None:
        while not self._stop.is_set():
            try:
                self.codes.append(
                    httpx.post(f"{url}/predict", content=photo(), trust_env=False, timeout=60).status_code
                )
            except httpx.ConnectError:  # nobody listens: nothing was promised
                return
            except httpx.HTTPError as error:
                self.lost.append(type(error).__name__)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_request_and_ends_with_0(model: Path, number: signal.Signals) -> None:
    with command("--weights", model) as (process, url):
        load = Load(url)
        until(lambda: len(load.codes) > 20)
        process.send_signal(number)
        code, err = finish(process)
        load.stop()
        assert code == 0
        assert err == "resnext-serve: ending: not ready from now on; open requests are answered\n"
        assert set(load.codes) == {200}
        # a connection that the kernel accepted and the service did not is reset when it ends
        assert set(load.lost) <= {"ReadError", "RemoteProtocolError"}


def test_not_ready_while_draining(model: Path) -> None:
    with command("--weights", model, "--drain", "60") as (process, url):
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 503)
        assert httpx.post(f"{url}/predict", content=photo(), trust_env=False).status_code == 200


def test_workers_share_the_port_and_their_figures(model: Path) -> None:
    with command("--weights", model, "--workers", "2") as (process, url):
        for _ in range(10):
            assert httpx.post(f"{url}/predict", content=photo(), trust_env=False).status_code == 200
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        assert re.search(r'resnext_requests_total\{code="200",method="POST",route="/predict"\} 10\.0', text)
        folder = Path(psutil.Process(process.pid).environ().get("TMPDIR", "/tmp"))
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0
        assert not [p for p in folder.glob("resnext-serve-*") if str(process.pid) in p.name]


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_worker_that_is_killed_is_replaced(model: Path) -> None:
    with command("--weights", model, "--workers", "2") as (process, url):
        first, _ = workers_of(process)
        first.kill()
        until(lambda: len({child.pid for child in workers_of(process)} - {first.pid}) == 2)
        assert httpx.post(f"{url}/predict", content=photo(), trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        code, err = finish(process)
        assert code == 0
        assert "a worker was killed by SIGKILL" in err


def test_workers_end_with_a_killed_parent(model: Path) -> None:
    with command("--weights", model, "--workers", "2") as (process, _):
        workers = workers_of(process)
        process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=120)
        assert not alive
        assert len(gone) == 2


def test_killed_under_load_leaves_nothing(model: Path) -> None:
    with command("--weights", model) as (process, url):
        load = Load(url)
        until(lambda: len(load.codes) > 5)
        process.kill()
        process.wait()
        load.stop()
        with socket.socket() as again:  # the port is free at once
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", int(url.rpartition(":")[2])))


def test_a_worker_that_cannot_begin_ends_all_with_its_code(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(save(tmp_path / "model.safetensors", weights()).read_bytes()[:-50])
    words = [*SERVE, "--workers", "2", "--weights", str(broken)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert found.returncode == 3
    assert all(str(broken) in line for line in found.stderr.splitlines())
    assert 1 <= len(found.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--weights", "none.safetensors"], 3, "no model at none.safetensors"),
        (["--weights", "a=MODEL", "--weights", "a=MODEL"], 2, "two models are called 'a'"),
        (
            ["--weights", "MODEL", "--weights", "MODEL"],
            2,
            "two models are called 'resnext'; give each a name",
        ),
        (["--weights", "MODEL", "--batch", "0"], 2, "--batch must be 1 or more"),
        (["--weights", "MODEL", "--body-mb", "0"], 2, "--body-mb must be above 0"),
        (["--weights", "MODEL", "--window", "nan"], 2, "--window must be"),
        (["--weights", "MODEL", "--workers", "0"], 2, "must be an integer from 1"),
        (["--weights", "MODEL", "--port", "99999"], 2, "a port is a number from 0 to 65535, not 99999"),
        (["--weights", "MODEL", "--host", "256.0.0.1"], 2, "cannot listen at 256.0.0.1"),
        (["--weights", "MODEL", "--port", "TAKEN"], 2, "Address already in use; choose another"),
        (
            ["--weights", "MODEL", "--token-file", "none.txt"],
            3,
            "cannot read the token in none.txt: No such file",
        ),
        (
            ["--weights", "MODEL", "--token-file", "EMPTY"],
            2,
            "must be one word of printable ASCII characters",
        ),
        (["--weights", "http://example.com/model"], 2, "http://example.com/model"),
        (["--weights", "MODEL", "--backend", "none"], 2, "none"),
        (["--weights", "MODEL", "--set", "nothing.here=1"], 2, "nothing"),
    ],
)
def test_bad_flags_are_one_line(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        stand_ins: dict[str, Any] = {
            "MODEL": model, "EMPTY": tmp_path / "empty", "TAKEN": taken.getsockname()[1]
        }  # fmt: skip
        given = [re.sub("MODEL|EMPTY|TAKEN", lambda m: str(stand_ins[m[0]]), word) for word in words]
        assert main(["serve", *([] if "--port" in given else ["--port", "0"]), *given]) == code
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert says in err


def test_an_open_service_without_a_token_is_named(model: Path) -> None:
    words = [*SERVE, "--host", "0.0.0.0", "--weights", str(model), "--backend", "reference"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert line.startswith("warning: whoever reaches http://0.0.0.0:")


@pytest.mark.slow
def test_ten_thousand_idle_connections(model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_500:
        pytest.skip(f"needs 10,500 open files, this system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (10_500, hard))
    try:
        with command("--weights", model, "--connections", 10_200, "--idle", 300) as (process, url):
            before = psutil.Process(process.pid).memory_info().rss
            with contextlib.ExitStack() as stack:
                for _ in range(10_000):
                    address = ("127.0.0.1", int(url.rpartition(":")[2]))
                    stack.enter_context(contextlib.closing(socket.create_connection(address, timeout=60)))
                assert httpx.post(f"{url}/predict", content=photo(), trust_env=False).status_code == 200
                print(f"{(psutil.Process(process.pid).memory_info().rss - before) / 1e6:.0f} MB for 10,000")
            until(lambda: psutil.Process(process.pid).num_fds() < 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""Questions to stores: a web server that fails in every way, an S3 server, and what the user is told."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from faulty_server import CUT, DRIP, DROP, SHORT, SILENT, WHOLE, FaultyServer, faulty_server

from resnext_core.data.remote import access
from resnext_core.data.remote.access import Access, Changed, NotThere, Unreachable
from resnext_core.errors import DataError, UsageError

BODY = bytes(range(256)) * 40
QUICK = Access(tries=4, pause=0.001)


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyServer]:
    with faulty_server({"/train/a.bin": BODY, "/train/b.bin": BODY[::-1], "/train/c/d.bin": b"1"}) as server:
        yield server


@pytest.fixture
def server(running: FaultyServer) -> FaultyServer:
    running.faults.clear()
    running.always.clear()
    running.asked.clear()
    return running


@pytest.mark.parametrize("fault", [503, 500, 429, CUT, DROP, SHORT])
def test_what_fails_for_a_time_is_asked_again(server: FaultyServer, fault: int | str) -> None:
    url = f"{server.url}/train/a.bin"
    server.faults["/train/a.bin"].extend([fault] * 3)
    assert QUICK.content(url, 0, len(BODY), whole=True) == BODY
    assert len(server.asked) == 4 or fault == DROP  # aiohttp asks once more itself
    server.faults["/train/a.bin"].extend([fault] * 3)
    assert QUICK.content(url, 300, 20, whole=False) == BODY[300:320]
    assert server.asked[-1] == ("/train/a.bin", "bytes=300-319")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (503, "HTTP status 503"),
        (CUT, "payload"),
        (DROP, "isconnected"),
        (SHORT, "19 bytes came instead of 20"),
    ],
)
def test_what_fails_for_good_is_one_line(server: FaultyServer, fault: int | str, said: str) -> None:
    server.always["/train/a.bin"] = fault
    url = f"{server.url}/train/a.bin"
    with pytest.raises(Changed if fault == SHORT else Unreachable) as caught:
        QUICK.content(url, 300, 20, whole=False)
    text = str(caught.value)
    assert text.startswith(f"cannot read {url}: ")
    assert said in text
    assert re.search(r"\(4 tries in \d+ s\); check the network and the store, .* or raise data.tries$", text)
    assert "\n" not in text
    assert len(server.asked) == 4 or fault == DROP


@pytest.mark.parametrize("fault", [SILENT, DRIP])
def test_a_server_that_says_nothing_or_little_is_not_waited_for(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(access, "_CONNECT", 0.05)
    monkeypatch.setattr(access, "_SILENCE", 0.05)
    monkeypatch.setattr(access, "_SLOWEST", 1 << 20)
    server.always["/train/a.bin"] = fault
    with pytest.raises(Unreachable, match=r"/train/a.bin: no answer in time \(2 tries"):
        Access(tries=2, pause=0.001).content(f"{server.url}/train/a.bin", 0, 10_000, whole=False)


@pytest.mark.parametrize("fault", [401, 403])
def test_a_refusal_is_final(server: FaultyServer, fault: int) -> None:
    server.always["/train/a.bin"] = fault
    with pytest.raises(DataError, match=f"no permission to read .*/a.bin: HTTP status {fault}.*credentials"):
        QUICK.content(f"{server.url}/train/a.bin", 0, 10, whole=False)
    assert len(server.asked) == 1


def test_what_is_missing_is_final(server: FaultyServer) -> None:
    url = f"{server.url}/train/none.bin"
    with pytest.raises(NotThere, match=f"there is nothing at {url}; correct the URL"):
        QUICK.content(url, 0, 10, whole=False)
    assert len(server.asked) == 1
    assert QUICK.status(url) is None


def test_status_that_cannot_be_had_is_not_absence(server: FaultyServer) -> None:
    """fsspec turns any failure of this question into FileNotFoundError."""
    server.always["/train/a.bin"] = 503
    with pytest.raises(Unreachable, match="HTTP status 503"):
        QUICK.status(f"{server.url}/train/a.bin")


def test_a_server_without_ranges_is_told(server: FaultyServer) -> None:
    server.always["/train/a.bin"] = WHOLE
    url = f"{server.url}/train/a.bin"
    assert QUICK.content(url, 0, len(BODY), whole=True) == BODY
    with pytest.raises(DataError, match="sends the whole file where a part is asked for"):
        QUICK.content(url, 300, 20, whole=False)
    assert len(server.asked) == 2


def test_a_range_beyond_the_end_is_final(server: FaultyServer) -> None:
    with pytest.raises(DataError, match="HTTP status 416"):
        QUICK.content(f"{server.url}/train/a.bin", 1 << 20, 20, whole=False)
    assert len(server.asked) == 1


def test_an_object_that_has_grown_is_not_taken_for_the_old_one(server: FaultyServer) -> None:
    with pytest.raises(Changed, match="10 bytes came instead of 9: cut off, or changed"):
        Access(tries=1).content(f"{server.url}/train/a.bin", 0, 9, whole=True)


def test_names_and_versions(server: FaultyServer) -> None:
    found = {one.name: one.folder for one in QUICK.names(f"{server.url}/train/")}
    assert found == {"a.bin": False, "b.bin": False, "c": True}
    a, b = (QUICK.status(f"{server.url}/train/{name}.bin") for name in "ab")
    assert a is not None
    assert b is not None
    assert (a.size, a.folder, b.size) == (len(BODY), False, len(BODY))
    assert a.version
    assert a.version != b.version


def test_schemes_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no store is called 'nowhere'; URLs begin with s3://"):
        QUICK.status("nowhere://x")
    import fsspec

    def lacking(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    access._filesystem.cache_clear()
    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    with pytest.raises(UsageError, match=r"s3:// needs a library .*: pip install 'resnext-core\[remote\]'"):
        QUICK.status("s3://bucket/x")
    with pytest.raises(UsageError, match=r"Install s3fs to access S3"):
        QUICK.status("other://bucket/x")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"s3:// needs fsspec: pip install 'resnext-core\[remote\]'"):
        QUICK.status("s3://bucket/x")

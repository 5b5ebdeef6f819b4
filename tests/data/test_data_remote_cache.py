"""The cache of remote bytes: whole or absent, bounded, the least recently used out, with many processes at once."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnext_core.data.remote.cache import Cache

BLOCK = 4096
MIB = 1 << 20


def cache(folder: Path, limit: int = MIB, **more: int) -> Cache:
    return Cache(folder=folder / "cache", limit=limit, left_free=0, **more)


def entries(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").glob("??/*") if path.is_file()]


def taken(folder: Path) -> int:
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in entries(folder))


def age(folder: Path, seconds: int) -> None:
    """Make every entry that many seconds older, and what the cache knows of the oldest."""
    if (folder / "cache" / "state").exists():
        with cache(folder)._state() as state:
            state.oldest -= seconds * 10**9
    for path in entries(folder):
        used = path.stat().st_mtime_ns - seconds * 10**9
        os.utime(path, ns=(used, used))


def content(number: int, size: int = 5000) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def test_what_is_put_is_got(tmp_path: Path) -> None:
    one = cache(tmp_path)
    assert one.get("a") is None
    for key, value in {"a": b"content", "empty": b"", "long": bytes(300_000)}.items():
        assert one.put(key, value)
        for each in (one, pickle.loads(pickle.dumps(one)), cache(tmp_path)):
            found = each.get(key)
            assert found is not None
            assert bytes(found) == value
    assert one.get("b") is None
    assert not list((tmp_path / "cache" / "new").iterdir())


@pytest.mark.parametrize("damage", ["a bit", "cut", "longer", "empty"])
def test_a_damaged_entry_is_removed_and_not_used(tmp_path: Path, damage: str) -> None:
    one = cache(tmp_path)
    one.put("a", content(7))
    (path,) = entries(tmp_path)
    good = path.read_bytes()
    flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    path.write_bytes({"a bit": flipped, "cut": good[:-1], "longer": good + b"\0", "empty": b""}[damage])
    assert one.get("a") is None
    assert not entries(tmp_path)
    assert one.put("a", content(7))
    assert one.get("a") == content(7)


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    limit = 20 * 2 * BLOCK
    for number in range(20):
        age(tmp_path, 10)
        assert cache(tmp_path, limit).put(str(number), content(number))
    age(tmp_path, 10)
    assert taken(tmp_path) == limit
    for number in (0, 1, 5):
        assert cache(tmp_path, limit).get(str(number)) is not None
    age(tmp_path, 10)
    later = cache(tmp_path, limit)
    assert later.put("new", content(99))
    left = {number for number in range(20) if later.get(str(number)) is not None}
    assert left == {0, 1, *range(5, 20)}  # room for the new one, and a tenth of the limit
    assert later.get("new") == content(99)
    assert taken(tmp_path) <= limit


def test_what_this_job_has_used_does_not_make_room(tmp_path: Path) -> None:
    """So that of a data set larger than the cache a part is found in each epoch, not none."""
    limit = 10 * 2 * BLOCK
    cache(tmp_path, limit).put("of another job", content(1))
    age(tmp_path, 10)
    job = cache(tmp_path, limit)
    job.since -= 10**9  # the clock of files may be some ms behind
    kept = [job.put(str(number), content(number)) for number in range(50)]
    assert sum(kept) in (9, 10)
    assert job.get("of another job") is None
    found = [job.get(str(number)) is not None for number in range(50)]
    assert found == kept
    assert job.trouble is None
    age(tmp_path, 10)
    assert cache(tmp_path, limit).put("of the next job", content(3))


def test_a_full_cache_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = cache(tmp_path, 4 * 2 * BLOCK)
    job.since -= 10**9
    looked = []
    whole = Cache._entries
    monkeypatch.setattr(Cache, "_entries", lambda self: looked.append(1) or whole(self))
    for number in range(50):
        job.put(str(number), content(number))
    assert len(looked) <= 2  # an uncounted folder, and a full one


def test_a_smaller_limit_and_a_lost_count_are_kept(tmp_path: Path) -> None:
    for number in range(20):
        cache(tmp_path).put(str(number), content(number))
    age(tmp_path, 10)
    (tmp_path / "cache" / "state").unlink()
    small = cache(tmp_path, 8 * BLOCK)
    assert small.put("a", content(1))
    assert taken(tmp_path) <= 8 * BLOCK
    assert not small.put("too large", bytes(9 * BLOCK))
    assert not cache(tmp_path, 0).put("b", content(2))
    assert cache(tmp_path, 0).get("a") is not None


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom resnext_core.data.remote import cache\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "one = cache.Cache(folder=Path(sys.argv[1]), limit=1 << 20, left_free=0)\n"
        "one.put('whole', b'1' * 5000)\ncache._trailer = die\none.put('torn', b'2' * 5000)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cache")], check=False)
    assert ended.returncode == -signal.SIGKILL
    one = cache(tmp_path)
    assert len(list((tmp_path / "cache" / "new").iterdir())) == 1
    assert one.get("torn") is None
    assert one.get("whole") is not None
    age(tmp_path, 10)
    for number in range(200):
        cache(tmp_path).put(str(number), content(number))
        age(tmp_path, 1)
    assert not list((tmp_path / "cache" / "new").iterdir())
    assert taken(tmp_path) <= MIB


_MANY = """
import fcntl, random, sys
from pathlib import Path
from resnext_core.data.remote.cache import Cache
seed, folder, limit = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
hits = 0
for round in range(3):
    one = Cache(folder=folder, limit=limit, left_free=0)
    for _ in range(150):
        number = rng.randrange(60)
        value = number.to_bytes(4, "big") * (500 + 50 * number)
        found = one.get(str(number))
        if found is None:
            one.put(str(number), value)
        else:
            assert found == value, number
            hits += 1
    with open(folder / "making-room", "ab") as stream:  # or what is removed while this looks would count
        fcntl.flock(stream, fcntl.LOCK_EX)
        sizes = [-(-path.stat().st_size // 4096) * 4096 for path in folder.glob("??/*")]
    assert sum(sizes) <= limit, (sizes, limit)
    assert one.trouble is None, one.trouble
print(hits)
"""


def test_many_processes_share_it(tmp_path: Path) -> None:
    """Each sees right content alone, the limit holds at every look, and the count at the end is not too low."""
    limit = 40 * BLOCK
    words = [str(tmp_path / "cache"), str(limit)]
    running = [
        subprocess.Popen([sys.executable, "-c", _MANY, str(seed), *words], stdout=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    hits = [int(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert all(hits)
    assert not list((tmp_path / "cache" / "new").iterdir())
    one = cache(tmp_path, limit)
    with one._state() as state:
        assert taken(tmp_path) <= min(state.taken, limit)  # what was stored meanwhile may count twice
    later = cache(tmp_path, limit)
    assert later.put("last", bytes(30 * BLOCK))
    with later._state() as state:
        assert taken(tmp_path) == state.taken <= limit


def test_a_full_disk_is_told_once_and_reading_goes_on(tmp_path: Path) -> None:
    """The kernel's limit on the size of files stands for the disk: writing fails in the middle of an entry."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom resnext_core.data.remote.cache import Cache\n"
        "one = Cache(folder=Path(sys.argv[1]), limit=1 << 30, left_free=0)\n"
        "assert one.put('small', b'1' * 5000)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "assert not one.put('large', b'2' * 200_000)\nassert not one.put('next', b'3')\n"
        "assert one.get('large') is None and one.get('small') == b'1' * 5000\nprint(one.trouble)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")], check=True, capture_output=True, text=True
    )
    assert ended.stdout == f"the cache {tmp_path / 'cache'} is not used any more: File too large\n"
    assert not list((tmp_path / "cache" / "new").iterdir())
    with cache(tmp_path)._state() as state:
        assert state.taken == 2 * BLOCK


def test_the_disk_keeps_room_for_others(tmp_path: Path) -> None:
    one = Cache(folder=tmp_path / "cache", limit=MIB, left_free=1 << 62)
    assert not one.put("a", b"1")
    assert one.trouble is not None
    assert "MiB would be left on its disk" in one.trouble
    assert not entries(tmp_path)


def test_a_cache_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = Cache(folder=tmp_path / "file" / "cache", limit=MIB, left_free=0)
    assert not one.put("a", b"1")
    assert one.get("a") is None
    assert one.trouble is not None
    assert "is a file, not a folder" in one.trouble


def test_use_is_noted(tmp_path: Path) -> None:
    one = cache(tmp_path)
    one.put("a", b"1")
    age(tmp_path, 1000)
    one.get("a")
    (path,) = entries(tmp_path)
    assert time.time() - path.stat().st_mtime < 500

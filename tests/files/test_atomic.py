"""Writing files: whole or not there, and nothing of the user's replaced by something else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from resnext_core.data.scan_cache import ScanCache
from resnext_core.errors import DataError
from resnext_core.files import atomic_path, make_folder, replace_file, write_atomic
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import remove


def device(folder: Path, name: str, minor: int) -> Path:
    """Return a copy of a device in `folder`, or where that cannot be made the device, which is then safe from us."""
    try:
        os.mknod(folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (folder / name).open("wb").close()
    except OSError:
        return Path("/dev", name)
    return folder / name


@pytest.fixture
def null(tmp_path: Path) -> Path:
    return device(tmp_path, "null", 3)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_device_stays_a_device(null: Path) -> None:
    write_atomic(null, "text")
    assert stat.S_ISCHR(null.lstat().st_mode)


def test_a_full_device_is_one_line(tmp_path: Path) -> None:
    full = device(tmp_path, "full", 7)
    with pytest.raises(DataError, match=r"cannot write .*full: No space left on device"):
        write_atomic(full, "text")
    assert stat.S_ISCHR(full.lstat().st_mode)


def test_a_named_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomic(pipe, b"x" * 100_000)
    reader.join(60)
    assert got == [b"x" * 100_000]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system has no such names")
@pytest.mark.parametrize("append", [False, True])
def test_a_file_that_is_open_already_keeps_what_it_has(tmp_path: Path, append: bool) -> None:
    """`command --report /dev/stdout > file`: the link leads to a file, which must not be replaced under the shell."""
    code = (
        "from pathlib import Path; from resnext_core.files.atomic import write_atomic\n"
        "print('before'); write_atomic(Path('/dev/stdout'), 'written\\n'); print('after')"
    )
    (tmp_path / "out").write_text("old\n")
    with (tmp_path / "out").open("a" if append else "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, timeout=120)
    assert (tmp_path / "out").read_text() == ("old\n" if append else "") + "before\nwritten\nafter\n"
    piped = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert piped.stdout == "before\nwritten\nafter\n"


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("there/file.txt")
    write_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert leftovers(tmp_path) == leftovers(tmp_path / "there") == []


def test_a_link_to_nothing_makes_its_file(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new" / "file")
    write_atomic(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "new" / "file").read_text() == "new"


def test_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(DataError, match=r"cannot write .*a: Too many levels"):
        write_atomic(tmp_path / "a", "new")
    assert os.readlink(tmp_path / "a") == "b"


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        write_atomic(tmp_path / "folder", "new")
    assert (tmp_path / "folder").is_dir()


def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    """Read from a process of its own: a umask belongs to all threads of one."""
    code = (
        "import os, pathlib, sys; os.umask(0o027)\n"
        "from resnext_core.files.atomic import write_atomic; write_atomic(pathlib.Path(sys.argv[1]), 'x')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "new"], check=True, timeout=120)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_of_a_replaced_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 1234, 1235)
    path.chmod(0o600)
    write_atomic(path, "new")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 1235, 0o600)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["n" * 255, "n" * 250 + ".json", "né" * 85, b"caf\xe9".decode("utf-8", "surrogateescape")]
)
def test_every_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_names_that_are_not_utf_8_become_their_own_bytes(tmp_path: Path) -> None:
    write_atomic(tmp_path / "list", os.fsdecode(b"caf\xe9.png\n"))
    assert (tmp_path / "list").read_bytes() == b"caf\xe9.png\n"


def test_moving_into_place_follows_the_same_rules(tmp_path: Path, null: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    for name, content in (("link", "linked"), ("new", "new")):
        (tmp_path / "made").write_text(content)
        replace_file(tmp_path / "made", tmp_path / name)
        assert (tmp_path / name).read_text() == content
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "made").write_text("nobody reads it")
    replace_file(tmp_path / "made", null)
    assert stat.S_ISCHR(null.lstat().st_mode)


def test_moving_to_another_file_system_is_a_copy(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    target = shm / f"resnext-test-{os.getpid()}"
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "made").write_text("moved")
    try:
        replace_file(tmp_path / "made", tmp_path / "link")
        assert target.read_text() == "moved"
        assert (tmp_path / "link").is_symlink()
        assert not (tmp_path / "made").exists()
    finally:
        target.unlink(missing_ok=True)


def test_what_stands_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "away").symlink_to("not mounted")
    (tmp_path / "there").symlink_to(tmp_path)
    for path, reason in (
        ("file/new", "file is a file, not a folder"),
        ("away/new", "away is a link to not mounted"),
    ):
        with pytest.raises(OSError, match=reason):
            make_folder(tmp_path / path)
        with pytest.raises(DataError, match=reason):
            write_atomic(tmp_path / path / "file", "text")
        with pytest.raises(DataError, match=reason):
            RunFolder.create(tmp_path / path, None, "label")
    assert not (tmp_path / "not mounted").exists()
    make_folder(tmp_path / "there" / "new")
    assert (tmp_path / "new").is_dir()


def test_a_linked_checkpoint_loses_its_link_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("")
    (tmp_path / "step-00000001").symlink_to("elsewhere")
    remove(tmp_path / "step-00000001")
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as someone else")
def test_what_belongs_to_someone_else_stays() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").write_text("old")
        os.seteuid(65534)
        try:
            for write in (
                lambda: write_atomic(folder / "file", "new"),
                lambda: RunFolder.create(folder, "run", "label"),
            ):
                with pytest.raises(DataError, match="Permission denied"):
                    write()
            trouble = ScanCache(folder / "cache", folder).trouble
        finally:
            os.seteuid(0)
        assert trouble is not None
        assert "Permission denied" in trouble
        assert os.listdir(folder) == ["file"]
        assert (folder / "file").read_text() == "old"

"""MindSpore Lite found and laid out, from wheels and folders made here: of the real one only its digest is known."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from resnext_cpp_infer.lite import LIBRARY, WHEEL, install, lite_home

from resnext_core.cli.main import main
from resnext_core.errors import BackendUnavailable, DataError, ResnextError, UsageError
from resnext_cpp_infer import lite as lite_module

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="the wheel is for x86-64 Linux"
)
HEADER = "runtime/include/api/model.h"


def elf(machine: int = 62, order: str = "<") -> bytes:
    """The first bytes of a 64-bit shared library."""
    return (
        b"\x7fELF\x02"
        + (b"\x01" if order == "<" else b"\x02")
        + bytes(10)
        + struct.pack(f"{order}HH", 3, machine)
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no variable that names a Lite."""
    for variable in lite_module.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnext"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the real one's names, whose digest is the expected one."""
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mindspore_lite/include/api/model.h", "// a header")
        archive.writestr("mindspore_lite/lib/libmindspore-extendrt_python.so", elf())
        archive.writestr("mindspore_lite/lib/libmindspore_converter.so", elf())
        archive.writestr("mindspore_lite/lib/libtransformer-shared.so", elf())
        archive.writestr("mindspore_lite/model.py", "raise SystemExit")
        archive.writestr("mindspore_lite-2.0.0.dist-info/METADATA", "Name: mindspore-lite")
    monkeypatch.setattr(lite_module, "DIGEST", f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return path


def home(folder: Path, *, library: bytes | None = None, header: bool = True) -> Path:
    """A folder like an unpacked tarball."""
    (folder / "runtime" / "lib").mkdir(parents=True)
    (folder / "runtime" / "include" / "api").mkdir(parents=True)
    if header:
        (folder / HEADER).write_text("// a header")
    if library != b"":
        (folder / "runtime" / "lib" / LIBRARY).write_bytes(library or elf())
    return folder


def test_a_wheel_is_laid_out_as_a_lite_home_and_found_afterwards(wheel: Path, cache: Path) -> None:
    assert lite_home() is None
    told: list[str] = []
    made = install(str(wheel), tell=told.append)
    assert made.version == "2.0.0"
    assert (made.include / "api" / "model.h").read_text() == "// a header"
    kept = {LIBRARY, "libmindspore-extendrt_python.so", "libmindspore_converter.so"}
    assert {p.name for p in made.lib.iterdir()} == kept
    assert made.library.read_bytes() == elf()
    found = lite_home()
    assert found is not None
    assert (found.root, found.found_by) == (made.root, "the cache")
    before = made.library.stat().st_ino
    assert install(str(wheel), tell=told.append).root == made.root
    assert told == [f"unpacking {WHEEL}"], "what is there is not unpacked again"
    assert made.library.stat().st_ino == before
    made.library.unlink()
    assert install(str(wheel)).library.read_bytes() == elf(), "what is not complete is laid out again"
    assert sorted(p.name for p in cache.iterdir()) == ["mindspore-lite", made.root.name]


def test_the_real_wheel_is_the_known_one() -> None:
    """Written here a second time, so that nobody changes one of the two by accident."""
    digest = "199cd0605cc985b88eddb273db9dfe9000a585ba10ca2292b6b36ebfff07b3ec"
    assert f"sha256:{digest}" == lite_module.DIGEST


def test_another_wheel_is_refused_in_one_line(
    wheel: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with wheel.open("ab") as stream:
        stream.write(b"\0")
    assert main(["cpp", "build", "--lite", str(wheel)]) == 3
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert f"{wheel} is not the wheel of MindSpore Lite 2.0.0, or is damaged: its digest is sha256:" in err
    assert list(cache.iterdir()) == []


def test_the_flag_then_the_variables_then_the_cache(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = home(tmp_path / "mindspore-lite-2.3.1-linux-x64"), home(tmp_path / "b")
    install(str(wheel))
    monkeypatch.setenv("MS_LITE_HOME", str(second))
    found = lite_home()
    assert found is not None
    assert (found.root, found.version, found.found_by) == (second, "unknown", "$MS_LITE_HOME")
    monkeypatch.setenv("LITE_HOME", str(first))
    found = lite_home()
    assert found is not None
    assert (found.root, found.version, found.found_by) == (first, "2.3.1", "$LITE_HOME")
    monkeypatch.setenv("LITE_HOME", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone \(\$LITE_HOME\) is no folder with MindSpore Lite"):
        lite_home()
    given = install(str(second))
    assert (given.root, given.found_by) == (second, "--lite")
    monkeypatch.delenv("LITE_HOME")
    monkeypatch.delenv("MS_LITE_HOME")
    found = lite_home()
    assert found is not None
    assert found.root == second, "the one that was given last"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda f: f / "no", UsageError, "no such file or folder"),
        (lambda f: f, DataError, "has no folder 'runtime'"),
        (lambda f: home(f / "x" / "y").parent, DataError, "x/y"),
        (lambda f: home(f / "x", header=False), DataError, f"has no {HEADER}"),
        (lambda f: home(f / "x", library=b""), DataError, f"has no runtime/lib/{LIBRARY}"),
        (lambda f: home(f / "x", library=b"#!/bin/sh"), DataError, "is no shared library"),
        (lambda f: home(f / "x", library=elf(183)), BackendUnavailable, "is for aarch64, this machine is x86_64"),
        (lambda f: home(f / "x", library=elf(22, ">")), BackendUnavailable, "is for ELF machine 22"),
    ],
    ids=["gone", "empty", "above", "no header", "no library", "no ELF", "aarch64", "s390"],
)  # fmt: skip
def test_folders_that_do_not_serve(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    error: type[ResnextError],
    says: str,
) -> None:
    given = make(tmp_path)
    assert main(["cpp", "build", "--lite", str(given)]) == error.exit_code
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert lite_home() is None, "and nothing remembers it"


def test_another_machine_is_told_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(
        BackendUnavailable, match="is for x86-64 Linux, this machine is aarch64: unpack its tarball"
    ):
        install("download")


KILLED = """
import os, signal, sys, zipfile
from resnext_cpp_infer import lite
lite.DIGEST = sys.argv[2]
extract = zipfile.ZipFile.extract
def once(self, *args):
    extract(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
zipfile.ZipFile.extract = once
lite.install(sys.argv[1])
"""


def test_a_killed_install_leaves_nothing_half(wheel: Path, cache: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(wheel), lite_module.DIGEST]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1, "the scratch folder of the killed process"
    assert lite_home() is None
    made = install(str(wheel))
    assert sorted(p.name for p in cache.iterdir()) == ["mindspore-lite", made.root.name]


def test_two_at_once(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second, started while the first unpacks, waits and takes what the first has made."""
    lay_out = lite_module._lay_out
    made: list[lite_module.LiteHome] = []
    second = threading.Thread(target=lambda: made.append(install(str(wheel))))

    def start_second(source: Path, target: Path) -> None:
        second.start()  # a third would be started a second time, which is an error
        lay_out(source, target)

    monkeypatch.setattr(lite_module, "_lay_out", start_second)
    made.append(install(str(wheel)))
    second.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert sorted(p.name for p in cache.iterdir()) == ["mindspore-lite", made[0].root.name]


def fake_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Put a module ``pip`` before the real one in the processes that this one starts."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "pip.py").write_text(f"import shutil, sys\n{text}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"), prepend=os.pathsep)


def test_download_asks_pip_for_any_python(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(
        monkeypatch,
        tmp_path,
        f"open({str(tmp_path / 'words')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])",
    )
    told: list[str] = []
    made = install("download", tell=told.append)
    assert made.library.is_file()
    words = (tmp_path / "words").read_text()
    for wanted in (
        "--no-deps --only-binary=:all:",
        "--python-version 37",
        "--abi cp37m",
        "mindspore-lite==2.0.0",
    ):
        assert wanted in words
    assert told == ["downloading MindSpore Lite 2.0.0 (169 MB)", f"unpacking {WHEEL}"]
    (tmp_path / "words").unlink()
    assert install("download").root == made.root
    assert not (tmp_path / "words").exists(), "it is not downloaded again"


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (
            "sys.exit('WARNING: a\\nERROR: No matching distribution found for mindspore-lite==2.0.0')",
            BackendUnavailable,
            "pip cannot download mindspore-lite 2.0.0: No matching distribution found for mindspore-lite==2.0.0; get ",
        ),
        ("raise ImportError('No module named pip')", BackendUnavailable, "No module named pip"),
        ("sys.exit(7)", BackendUnavailable, "pip ended with code 7"),
        ("", BackendUnavailable, "pip ended with code 0"),
        (
            f"open(sys.argv[sys.argv.index('--dest') + 1] + '/{WHEEL}', 'w').write('x')",
            DataError,
            "is not the wheel of MindSpore Lite",
        ),
    ],
    ids=["not there", "no pip", "code", "nothing", "another digest"],
)
def test_downloads_that_fail(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[ResnextError], says: str
) -> None:  # fmt: skip
    fake_pip(monkeypatch, tmp_path, text)
    with pytest.raises(error) as caught:
        install("download")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []

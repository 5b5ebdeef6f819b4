"""MindSpore Lite: where it is on this machine, and how it gets there."""

from __future__ import annotations

import os
import platform
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from resnext_core.errors import BackendUnavailable, DataError, UsageError, one_line, quoted, reason
from resnext_core.files import cache_folder, file_digest, local_path, make_folder
from resnext_core.files.scratch import Scratch

#: The release on PyPI: one wheel, for CPython 3.7 on x86-64, with headers, libraries and converter. None of its Python
#: code is used.
VERSION = "2.0.0"
WHEEL = f"mindspore_lite-{VERSION}-cp37-cp37m-manylinux1_x86_64.whl"
DIGEST = "sha256:199cd0605cc985b88eddb273db9dfe9000a585ba10ca2292b6b36ebfff07b3ec"
_MACHINE = "x86_64"
_MEGABYTES = 169
#: Libraries of the wheel that need CUDA 11 and TensorRT, or Python 3.7: a third of its size, for nothing used here.
_LEFT_OUT = ("libtransformer-shared.so", "libtensorrt_plugin_python.so", "_c_lite_wrapper.")
#: What the tarballs call the runtime, and the wheel; the wheel's is linked under the other name.
LIBRARY, _WHEEL_LIBRARY = "libmindspore-lite.so", "libmindspore-extendrt_python.so"
#: Variables that name a LITE_HOME, by precedence: the vendor's documents and scripts use both.
VARIABLES = ("LITE_HOME", "MS_LITE_HOME")
#: A link in the cache to the LITE_HOME that :func:`install` was last asked for.
_CHOSEN = "mindspore-lite"
_HEADER = Path("include", "api", "model.h")
#: e_machine of an ELF file's header (System V ABI), by the machine's name.
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
#: Where the tarballs keep what the runtime and the converter load.
_MORE_LIBRARIES = ("runtime/third_party/glog", "runtime/third_party/dnnl", "tools/converter/lib")


@dataclass(frozen=True, kw_only=True)
class LiteHome:
    """A MindSpore Lite laid out as its tarballs are: ``runtime/include`` and ``runtime/lib`` under `root`.

    `include` has the headers (``api/model.h``), `lib` the libraries; `version` is ``unknown`` where a folder does not
    tell. `found_by` says in a few words what named it: a flag, a variable, the cache.
    """

    root: Path
    include: Path
    lib: Path
    version: str
    found_by: str = ""

    def __str__(self) -> str:
        """Return where it is, its version, and what named it, for people."""
        return f"{self.root} ({self.version}, by {self.found_by})"

    @property
    def library(self) -> Path:
        """The runtime's library, which programs link with."""
        return self.lib / LIBRARY

    @property
    def library_folders(self) -> tuple[Path, ...]:
        """The folders that libraries are loaded from."""
        return (
            self.lib,
            *(folder for name in _MORE_LIBRARIES if (folder := self.root / name).is_dir()),
        )


def lite_home(cache: Path | None = None) -> LiteHome | None:
    """Return the MindSpore Lite that is used here, None without one.

    It is the one of $LITE_HOME, of $MS_LITE_HOME, or that which :func:`install` was last asked for. Raises DataError or
    BackendUnavailable where what a variable names is not usable: nothing else is taken in its place.
    """
    for variable in VARIABLES:
        if named := os.environ.get(variable):
            return _read(Path(named).absolute(), f"${variable}")
    chosen = (cache or cache_folder()) / _CHOSEN
    return _read(chosen.resolve(), "the cache") if chosen.is_symlink() else None


def install(
    source: str, cache: Path | None = None, tell: Callable[[str], None] = lambda line: None
) -> LiteHome:
    """Take MindSpore Lite from `source` and remember it in the cache, where :func:`lite_home` finds it.

    `source` is ``download`` (by pip, from the index that pip uses), the wheel's file, or an unpacked tarball, which
    stays where it is. A wheel must be the known one, by its digest. What is laid out appears complete or not at all.
    `tell` gets a line for each long step.

    Raises UsageError where there is no such source, DataError where it is not what is needed, BackendUnavailable where
    it cannot be had or used on this machine.
    """
    cache = cache or cache_folder()
    given = local_path(source)
    if source != "download" and not given.exists():
        raise UsageError(f"no such file or folder: {given}; --lite takes download, the wheel, or a folder")
    try:
        make_folder(cache)
        with _locked(cache):
            if source != "download" and given.is_dir():
                home = _read(given.resolve(), "--lite")
            else:
                home = _from_wheel(None if source == "download" else given, cache, tell)
            _choose(home.root, cache)
    except OSError as error:
        raise DataError(f"cannot write {cache}: {reason(error)}") from error
    return home


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time in; the kernel opens the lock of one that was killed."""
    import fcntl  # not on Windows

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _from_wheel(wheel: Path | None, cache: Path, tell: Callable[[str], None]) -> LiteHome:
    """Return the LITE_HOME in the cache that a wheel gives; None downloads it, unless it was laid out before."""
    if platform.machine() != _MACHINE or sys.platform != "linux":
        raise BackendUnavailable(
            f"the wheel of MindSpore Lite {VERSION} is for x86-64 Linux, this machine is {platform.machine()}: "
            "unpack its tarball for this machine and give that folder to --lite"
        )
    target = cache / f"mindspore-lite-{VERSION}-{DIGEST.removeprefix('sha256:')[:12]}"
    if wheel is not None:
        _check_digest(wheel)
    with suppress(DataError):
        return _read(target, "--lite")
    with Scratch("lite", cache) as scratch:
        if wheel is None:
            tell(f"downloading MindSpore Lite {VERSION} ({_MEGABYTES} MB)")
            wheel = _download(scratch)
            _check_digest(wheel)
        tell(f"unpacking {wheel.name}")
        made = scratch / "home"
        _lay_out(wheel, made)
        if target.exists():  # and is not complete
            os.rename(target, scratch / "old")
        os.rename(made, target)
    return _read(target, "--lite")


def _download(folder: Path) -> Path:
    """Download the wheel into `folder` by pip, for any Python; its progress goes to a terminal's standard error."""
    words = [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
    ]
    words += ["--python-version", "37", "--implementation", "cp", "--abi", "cp37m"]
    words += ["--platform", "manylinux1_x86_64", f"mindspore-lite=={VERSION}"]
    shown = sys.stderr is not None and sys.stderr.isatty()
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        stdout=sys.stderr if shown else subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace", check=False,
    )  # fmt: skip
    path = folder / WHEEL
    if done.returncode != 0 or not path.is_file():
        said = [line for line in done.stderr.splitlines() if "error" in line.lower() or "No module" in line]
        why = said[-1].removeprefix("ERROR: ") if said else f"pip ended with code {done.returncode}"
        raise BackendUnavailable(
            f"pip cannot download mindspore-lite {VERSION}: {one_line(ValueError(why), 300)}; "
            f"get {WHEEL} from PyPI in another way and give it to --lite"
        )
    return path


def _check_digest(wheel: Path) -> None:
    try:
        digest = file_digest(wheel)
    except OSError as error:
        raise DataError(f"cannot read {wheel}: {reason(error)}") from error
    if digest != DIGEST:
        raise DataError(
            f"{wheel} is not the wheel of MindSpore Lite {VERSION}, or is damaged: its digest is {digest}, not {DIGEST}"
        )


def _lay_out(wheel: Path, target: Path) -> None:
    """Unpack the wheel's headers and libraries to where the tarballs have them."""
    package = "mindspore_lite/"
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename.removeprefix(package)
            if name == entry.filename or not name.startswith(("include/", "lib/")) or entry.is_dir():
                continue
            if name.removeprefix("lib/").startswith(_LEFT_OUT):
                continue
            entry.filename = name
            archive.extract(entry, target / "runtime")
    (target / "runtime" / "lib" / LIBRARY).symlink_to(_WHEEL_LIBRARY)
    (target / "version").write_text(f"{VERSION}\n")


def _choose(root: Path, cache: Path) -> None:
    """Make the cache's link point to `root`, whatever it was."""
    with Scratch("lite", cache) as scratch:
        (scratch / _CHOSEN).symlink_to(root)
        os.replace(scratch / _CHOSEN, cache / _CHOSEN)


def _read(root: Path, found_by: str) -> LiteHome:
    """Return what is at `root`; DataError where a header or the library is missing, BackendUnavailable for another
    machine's library."""
    where = f"{root} ({found_by})"
    if not root.is_dir():
        raise DataError(
            f"{where} is no folder with MindSpore Lite; run: resnext-run cpp build --lite download"
        )
    if not (root / "runtime").is_dir():
        inner = next((path for path in sorted(root.glob("*/runtime")) if path.is_dir()), None)
        advice = f"give {inner.parent}" if inner else "give an unpacked tarball, or the .whl file itself"
        raise DataError(f"{where} has no folder 'runtime', so it is no LITE_HOME: {advice}")
    home = LiteHome(
        root=root, include=root / "runtime" / "include", lib=root / "runtime" / "lib",
        version=_version(root), found_by=found_by,
    )  # fmt: skip
    for path in (root / "runtime" / _HEADER, home.library):
        if not path.is_file():
            raise DataError(f"{where} has no {path.relative_to(root)}: MindSpore Lite is not complete there")
    _check_machine(home.library)
    return home


def _version(root: Path) -> str:
    with suppress(OSError):
        return (root / "version").read_text().strip()
    match = re.match(r"mindspore-lite-(\d+\.\d+\.\d+\w*)", root.name)
    return match[1] if match else "unknown"


def _check_machine(library: Path) -> None:
    try:
        with library.open("rb") as stream:
            head = stream.read(20)
    except OSError as error:
        raise DataError(f"cannot read {library}: {reason(error)}") from error
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise DataError(f"{library} is no shared library: {quoted(head[:8])}")
    (found,) = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])
    wanted = _ELF_MACHINES.get(platform.machine())
    if wanted is not None and found != wanted:
        names = {number: name for name, number in _ELF_MACHINES.items()}
        raise BackendUnavailable(
            f"{library} is for {names.get(found, f'ELF machine {found}')}, this machine is {platform.machine()}: "
            "get MindSpore Lite for this machine"
        )

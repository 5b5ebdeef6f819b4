"""Finding the program and its sources, and building it."""

from __future__ import annotations

import ctypes.util
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path

from resnext_core import __version__
from resnext_core.errors import BackendUnavailable, DataError
from resnext_core.files import cache_folder
from resnext_core.interfaces import READY, Readiness
from resnext_cpp_infer.lite import LiteHome

NAME = "resnext-infer"
#: The engine that serves files with an ending, unless another one is named.
ENGINES = {".onnx": "onnx", ".om": "acl", ".mindir": "mslite"}
#: How the names of the engines' libraries begin.
_ENGINE = "libresnext_engine_"
#: Where a wheel for one platform has the program, its engines and the library of the decoder: tools/cpp_wheel.py.
PACKAGED = Path(__file__).resolve().parent / "built"
#: Names a program to use instead of the built one.
VARIABLE = "RESNEXT_INFER"
#: Tools of the build, and their Debian packages.
TOOLS = {"cmake": "cmake", "c++": "g++"}
HEADERS = {"jpeglib.h": "libjpeg-dev", "png.h": "libpng-dev"}


def build_folder() -> Path:
    """Return the build folder: one for this release and these sources in the user's cache."""
    return cache_folder() / f"cpp-{__version__}-{sources_digest()}"


@functools.cache
def sources_digest() -> str:
    """Return 12 hexadecimal digits that change with every C++ source, header and CMake file."""
    digest = hashlib.sha256()
    folder = sources()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".cpp", ".h", ".txt")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def find_program(given: str | None = None) -> Path:
    """Return the program; BackendUnavailable if it is not built, or not at the given path.

    What was built here goes before what came with a wheel. A program that was built from other sources is not used; the
    error names it.
    """
    named = given or os.environ.get(VARIABLE)
    path = Path(named) if named else build_folder() / NAME
    if not named and not path.is_file() and (PACKAGED / NAME).is_file():
        path = PACKAGED / NAME
    if path.is_file() and os.access(path, os.X_OK):
        return path
    if named:
        raise BackendUnavailable(f"no such program: {path}")
    others = other_builds()
    if others:
        raise BackendUnavailable(
            f"{others[0] / NAME} was built from other sources; run: resnext-run cpp build"
        )
    raise BackendUnavailable(f"{path} is not built; build it with: resnext-run cpp build")


def other_builds() -> list[Path]:
    """Return the build folders in the cache that are of other releases or sources, the newest first."""
    found = [p for p in cache_folder().glob("cpp-*") if (p / NAME).is_file() and p != build_folder()]
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)


def engines_beside(program: Path) -> list[str]:
    """Return the names of the engines beside `program`."""
    return sorted(
        p.name.removeprefix(_ENGINE).removesuffix(".so") for p in program.parent.glob(f"{_ENGINE}*.so")
    )


def engine_readiness(suffix: str) -> Readiness:
    """Return whether the engine for files with this ending is built, and what it needs installed."""
    program = find_program()
    engine = ENGINES[suffix]
    missing = ""
    if engine not in engines_beside(program):
        missing = f"the engine '{engine}' is not built beside {program}: resnext-run cpp build"
        if engine == "mslite":
            missing = "it is built without MindSpore Lite: resnext-run cpp build --lite download"
    elif engine == "onnx" and onnxruntime_library() is None and not _loadable("onnxruntime"):
        missing = "libonnxruntime.so is not on this machine: pip install onnxruntime"
    elif engine == "acl" and not _loadable("ascendcl"):
        missing = "libascendcl.so is not on this machine: install CANN and source its set_env.sh"
    return Readiness(state="missing", reason=missing) if missing else READY


def _loadable(library: str) -> bool:
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return any(
        folder and next(Path(folder).glob(f"lib{library}.so*"), None) is not None for folder in folders
    ) or (ctypes.util.find_library(library) is not None)


def onnxruntime_library() -> Path | None:
    """Return the library in the installed ``onnxruntime`` package, without importing it; None without one."""
    spec = util.find_spec("onnxruntime")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = sorted(Path(folder, "capi").glob("libonnxruntime.so*"))
        if found:
            return found[-1]
    return None


def sources() -> Path:
    """Return the folder of the C++ sources, which lies in the package."""
    folder = Path(__file__).resolve().parent / "cpp"
    if not (folder / "CMakeLists.txt").is_file():
        raise DataError(f"no C++ sources in {folder}; reinstall resnext-cpp-infer")
    return folder


def missing_tools() -> list[str]:
    """Return what the build needs and this machine lacks, each with the package that has it."""
    lacking = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    folders = [Path("/usr/include"), Path("/usr/local/include"), *Path("/usr/include").glob("*-linux-*")]
    for header, package in HEADERS.items():
        if not any((folder / header).is_file() for folder in folders):
            lacking.append(f"{header} ({package})")
    return lacking


def require_tools() -> None:
    """Raise BackendUnavailable where a tool of the build is missing."""
    if lacking := missing_tools():
        raise BackendUnavailable(f"to build {NAME} install {', '.join(lacking)}")


def build(
    folder: Path,
    options: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
    lite: LiteHome | None = None,
) -> Path:
    """Configure and build in `folder`; return the program. `tell` gets a line for each step.

    The engine `mslite` is built with `lite`; None leaves it out. Raises BackendUnavailable where a tool is missing,
    DataError with the compiler's last lines where it fails.
    """
    require_tools()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        f"-DLITE_HOME={lite.root if lite else ''}",
        *options,
    ]  # CMake would keep what it was the last time
    tell(f"configuring in {folder}")
    _run(["cmake", *generator, "-S", str(sources()), "-B", str(folder), *options])
    tell("compiling")
    _run(["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)])
    return folder / NAME


def _run(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        shown = [line for line in lines if "error" in line.lower()][:3] or lines[-3:]
        raise DataError(f"'{' '.join(words[:2])}' failed: {' | '.join(shown)}")

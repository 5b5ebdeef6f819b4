"""Where the program is, where its sources are, and how it is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path

from resnext_core import __version__
from resnext_core.errors import BackendUnavailable, DataError

NAME = "resnext-infer"
#: Names a program that is to be used instead of the one that was built.
VARIABLE = "RESNEXT_INFER"
#: What the build needs, and the Debian package that has it.
TOOLS = {"cmake": "cmake", "c++": "g++"}
HEADERS = {"jpeglib.h": "libjpeg-dev", "png.h": "libpng-dev"}


def build_folder() -> Path:
    """Return where the program is built: a folder of this release in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "resnext" / f"cpp-{__version__}"


def find_program(given: str | None = None) -> Path:
    """Return the program; BackendUnavailable where it is not built, or not where it is said to be."""
    named = given or os.environ.get(VARIABLE)
    path = Path(named) if named else build_folder() / NAME
    if not path.is_file() or not os.access(path, os.X_OK):
        hint = "correct the path" if named else "build it with: resnext-run cpp build"
        raise BackendUnavailable(f"there is no program {path}; {hint}")
    return path


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
        raise DataError(f"there are no C++ sources in {folder}; install resnext-cpp-infer again")
    return folder


def missing_tools() -> list[str]:
    """Return what the build needs and this machine lacks, each with the package that has it."""
    lacking = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    folders = [Path("/usr/include"), Path("/usr/local/include"), *Path("/usr/include").glob("*-linux-*")]
    for header, package in HEADERS.items():
        if not any((folder / header).is_file() for folder in folders):
            lacking.append(f"{header} ({package})")
    return lacking


def build(folder: Path, options: Sequence[str] = (), tell: Callable[[str], None] = lambda line: None) -> Path:
    """Configure and build in `folder`; return the program. `tell` gets a line for each step.

    Raises BackendUnavailable where a tool is missing, DataError with the compiler's last lines where it fails.
    """
    lacking = missing_tools()
    if lacking:
        raise BackendUnavailable(f"to build {NAME} install {', '.join(lacking)}")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
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

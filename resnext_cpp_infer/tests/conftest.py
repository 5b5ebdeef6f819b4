"""The program, built once for all tests; they skip, and say why, where this machine cannot build it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "tests"))  # images that core's tests make

from cpp_cases import Done
from resnext_cpp_infer.lite import LiteHome, lite_home
from resnext_cpp_infer.program import VARIABLE, build, missing_tools

from resnext_core.testing.base import required

REQUIRED = required("cpp-infer")


@pytest.fixture(scope="session")
def lite() -> LiteHome:
    """MindSpore Lite as the program is built with it; tests with it skip where it is not on this machine."""
    home = lite_home()
    if home is None:
        (pytest.fail if required("mslite") else pytest.skip)(
            "MindSpore Lite is not here: resnext-run cpp build --lite download, or make test-lite"
        )
    return home


@pytest.fixture(scope="session")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the program and its engines."""
    lacking = missing_tools()
    if lacking:
        (pytest.fail if REQUIRED else pytest.skip)(
            f"resnext-infer cannot be built here: install {', '.join(lacking)}"
        )
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # of all workers
    folder = session / "cpp-program"
    sanitizers = os.environ.get("RESNEXT_CPP_SANITIZE")
    with (session / "cpp-program.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (session / "cpp-program.built").exists():
            build(folder, [f"-DRESNEXT_SANITIZE={sanitizers}"] if sanitizers else [], lite=lite_home())
            (session / "cpp-program.built").touch()
    return folder


@pytest.fixture(scope="session")
def program(build_dir: Path) -> Iterator[Path]:
    """The program; what looks for one finds this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(build_dir / "resnext-infer"))
        yield build_dir / "resnext-infer"


@pytest.fixture
def infer(program: Path) -> Callable[..., Done]:
    """The program as a function of its words; ``env`` and ``cwd`` as for subprocess."""

    def call(*words: object, **more: Any) -> Done:
        more["env"] = {**os.environ, **more.get("env", {})}
        done = subprocess.run(
            [program, *map(str, words)], capture_output=True, text=True, timeout=300, check=False, **more
        )
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    return call

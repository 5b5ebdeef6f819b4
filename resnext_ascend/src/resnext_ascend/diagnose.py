"""What this machine lacks for an Ascend, in one sentence, without importing MindSpore or opening a device."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path

from resnext_mindspore.plugin import missing_software

INSTALL = "pip install 'resnext-core[ascend]'"
#: Versions of CANN that a version of MindSpore checks for, and goes on with others (run_check/_check_version.py).
CANN: Mapping[str, tuple[str, ...]] = {"2.10": ("8.2", "8.3", "8.5", "9.0", "9.1")}
#: What CANN's tools in Python need, by the module to import (CANN installation guide, "Runtime Dependencies"). All are
#: on PyPI and in the extra of this distribution; NumPy, SciPy, psutil and protobuf come with MindSpore.
PACKAGES: Mapping[str, str] = {
    "attr": "attrs", "Cython": "cython", "decorator": "decorator", "sympy": "sympy", "cffi": "cffi", "yaml": "pyyaml",
    "pathlib2": "pathlib2", "scipy": "scipy", "requests": "requests", "psutil": "psutil", "absl": "absl-py",
}  # fmt: skip
_HOMES = ("usr/local/Ascend/ascend-toolkit/latest", "usr/local/Ascend/cann", "usr/local/Ascend/latest")
_NOT_FOUND = "cannot be imported: source CANN's set_env.sh, which adds it to PYTHONPATH"
_DRIVER = ("usr/local/Ascend/driver/version.info", "usr/local/Ascend/driver/lib64/driver/libascend_hal.so")


def software() -> str | None:
    """Return why MindSpore cannot run here on any device, or None; reads metadata only."""
    return missing_software(INSTALL)


def hardware(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> str | None:
    """Return what is missing for an Ascend (MindSpore's plugin, driver, device, CANN), or None; see :func:`doubts`.

    `root` is the root of the file system, for tests.
    """
    environ = os.environ if environ is None else environ
    if not _plugin():
        return f"this build of MindSpore has no Ascend plugin: {INSTALL} on Linux, x86-64 or aarch64"
    if not any((root / path).exists() for path in _DRIVER):
        return "no Ascend driver is installed (nothing in /usr/local/Ascend/driver): install it, or mount it"
    devices = [p for p in (root / "dev").glob("davinci*") if re.fullmatch(r"davinci\d+", p.name)]
    if not devices:
        return "no Ascend device found (no /dev/davinci0): check npu-smi info; in a container add the device"
    home = environ.get("ASCEND_HOME_PATH")
    if home is None:
        found = next((root / path for path in _HOMES if (root / path).is_dir()), None)
        if found is None:
            return f"CANN is not installed: install its toolkit, {_fitting()}, and source its set_env.sh"
        return f"CANN is installed but not set up: source {found}/../set_env.sh"
    return None


def doubts(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return what may fail on this machine's Ascend though nothing is missing at first sight, each in one sentence.

    A version of CANN that MindSpore only warns of, and packages that CANN's operator compiler imports.
    """
    environ = os.environ if environ is None else environ
    found = []
    home = environ.get("ASCEND_HOME_PATH")
    version, fitting = (cann_version(Path(home)) if home else None), CANN.get(_mindspore())
    if version is not None and fitting is not None and version not in fitting:
        found.append(f"MindSpore {_mindspore()} was not made for CANN {version}: it wants {_fitting()}")
    lacking = [package for module, package in PACKAGES.items() if not _importable(module)]
    if lacking:
        found.append(f"CANN's operator compiler needs packages: pip install {' '.join(lacking)}")
    if not _importable("te"):
        found.append(f"CANN's operator compiler, the package te, {_NOT_FOUND}")
    return tuple(found)


def collectives() -> str | None:
    """Return why ranks on Ascends cannot meet here, or None: MindSpore refuses to start HCCL without its package."""
    return None if _importable("hccl") else f"CANN's package hccl {_NOT_FOUND}"


def cann_version(home: Path) -> str | None:
    """Return major and minor version of the CANN toolkit in `home`, or None if it is not stated."""
    for name in ("compiler/version.info", "version.info", "version.cfg"):
        try:
            text = (home / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found = re.search(r"^\s*Version\s*=\s*\[?(?:[\d.]+:)?(\d+\.\d+)", text, re.MULTILINE | re.IGNORECASE)
        if found:
            return found[1]
    return None


def _importable(module: str) -> bool:
    return util.find_spec(module) is not None


def _mindspore() -> str:
    try:
        return ".".join(metadata.version("mindspore").split(".")[:2])
    except metadata.PackageNotFoundError:
        return ""


def _fitting() -> str:
    versions = CANN.get(_mindspore(), next(iter(CANN.values())))
    return ", ".join(versions[:-1]) + f" or {versions[-1]}"


def _plugin() -> bool:
    spec = util.find_spec("mindspore")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return any(list(Path(folder, "lib", "plugin").glob("libmindspore_ascend.so*")) for folder in folders)

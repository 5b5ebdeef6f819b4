"""Versions and machine: what a run was made with, and what ``doctor`` shows first."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

from resnext_core import __version__
from resnext_core.plugins import load_plugins


def environment() -> dict[str, Any]:
    """Return versions (core's, and what installed backends compute with), machine and command line as JSON types."""
    versions = {}
    packages = [name for backend in load_plugins().ranked() for name in backend.packages]
    for name in dict.fromkeys(["resnext-core", "numpy", "pillow", *packages]):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "command": " ".join(["resnext-run", *sys.argv[1:]]),
        **versions,
    } | {"resnext-core": __version__}

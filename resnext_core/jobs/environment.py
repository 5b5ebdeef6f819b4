"""Versions and machine: what a run was made with, and what ``doctor`` shows first."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from resnext_core import __version__
from resnext_core.plugins import load_plugins


def environment() -> dict[str, Any]:
    """Return versions (core's, and what installed backends compute with), machine and command line as JSON types."""
    packages = [name for backend in load_plugins().ranked() for name in backend.packages]
    found = versions(["resnext-core", "numpy", "pillow", *packages])
    python, system = found.pop("python"), found.pop("platform")
    return {
        "python": python,
        "platform": system,
        "cpu_cores": os.cpu_count(),
        "command": command_line(),
        **found,
    }


def command_line() -> str:
    """Return the command line of this process."""
    return " ".join(["resnext-run", *sys.argv[1:]])


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, the system and installed distributions; core's is that of its code."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in dict.fromkeys(distributions):
        try:
            found[name] = __version__ if name == "resnext-core" else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

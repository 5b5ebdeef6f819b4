"""Versions and machine: what a run was made with, and what ``doctor`` shows first."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

from resnext_core import __version__


def environment() -> dict[str, Any]:
    """Return versions, machine and command line as JSON types."""
    versions = {}
    for name in ("resnext-core", "numpy", "pillow", "mindspore", "torch", "onnx", "onnxruntime"):
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

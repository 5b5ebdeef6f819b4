"""Skips what needs a GPU where there is none, and lets the tests import what they share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnext_core.testing.base import required

sys.path.insert(0, str(Path(__file__).parent))

# PyTorch keeps compiled code for all processes of a user, also those that may use other instructions (with
# ATEN_CPU_CAPABILITY): taken from there it computed NaN, or crashed.
_COMPILED = tempfile.TemporaryDirectory(prefix="resnext-compiled-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _COMPILED.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests marked ``gpu`` their reason; those of the kit that start two ranks need two GPUs."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _no_gpu() if marked else None
    if reason is not None and required("gpu"):
        raise pytest.UsageError(f"gpu is required here (RESNEXT_REQUIRE) but not available: {reason}")
    for item in marked:
        several = getattr(item, "function", _no_gpu).__qualname__.startswith("DistributedContract.")
        why = reason or (_one_gpu() if several else None)
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say below a failure on a GPU how to tell the layout of cuDNN's kernels from the engine."""
    report = yield
    if report.failed and item.get_closest_marker("gpu"):
        report.sections.append(("on a GPU", _HINT))
    return report


#: Below each test that failed on a GPU.
_HINT = (
    "If only a tolerance was missed: in channels_last cuDNN's batch normalisation may be less exact. "
    "test_a_step_equals_the_reference compares both layouts, and the contract kit runs in the plain one with "
    """RESNEXT_GPU_OPTIONS='{"channels_last": false}' pytest resnext_gpu/tests/test_contract_gpu.py -m gpu"""
)


def _no_gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return None if torch.cuda.is_available() else "needs an NVIDIA GPU, and PyTorch finds none here"


def _one_gpu() -> str | None:
    import torch

    return None if torch.cuda.device_count() > 1 else "needs two NVIDIA GPUs, and there is one"

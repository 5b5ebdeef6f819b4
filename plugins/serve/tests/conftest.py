"""Lets the tests import what they share, and gives them a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serve_cases import Running, running, save, weights


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network as a weights file."""
    return save(tmp_path_factory.mktemp("serve") / "model.safetensors", weights())


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Running]:
    """A service with the small network as ``resnext``, and once more as ``other``."""
    with running({"resnext": model, "other": model}) as found:
        yield found

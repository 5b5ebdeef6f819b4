"""The reference backend under the contract."""

from __future__ import annotations

from resnext_core.testing import BackendContract


class TestReference(BackendContract):
    backend_id = "reference"

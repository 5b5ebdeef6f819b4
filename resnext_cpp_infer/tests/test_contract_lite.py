"""The contract kit on the backend `lite`, whose artefacts the engine `mslite` serves."""

from __future__ import annotations

import pytest

from resnext_core.testing import BackendContract


@pytest.mark.usefixtures("program")
class TestLite(BackendContract):
    backend_id = "lite"

"""The contract kit on the backend `cpp-infer`, through ONNX artefacts."""

from __future__ import annotations

import pytest

from resnext_core.testing import BackendContract


@pytest.mark.usefixtures("program")
class TestCppInfer(BackendContract):
    backend_id = "cpp-infer"

"""The contract kit on the `onnx` backend."""

from resnext_core.testing import BackendContract


class TestOnnx(BackendContract):
    backend_id = "onnx"

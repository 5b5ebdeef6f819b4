"""The contract kit on the `onnx` backend with OpenVINO, in float32: the same tolerances as with ONNX Runtime."""

from openvino_cases import needs_openvino

from resnext_core.testing import BackendContract

pytestmark = needs_openvino


class TestOpenVino(BackendContract):
    backend_id = "onnx"
    options = {"provider": "openvino", "threads": 1}  # noqa: RUF012

"""Artefacts served over HTTP by OpenVINO, which takes requests of several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from serve_cases import pixels, predictor, running, weights

from resnext_core.interfaces import ExportRequest
from resnext_core.plugins import get_backend, load_plugins
from resnext_core.processor import processor
from resnext_core.testing.base import required

pytestmark = pytest.mark.skipif(
    not required("openvino") and ("onnx" not in load_plugins().backends or find_spec("openvino") is None),
    reason="resnext-onnx and openvino are not installed",
)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "model.onnx"
    get_backend("onnx").exporters["onnx"](weights(), path, ExportRequest())
    return path


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_answers_over_http(artefact: Path, precision: str) -> None:
    if precision == "bfloat16" and not processor().bfloat16:
        pytest.skip("this processor has no bfloat16 instructions")
    options = ("onnx.provider=openvino", f"onnx.openvino_precision={precision}", "onnx.threads=1")
    batches = [pixels(count, seed=count) for count in (1, 2, 3, 4)]
    with (
        running({"resnext": artefact}, backend="onnx", overrides=options) as service,
        ThreadPoolExecutor() as pool,
    ):

        def ask(images: np.ndarray) -> np.ndarray:
            tensor = {
                "name": "images",
                "datatype": "UINT8",
                "shape": list(images.shape),
                "data": images.ravel().tolist(),
            }
            answer = service.post("/v2/models/resnext/infer", json={"inputs": [tensor]})
            assert answer.status_code == 200, answer.text
            output = next(found for found in answer.json()["outputs"] if found["name"] == "logits")
            return np.array(output["data"]).reshape(output["shape"])

        found = list(pool.map(ask, batches))
    for images, logits in zip(batches, found, strict=True):
        want = predictor(weights()).logits(images)
        error = np.abs(logits - want).max() / np.abs(want).max()
        assert error <= (1e-5 if precision == "float32" else 2e-2)
        assert (error > 1e-5) == (precision == "bfloat16")

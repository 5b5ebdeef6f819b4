"""Write weights as a model repository of NVIDIA Triton, with a manifest for KServe and a page on how to use both.

Sources: triton-inference-server/server, docs/user_guide/model_repository.md and model_configuration.md;
kserve/kserve, docs of v1beta1 InferenceService.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from resnext_core.errors import UsageError
from resnext_core.files import write_atomic
from resnext_core.interfaces import ExportRequest
from resnext_core.model.weights import Weights
from resnext_onnx.export import export_onnx
from resnext_onnx.graph import TENSOR

#: Images that Triton computes at once at most, and the microseconds that a request waits for others.
_MOST, _DELAY_US = 32, 3000


def export_triton(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write the model repository `path`, a folder that must not exist.

    It holds one model, named after the variant: ``config.pbtxt`` with dynamic batching and the class names,
    ``labels.txt`` and ``1/model.onnx``. Beside the model are ``kserve.yaml`` and ``README.md``.

    Raises what :func:`export_onnx` does, and UsageError for ``image`` input: Triton would have to batch images of
    unlike sizes.
    """
    if request.input == "image":
        raise UsageError(
            "format triton cannot contain the preprocessing (export.input=image): export it with export.input=uint8"
        )
    name = model_name(weights)
    version = path / name / "1"
    version.mkdir(parents=True)
    export_onnx(weights, version / "model.onnx", request)
    labels = "".join(f"{_label(text)}\n" for text in weights.classes)
    for file, text in {
        path / name / "labels.txt": labels,
        path / name / "config.pbtxt": config(weights, request),
        path / "kserve.yaml": _kserve(name),
        path / "README.md": _readme(weights, name, request),
    }.items():
        write_atomic(file, text)


def model_name(weights: Weights) -> str:
    """Return the name of the model: the variant, in characters that Triton and Kubernetes take."""
    return re.sub(r"[^a-z0-9]+", "-", weights.spec.variant.lower()).strip("-")


def config(weights: Weights, request: ExportRequest) -> str:
    """Return ``config.pbtxt``, a ModelConfig in protobuf's text format.

    With any batch size Triton adds the batch dimension itself. With a fixed one it must not batch: the dimension is
    then part of the shapes.
    """
    size, classes = weights.spec.image_size, len(weights.classes)
    images = request.input == "uint8"
    preprocess = json.dumps(json.dumps(weights.preprocess.to_dict()))  # JSON as a quoted string
    shape = [size, size, 3] if images else [3, size, size]
    fixed = [] if request.batch_size is None else [request.batch_size]
    batching = "" if fixed else f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_US} }}\n"
    return (
        f'name: "{model_name(weights)}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {0 if fixed else _MOST}\n"
        f'input [ {{ name: "{"images" if images else TENSOR}" data_type: {"TYPE_UINT8" if images else "TYPE_FP32"} '
        f"dims: {json.dumps(fixed + shape)} }} ]\n"
        f'output [ {{ name: "logits" data_type: TYPE_FP32 dims: {json.dumps([*fixed, classes])} '
        'label_filename: "labels.txt" } ]\n'
        f"{batching}"
        f'parameters {{ key: "resnext.digest" value {{ string_value: "{weights.digest}" }} }}\n'
        f'parameters {{ key: "resnext.preprocess" value {{ string_value: {preprocess} }} }}\n'
    )


def _label(text: str) -> str:
    """Return a class name as one line."""
    return " ".join(text.split())


def _kserve(name: str) -> str:
    return f"""\
# kubectl apply -f kserve.yaml, after this folder was copied to storageUri (any scheme that KServe reads)
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat:
        name: triton
      protocolVersion: v2
      storageUri: pvc://models/{name}.triton
      resources:
        requests: {{cpu: "2", memory: 4Gi}}
        limits: {{memory: 4Gi}}
"""


def _readme(weights: Weights, name: str, request: ExportRequest) -> str:
    size = weights.spec.image_size
    images = request.input == "uint8"
    shape = [request.batch_size or 1, size, size, 3] if images else [request.batch_size or 1, 3, size, size]
    entry, datatype = ("images", "UINT8") if images else (TENSOR, "FP32")
    pixels = "uint8, RGB, resized and cropped" if images else "float32, RGB, resized, cropped and normalised"
    return f"""\
# {name}: a model repository for Triton

    TRITON_IMAGE=...  # the image tritonserver of NVIDIA, with the ONNX Runtime backend
    docker run --rm -p 8000:8000 -v "$PWD:/models:ro" "$TRITON_IMAGE" \\
      tritonserver --model-repository=/models

Whether it serves, and what it takes:

    curl localhost:8000/v2/models/{name}/ready
    curl localhost:8000/v2/models/{name}

The input `{entry}` is {pixels} as `resnext.preprocess` in `config.pbtxt` says. The three most probable classes:

```python
import numpy as np
import tritonclient.http as http

client = http.InferenceServerClient("localhost:8000")
pixels = np.zeros({shape}, np.{"uint8" if images else "float32"})  # your images
given = http.InferInput("{entry}", list(pixels.shape), "{datatype}")
given.set_data_from_numpy(pixels)
top = http.InferRequestedOutput("logits", class_count=3)
print(client.infer("{name}", [given], outputs=[top]).as_numpy("logits"))
```

`kserve.yaml` is an InferenceService of KServe for the same folder. Weights: {weights.digest}.
"""

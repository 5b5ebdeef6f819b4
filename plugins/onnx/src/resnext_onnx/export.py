"""Write weights as one self-contained ONNX file with the manifest in its metadata."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

import resnext_onnx
from resnext_core.errors import UsageError
from resnext_core.files import atomic_path
from resnext_core.interfaces import ExportRequest
from resnext_core.model.weights import Weights
from resnext_onnx.artefact import sealed_model
from resnext_onnx.graph import IR_VERSION, OPSET, build_graph

#: Protobuf cannot write 2 GiB or more; a file's nodes and metadata take well under a tenth of this margin.
_MAX_BYTES = 2**31 - 2**26


def export_onnx(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` at `path` atomically, checked by ONNX's own checker; same input, same bytes.

    The graph input is ``images`` uint8 (N, H, W, 3) with normalisation inside, or ``tensor`` float32
    (N, 3, H, W), at the ModelSpec's image size; the output is ``logits`` float32 (N, classes). The metadata
    entry ``resnext`` is the weights' manifest with an ``artefact`` object (format, input, batch_size,
    fold_bn, opset, digest of the constants, and one of all that is not metadata); it ends with its own digest.

    Raises UsageError on a request that means nothing or a network too large for one file, DataError when
    the file cannot be written or the weights cannot be served.
    """
    data = build_model(weights, request)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
        onnx.checker.check_model(str(temporary), full_check=True)


def build_model(weights: Weights, request: ExportRequest) -> bytes:
    """Return the complete file that :func:`export_onnx` writes; same errors, nothing written."""
    _check(weights, request)
    graph = build_graph(
        weights,
        batch_size=request.batch_size,
        images=request.input == "uint8",
        fold_bn=request.fold_bn,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="resnext-onnx",
        producer_version=resnext_onnx.__version__,
    )
    entry = {
        "format": "onnx",
        "input": request.input,
        "batch_size": request.batch_size,
        "fold_bn": request.fold_bn,
        "opset": OPSET,
    }
    return sealed_model(model, weights.manifest(), entry)


def _check(weights: Weights, request: ExportRequest) -> None:
    if request.input not in ("uint8", "float"):
        raise UsageError(f"export input must be uint8 or float, not {request.input!r}")
    batch_size = request.batch_size
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise UsageError(f"export batch_size must be an integer above 0, or null, not {batch_size!r}")
    size = 4 * sum(t.size for t in weights.spec.tensors)
    if size > _MAX_BYTES:
        raise UsageError(
            f"{weights.spec.variant} has {size / 2**30:.1f} GiB of weights, an ONNX file holds less than 2; "
            "export a smaller variant"
        )

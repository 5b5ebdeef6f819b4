"""Artefacts in few bits, made by ONNX Runtime's own quantiser, for tests of proofs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_cases import make_images, open_onnx, write
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from resnext_onnx.artefact import add_proof, read_artefact, sealed_model

from resnext_core.model.proof import Golden, Proof
from resnext_core.model.weights import MANIFEST_KEY, Weights
from resnext_core.serving.golden import synthetic_images

IMAGES = 64


class _Reader(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def write_int8(weights: Weights, path: Path, proofs: Mapping[str, Proof] | None = None, **entry: Any) -> Path:
    """Write `weights` at `path` in 8 bits with the file's own golden logits, and `proofs` by place."""
    plain = write(weights, path.with_suffix(".plain.onnx"))
    size = weights.spec.image_size
    images = np.concatenate([make_images(weights.spec, 6), synthetic_images(2, size)])
    made = path.with_suffix(".made.onnx")
    quantize_static(
        plain, made, _Reader([images]), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    model = onnx.load(made)
    for unused in (plain, made):
        unused.unlink()
    noted = {"format": "onnx", "input": "uint8", "batch_size": None, "compute": "int8"}
    noted |= {"proofs": {place: proof.to_dict() for place, proof in (proofs or {}).items()}} | entry
    classes = len(weights.classes)
    golden = Golden(compute="int8", logits=((0.0,) * classes,))
    path.write_bytes(sealed_model(model, weights.replace(golden=golden).manifest(), noted))
    rows = open_onnx(path).logits(synthetic_images(2, size))
    golden = Golden(compute="int8", logits=tuple(tuple(map(float, row)) for row in rows))
    path.write_bytes(sealed_model(model, weights.replace(golden=golden).manifest(), noted))
    return path


def proof_of(path: Path, off: float = 0.0) -> Proof:
    """Return the proof of what the file computes here, with its first logit `off` by a part of the largest."""
    served = open_onnx(path)
    rows = served.logits(synthetic_images(2, served.manifest.spec.image_size)).astype(np.float64)
    rows[0, 0] += off * np.abs(rows).max()
    logits = tuple(tuple(map(float, row)) for row in rows)
    return Proof(logits=logits, images=IMAGES, top1_agreement=1.0)


def prove(path: Path, place: str, proof: Proof) -> None:
    """Write a proof into the file as it is now."""
    add_proof(path, place, proof, read_artefact(path).manifest)


def manifest_of(path: Path) -> dict[str, Any]:
    """Return the manifest in the file as it is written there."""
    texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads(texts[MANIFEST_KEY])

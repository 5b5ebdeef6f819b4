"""Networks, images and shorthands of the tests of the `onnx` backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from resnext_onnx.options import OnnxOptions
from resnext_onnx.plugin import export, predictor
from resnext_onnx.predictor import OnnxPredictor

from resnext_core.interfaces import ExportRequest, Predictor, PredictRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec, model_spec
from resnext_core.model.weights import Weights
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.options import ReferenceOptions
from resnext_core.reference.predictor import create_predictor

#: float32 logits against the reference: max |diff| over max |logit|.
TOLERANCE = 1e-5

IMAGENET = model_spec("resnext_tiny", stem="imagenet", image_size=36, num_classes=7)
#: Both stems; both paddings on an even and on an odd size of the pooled plane; identity and other shortcuts.
SPECS = {
    "cifar": model_spec("resnext_tiny", image_size=17, depths=(2, 1), num_classes=5),
    "same-even": IMAGENET,
    "same-odd": IMAGENET.replace(image_size=37),
    "symmetric-even": IMAGENET.replace(pool_padding="symmetric"),
    "symmetric-odd": IMAGENET.replace(pool_padding="symmetric", image_size=33),
    "tiny-image": IMAGENET.replace(image_size=1, pool_padding="symmetric"),
}


def make_weights(spec: ModelSpec, seed: int = 3) -> Weights:
    """Random weights in which every element matters, with a mean and std that differ by colour."""
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(
            size=spec.image_size,
            resize=spec.image_size + 4,
            mean=(120.0, 100.5, 90.25),
            std=(50.0, 60.0, 70.0),
        ),
        classes=tuple(f"class {i} é" for i in range(spec.num_classes)),
        tensors=random_weights(spec, seed),
        origin={"made": "test"},
        metrics={"top1": 0.5},
    )


def make_images(spec: ModelSpec, count: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images (count, S, S, 3)."""
    shape = (count, spec.image_size, spec.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normalised(images: np.ndarray, weights: Weights) -> np.ndarray:
    """The tensor door's input: float32 (N, 3, S, S)."""
    mean, std = np.array(weights.preprocess.mean), np.array(weights.preprocess.std)
    return np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2), dtype=np.float32)


def write(weights: Weights, path: Path, **request: object) -> Path:
    """Export and return the path."""
    export(weights, path, ExportRequest(**request))
    return path


def open_onnx(path: Path, *, tensor_input: bool = False, **options: object) -> OnnxPredictor:
    """Open an artefact on the CPU."""
    request = PredictRequest(
        path=path, rank=RankInfo(), tensor_input=tensor_input, options=OnnxOptions(**{"threads": 1} | options)
    )
    opened = predictor(request)
    assert isinstance(opened, OnnxPredictor)
    return opened


def oracle(weights: Weights) -> Predictor:
    """The reference backend in float64."""
    options = ReferenceOptions(compute="float64")
    return create_predictor(PredictRequest(weights=weights, rank=RankInfo(), options=options))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """max |diff| / max |want|."""
    assert got.shape == want.shape
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())

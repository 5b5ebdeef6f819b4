"""A small network that really classifies: random filters, measured BN statistics, and a head fitted to the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from resnext_onnx.export import build_model
from resnext_onnx.quantize.run import logits_of, values_of

from resnext_core.interfaces import ExportRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.runs.records import Record

SIZE = 24
CLASSES = ("ash", "birch", "cedar", "dogwood")
SPEC = model_spec("resnext_tiny", stem="imagenet", depths=(1, 1), image_size=SIZE, num_classes=len(CLASSES))
PREPROCESS = PreprocessSpec(size=SIZE, resize=SIZE, mean=(120.0, 110.0, 100.0), std=(60.0, 58.0, 62.0))
#: Images of each class in each part.
TRAIN, VAL = 30, 25


def images_of(part: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of one coarse pattern a class: uint8 (N, SIZE, SIZE, 3), int64 labels (N,)."""
    patterns = np.random.default_rng(1).integers(60, 200, (len(CLASSES), 4, 4, 3))
    patterns = patterns.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    labels = np.repeat(np.arange(len(CLASSES)), each)
    noise = np.random.default_rng(part).normal(0, 60, (len(labels), SIZE, SIZE, 3))
    return np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels


def write_images(folder: Path, *, train: int = TRAIN, val: int = VAL) -> Path:
    """Write the images as PNG files in folders of their classes."""
    for part, (name, each) in enumerate((("train", train), ("val", val))):
        for number, (image, label) in enumerate(zip(*images_of(part, each), strict=True)):
            place = folder / name / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03d}.png")
    return folder


def float_model(weights: Weights, *, fold_bn: bool = True) -> onnx.ModelProto:
    """The exporter's graph."""
    model = onnx.ModelProto.FromString(build_model(weights, ExportRequest(fold_bn=fold_bn)))
    del model.metadata_props[:]
    return model


def fitted_weights() -> Weights:
    """Random filters; statistics of each BN in turn as measured on the images; the head by least squares."""
    images, labels = images_of(0, TRAIN)
    tensors = {name: array.copy() for name, array in random_weights(SPEC, 5).items()}

    def weights() -> Weights:
        return Weights(spec=SPEC, preprocess=PREPROCESS, classes=CLASSES, tensors=tensors)

    for node in float_model(weights(), fold_bn=False).graph.node:
        if node.op_type == "BatchNormalization":
            model = float_model(weights(), fold_bn=False)
            values = np.concatenate([v for _, v in values_of(model, [node.input[0]], images, 1)])
            tensors[f"{node.name}.running_mean"] = values.mean(axis=(0, 2, 3))
            tensors[f"{node.name}.running_var"] = values.var(axis=(0, 2, 3))
    features = np.concatenate([v for _, v in values_of(float_model(weights()), ["features.out"], images, 1)])
    ones = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    wanted = 4.0 * (labels[:, None] == np.arange(len(CLASSES)))
    penalty = 1e-2 * len(features) * np.diag([*np.ones(features.shape[1]), 0])
    head = np.linalg.solve(ones.T @ ones + penalty, ones.T @ wanted)
    tensors["fc.weight"] = np.ascontiguousarray(head[:-1].T, dtype=np.float32)
    tensors["fc.bias"] = head[-1].astype(np.float32)
    return weights()


def top1(weights: Weights) -> float:
    """The share of the images of val that the float network has right."""
    images, labels = images_of(1, VAL)
    return float((logits_of(float_model(weights), images, 1).argmax(axis=1) == labels).mean())


def save_fitted(path: Path) -> Path:
    """Write the network as a neutral file."""
    save_weights(fitted_weights(), path)
    return path


class Heard(list[Record]):
    """A listener that keeps what it hears."""

    __call__ = list.append

    @property
    def lines(self) -> list[str]:
        """The notes."""
        return [record.text for record in self if record.kind == "note"]  # type: ignore[attr-defined]

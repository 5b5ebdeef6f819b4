"""Small networks, batches and images that the parts compute with; the same on every machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo

CLASSES = ("red", "green", "blue")
#: Side of the images; what --set needs for a network of it.
SIDE = 16
NETWORK = (
    "--set", "model.variant=resnext_tiny", "--set", f"model.image_size={SIDE}", "--set", f"preprocess.resize={SIDE}",
)  # fmt: skip


def small_weights(*, seed: int = 3, std: float | None = None, **changes: Any) -> Weights:
    """Return a small random network of three classes; `std` replaces that of all colours, with mean 0."""
    fields = {"depths": (1,)} | changes  # compiled in seconds
    spec = model_spec("resnext_tiny", num_classes=len(CLASSES), image_size=SIDE, **fields)
    preprocess = PreprocessSpec(size=SIDE, resize=SIDE)
    if std is not None:
        preprocess = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(std, std, std))
    return Weights(
        spec=spec, preprocess=preprocess, classes=CLASSES, tensors=random_weights(spec, seed),
    )  # fmt: skip


def batch(images: NDArray[Any]) -> Batch:
    """Return a batch of `images` uint8 (N, S, S, 3) with classes in turn."""
    count = len(images)
    return Batch(
        images=images, labels=(np.arange(count) % len(CLASSES)).astype(np.int32), index=np.arange(count),
        valid=np.ones(count, bool),
    )  # fmt: skip


def noise(count: int, *, seed: int = 27, high: int = 256) -> NDArray[Any]:
    """Return images of noise below `high`: uint8 (count, S, S, 3)."""
    return np.random.default_rng(seed).integers(0, high, (count, SIDE, SIDE, 3), dtype=np.uint8)


def request(weights: Weights, options: Any, batch_size: int, **changes: Any) -> TrainRequest:
    """Return a request to train `weights`, in float32 on one rank unless `changes` say otherwise."""
    fields: dict[str, Any] = {
        "optimizer": OptimizerConfig(), "loss": LossConfig(), "precision": PrecisionConfig(), "rank": RankInfo(),
        "collectives": SingleProcess(),
    }  # fmt: skip
    return TrainRequest(weights=weights, options=options, batch_size=batch_size, **(fields | changes))


def write_images(folder: Path, *, train: int, val: int) -> Path:
    """Write noisy images of one colour each, which a small network learns within seconds; return `folder`."""
    rng = np.random.default_rng(5)
    for part, count in (("train", train), ("val", val)):
        for number in range(count):
            image = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
            image[..., number % len(CLASSES)] += 120
            path = folder / part / CLASSES[number % len(CLASSES)] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder

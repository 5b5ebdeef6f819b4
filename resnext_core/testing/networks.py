"""Small networks, their weights and images, and the oracle: core's reference backend in float64."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.interfaces import Backend, Batch, Predictor, PredictRequest, TrainRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.reference import plugin as reference
from resnext_core.reference.options import ReferenceOptions
from resnext_core.training.trainer import Trainer, create_trainer

SINGLE = RankInfo()


def _spec(name: str, **fields: object) -> ModelSpec:
    values = {"groups": 1, "base_width": 64, "stem_width": 8, "num_classes": 5} | fields
    return ModelSpec(variant=f"contract_{name}", **values)  # type: ignore[arg-type]


#: Every kind of layer and of shape: both stems and paddings, one, few and as many groups as channels,
#: shortcuts with and without projection, odd sizes of the image and on the way down, two classes and odd numbers.
SPECS: Mapping[str, ModelSpec] = {
    "cifar": _spec("cifar", stem="cifar", depths=(1, 2), groups=4, base_width=16, image_size=14),
    "same": _spec("same", depths=(1, 1), groups=32, base_width=8, image_size=24, num_classes=2),
    "same-odd": _spec("same_odd", depths=(1, 1), groups=2, base_width=32, image_size=27, num_classes=7),
    "symmetric": _spec("symmetric", depths=(1, 1), groups=1, image_size=24, pool_padding="symmetric"),
    "one-stage": _spec(
        "one_stage", stem="cifar", depths=(2,), groups=4, base_width=32, image_size=9, num_classes=11
    ),
}


@functools.cache
def weights(name: str, seed: int = 3) -> Weights:
    """Return weights of a network of SPECS in which every element matters to the logits.

    Running statistics are made to fit the network, so that logits are about the image and not about biases.
    Mean and standard deviation of the colours are not ImageNet's, so that constants in code are found.
    """
    raw = _raw_weights(name, seed)
    steps = 20  # the random start fades to 0.9 ** 20
    request = TrainRequest(
        weights=raw, batch_size=8, optimizer=OptimizerConfig(momentum=0.0, weight_decay=0.0), loss=LossConfig(),
        precision=PrecisionConfig(), rank=SINGLE, collectives=SingleProcess(),
    )  # fmt: skip
    trainer = oracle_trainer(request)
    batches = [batch(name, 8, seed=200 + step) for step in range(steps)]
    trainer.run_steps(batches, np.zeros(steps, np.float32))
    state = trainer.state()
    trainer.close()
    return raw.replace(tensors={t.name: state.tensors[f"weights/{t.name}"] for t in raw.spec.tensors})


def _raw_weights(name: str, seed: int) -> Weights:
    spec = SPECS[name]
    tensors = random_weights(spec, seed)
    tensors["fc.weight"] *= 3
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(
            size=spec.image_size, resize=spec.image_size, mean=(141.0, 117.0, 87.0), std=(71.0, 53.0, 37.0)
        ),
        classes=tuple(f"class {i}" for i in range(spec.num_classes)),
        tensors=tensors,
    )


def images(name: str, count: int, seed: int = 5, size: int | None = None) -> NDArray[np.uint8]:
    """Return uint8 (count, H, W, 3), coarse blocks under noise; read-only, as nobody may write into it.

    H and W are `size`, None the network's own.
    """
    size = size or SPECS[name].image_size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 128, (count, -(-size // 6), -(-size // 6), 3))
    blocks = coarse.repeat(6, axis=1).repeat(6, axis=2)[:, :size, :size]
    pixels = (blocks + rng.integers(0, 128, (count, size, size, 3))).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def normalized(name: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (pixels - mean) / std as float32 (N, 3, H, W), computed here and not by what is tested."""
    preprocess = weights(name).preprocess
    values = (pixels.astype(np.float64) - preprocess.mean) / preprocess.std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


def batch(name: str, count: int, seed: int, valid: str = "", size: int | None = None) -> Batch:
    """Return a labelled training batch of images of `size` pixels a side; its arrays are read-only.

    `valid` has a 0 for each row that could not be read, and is empty where all could. Such a row is black and has a
    label, or none where its number is odd.
    """
    labels = np.random.default_rng(seed + 1000).integers(0, SPECS[name].num_classes, count, dtype=np.int32)
    pixels, mask = images(name, count, seed, size).copy(), np.array([c == "1" for c in valid or "1" * count])
    pixels[~mask] = 0
    labels[~mask & (np.arange(count) % 2 == 1)] = -1
    for array in (pixels, labels, mask):
        array.flags.writeable = False
    return Batch(images=pixels, labels=labels, index=np.arange(count, dtype=np.int64), valid=mask)


@functools.cache
def oracle() -> Backend:
    """Return the record of core's reference backend."""
    return next(iter(reference.resnext_backends()))


def oracle_predictor(network: Weights) -> Predictor:
    """Return the reference predictor of `network` in float64."""
    make = oracle().predictor
    assert make is not None
    options = ReferenceOptions(compute="float64")
    return make(PredictRequest(weights=network, rank=SINGLE, options=options))


def oracle_trainer(request: TrainRequest) -> Trainer:
    """Return the reference trainer of `request`; ask for float64 in its precision."""
    return create_trainer(oracle(), request)

"""Golden logits: does a backend, on this machine and today, still compute the numbers it should?

Images and weights come from a raw random stream, so they need no file and never change; the logits were
computed by the reference backend in float64 and confirmed with an independent implementation. A trained model
carries golden logits of its own in its manifest: whoever loads it can see that it computes the same network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Backend, Predictor, PredictRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec, PoolPadding
from resnext_core.model.weights import Golden, Weights
from resnext_core.ranks.info import RankInfo

_IMAGE_KEY, _WEIGHT_KEY = 20261122, 20261125

#: Every kind of layer there is: the stem with its pool, grouped convolutions, projections with and without
#: a stride, identity shortcuts; maps of 36, 18, 9, 5 and 3 pixels, so that strides meet even and odd ones.
_SPEC = ModelSpec(
    variant="golden", depths=(1, 2, 1), groups=4, base_width=16, stem_width=8, num_classes=5, image_size=36
)

#: Logits of :func:`golden_images` under :func:`golden_weights`, by pool padding; (3, 5) each.
GOLDEN_LOGITS: dict[PoolPadding, list[list[float]]] = {
    "same": [
        [1.465557767581, 2.157131079579, -0.313812650299, -0.648239214232, -0.440297459506],
        [0.879963033916, 2.962130438978, -0.938334564248, 0.063781983408, 0.141613991687],
        [0.687978966523, 3.724153457892, -0.636331762524, 0.285062690041, 0.389959285540],
    ],
    "symmetric": [
        [1.584621491817, 2.202256871452, -1.523731494271, -0.342845536885, 1.113641372976],
        [1.308719235478, 3.626200466184, -0.802551168603, 0.510991261919, 0.290983092845],
        [-0.313812616946, 2.970486227243, -1.243452742552, 0.312126291261, 0.633430805617],
    ],
}


#: A model's own golden logits: so many images.
_OWN_IMAGES = 2
#: Largest difference of a model's own golden logits, relative to the largest: where they were computed in
#: float32 or float64, as for artefacts; where in fewer bits, enough to tell garbage.
_OWN_TOLERANCE, _OWN_TOLERANCE_HALF = 1e-4, 5e-2


def golden_images() -> NDArray[np.uint8]:
    """Return uint8 (3, 36, 36, 3), see :func:`synthetic_images`."""
    return synthetic_images(3, _SPEC.image_size)


def synthetic_images(count: int, size: int) -> NDArray[np.uint8]:
    """Return uint8 (count, size, size, 3): coarse blocks under noise; over the full range, darker, and brighter."""
    noise = _bytes(_IMAGE_KEY, (count, size, size, 3))
    coarse = -(-size // 6)
    blocks = _bytes(_IMAGE_KEY + 1, (count, coarse, coarse, 3)).repeat(6, axis=1).repeat(6, axis=2)
    images = (noise >> 1) + (blocks[:, :size, :size] >> 1)
    images[1:2] >>= 1
    images[2:3] |= 128
    images[0, 0, 0] = (0, 255, 0)  # the ends of the range
    return images


def make_golden(predictor: Predictor, spec: ModelSpec, compute: str) -> Golden | None:
    """Return the logits by which a loader of this model can check itself; None where they are not finite."""
    return golden_of(predictor.logits(own_images(spec.image_size)), compute)


def own_images(size: int) -> NDArray[np.uint8]:
    """Return the images that a model's own golden logits are of: the first :func:`synthetic_images`."""
    return synthetic_images(_OWN_IMAGES, size)


def golden_of(logits: NDArray[Any], compute: str) -> Golden | None:
    """Return `logits` (N, classes) of :func:`own_images` as golden logits; None where they are not finite."""
    if not np.isfinite(logits).all():
        return None
    return Golden(compute=compute, logits=tuple(tuple(float(x) for x in row) for row in logits))


def check_golden(
    predictor: Predictor,
    golden: Golden | None,
    spec: ModelSpec,
    source: str,
    *,
    tolerance: float | None = None,
    what: str = "its golden logits",
) -> float | None:
    """Compare a loaded model's logits with its golden ones; returns the relative difference, None without golden.

    `tolerance` is the largest difference relative to the largest logit; None takes the one of what they were computed
    in. `what` is their name in the error. Raises DataError when they are further apart.
    """
    if golden is None:
        return None
    expected = np.array(golden.logits)
    logits = predictor.logits(synthetic_images(len(expected), spec.image_size)).astype(np.float64)
    difference = float(np.abs(logits - expected).max() / max(np.abs(expected).max(), 1e-30))
    allowed = tolerance if tolerance is not None else _tolerance(golden, predictor)
    if not difference <= allowed:  # also NaN
        raise DataError(
            f"{source} gives wrong results on this machine: {what} are off by {difference:.2g} of the "
            f"largest (allowed {allowed:g}); do not use it here. eval.self_check=false skips this check"
        )
    return difference


def _tolerance(golden: Golden, predictor: Predictor) -> float:
    exact = golden.compute in ("float32", "float64") and predictor.precision is None
    return _OWN_TOLERANCE if exact else _OWN_TOLERANCE_HALF


def golden_weights(pool_padding: PoolPadding = "same") -> Weights:
    """Return a small network in which every channel is alive.

    Only integer arithmetic, IEEE products and square roots make it, so it is the same bits everywhere.
    """
    spec = _SPEC.replace(pool_padding=pool_padding)
    generator = np.random.Philox(key=_WEIGHT_KEY)
    tensors = {}
    for tensor in spec.tensors:
        raw = (generator.random_raw(tensor.size) >> np.uint64(40)).astype(np.int64)
        uniform = raw.reshape(tensor.shape) * 2.0**-24
        if tensor.role in ("conv", "fc_weight"):
            array = _filters(raw.reshape(len(uniform), -1)).reshape(tensor.shape)
        elif tensor.role in ("bn_weight", "bn_var"):  # residual branches halved: less rounding error
            array = (0.5 + uniform) * (0.5 if tensor.name.endswith(".bn3.weight") else 1.0)
        elif tensor.role in ("bn_bias", "fc_bias"):
            array = uniform
        else:
            array = uniform - 0.5
        tensors[tensor.name] = array.astype(np.float32)
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(size=spec.image_size, resize=spec.image_size),
        classes=tuple(f"class {i}" for i in range(spec.num_classes)),
        tensors=tensors,
        origin={"made by": "resnext_core.serving.golden"},
    )


def _bytes(key: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return (raw >> np.uint64(56)).astype(np.uint8).reshape(shape)


def _filters(raw: NDArray[np.int64]) -> NDArray[np.float64]:
    """Map rows of 24-bit integers to filters of variance 2 / fan_in and mean 0.

    The input of a filter is positive, behind a ReLU: without mean 0 it would shift whole channels out of
    the range in which the next ReLU lets anything through.
    """
    fan_in = raw.shape[1]
    centred = raw - raw.sum(axis=1, keepdims=True) // fan_in
    filters: NDArray[np.float64] = centred * (2.0**-23 * np.sqrt(6 / fan_in))
    return filters


def check_backend(
    backend: Backend, options: Any = None, artefacts: Mapping[PoolPadding, Path] | None = None
) -> float:
    """Return max |logit - golden| / max |golden| of the backend, the worse of both pool paddings.

    The golden networks are served from `artefacts`, None from memory. `options` is the backend's own dataclass, or
    None. In float32 the result is below 1e-5, in float16 and bfloat16 below 2e-2. NaN logits give infinity. Raises
    UsageError where the backend serves no weights in memory and there are no artefacts, DataError on logits of a wrong
    shape or dtype.
    """
    if backend.predictor is None or (artefacts is None and ".safetensors" not in backend.formats):
        raise UsageError(f"backend {backend.id} serves no weights in memory, so it has no golden check")
    images = golden_images()
    worst = 0.0
    for padding, golden in GOLDEN_LOGITS.items():
        predictor = backend.predictor(
            PredictRequest(
                path=None if artefacts is None else artefacts[padding],
                weights=golden_weights(padding) if artefacts is None else None,
                batch_size=len(images), rank=RankInfo(), options=options,
            )
        )  # fmt: skip
        try:
            logits = np.asarray(predictor.logits(images))
        finally:
            predictor.close()
        expected = np.array(golden)
        if logits.shape != expected.shape or logits.dtype != np.float32:
            raise DataError(
                f"backend {backend.id} returned {logits.dtype} {logits.shape} for the golden images, "
                f"not float32 {expected.shape}"
            )
        difference = np.abs(logits.astype(np.float64) - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst

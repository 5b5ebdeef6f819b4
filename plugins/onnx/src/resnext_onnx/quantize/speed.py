"""Images a second of two networks, in turns, so that what else the machine does hits both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from resnext_onnx.graph import IMAGES, LOGITS
from resnext_onnx.quantize.run import session

#: Seconds that each network is measured for, and the calls that are made at least.
_SECONDS, _CALLS = 1.0, 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of the fastest call with `batch` images, in milliseconds, of the float network and of that in 8 bits."""

    batch: int
    float32_ms: float
    int8_ms: float

    @property
    def gain(self) -> float:
        """How many times as fast the network in 8 bits is."""
        return self.float32_ms / self.int8_ms

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, with images a second."""
        return asdict(self) | {
            "float32_images_per_s": 1e3 * self.batch / self.float32_ms,
            "int8_images_per_s": 1e3 * self.batch / self.int8_ms,
            "gain": self.gain,
        }


def compare_speed(models: Mapping[str, onnx.ModelProto], size: int, threads: int | None, batch: int) -> Speed:
    """Time both networks on `batch` images of `size` pixels; `models` has ``float32`` and ``int8``."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    sessions = {name: session(model, threads) for name, model in models.items()}
    for opened in sessions.values():
        opened.run([LOGITS], {IMAGES: images})
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + _SECONDS * len(models)
    while len(times["int8"]) < _CALLS or time.perf_counter() < end:
        for name, opened in sessions.items():
            start = time.perf_counter()
            opened.run([LOGITS], {IMAGES: images})
            times[name].append(1e3 * (time.perf_counter() - start))
    return Speed(batch=batch, float32_ms=min(times["float32"]), int8_ms=min(times["int8"]))

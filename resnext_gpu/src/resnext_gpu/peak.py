"""The peak of a device: the most FLOP/s that a matrix product of PyTorch reaches on it, for benchmarks."""

from __future__ import annotations

import time

import torch

from resnext_core.ranks.info import RankInfo
from resnext_gpu.device import device_of, open_device
from resnext_gpu.options import GpuOptions

_TYPES = {
    "float64": torch.float64, "float32": torch.float32, "tf32": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip
#: Rows and columns of the square factors, by the type of the device. On a card launching one must cost nothing; small
#: ones on the CPU are done before a busy machine interrupts them.
_SIZES = {"cuda": (8192,), "cpu": (256, 512, 1024)}
#: Products of a size are timed for so many seconds, and at least so many times; the fastest counts.
_SECONDS, _LEAST = 0.3, 5


def measured_peak(options: GpuOptions, precision: str) -> float | None:
    """Return FLOP/s of products in `precision` on the device of `options`; None for a type that is not known here."""
    if precision not in _TYPES:
        return None
    device = open_device(device_of(options, RankInfo()))
    return max(2 * size**3 / _fastest(size, device, _TYPES[precision]) for size in _SIZES[device.type])


def _fastest(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.rand(size, size, device=device).to(dtype)
    out = torch.empty_like(left)
    fastest, started, count = float("inf"), time.perf_counter(), 0
    while count < _LEAST or time.perf_counter() - started < _SECONDS:
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, left, out=out)
        _wait(device)
        fastest, count = min(fastest, time.perf_counter() - began), count + 1
    return fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

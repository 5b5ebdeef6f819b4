"""Batches on their way to the device: on a GPU the next one is copied while this one is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnext_core.interfaces import StepInput
from resnext_gpu.mixing import packed


class Feed:
    """Yields images, labels and weights on `device`, and how they are mixed; valid until the next is asked for.

    On a GPU there are two slots, filled on a stream of its own. The next batch is read only when it is asked for: ask
    once the step on this one is queued, and both copies, that to page-locked memory by the processor and that to the
    GPU, go on beside the step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: list[Slot] = []
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied = 0.0
        self._waits: list[tuple[Any, Any]] = []

    def take_copy_seconds(self) -> float:
        """Return how long, since the last call, steps waited for their images: on the CPU the time of the copies."""
        for begin, end in self._waits:
            end.synchronize()
            self._copied += begin.elapsed_time(end) / 1000
        self._waits.clear()
        seconds, self._copied = self._copied, 0.0
        return seconds

    def __call__(self, steps: Sequence[StepInput]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batch of each step as uint8 (N, H, W, 3), int64 (N,) and float32 (N,).

        With `mix` the two tensors of :mod:`resnext_gpu.mixing` follow; all steps have it, or none.
        """
        if self._stream is None:
            for step in steps:
                started = time.perf_counter()
                # A copy: PyTorch would take read-only memory, and the loader's is used again.
                images = torch.from_numpy(np.array(step.images))
                labels = torch.from_numpy(step.labels.astype(np.int64))
                weights = torch.from_numpy(step.weights.astype(np.float32))
                mix = [torch.from_numpy(array) for array in _mix(step)]
                self._copied += time.perf_counter() - started
                yield images, labels, weights, *mix
            return
        shape, rows = steps[0].images.shape, steps[0].labels.shape
        if not self._slots or self._slots[0].tensors[0].shape != shape:
            layout = [(shape, torch.uint8), (rows, torch.int64), (rows, torch.float32)]
            layout += [(array.shape, torch.from_numpy(array).dtype) for array in _mix(steps[0])]
            self._slots = [Slot(layout, self._device) for _ in range(2)]
        current = torch.cuda.current_stream(self._device)
        for i, step in enumerate(steps):
            slot = self._slots[i % 2]
            slot.fill((step.images, step.labels, step.weights, *_mix(step)), self._stream)
            wait = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            wait[0].record(current)
            current.wait_event(slot.filled)
            wait[1].record(current)
            self._waits.append(wait)
            yield tuple(slot.tensors)
            slot.used.record(current)

    def close(self) -> None:
        """Let go of the buffers."""
        self._slots = []


def _mix(step: StepInput) -> tuple[NDArray[Any], ...]:
    return () if step.mix is None else packed(step.mix)


class Slot:
    """Room for arrays of these shapes and types on both sides of the bus: page-locked memory, and `tensors` on the GPU.

    What computes on `tensors` waits for `filled` first, and records `used` afterwards.
    """

    def __init__(self, layout: Sequence[tuple[Sequence[int], torch.dtype]], device: torch.device) -> None:
        self._pinned = [torch.empty(tuple(shape), dtype=dtype, pin_memory=True) for shape, dtype in layout]
        self.tensors = [torch.empty(tuple(shape), dtype=dtype, device=device) for shape, dtype in layout]
        self.filled, self.used = torch.cuda.Event(), torch.cuda.Event()
        # The buffers come from the stream of the computation: what was freed there must be done with.
        self.used.record(torch.cuda.current_stream(device))

    def fill(self, arrays: Sequence[NDArray[Any]], stream: Any, rows: int | None = None) -> None:
        """Start the copy of `arrays` on `stream`; it waits for the last computation that used the slot.

        With `rows` the arrays may be shorter than that, and this many rows are copied: those that are missing are 0.
        """
        self.filled.synchronize()  # the page-locked buffer has been read
        for pinned, array in zip(self._pinned, arrays, strict=True):
            own = pinned.numpy()[:rows]
            np.copyto(own[: len(array)], array, casting="same_kind")
            own[len(array) :] = 0
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            for tensor, pinned in zip(self.tensors, self._pinned, strict=True):
                tensor[:rows].copy_(pinned[:rows], non_blocking=True)
            self.filled.record(stream)

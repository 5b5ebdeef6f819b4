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
    """Yields images, labels and weights on `device`, and what else steps have; valid until the next is asked for.

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

        The two tensors of :mod:`resnext_gpu.mixing`, `branches` and `teacher`, both float32, follow where steps have
        them: all steps have one, or none has. H and W may change from step to step.
        """
        if self._stream is None:
            for step in steps:
                started = time.perf_counter()
                # A copy: PyTorch would take read-only memory, and the loader's is used again.
                images = torch.from_numpy(np.array(step.images))
                labels = torch.from_numpy(step.labels.astype(np.int64))
                weights = torch.from_numpy(step.weights.astype(np.float32))
                others = [torch.from_numpy(np.array(array)) for array in _others(step)]
                self._copied += time.perf_counter() - started
                yield images, labels, weights, *others
            return
        current = torch.cuda.current_stream(self._device)
        for i, step in enumerate(steps):
            slot = self._room(step)[i % 2]
            slot.fill((step.images, step.labels, step.weights, *_others(step)), self._stream)
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

    def _room(self, step: StepInput) -> list[Slot]:
        """Return two slots for batches as this one."""
        shape, rows = step.images.shape, step.labels.shape
        if not self._slots or self._slots[0].tensors[0].shape != shape:
            layout = [(shape, torch.uint8), (rows, torch.int64), (rows, torch.float32)]
            layout += [(array.shape, torch.from_numpy(array).dtype) for array in _others(step)]
            self._slots = []
            self._slots = [Slot(layout, self._device) for _ in range(2)]
        return self._slots


def _others(step: StepInput) -> list[NDArray[Any]]:
    """Return what a step has besides images, labels and weights."""
    found: list[NDArray[Any]] = [] if step.mix is None else list(packed(step.mix))
    return found + [array for array in (step.branches, step.teacher) if array is not None]


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

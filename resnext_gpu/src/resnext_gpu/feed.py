"""Batches on their way to the device: on a GPU the next one is copied while this one is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnext_core.interfaces import StepInput


class Feed:
    """Yields (images, labels, weights) on `device`; valid until the next is asked for.

    On a GPU there are two slots, each a page-locked buffer and its twin on the GPU, filled on a stream of its own. A
    slot is filled again only after the step that used it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: list[_Slot] = []
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

    def __call__(self, steps: Sequence[StepInput]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the batch of each step as uint8 (N, H, W, 3), int64 (N,) and float32 (N,)."""
        if self._stream is None:
            for step in steps:
                started = time.perf_counter()
                # A copy: PyTorch would take read-only memory, and the loader's is used again.
                images = torch.from_numpy(np.array(step.images))
                labels = torch.from_numpy(step.labels.astype(np.int64))
                weights = torch.from_numpy(step.weights.astype(np.float32))
                self._copied += time.perf_counter() - started
                yield images, labels, weights
            return
        if not self._slots or self._slots[0].shape != steps[0].images.shape:
            self._slots = [_Slot(steps[0], self._device) for _ in range(2)]
        self._slots[0].fill(steps[0], self._stream)
        for i in range(len(steps)):
            slot = self._slots[i % 2]
            if i + 1 < len(steps):
                self._slots[(i + 1) % 2].fill(steps[i + 1], self._stream)
            current = torch.cuda.current_stream(self._device)
            wait = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            wait[0].record(current)
            current.wait_event(slot.filled)
            wait[1].record(current)
            self._waits.append(wait)
            yield slot.images, slot.labels, slot.weights
            slot.used.record(current)


class _Slot:
    """Room for one batch on both sides of the bus."""

    def __init__(self, step: StepInput, device: torch.device) -> None:
        self.shape = step.images.shape
        self._images = torch.empty(self.shape, dtype=torch.uint8, pin_memory=True)
        self._labels = torch.empty(len(step.labels), dtype=torch.int64, pin_memory=True)
        self._weights = torch.empty(len(step.labels), dtype=torch.float32, pin_memory=True)
        self.images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        self.labels = torch.empty(len(step.labels), dtype=torch.int64, device=device)
        self.weights = torch.empty(len(step.labels), dtype=torch.float32, device=device)
        self.filled, self.used = torch.cuda.Event(), torch.cuda.Event()
        # The buffers come from the stream of the computation: what was freed there must be done with.
        self.used.record(torch.cuda.current_stream(device))

    def fill(self, step: StepInput, stream: Any) -> None:
        """Start the copy of a batch; it waits for the last step that used the slot."""
        self.filled.synchronize()  # the page-locked buffer has been read
        np.copyto(self._images.numpy(), step.images)
        np.copyto(self._labels.numpy(), step.labels, casting="safe")
        np.copyto(self._weights.numpy(), step.weights, casting="same_kind")
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            self.images.copy_(self._images, non_blocking=True)
            self.labels.copy_(self._labels, non_blocking=True)
            self.weights.copy_(self._weights, non_blocking=True)
            self.filled.record(stream)

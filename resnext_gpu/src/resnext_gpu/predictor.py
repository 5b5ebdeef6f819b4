"""The predictor: a network in evaluation mode over tensors that it may share with a trainer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_core.interfaces import Predictor, PredictRequest
from resnext_core.model.weights import Weights, load_weights
from resnext_gpu.device import channels_last, device_of, open_device
from resnext_gpu.feed import Slot
from resnext_gpu.memory import fitting
from resnext_gpu.network import Arithmetic, Network, make_tensors
from resnext_gpu.options import GpuOptions

#: Batch sizes that a GPU computes. Each new one makes cuDNN time its algorithms again, for every convolution; and while
#: one part of a batch is computed, the next is copied. 64 images of 224 pixels keep a large GPU busy.
SIZES = (1, 2, 4, 8, 16, 32, 48, 64)


class GpuPredictor(Predictor):
    """Serves `tensors` of the network that `weights` describe, where they lie; it follows their changes.

    A batch is computed in parts of `sizes` images, of which the last is filled up with black ones, whose logits are
    dropped; None computes it as it is, which is the default on the CPU.
    """

    def __init__(
        self, weights: Weights, tensors: Mapping[str, Tensor], how: Arithmetic, *,
        sizes: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self._network: Network | None = Network(weights.spec, weights.preprocess, tensors, how).eval()
        self._device = next(iter(tensors.values())).device
        cuda = self._device.type == "cuda"
        self._sizes = SIZES if cuda and sizes is None else sizes
        self._stream: Any = torch.cuda.Stream(self._device) if cuda else None
        self._slots: list[Slot] = []
        self._turn = threading.Lock()  # the slots are for one batch at a time, whoever asks

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes); UsageError on other input."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
            raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
        return self._run(images, tensor_input=False)

    def logits_from_tensor(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes); UsageError on other input."""
        if tensor.dtype != np.float32 or tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.size == 0:
            raise UsageError(f"the tensor must be float32 (N, 3, H, W), not {tensor.dtype} {tensor.shape}")
        return self._run(tensor, tensor_input=True)

    def close(self) -> None:
        """Drop the network and the buffers."""
        self._network, self._slots = None, []

    @torch.no_grad()
    def _run(self, data: NDArray[Any], *, tensor_input: bool) -> NDArray[np.float32]:
        if self._network is None:
            raise UsageError("this predictor is closed")
        forward = self._network.from_tensor if tensor_input else self._network
        most = min(len(data), max(self._sizes)) if self._sizes else len(data)
        turn = self._turn if self._stream is not None else nullcontext()
        with turn, fitting(f"{most} images at once do", "use a smaller eval.batch_size", self._device):
            parts = [forward(given)[:count] for given, count in self._parts(data)]
            found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return found

    def _parts(self, data: NDArray[Any]) -> Iterator[tuple[Tensor, int]]:
        """Yield the parts of a batch on the device, each with how many of its rows count.

        A part is valid until the next is asked for, which should be when its computation is queued.
        """
        sizes = split(len(data), self._sizes)
        if self._stream is None:
            start = 0
            for count, rows in sizes:
                # A copy of its own: PyTorch takes neither negative strides nor, in silence, memory that is read-only.
                own = np.zeros((rows, *data.shape[1:]), data.dtype)
                own[:count] = data[start : start + count]
                yield torch.from_numpy(own), count
                start += count
            return
        current, start = torch.cuda.current_stream(self._device), 0
        slots = self._room((sizes[0][1], *data.shape[1:]), torch.from_numpy(np.empty(0, data.dtype)).dtype)
        for number, (count, rows) in enumerate(sizes):
            slot = slots[number % 2]
            slot.fill([data[start : start + count]], self._stream, rows)
            current.wait_event(slot.filled)
            yield slot.tensors[0][:rows], count
            slot.used.record(current)
            start += count

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Slot]:
        """Return two slots for parts of at most this shape."""
        if self._slots:
            own = self._slots[0].tensors[0]
            if own.dtype == dtype and own.shape[1:] == shape[1:] and own.shape[0] >= shape[0]:
                return self._slots
        self._slots = []
        self._slots = [Slot([(shape, dtype)], self._device) for _ in range(2)]
        return self._slots


def split(count: int, sizes: Sequence[int] | None) -> list[tuple[int, int]]:
    """Return the parts of a batch of `count`: how many rows of each count, and how many it has, the first the most."""
    if sizes is None:
        return [(count, count)]
    most = max(sizes)
    parts = [(most, most)] * (count // most)
    rest = count % most
    return parts + [(rest, min(size for size in sizes if size >= rest))] * (rest > 0)


def create_predictor(request: PredictRequest, options: GpuOptions) -> GpuPredictor:
    """Serve weights in memory or a neutral ``.safetensors`` file in float32.

    Raises UsageError unless the request names exactly one of the two, DataError on a bad file, BackendUnavailable
    without the device.
    """
    if (request.weights is None) == (request.path is None):
        raise UsageError("the backend gpu needs either weights or the path of a file")
    if request.path is not None and request.path.suffix != ".safetensors":
        raise UsageError(f"the backend gpu serves .safetensors files, not {request.path}")
    weights = request.weights if request.path is None else load_weights(request.path)
    assert weights is not None
    device = open_device(device_of(options, request.rank))
    layout = channels_last(options, device)
    with fitting(f"the weights of {weights.spec.variant} do", "use a smaller network", device):
        tensors = make_tensors(weights.spec, weights.tensors, device, channels_last=layout)
    return GpuPredictor(weights, tensors, Arithmetic(channels_last=layout))

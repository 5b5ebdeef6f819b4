"""The predictor: a network in evaluation mode over tensors that it may share with a trainer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_core.interfaces import Predictor, PredictRequest
from resnext_core.model.weights import Weights, load_weights
from resnext_gpu.device import channels_last, device_of, open_device
from resnext_gpu.memory import fitting
from resnext_gpu.network import Arithmetic, Network, make_tensors
from resnext_gpu.options import GpuOptions


class GpuPredictor(Predictor):
    """Serves `tensors` of the network that `weights` describe, where they lie; it follows their changes."""

    def __init__(self, weights: Weights, tensors: Mapping[str, Tensor], how: Arithmetic) -> None:
        self._network: Network | None = Network(weights.spec, weights.preprocess, tensors, how).eval()
        self._device = next(iter(tensors.values())).device

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
        """Drop the network."""
        self._network = None

    @torch.no_grad()
    def _run(self, data: NDArray[np.generic], *, tensor_input: bool) -> NDArray[np.float32]:
        if self._network is None:
            raise UsageError("this predictor is closed")
        # A copy of its own: PyTorch takes neither negative strides nor, in silence, memory that is read-only.
        own = torch.from_numpy(np.array(data, order="C"))
        with fitting(f"{len(data)} images at once do", "use a smaller eval.batch_size", self._device):
            given = own.to(self._device)
            logits = self._network.from_tensor(given) if tensor_input else self._network(given)
            found: NDArray[np.float32] = logits.cpu().numpy()
        return found


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

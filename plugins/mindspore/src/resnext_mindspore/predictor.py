"""Predictors: a network with weights in memory or from a neutral file, and a MINDIR artefact."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnext_core.errors import DataError, UsageError, one_line
from resnext_core.interfaces import Predictor, PredictRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.sidecar import read_artefact
from resnext_core.model.weights import Manifest, Weights, load_weights
from resnext_mindspore.device import Device, open_device


class NetworkPredictor(Predictor):
    """A network in evaluation mode over given Parameters, which it shares; the device must be open.

    MindSpore compiles a graph for each batch size, so batches are padded to a power of two, at most
    `batch_size` (or the first batch, where that is larger), and longer ones are cut. `arithmetic` is how the Network
    computes.
    """

    def __init__(
        self,
        *,
        weights: Weights,
        parameters: Mapping[str, Any],
        batch_size: int,
        arithmetic: Mapping[str, Any],
    ) -> None:
        self.manifest: Manifest = manifest_of(weights)
        self._parameters = parameters
        self._arithmetic = arithmetic
        self._usual = batch_size
        self._used = False
        self._networks: dict[bool, Any] = {}
        self._closed = False

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes); UsageError on other input."""
        check_images(images)
        return self._run(images, tensor_input=False)

    def logits_from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes); UsageError on other input."""
        check_tensor(tensor)
        return self._run(tensor, tensor_input=True)

    def close(self) -> None:
        """Drop the graphs and Parameters."""
        self._networks, self._parameters, self._closed = {}, {}, True

    def _run(self, data: np.ndarray, *, tensor_input: bool) -> np.ndarray:
        if self._closed:
            raise UsageError("this predictor is closed")
        from mindspore import Tensor

        from resnext_mindspore.network import Network

        if tensor_input not in self._networks:
            self._networks[tensor_input] = Network(
                self.manifest.spec,
                self.manifest.preprocess,
                self._parameters,
                training=False,
                tensor_input=tensor_input,
                **self._arithmetic,
            )
        if not self._used:
            self._usual, self._used = max(self._usual, len(data)), True
        network = self._networks[tensor_input]
        size = min(1 << (len(data) - 1).bit_length(), self._usual)
        return in_batches(data, size, lambda part: network(Tensor(part)).asnumpy())


class MindirPredictor(Predictor):
    """A MINDIR artefact with its sidecar manifest; the device must be open.

    Raises DataError where the artefact or its sidecar is missing, damaged or does not fit the other.
    """

    def __init__(self, request: PredictRequest) -> None:
        from mindspore import nn

        assert request.path is not None
        self.manifest, artefact = read_artefact(request.path, needs=("input", "batch_size"))
        self._input: str = artefact["input"]
        self._batch: int | None = artefact["batch_size"]
        self._size = self.manifest.spec.image_size
        try:
            self._graph = nn.GraphCell(_load(request.path))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = one_line(error, 200)
            raise DataError(f"{request.path} is not a MINDIR that MindSpore can read: {reason}") from error
        self._usual = request.batch_size

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes); UsageError on other input."""
        check_images(images)
        if self._input == "float":
            return self._run(normalize(images, self.manifest.preprocess))
        return self._run(images)

    def logits_from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes).

        Raises UsageError on other input, and where the artefact normalises inside.
        """
        check_tensor(tensor)
        if self._input != "float":
            raise UsageError(
                "this MINDIR takes uint8 images and normalises them itself; export it with input: float"
            )
        return self._run(tensor)

    def close(self) -> None:
        """Drop the graph."""
        self._graph = None

    def _run(self, data: np.ndarray) -> np.ndarray:
        from mindspore import Tensor

        if self._graph is None:
            raise UsageError("this predictor is closed")
        height, width = data.shape[2:] if data.dtype == np.float32 else data.shape[1:3]
        if (height, width) != (self._size, self._size):
            raise UsageError(
                f"this MINDIR takes images of {self._size} x {self._size}, not {height} x {width}"
            )
        size = self._batch or min(1 << (len(data) - 1).bit_length(), self._usual)
        return in_batches(data, size, lambda part: self._graph(Tensor(part)).asnumpy())


def create_predictor(request: PredictRequest, device: Device) -> NetworkPredictor | MindirPredictor:
    """Serve weights in memory, a neutral ``.safetensors`` file or a ``.mindir`` artefact on `device`.

    Raises UsageError unless the request names exactly one of weights and path, DataError on a bad file.
    """
    if (request.weights is None) == (request.path is None):
        raise UsageError("the MindSpore backend needs either weights or the path of a file")
    suffix = None if request.path is None else request.path.suffix
    if suffix not in (None, ".safetensors", ".mindir"):
        raise UsageError(f"MindSpore serves .safetensors and .mindir files, not {request.path}")
    if suffix == ".mindir":
        open_device(device)
        return MindirPredictor(request)
    weights = request.weights if request.path is None else load_weights(request.path)
    assert weights is not None
    ms = open_device(device)
    from resnext_mindspore.network import make_parameters

    return NetworkPredictor(
        weights=weights,
        parameters=make_parameters(weights.spec, weights.tensors),
        batch_size=request.batch_size,
        arithmetic={
            "compute": ms.float32, "split_groups": device.operators.split_groups,
            "slice_pool": device.operators.slices(device.target, "float32"),
        },
    )  # fmt: skip


def in_batches(data: np.ndarray, size: int, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return `run` of `data` (N, ...) in batches of exactly `size`, the last one padded with zeros."""
    parts = []
    for start in range(0, len(data), size):
        part = np.ascontiguousarray(data[start : start + size])
        count = len(part)
        if count < size:
            part = np.concatenate([part, np.zeros((size - count, *part.shape[1:]), part.dtype)])
        parts.append(run(part)[:count])
    return np.concatenate(parts).astype(np.float32, copy=False)


def normalize(images: np.ndarray, preprocess: PreprocessSpec) -> np.ndarray:
    """Return uint8 (N, H, W, 3) as the normalised float32 (N, 3, H, W) that a float artefact takes."""
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    return np.ascontiguousarray(((images.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))


def manifest_of(weights: Weights) -> Manifest:
    """Return the manifest record of weights in memory."""
    return Manifest(
        spec=weights.spec,
        preprocess=weights.preprocess,
        classes=weights.classes,
        digest=weights.digest,
        origin=weights.origin,
        metrics=weights.metrics,
        named=weights.named,
    )


def check_images(images: np.ndarray) -> None:
    """Raise UsageError unless `images` are uint8 (N, H, W, 3) with N of 1 or more."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
        raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")


def check_tensor(tensor: np.ndarray) -> None:
    """Raise UsageError unless `tensor` is float32 (N, 3, H, W) with N of 1 or more."""
    if tensor.dtype != np.float32 or tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.size == 0:
        raise UsageError(f"the tensor must be float32 (N, 3, H, W), not {tensor.dtype} {tensor.shape}")


def _load(path: Path) -> Any:
    """Return the graph of a MINDIR; MindSpore takes names in UTF-8 only: another file is copied."""
    from mindspore import load

    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="resnext-mindir-") as folder:
            copied = shutil.copyfile(path, os.path.join(folder, "model.mindir"))  # a link it would resolve
            return load(copied)
    return load(str(path))

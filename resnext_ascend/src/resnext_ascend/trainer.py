"""The engine's trainer and predictors with what is Ascend's own: sink, statistics over ranks, signs of life."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from resnext_mindspore.predictor import create_predictor
from resnext_mindspore.trainer import MindsporeTrainer

from resnext_ascend.beat import beat
from resnext_ascend.device import device_of, prepare
from resnext_ascend.options import AscendOptions
from resnext_core.config import PrecisionConfig
from resnext_core.errors import DataError
from resnext_core.interfaces import Batch, PredictRequest, TrainRequest


def amp_level(precision: PrecisionConfig) -> str:
    """Return what MindSpore's amp calls this arithmetic: O0, O2 (batch normalisation in float32), O3, or bfloat16's."""
    if precision.compute in ("float32", "float64"):
        return "O0"
    level = "O2" if precision.bn_float32 else "O3"
    return level if precision.compute == "float16" else f"{level} in {precision.compute}"


class AscendTrainer(MindsporeTrainer):
    """A network being trained on an Ascend, or in test mode on the CPU; see AscendOptions for what differs."""

    def __init__(self, request: TrainRequest, options: AscendOptions) -> None:
        prepare(options)
        super().__init__(_with_first_weights(request), device_of(options, request.rank))
        self._checked = request.rank.world == 1
        averaged = options.bn_statistics == "averaged" and request.rank.world > 1
        self._single = not options.sink or averaged
        self._running: list[Any] = []
        if averaged:
            names = {t.name for t in self._spec.tensors if not t.trainable}
            self._running = [p for key, p in sorted(self._named().items()) if key.split("/", 1)[1] in names]

    def run_steps(self, batches: Sequence[Batch], lrs: np.ndarray) -> np.ndarray:
        """Take one optimizer step a batch; see :class:`~resnext_core.interfaces.Trainer`.

        Raises DataError, once, where ranks stand at different steps: they do not see the same checkpoints.
        """
        if not self._checked:
            self._check_together()
        beat(f"{len(batches)} steps")
        if not self._single or len(batches) != len(lrs):
            losses = super().run_steps(batches, lrs)
        else:
            parts = []
            for i in range(len(batches)):
                parts.append(super().run_steps(batches[i : i + 1], lrs[i : i + 1]))
                self._average_statistics()
                beat("a step done")
            losses = np.concatenate([np.zeros(0, np.float32), *parts])
        beat("steps done")
        return losses

    def predictor(self, *, ema: bool = False) -> Any:
        """Return a predictor that shares the current weights (or EMA)."""
        return BeatingPredictor(super().predictor(ema=ema))

    def _check_together(self) -> None:
        """Compare the step of all ranks, before the first gradients of different steps are added."""
        rank, step = self._request.rank, int(self.counters()["step"])
        first = self._request.collectives.all_reduce_sum(np.array([step if rank.is_main else 0], np.int64))[0]
        others = self._request.collectives.all_reduce_sum(np.array([int(step != first)], np.int64))[0]
        if others:
            raise DataError(
                f"rank {rank.rank} stands at step {step}, rank 0 at step {first}: all servers must see the run folder, "
                "checkpoints included; put it on storage that they share"
            )
        self._checked = True

    def _average_statistics(self) -> None:
        """Give every rank the mean of all ranks' running statistics, the same bits on each.

        After every step, so that no cut of a run into calls changes a bit. The averages are linear in the batches'
        statistics: averaging once at the end would give the same, to rounding.
        """
        if not self._running:
            return
        own = np.concatenate([p.asnumpy().ravel() for p in self._running]).astype(np.float64)
        mean = self._request.collectives.all_reduce_sum(own) / self._request.rank.world
        ends = np.cumsum([p.size for p in self._running])[:-1]
        for parameter, part in zip(self._running, np.split(mean, ends), strict=True):
            parameter.set_data(self._ms.Tensor(part.reshape(parameter.shape).astype(np.float32)))


class BeatingPredictor:
    """A predictor of the engine with a sign of life at each batch."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes)."""
        beat("prediction")
        return np.asarray(self._inner.logits(images))

    def logits_from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes)."""
        beat("prediction")
        return np.asarray(self._inner.logits_from_tensor(tensor))

    def close(self) -> None:
        """Release the graphs."""
        self._inner.close()


def _with_first_weights(request: TrainRequest) -> TrainRequest:
    """Return the request with the initial weights of rank 0, whatever the others began with.

    Ranks make the same weights from the same seed, so that comparing digests is all there is to do; where they
    differ, tensors travel one by one.
    """
    rank, add = request.rank, request.collectives.all_reduce_sum
    if rank.world == 1:
        return request
    own = int(hashlib.sha256(request.weights.digest.encode()).hexdigest()[:14], 16)
    first = int(add(np.array([own if rank.is_main else 0], np.int64))[0])
    if not int(add(np.array([int(own != first)], np.int64))[0]):
        return request
    tensors = {}
    for tensor in request.weights.spec.tensors:
        array = request.weights.tensors[tensor.name].astype(np.float64)
        tensors[tensor.name] = add(array if rank.is_main else np.zeros_like(array)).astype(np.float32)
    return replace(request, weights=request.weights.replace(tensors=tensors))


def predictor_of(request: PredictRequest, options: AscendOptions) -> BeatingPredictor:
    """Serve weights in memory, a neutral ``.safetensors`` file or a ``.mindir`` artefact."""
    prepare(options)
    return BeatingPredictor(create_predictor(request, device_of(options, request.rank)))

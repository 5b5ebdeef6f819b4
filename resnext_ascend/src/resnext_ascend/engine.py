"""MindSpore's engine and predictors with what is Ascend's own: sink, statistics over ranks, signs of life."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from resnext_mindspore.engine import MindsporeEngine, Queued
from resnext_mindspore.predictor import create_predictor

from resnext_ascend.beat import beat
from resnext_ascend.device import device_of, prepare
from resnext_ascend.options import AscendOptions
from resnext_core.interfaces import Outcomes, Predictor, PredictRequest, StepInput, TrainRequest
from resnext_core.training.rules import frozen_tensors


class AscendEngine(MindsporeEngine):
    """Optimizer steps on an Ascend, or in test mode on the CPU; see AscendOptions for what differs."""

    def __init__(self, request: TrainRequest, options: AscendOptions) -> None:
        prepare(options)
        super().__init__(request, device_of(options, request.rank))
        averaged = options.bn_statistics == "averaged" and request.rank.world > 1
        self._single = not options.sink or averaged
        self._running: list[Any] = []
        if averaged:
            names = {t.name for t in self._spec.tensors if not t.trainable} - frozen_tensors(request)
            named = sorted(self._table.named().items())
            self._running = [p for key, p in named if key.split("/", 1)[1] in names]

    def queue(self, steps: Sequence[StepInput], scale: Callable[[], float]) -> Iterator[Queued]:
        """Start the steps; without sink, or where statistics are averaged, each is waited for."""
        beat(f"{len(steps)} steps")
        for queued in super().queue(steps, scale):
            if self._single:
                super().settle([queued])
                self._average_statistics()
                beat("a step done")
            yield queued

    def settle(self, queued: Sequence[Queued]) -> Outcomes:
        """Wait for the steps."""
        found = super().settle(queued)
        beat("steps done")
        return found

    def predictor(self, *, ema: bool) -> Predictor:
        """Return a predictor that shares the weights or their EMA."""
        return BeatingPredictor(super().predictor(ema=ema))

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


class BeatingPredictor(Predictor):
    """A predictor of MindSpore with a sign of life at each batch."""

    def __init__(self, inner: Predictor) -> None:
        self._inner, self.manifest = inner, inner.manifest

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes)."""
        beat("prediction")
        return self._inner.logits(images)

    def logits_from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes)."""
        beat("prediction")
        return self._inner.logits_from_tensor(tensor)

    def close(self) -> None:
        """Release the graphs."""
        self._inner.close()


def predictor_of(request: PredictRequest, options: AscendOptions) -> BeatingPredictor:
    """Serve weights in memory, a neutral ``.safetensors`` file or a ``.mindir`` artefact."""
    prepare(options)
    return BeatingPredictor(create_predictor(request, device_of(options, request.rank)))

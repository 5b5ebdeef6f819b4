"""Engine of the reference backend: everything TrainRequest can ask for, in plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resnext_core.data.mix import mixed_pixels
from resnext_core.errors import UsageError
from resnext_core.interfaces import Engine, Outcomes, StepInput, TrainRequest
from resnext_core.reference.loss import loss_function
from resnext_core.reference.network import normalize, train_pass
from resnext_core.reference.ops import Array
from resnext_core.reference.optimizers import Optimizer
from resnext_core.reference.predictor import ReferencePredictor


class ReferenceEngine(Engine):
    """Optimizer steps in float32 or float64.

    In float64 weights, optimizer state and EMA are float64 too, and :meth:`read` rounds them to float32: a run
    resumed from it goes on from the rounded values. In float32 resuming is exact to the bit.

    Batch statistics are over all rows, those that are not valid too. Running statistics are those of this rank, and
    they move on every micro-batch, also on a step that is skipped because its gradients overflowed, as on every
    framework. The EMA follows there too.

    Raises UsageError on an arithmetic that it does not have.
    """

    def __init__(self, request: TrainRequest) -> None:
        compute = request.precision.compute
        if compute not in ("float32", "float64"):
            raise UsageError(
                f"the reference backend cannot compute in {compute}; "
                "set precision.compute to float32 or float64"
            )
        self._request = request
        self._spec = request.weights.spec
        self._dtype: np.dtype[Any] = np.dtype(compute)
        self._weights = {n: a.astype(self._dtype) for n, a in request.weights.tensors.items()}
        self._optimizer = Optimizer(request, self._dtype)
        kept = request.ema_decay is not None
        self._ema = {n: a.copy() for n, a in self._weights.items()} if kept else {}

    def queue(self, steps: Sequence[StepInput], scale: Callable[[], float]) -> Iterator[tuple[float, bool]]:
        """Take the steps; yields the loss on this rank and whether the step was taken."""
        for step in steps:
            yield self._run_step(step, scale())

    def settle(self, queued: Sequence[tuple[float, bool]]) -> Outcomes:
        """Return what `queue` has found."""
        losses, taken = zip(*queued, strict=True)
        return Outcomes(losses=np.array(losses, np.float64), skipped=~np.array(taken, np.bool_))

    def read(self) -> dict[str, Array]:
        """Return float32 copies of weights, optimizer state and EMA."""
        return {name: array.astype(np.float32) for name, array in self._named().items()}

    def write(self, tensors: Mapping[str, Array]) -> None:
        """Go on from these values."""
        for name, array in self._named().items():
            array[...] = tensors[name]

    def predictor(self, *, ema: bool) -> ReferencePredictor:
        """Return a predictor that shares the weights or their EMA, in the arithmetic of training."""
        return ReferencePredictor(
            spec=self._spec,
            preprocess=self._request.weights.preprocess,
            tensors=self._ema if ema else self._weights,
        )

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _named(self) -> dict[str, Array]:
        """Return every array of the state under its key."""
        groups = {"weights": self._weights, "ema": self._ema}
        named = {f"{group}/{name}": a for group, arrays in groups.items() for name, a in arrays.items()}
        return named | self._optimizer.named()

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        # An overflow is an outcome here, seen by `_take` or by the caller in the loss, not a warning.
        kept = self._running() if self._request.skip_nonfinite else {}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            own_loss, gradients = self._accumulate(step, scale)
            loss, gradients = self._average_ranks(own_loss, gradients)
            for gradient in gradients.values():
                gradient /= self._dtype.type(scale)
            taken = self._take(loss, gradients)
            if taken:
                self._update(gradients, step.lr)
            elif self._request.skip_nonfinite:  # statistics that are not numbers would never recover
                for name, array in kept.items():
                    self._weights[name][...] = array
                return own_loss, False
            self._update_ema(step.ema_decay)
        return own_loss, taken

    def _accumulate(self, step: StepInput, scale: float) -> tuple[float, dict[str, Array]]:
        """Return the mean weighted loss and its mean scaled gradient over the micro-batches."""
        request, count = self._request, self._request.accumulate
        total, gradients = 0.0, {n: np.zeros_like(self._weights[n]) for n in self._optimizer.rules}
        for part in step.micro_batches(count):
            x = normalize(part.images, request.weights.preprocess, self._dtype)
            if part.mix is not None:
                x = np.ascontiguousarray(
                    mixed_pixels(x.transpose(1, 2, 3, 0), part.mix).transpose(3, 0, 1, 2)
                )
            loss = loss_function(
                request.loss, self._spec.num_classes, part.labels, weights=part.weights, mix=part.mix,
                offsets=request.logit_offsets, distillation=request.distillation, teacher=part.teacher,
            )  # fmt: skip
            found = train_pass(
                self._spec, self._weights, x, loss, scale=scale, branches=part.branches, frozen=request.frozen
            )
            for name, array in found.running.items():
                self._weights[name][...] = array
            total += found.loss / count
            for name, gradient in found.gradients.items():
                gradients[name] += gradient / count
        return total, gradients

    def _average_ranks(self, loss: float, gradients: dict[str, Array]) -> tuple[float, dict[str, Array]]:
        """Average over ranks, in one float64 message."""
        world = self._request.rank.world
        if world == 1:
            return loss, gradients
        packed = np.concatenate([[loss], *(g.ravel() for g in gradients.values())]).astype(np.float64)
        mean = self._request.collectives.all_reduce_sum(packed) / world
        averaged, start = {}, 1
        for name, gradient in gradients.items():
            piece = mean[start : start + gradient.size]
            averaged[name] = piece.reshape(gradient.shape).astype(self._dtype)
            start += gradient.size
        return float(mean[0]), averaged

    def _take(self, loss: float, gradients: Mapping[str, Array]) -> bool:
        """Return whether to take a step with this loss and these gradients, both averaged over ranks."""
        finite = not self._request.checked or all(np.isfinite(g).all() for g in gradients.values())
        if self._request.skip_nonfinite:
            finite = finite and bool(np.isfinite(loss))
        return finite

    def _running(self) -> dict[str, Array]:
        """Return a copy of the running statistics."""
        return {t.name: self._weights[t.name].copy() for t in self._spec.tensors if not t.trainable}

    def _update(self, gradients: Mapping[str, Array], lr: float) -> None:
        self._optimizer.step(self._weights, gradients, lr)

    def _update_ema(self, decay: float | None) -> None:
        """ema = decay · ema + (1 - decay) · w, over weights and running statistics."""
        if decay is None or decay == 1:
            return
        for name, average in self._ema.items():
            if decay == 0:
                average[...] = self._weights[name]
                continue
            average *= decay
            average += (1 - decay) * self._weights[name]

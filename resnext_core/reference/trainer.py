"""Trainer of the reference backend: momentum SGD with everything TrainRequest can ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import Batch, TrainRequest, TrainState
from resnext_core.reference.network import normalize, train_pass
from resnext_core.reference.ops import Array
from resnext_core.reference.predictor import ReferencePredictor
from resnext_core.training.trainer import Rows, StepCounter, check_state, training_rows

#: Added to the norm when clipping, as torch.nn.utils.clip_grad_norm_ does.
CLIP_EPS = 1e-6


class ReferenceTrainer:
    """A network being trained in float32 or float64.

    In float64 weights, momentum and EMA are float64 too, and :meth:`state` rounds them to float32: a run
    resumed from it goes on from the rounded values. In float32 resuming is exact to the bit.

    Rows that are not valid have weight 0 in the loss, see :func:`~resnext_core.training.trainer.training_rows`;
    batch statistics are over all rows. Running statistics are those of this rank, and they move on every
    micro-batch, also on a step that is skipped because its gradients overflowed, as on every framework.
    The EMA follows there too.

    Raises UsageError on an arithmetic or a split of the batch that it cannot do.
    """

    def __init__(self, request: TrainRequest) -> None:
        compute = request.precision.compute
        if compute not in ("float32", "float64"):
            raise UsageError(
                f"the reference backend cannot compute in {compute}; "
                "set precision.compute to float32 or float64"
            )
        if request.accumulate < 1 or request.batch_size < 1 or request.batch_size % request.accumulate:
            raise UsageError(
                f"a batch of {request.batch_size} a rank does not split into {request.accumulate} equal "
                "micro-batches; change train.batch_size or train.accumulate"
            )
        self._request = request
        self._spec = request.weights.spec
        self._dtype: np.dtype[Any] = np.dtype(compute)
        self._weights = {n: a.astype(self._dtype) for n, a in request.weights.tensors.items()}
        self._momentum = {t.name: np.zeros(t.shape, self._dtype) for t in self._spec.tensors if t.trainable}
        self._decay = {t.name for t in self._spec.tensors if t.decay}
        self._ema = None if request.ema_decay is None else {n: a.copy() for n, a in self._weights.items()}
        self._count = StepCounter(request.precision, skip_nonfinite=request.skip_nonfinite)

    def run_steps(self, batches: Sequence[Batch], lrs: Array) -> Array:
        """Take one optimizer step a batch; see :class:`~resnext_core.interfaces.Trainer`.

        Raises UsageError on batches that are not of the size asked for, DataError on impossible labels.
        """
        rows = training_rows(self._request, batches, lrs)
        return np.array(
            [self._run_step(b, r, float(lr)) for b, r, lr in zip(batches, rows, lrs, strict=True)], np.float32
        )

    def predictor(self, *, ema: bool = False) -> ReferencePredictor:
        """Return a predictor of a copy of the current weights, in the arithmetic of training."""
        tensors = self._ema if ema else self._weights
        if tensors is None:
            raise UsageError("this run keeps no EMA; set train.ema_decay")
        return ReferencePredictor(
            spec=self._spec,
            preprocess=self._request.weights.preprocess,
            tensors=tensors,
            compute=self._dtype.name,
        )

    def state(self) -> TrainState:
        """Return a float32 copy of weights (running statistics of this rank), momentum and EMA."""
        tensors = {
            f"{group}/{name}": array.astype(np.float32)
            for group, arrays in self._groups().items()
            for name, array in arrays.items()
        }
        return TrainState(tensors=tensors, scalars=dict(self.counters()))

    def load_state(self, state: TrainState) -> None:
        """Continue from `state`; DataError when tensors or scalars are missing, misshapen or too many."""
        groups = self._groups()
        shapes = {f"{g}/{n}": a.shape for g, arrays in groups.items() for n, a in arrays.items()}
        check_state(state, shapes, self._spec.variant)
        for group, arrays in groups.items():
            for name, array in arrays.items():
                array[...] = state.tensors[f"{group}/{name}"]
        self._count.load(state.scalars)

    def counters(self) -> Mapping[str, float | int]:
        """Return step, overflow_steps, loss_scale and good_steps."""
        return self._count.scalars()

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _groups(self) -> dict[str, dict[str, Array]]:
        groups = {"weights": self._weights, "momentum": self._momentum}
        return groups if self._ema is None else {**groups, "ema": self._ema}

    def _run_step(self, batch: Batch, rows: Rows, lr: float) -> float:
        # An overflow is an outcome here, seen by `_take` or by the caller in the loss, not a warning.
        kept = self._running() if self._request.skip_nonfinite else {}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss, gradients = self._accumulate(batch, rows)
            loss, gradients = self._average_ranks(loss, gradients)
            for gradient in gradients.values():
                gradient /= self._dtype.type(self._count.scale)
            taken = self._take(loss, gradients)
            if taken:
                self._update(gradients, lr)
            elif self._request.skip_nonfinite:  # statistics that are not numbers would never recover
                self._weights |= kept
                return loss
            self._update_ema()
        return loss

    def _accumulate(self, batch: Batch, rows: Rows) -> tuple[float, dict[str, Array]]:
        """Return the mean weighted loss and its mean scaled gradient over the micro-batches."""
        total, gradients = 0.0, {n: np.zeros_like(a) for n, a in self._momentum.items()}
        micro = self._request.batch_size // self._request.accumulate
        for start in range(0, self._request.batch_size, micro):
            part = slice(start, start + micro)
            x = normalize(batch.images[part], self._request.weights.preprocess, self._dtype)
            found = train_pass(
                self._spec,
                self._weights,
                x,
                rows.labels[part],
                self._request.loss,
                self._count.scale,
                rows.weights[part],
            )
            self._weights |= found.running
            total += found.loss / self._request.accumulate
            for name, gradient in found.gradients.items():
                gradients[name] += gradient / self._request.accumulate
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
        """Count the step and say whether to take it."""
        finite = not self._count.checks or all(np.isfinite(g).all() for g in gradients.values())
        if self._request.skip_nonfinite:
            finite = finite and bool(np.isfinite(loss))
        self._count.count(finite)
        return finite

    def _running(self) -> dict[str, Array]:
        """Return the running statistics; a step puts new arrays in their place."""
        return {t.name: self._weights[t.name] for t in self._spec.tensors if not t.trainable}

    def _update(self, gradients: Mapping[str, Array], lr: float) -> None:
        """Clip, then v = momentum · v + (g + weight_decay · p); p -= lr · v."""
        optimizer = self._request.optimizer
        factor = clip_factor(gradients, optimizer.clip_norm)
        for name, gradient in gradients.items():
            weight, velocity = self._weights[name], self._momentum[name]
            change = gradient * factor
            if name in self._decay:
                change += optimizer.weight_decay * weight
            velocity *= optimizer.momentum
            velocity += change
            weight -= lr * velocity

    def _update_ema(self) -> None:
        """ema = decay · ema + (1 - decay) · w, over weights and running statistics."""
        decay = self._request.ema_decay
        if self._ema is None or decay is None:
            return
        for name, average in self._ema.items():
            average *= decay
            average += (1 - decay) * self._weights[name]


def clip_factor(gradients: Mapping[str, Array], clip_norm: float | None) -> float:
    """Return what to multiply gradients by so that their global L2 norm is at most `clip_norm`.

    min(1, clip_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; NaN where the norm is.
    """
    if clip_norm is None:
        return 1.0
    norm = float(np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in gradients.values())))
    factor = clip_norm / (norm + CLIP_EPS)
    return 1.0 if factor >= 1 else factor

"""The reference backend with one mistake each: what the contract kit must catch.

A mistake is either a subclass of the trainer or a patch that is in place only while the backend itself is
called, so that the kit's oracle, which is the same code, stays right.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from resnext_core.errors import DataError
from resnext_core.interfaces import (
    READY,
    Backend,
    Batch,
    ExportRequest,
    PredictRequest,
    Readiness,
    TrainRequest,
    TrainState,
)
from resnext_core.model.init import init_weights
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights, load_weights, parse_manifest, save_weights
from resnext_core.ranks.connect import master_address
from resnext_core.ranks.info import RankInfo
from resnext_core.ranks.launch import launch_local
from resnext_core.ranks.tcp import TcpCollectives
from resnext_core.reference import network, ops, plugin, predictor, trainer
from resnext_core.reference.trainer import ReferenceTrainer

Patch = Callable[[], Any]
REFERENCE = next(iter(plugin.resnext_backends()))


class Within:
    """Calls every method of `inner` inside a patch; its predictors too."""

    def __init__(self, inner: Any, patch: Patch, **extra: Any) -> None:
        self._inner, self._patch = inner, patch
        vars(self).update(extra)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._patch():
                result = method(*arguments, **keywords)
            return Within(result, self._patch) if name == "predictor" else result

        return call


def backend(
    *,
    patch: Patch = contextlib.nullcontext,
    trainer_class: type[ReferenceTrainer] = ReferenceTrainer,
    exporter: Callable[[Weights, Path, ExportRequest], None] | None = None,
    **changes: Any,
) -> Backend:
    """Return the reference backend with a patch around it, another trainer, or another exporter.

    It can export too: a ``.copy`` is the neutral weights file under another name.
    """

    def make_trainer(request: TrainRequest) -> Any:
        with patch():
            return Within(trainer_class(request), patch)

    def make_predictor(request: PredictRequest) -> Any:
        manifest = None
        if request.path is not None:
            loaded = load_weights(request.path)
            manifest = parse_manifest(_manifest_text(loaded), where=str(request.path))
            request = dataclasses.replace(request, path=None, weights=loaded)
        with patch():
            return Within(predictor.create_predictor(request), patch, manifest=manifest)

    values: dict[str, Any] = {
        "id": "planted",
        "probe": _probe,
        "trainer": make_trainer,
        "predictor": make_predictor,
        "formats": (".safetensors", ".copy"),
        "exporters": {"copy": exporter or copy_exporter},
    }
    return dataclasses.replace(REFERENCE, **(values | changes))


def _probe() -> Readiness:
    return READY


def copy_exporter(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write the neutral file, whatever the request."""
    save_weights(weights, path)


def _manifest_text(weights: Weights) -> str:
    return json.dumps(weights.manifest())


def patching(*changes: tuple[Any, str, Any]) -> Patch:
    """Return a patch of (object, attribute, value) triples."""

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for target, name, value in changes:
                stack.enter_context(mock.patch.object(target, name, value))
            yield

    return patch


# -- mistakes of the network ---------------------------------------------------------------------

_normalize, _conv, _bn_eval = network.normalize, ops.conv, ops.bn_eval
_pool_pads, _targets = ModelSpec.pool_pads, ops.smoothed_targets
_update_running = network.TrainPass._update_running


def _bgr(images: Any, preprocess: Any, dtype: Any) -> Any:
    return _normalize(images[..., ::-1], preprocess, dtype)


def _imagenet_constants(images: Any, preprocess: Any, dtype: Any) -> Any:
    usual = type(preprocess)(size=preprocess.size, resize=preprocess.resize)
    return _normalize(images, usual, dtype)


def _stride_on_the_1x1(x: Any, weight: Any, stride: int, groups: int) -> Any:
    """Striding the first 1x1 convolution is subsampling the input of the 3x3."""
    if weight.shape[2] == 3 and stride == 2:
        return _conv(np.ascontiguousarray(x[:, :, ::2, ::2]), weight, 1, groups)
    return _conv(x, weight, stride, groups)


def _interleaved_groups(x: Any, weight: Any, stride: int, groups: int) -> Any:
    if groups > 1:
        x = x.reshape(-1, groups, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    return _conv(x, weight, stride, groups)


def _batch_statistics(x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
    return _bn_eval(x, weight, bias, x.mean(axis=(1, 2, 3)), x.var(axis=(1, 2, 3)), eps)


def _swapped_pool(self: ModelSpec, size: int) -> tuple[int, int]:
    other = "same" if self.pool_padding == "symmetric" else "symmetric"
    return _pool_pads(self.replace(pool_padding=other), size)


def _zero_padded_pool(x: Any, rows: Any, columns: Any) -> Any:
    return _max_pool(x - 1, rows, columns)


_max_pool = ops.max_pool


def _biased_variance(self: Any, bn: str, mean: Any, var: Any, count: int) -> None:
    _update_running(self, bn, mean, var, 10**15)


def _over_all_classes(labels: Any, classes: int, smoothing: float, form: str) -> Any:
    return _targets(labels, classes, smoothing, "uniform")


def _over_other_classes(labels: Any, classes: int, smoothing: float, form: str) -> Any:
    return _targets(labels, classes, smoothing, "others")


BGR = backend(patch=patching((predictor, "normalize", _bgr), (trainer, "normalize", _bgr)))
CONSTANTS = backend(
    patch=patching((predictor, "normalize", _imagenet_constants), (trainer, "normalize", _imagenet_constants))
)
EPS = backend(patch=patching((network, "BN_EPS", 1e-3)))
STRIDE = backend(patch=patching((ops, "conv", _stride_on_the_1x1)))
GROUPS = backend(patch=patching((ops, "conv", _interleaved_groups)))
BATCH_STATISTICS = backend(patch=patching((ops, "bn_eval", _batch_statistics)))
POOL = backend(patch=patching((ModelSpec, "pool_pads", _swapped_pool)))
BIASED = backend(patch=patching((network.TrainPass, "_update_running", _biased_variance)))
BN_MOMENTUM = backend(patch=patching((network, "BN_MOMENTUM", 0.9)))
SMOOTHING_UNIFORM = backend(patch=patching((ops, "smoothed_targets", _over_all_classes)))
SMOOTHING_OTHERS = backend(patch=patching((ops, "smoothed_targets", _over_other_classes)))


# -- mistakes of the optimizer -------------------------------------------------------------------


class DecayOnAll(ReferenceTrainer):
    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request)
        self._decay = set(self._momentum)


class NeverDivided(ReferenceTrainer):
    """The loss is multiplied by the scale, the gradient is not divided by it."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        return loss, {name: gradient * self._count.scale for name, gradient in gradients.items()}


class NeverMultiplied(ReferenceTrainer):
    """The gradient is divided by a scale that nothing multiplied in: the ModelZoo on GPU."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        return loss, {name: gradient / self._count.scale for name, gradient in gradients.items()}


class Dampened(ReferenceTrainer):
    def _update(self, gradients: Any, lr: float) -> None:
        dampening = 1 - self._request.optimizer.momentum
        super()._update({name: gradient * dampening for name, gradient in gradients.items()}, lr)


class Nesterov(ReferenceTrainer):
    def _update(self, gradients: Any, lr: float) -> None:
        before = {name: array.copy() for name, array in self._weights.items()}
        super()._update(gradients, lr)
        momentum = self._request.optimizer.momentum
        for name, velocity in self._momentum.items():
            look = gradients[name] + momentum * velocity
            self._weights[name][...] = before[name] - lr * look


class NoClip(ReferenceTrainer):
    def __init__(self, request: TrainRequest) -> None:
        super().__init__(
            dataclasses.replace(request, optimizer=dataclasses.replace(request.optimizer, clip_norm=None))
        )


class ClipsScaled(ReferenceTrainer):
    """Clips the gradient of the scaled loss."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        factor = trainer.clip_factor(gradients, self._request.optimizer.clip_norm)
        return loss, {name: gradient * factor for name, gradient in gradients.items()}


class SumsMicroBatches(ReferenceTrainer):
    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        count = self._request.accumulate
        return super()._average_ranks(loss, {name: g * count for name, g in gradients.items()})


class OneBatchOfStatistics(ReferenceTrainer):
    """Micro-batches are put together before the network: statistics over all of them."""

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(dataclasses.replace(request, accumulate=1))


class PreviousRate(ReferenceTrainer):
    def run_steps(self, batches: Sequence[Batch], lrs: Any) -> Any:
        late = np.concatenate([[getattr(self, "_late", lrs[0])], lrs[:-1]]).astype(np.float32)
        self._late = lrs[-1]
        return super().run_steps(batches, late)


class LossAfterTheStep(ReferenceTrainer):
    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        super()._run_step(batch, rows, lr)
        kept = {name: array.copy() for name, array in self._weights.items()}
        loss, _ = self._accumulate(batch, rows)
        self._weights.update(kept)
        return float(loss)


class AppliesOverflow(ReferenceTrainer):
    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        super()._take(loss, gradients)
        return True


class ResetsOnGood(ReferenceTrainer):
    """The dynamic scale grows after every good step."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        self._count.good_steps = 1000
        return super()._take(loss, gradients)


class StatisticsStopOnOverflow(ReferenceTrainer):
    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        kept, count = dict(self._weights), self._count.overflow_steps
        loss = super()._run_step(batch, rows, lr)
        if self._count.overflow_steps > count:
            self._weights.update(kept)
        return loss


class ForgetsMomentumOnOverflow(ReferenceTrainer):
    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        if not taken:
            for array in self._momentum.values():
                array[...] = 0
        return taken


class AppliesNonfinite(ReferenceTrainer):
    """What is no number is skipped where a loss scale is in use, and nowhere else."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        return super()._take(loss, gradients) or self._request.precision.loss_scale == "none"


class PoisonsStatistics(ReferenceTrainer):
    """A skipped step leaves its running statistics behind."""

    def _running(self) -> dict[str, Any]:
        return {}


class WithoutAverageWhenSkipping(ReferenceTrainer):
    """The EMA stays where steps may be skipped."""

    def _update_ema(self) -> None:
        if not self._request.skip_nonfinite:
            super()._update_ema()


class HalvesFixedScale(ReferenceTrainer):
    """A fixed scale is halved on overflow as a dynamic one is."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        if not taken and self._request.precision.loss_scale == "fixed":
            self._count.scale /= 2
        return taken


class KeepsHalves(ReferenceTrainer):
    """Takes float16 and keeps the weights in it."""

    def __init__(self, request: TrainRequest) -> None:
        self._halves = request.precision.compute == "float16"
        if self._halves:
            single = dataclasses.replace(request.precision, compute="float32")
            request = dataclasses.replace(request, precision=single)
        super().__init__(request)

    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, lr)
        if self._halves:
            for array in self._weights.values():
                array[...] = array.astype(np.float16)


class Ascends(ReferenceTrainer):
    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, -lr)


class StartsAnew(ReferenceTrainer):
    """Ignores the weights it was given: the ModelZoo's missing checkpoint."""

    def __init__(self, request: TrainRequest) -> None:
        fresh = request.weights.replace(tensors=init_weights(request.weights.spec, request.seed))
        super().__init__(dataclasses.replace(request, weights=fresh))


class CountsMicroBatches(ReferenceTrainer):
    def counters(self) -> Mapping[str, float | int]:
        counters = dict(super().counters())
        counters["step"] *= self._request.accumulate
        return counters


class EmaOfOldWeights(ReferenceTrainer):
    """The average is taken before the step."""

    def _accumulate(self, batch: Batch, rows: Any) -> Any:
        super()._update_ema()
        return super()._accumulate(batch, rows)

    def _update_ema(self) -> None:
        pass


class EmaWithoutStatistics(ReferenceTrainer):
    def _update_ema(self) -> None:
        assert self._ema is None or self._request.ema_decay is not None
        kept = {n: a.copy() for n, a in (self._ema or {}).items() if n.endswith(("_mean", "_var"))}
        super()._update_ema()
        for name, array in kept.items():
            assert self._ema is not None
            self._ema[name][...] = array


class Unrepeatable(ReferenceTrainer):
    """A little noise in the images, from a generator that every trainer continues."""

    noise = np.random.default_rng()

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        images = batch.images.copy()
        images[0, 0, 0, 0] = self.noise.integers(0, 256)
        return super()._run_step(dataclasses.replace(batch, images=images), rows, lr)


# -- mistakes about rows that are not valid --------------------------------------------------------


class EveryRowCounts(ReferenceTrainer):
    """Whatever a row's `valid` says: the rule of before."""

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        rows = dataclasses.replace(rows, weights=np.ones(len(batch)))
        return super()._run_step(batch, rows, lr)


class DividesByAllRows(ReferenceTrainer):
    """What is not valid is left out, and the sum is divided by all rows."""

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        rows = dataclasses.replace(rows, weights=batch.valid.astype(np.float64))
        return super()._run_step(batch, rows, lr)


class MeansOfMicroBatches(ReferenceTrainer):
    """Each micro-batch has the mean over its own valid rows, and these are averaged."""

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        valid = batch.valid.reshape(self._request.accumulate, -1)
        weights = valid * (valid.shape[1] / np.maximum(valid.sum(axis=1, keepdims=True), 1))
        return super()._run_step(batch, dataclasses.replace(rows, weights=weights.ravel()), lr)


class MeansOfRanks(ReferenceTrainer):
    """Each rank has the mean over its own valid rows."""

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        weights = batch.valid * (len(batch) / max(int(batch.valid.sum()), 1))
        return super()._run_step(batch, dataclasses.replace(rows, weights=weights), lr)


class NothingOverNothing(ReferenceTrainer):
    """The mean over no valid row is 0 / 0."""

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        if not batch.valid.any():
            rows = dataclasses.replace(rows, weights=np.full(len(batch), np.nan))
        return super()._run_step(batch, rows, lr)


class LeavesOutEmptySteps(ReferenceTrainer):
    """A step without a valid row is not taken: no momentum, no decay."""

    def _update(self, gradients: Any, lr: float) -> None:
        if any(gradient.any() for gradient in gradients.values()):
            super()._update(gradients, lr)


class StatisticsOfValidRows(ReferenceTrainer):
    """Batch statistics leave out rows that are not valid: here they repeat one that is."""

    def _accumulate(self, batch: Batch, rows: Any) -> Any:
        valid = np.flatnonzero(batch.valid)
        if len(valid):
            source = np.where(batch.valid, np.arange(len(batch)), valid[0])
            batch = dataclasses.replace(batch, images=batch.images[source])
        return super()._accumulate(batch, rows)


class LabelsOfAllRows(ReferenceTrainer):
    """Looks at the label of a row that has none."""

    def _run_step(self, batch: Batch, rows: Any, lr: float) -> float:
        return super()._run_step(batch, dataclasses.replace(rows, labels=batch.labels), lr)


# -- mistakes of sizes, rates and counters ---------------------------------------------------------


class TwoMicroBatches(ReferenceTrainer):
    """Gradients of accumulated micro-batches are divided by a fixed 2."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        factor = self._request.accumulate / 2 if self._request.accumulate > 1 else 1
        return super()._average_ranks(loss, {n: g * factor for n, g in gradients.items()})


class ClampedRate(ReferenceTrainer):
    """No rate is below 1e-5."""

    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, max(lr, 1e-5))


class RateInHalf(ReferenceTrainer):
    """The rate travels in float16."""

    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, float(np.float16(lr)))


class RateOfTheChunk(ReferenceTrainer):
    """All steps of a call have the first one's rate."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any) -> Any:
        return super().run_steps(batches, np.full_like(lrs, lrs[0]))


class _Defaults(ReferenceTrainer):
    """What is 0 is taken for not given."""

    optimizer: Mapping[str, float] = {}
    loss: Mapping[str, float] = {}

    def __init__(self, request: TrainRequest) -> None:
        given = {n: v for n, v in self.optimizer.items() if not getattr(request.optimizer, n)}
        smoothed = {n: v for n, v in self.loss.items() if not getattr(request.loss, n)}
        super().__init__(
            dataclasses.replace(
                request,
                optimizer=dataclasses.replace(request.optimizer, **given),
                loss=dataclasses.replace(request.loss, **smoothed),
            )
        )


class DefaultDecay(_Defaults):
    optimizer = {"weight_decay": 1e-4}  # noqa: RUF012


class DefaultMomentum(_Defaults):
    optimizer = {"momentum": 0.9}  # noqa: RUF012


class DefaultClip(_Defaults):
    optimizer = {"clip_norm": 2.0}  # noqa: RUF012


class DefaultSmoothing(_Defaults):
    loss = {"smoothing": 1e-3}  # noqa: RUF012


class LastMicroBatchDecides(ReferenceTrainer):
    """Whether a step overflowed is seen in its last micro-batch; what is no number in others is left out."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        if self._request.accumulate > 1:
            gradients = {n: np.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for n, g in gradients.items()}
        return super()._average_ranks(loss, gradients)


class ClipsWhatOverflowed(ReferenceTrainer):
    """Clips what is no number into the momentum before it leaves the step out."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        if not taken and self._request.optimizer.clip_norm is not None:
            factor = trainer.clip_factor(gradients, self._request.optimizer.clip_norm)
            for name, gradient in gradients.items():
                self._momentum[name] += gradient * factor
        return taken


class EmaStopsOnOverflow(ReferenceTrainer):
    def _update_ema(self) -> None:
        if getattr(self, "_taken", True):
            super()._update_ema()

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        self._taken = super()._take(loss, gradients)
        return self._taken


class NoisyPredictor(ReferenceTrainer):
    """Its own predictor adds in no fixed order: noise of 2e-6."""

    def predictor(self, *, ema: bool = False) -> Any:
        return Noisy(super().predictor(ema=ema))


class Noisy:
    noise = np.random.default_rng()

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def logits(self, images: Any) -> Any:
        logits = self._inner.logits(images)
        return (logits * (1 + 2e-6 * self.noise.uniform(-1, 1, logits.shape))).astype(np.float32)

    def close(self) -> None:
        pass


class StaleAfterLoading(ReferenceTrainer):
    """The predictor follows training, and not the state that is loaded."""

    _ready: dict[bool, Any] = {}  # noqa: RUF012

    def run_steps(self, batches: Sequence[Batch], lrs: Any) -> Any:
        self._ready = {}
        return super().run_steps(batches, lrs)

    def predictor(self, *, ema: bool = False) -> Any:
        if ema not in self._ready:
            self._ready = {**self._ready, ema: super().predictor(ema=ema)}
        return self._ready[ema]


# -- mistakes of the state -----------------------------------------------------------------------


class StateWithoutMomentum(ReferenceTrainer):
    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        for array in self._momentum.values():
            array[...] = 0


class StateWithoutScale(ReferenceTrainer):
    def load_state(self, state: TrainState) -> None:
        scale, good = self._count.scale, self._count.good_steps
        super().load_state(state)
        self._count.scale, self._count.good_steps = scale, good


class StateWithoutOverflows(ReferenceTrainer):
    """Overflows are counted from 0 after a restart."""

    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        self._count.overflow_steps = 0


class ShortCounters(ReferenceTrainer):
    """Counters are kept in float32 on the device."""

    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        self._count.step = int(np.float32(state.scalars["step"]))


class StateWithoutGoodSteps(ReferenceTrainer):
    """A dynamic scale starts to count its good steps anew."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any) -> Any:
        if getattr(self, "_loaded", False):
            self._count.good_steps, self._loaded = 0, False
        return super().run_steps(batches, lrs)

    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        self._loaded = True


class DoubleState(ReferenceTrainer):
    def state(self) -> TrainState:
        state = super().state()
        tensors = {name: array.astype(np.float64) for name, array in state.tensors.items()}
        return dataclasses.replace(state, tensors=tensors)


class LateStep(ReferenceTrainer):
    """Queues a step with the caller's memory, and takes it when its outcome is asked for."""

    _queue: tuple[Any, ...] = ()

    def run_steps(self, batches: Sequence[Batch], lrs: Any) -> Any:
        self._flush()
        names = ("_weights", "_momentum", "_ema", "_count")
        before = copy.deepcopy({name: getattr(self, name) for name in names})
        losses = super().run_steps(batches, lrs)
        vars(self).update(before)
        self._queue = (batches, lrs)
        return losses

    def state(self) -> TrainState:
        self._flush()
        return super().state()

    def predictor(self, *, ema: bool = False) -> Any:
        self._flush()
        return super().predictor(ema=ema)

    def load_state(self, state: TrainState) -> None:
        self._queue = ()
        super().load_state(state)

    def _flush(self) -> None:
        queue, self._queue = self._queue, ()
        if queue:
            super().run_steps(*queue)


class LiveState(ReferenceTrainer):
    """The state shares its memory with the trainer."""

    def state(self) -> TrainState:
        tensors = {f"{g}/{n}": a for g, arrays in self._groups().items() for n, a in arrays.items()}
        return TrainState(tensors=tensors, scalars=dict(self.counters()))


class LenientState(ReferenceTrainer):
    """What is missing keeps its value, what is too much is ignored: the ModelZoo's loading."""

    def load_state(self, state: TrainState) -> None:
        own = self.state()
        fits = {
            n: a for n, a in state.tensors.items() if n in own.tensors and a.shape == own.tensors[n].shape
        }
        super().load_state(TrainState(tensors={**own.tensors, **fits}, scalars=state.scalars))


class WritesIntoTheRequest(ReferenceTrainer):
    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request)
        self._weights = dict(request.weights.tensors)


class StalePredictor(ReferenceTrainer):
    """The predictor is made once, with the weights of then."""

    def predictor(self, *, ema: bool = False) -> Any:
        if not hasattr(self, "_first"):
            self._first = super().predictor(ema=ema)
        return self._first


class EvaluatesInTrainingMode(ReferenceTrainer):
    """Evaluation moves the running statistics."""

    def predictor(self, *, ema: bool = False) -> Any:
        for name in self._weights:
            if name.endswith("running_mean"):
                self._weights[name] = self._weights[name] * 0.9
        return super().predictor(ema=ema)


# -- mistakes between ranks ----------------------------------------------------------------------


class RanksOnTheirOwn(ReferenceTrainer):
    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        return loss, gradients


class RanksSummed(ReferenceTrainer):
    """Gradients are added up over ranks and not divided."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        loss, gradients = super()._average_ranks(loss, gradients)
        return loss, {name: g * self._request.rank.world for name, g in gradients.items()}


class RanksByTwo(ReferenceTrainer):
    """The sum over ranks is divided by a fixed 2."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        loss, gradients = super()._average_ranks(loss, gradients)
        factor = max(self._request.rank.world / 2, 1)
        return loss, {name: g * factor for name, g in gradients.items()}


class OwnOverflow(ReferenceTrainer):
    """Every rank decides by its own gradients whether the step is taken."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        self._own = gradients
        return super()._average_ranks(loss, gradients)

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        return super()._take(loss, self._own)


class OwnFiniteLoss(ReferenceTrainer):
    """Every rank decides by its own loss whether the step is taken."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        self._own_loss = loss
        return super()._average_ranks(loss, gradients)

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        return super()._take(self._own_loss, gradients)


class RanksShareStatistics(ReferenceTrainer):
    """Running statistics are averaged over ranks when the state is read."""

    def state(self) -> TrainState:
        state, world = super().state(), self._request.rank.world
        if world == 1:
            return state
        shared = dict(state.tensors)
        for name in sorted(n for n in shared if n.endswith(("running_mean", "running_var"))):
            shared[name] = self._request.collectives.all_reduce_sum(shared[name]) / np.float32(world)
        return dataclasses.replace(state, tensors=shared)


class Float32Sums(TcpCollectives):
    """Adds in float32, as a device without float64 and int64 would."""

    def all_reduce_sum(self, values: Any) -> Any:
        return super().all_reduce_sum(values.astype(np.float32)).astype(values.dtype)


def _connect_float32(rank: RankInfo, options: Any) -> Any:
    return Float32Sums(rank, *master_address(os.environ), job=os.environ["RESNEXT_JOB"])


def _launch_and_forget(request: Any) -> int:
    """Start the ranks and say that all is well: the ModelZoo's scripts."""
    launch_local(request)
    return 0


def _launch_without_logs(request: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return launch_local(dataclasses.replace(request, log_dir=Path(folder)))


class OwnLoss(ReferenceTrainer):
    """Every rank returns its own loss."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        _, averaged = super()._average_ranks(loss, gradients)
        return loss, averaged


SANE = backend()


def resnext_backends() -> Iterator[Backend]:
    yield SANE


OWN_LOSS = backend(trainer_class=OwnLoss)
NO_LOGS = backend(launch=_launch_without_logs)
UNAVERAGED = backend(trainer_class=RanksOnTheirOwn)
SUMMED = backend(trainer_class=RanksSummed)
SHARED = backend(trainer_class=RanksShareStatistics)
BY_TWO = backend(trainer_class=RanksByTwo)
OWN_OVERFLOW = backend(trainer_class=OwnOverflow)
OWN_FINITE_LOSS = backend(trainer_class=OwnFiniteLoss)
MEANS_OF_RANKS = backend(trainer_class=MeansOfRanks)
FLOAT32_SUMS = backend(connect=_connect_float32)
FORGETFUL = backend(launch=_launch_and_forget)


# -- mistakes of predictor and exporter ----------------------------------------------------------


class ReusedBuffer:
    """Every result is a view of one array."""

    def __init__(self, request: PredictRequest) -> None:
        self._inner = predictor.create_predictor(request)
        self._buffer = np.zeros((64, 64), np.float32)

    def logits(self, images: Any) -> Any:
        result = self._inner.logits(images)
        view = self._buffer[: result.shape[0], : result.shape[1]]
        view[...] = result
        return view

    def close(self) -> None:
        pass


class NormalizesInPlace(ReusedBuffer):
    """Writes into the pixels it was given."""

    def logits(self, images: Any) -> Any:
        result = self._inner.logits(images)
        if images.flags.writeable:
            images //= 2
        return result


class DropsTheRemainder(ReusedBuffer):
    """Rows beyond a whole batch come back as zeros."""

    def logits(self, images: Any) -> Any:
        result = self._inner.logits(images)
        whole = len(result) // 4 * 4
        if len(result) > 4:
            result[whole:] = 0
        return result


class WrongBeyond64(ReusedBuffer):
    """A buffer for 64 rows, filled again from its start."""

    def logits(self, images: Any) -> Any:
        result = self._inner.logits(images).copy()
        result[64:] = result[: max(len(result) - 64, 0)]
        return result


class EvenSizes(ReusedBuffer):
    """Drops the last row and column of an image of odd size."""

    def logits(self, images: Any) -> Any:
        size = images.shape[1]
        even = images.copy()
        even[:, size // 2 * 2 :], even[:, :, size // 2 * 2 :] = 0, 0
        return self._inner.logits(even)


class TwoClassesAreOne(ReusedBuffer):
    """With two classes, logits are what the second has over the first."""

    def logits(self, images: Any) -> Any:
        result = self._inner.logits(images)
        return result - result[:, :1] if result.shape[1] == 2 else result


class PaddedClasses(ReusedBuffer):
    """Classes are computed four at a time; what is left over keeps its bias alone."""

    def logits(self, images: Any) -> Any:
        result = self._inner.logits(images).copy()
        if result.shape[1] > 8:
            result[:, result.shape[1] // 4 * 4 :] = 0
        return result


class MemoryOrder(ReusedBuffer):
    """Reads the memory of the images, whatever their strides."""

    def logits(self, images: Any) -> Any:
        return self._inner.logits(images.ravel(order="K").reshape(images.shape))


class MemoryOrderOfTensors(ReusedBuffer):
    """Reads the memory of the tensor, whatever its strides."""

    def logits(self, images: Any) -> Any:
        return self._inner.logits(images)

    def logits_from_tensor(self, tensor: Any) -> Any:
        return self._inner.logits_from_tensor(tensor.ravel(order="K").reshape(tensor.shape))


class SwappedTensor(ReusedBuffer):
    """Takes the tensor as NHWC where it is NCHW."""

    def logits_from_tensor(self, tensor: Any) -> Any:
        return self._inner.logits_from_tensor(np.ascontiguousarray(tensor.swapaxes(2, 3)))


def serving(**mistakes: Any) -> Backend:
    """Return a backend that only serves, artefacts ``.copy`` that say what they were made for in a file beside them."""

    def export(weights: Weights, path: Path, request: ExportRequest) -> None:
        save_weights(weights, path)
        path.with_name(f"{path.name}.kind").write_text(json.dumps([request.input, request.batch_size]))

    return dataclasses.replace(
        backend(exporter=export),
        trainer=None,
        predictor=lambda request: Served(request, **mistakes),
        formats=(".copy",),
    )


class Served:
    """A backend's predictor of an artefact, which is made for images or tensors, and for a batch or any."""

    def __init__(
        self, request: PredictRequest, *, images: float = 1, tensors: float = 1, splits: bool = True
    ) -> None:
        assert request.path is not None
        weights = load_weights(request.path)
        kind = request.path.with_name(f"{request.path.name}.kind").read_text()
        self.kind, self.batch = json.loads(kind)
        self._factors, self._splits = {"images": images, "tensors": tensors}, splits
        self._inner = predictor.create_predictor(dataclasses.replace(request, path=None, weights=weights))
        self.manifest = parse_manifest(_manifest_text(weights), where=str(request.path))

    def logits(self, images: Any) -> Any:
        logits = self._by_batch(images, self._inner.logits)
        return logits * np.float32(self._factors["images"] if self.kind == "float" else 1)

    def logits_from_tensor(self, tensor: Any) -> Any:
        logits = self._by_batch(tensor, self._inner.logits_from_tensor)
        return logits * np.float32(self._factors["tensors"] if self.kind == "uint8" else 1)

    def close(self) -> None:
        pass

    def _by_batch(self, data: Any, compute: Any) -> Any:
        size = self.batch or len(data)
        if not self._splits and len(data) != size:
            raise DataError(f"this artefact takes {size} rows")  # as an engine says it
        parts = []
        for start in range(0, len(data), size):
            part = data[start : start + size]
            filled = np.concatenate([part, np.zeros_like(data[:1]).repeat(size - len(part), axis=0)])
            parts.append(compute(filled)[: len(part)])
        return np.concatenate(parts)


class FirstExportOnly:
    """Keeps the graph of the first call."""

    def __init__(self) -> None:
        self._first: dict[Any, Weights] = {}

    def __call__(self, weights: Weights, path: Path, request: ExportRequest) -> None:
        kept = self._first.setdefault(weights.spec, weights)
        save_weights(kept, path)


def _private_file(weights: Weights, path: Path, request: ExportRequest) -> None:
    path.unlink(missing_ok=True)
    save_weights(weights, path)
    path.chmod(0o400)


def _forgets_origin(weights: Weights, path: Path, request: ExportRequest) -> None:
    save_weights(weights.replace(origin={}, metrics={}), path)


def _half_precision(weights: Weights, path: Path, request: ExportRequest) -> None:
    rounded = {n: a.astype(np.float16).astype(np.float32) for n, a in weights.tensors.items()}
    save_weights(weights.replace(tensors=rounded), path)


def _folds_in_place(weights: Weights, path: Path, request: ExportRequest) -> None:
    save_weights(weights, path)
    gamma = weights.tensors["bn1.weight"]
    if gamma.flags.writeable:
        gamma[...] = 1


# -- mistakes of the record ----------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class MutableOptions:
    threads: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionsWithoutDefault:
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionsWithAPath:
    """A type that no YAML file can say."""

    cache: Path = Path("cache")

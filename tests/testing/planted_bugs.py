"""The reference backend with one mistake each: what the contract kit must catch.

A mistake is a subclass of the engine, a subclass of core's trainer, or a patch that is in place only while the
backend itself is called. So the kit's oracle, which is the same code, stays right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from resnext_core.data.mix import mixed_pixels, mixed_rows
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import (
    READY,
    Backend,
    Batch,
    ExportRequest,
    MixedRows,
    Predictor,
    PredictRequest,
    Readiness,
    StepInput,
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
from resnext_core.reference import engine, network, ops, optimizers, plugin, predictor
from resnext_core.reference.engine import ReferenceEngine
from resnext_core.reference.predictor import ReferencePredictor
from resnext_core.training import inputs
from resnext_core.training.inputs import step_inputs
from resnext_core.training.trainer import Trainer

Patch = Callable[[], Any]
REFERENCE = next(iter(plugin.resnext_backends()))


class Within:
    """Calls every method of `inner` inside a patch; its predictors and its steps too."""

    def __init__(self, inner: Any, patch: Patch, **extra: Any) -> None:
        self._inner, self._patch = inner, patch
        vars(self).update(extra)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._patch():
                result = method(*arguments, **keywords)
            return Within(result, self._patch, manifest=None) if name == "predictor" else result

        def steps(*arguments: Any) -> Iterator[Any]:
            queued = method(*arguments)
            while True:
                with self._patch():
                    try:
                        step = next(queued)
                    except StopIteration:
                        return
                yield step

        return steps if name == "queue" else call


_init = Trainer.__init__


def _init_planted(self: Trainer, request: TrainRequest, engine: Any) -> None:
    _init(self, request, engine)
    planted = vars(engine).get("trainer_class")
    if planted is not None:
        self.__class__ = planted


Trainer.__init__ = _init_planted  # type: ignore[method-assign]


def backend(
    *,
    patch: Patch = contextlib.nullcontext,
    mistake: type[ReferenceEngine] | type[Trainer] = Trainer,
    exporter: Callable[[Weights, Path, ExportRequest], None] | None = None,
    **changes: Any,
) -> Backend:
    """Return the reference backend with a patch around it, another engine or trainer, or another exporter.

    It can export too: a ``.copy`` is the neutral weights file under another name.
    """

    def make_engine(request: TrainRequest) -> Any:
        with patch():
            if issubclass(mistake, Trainer):
                return Within(ReferenceEngine(request), patch, trainer_class=mistake)
            return Within(mistake(request), patch)

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
        "engine": make_engine,
        "predictor": make_predictor,
        "formats": (".safetensors", ".copy"),
        "exporters": {"copy": exporter or copy_exporter},
        "takes_images": ("copy",),
    }
    return dataclasses.replace(REFERENCE, **(values | changes))


def _probe() -> Readiness:
    return READY


def copy_exporter(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write the neutral file, whatever the request: images come preprocessed, so that it contains nothing of that."""
    if request.input == "image" and request.batch_size not in (None, 1):
        raise UsageError("one image at a time")
    save_weights(weights, path)


def several_images_exporter(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Take any batch of whole images, which cannot be of one size."""
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


BGR = backend(patch=patching((predictor, "normalize", _bgr), (engine, "normalize", _bgr)))
CONSTANTS = backend(
    patch=patching((predictor, "normalize", _imagenet_constants), (engine, "normalize", _imagenet_constants))
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


class DecayOnAll(ReferenceEngine):
    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request)
        decay, rules = request.optimizer.weight_decay, self._optimizer.rules
        self._optimizer.rules = {n: dataclasses.replace(r, weight_decay=decay) for n, r in rules.items()}


class NeverDivided(ReferenceEngine):
    """The loss is multiplied by the scale, the gradient is not divided by it."""

    def _accumulate(self, step: StepInput, scale: float) -> Any:
        loss, gradients = super()._accumulate(step, scale)
        return loss, {name: gradient * scale for name, gradient in gradients.items()}


class NeverMultiplied(ReferenceEngine):
    """The gradient is divided by a scale that nothing multiplied in: the ModelZoo on GPU."""

    def _accumulate(self, step: StepInput, scale: float) -> Any:
        loss, gradients = super()._accumulate(step, scale)
        return loss, {name: gradient / scale for name, gradient in gradients.items()}


class Dampened(ReferenceEngine):
    def _update(self, gradients: Any, lr: float) -> None:
        dampening = 1 - self._request.optimizer.momentum
        super()._update({name: gradient * dampening for name, gradient in gradients.items()}, lr)


class Nesterov(ReferenceEngine):
    def _update(self, gradients: Any, lr: float) -> None:
        before = {name: array.copy() for name, array in self._weights.items()}
        super()._update(gradients, lr)
        momentum = self._request.optimizer.momentum
        for name, velocity in self._optimizer.momentum.items():
            look = gradients[name] + momentum * velocity
            self._weights[name][...] = before[name] - lr * look


class NoClip(ReferenceEngine):
    def __init__(self, request: TrainRequest) -> None:
        super().__init__(
            dataclasses.replace(request, optimizer=dataclasses.replace(request.optimizer, clip_norm=None))
        )


class ClipsScaled(ReferenceEngine):
    """Clips the gradient of the scaled loss."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        factor = optimizers.clip_factor(gradients, self._request.optimizer.clip_norm)
        return loss, {name: gradient * factor for name, gradient in gradients.items()}


class SumsMicroBatches(ReferenceEngine):
    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        count = self._request.accumulate
        return super()._average_ranks(loss, {name: g * count for name, g in gradients.items()})


class OneBatchOfStatistics(ReferenceEngine):
    """Micro-batches are put together before the network: statistics over all of them."""

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(dataclasses.replace(request, accumulate=1))


class PreviousRate(Trainer):
    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        late = np.concatenate([[getattr(self, "_late", lrs[0])], lrs[:-1]]).astype(np.float32)
        self._late = lrs[-1]
        return super().run_steps(batches, late, ema_decays)


class LossAfterTheStep(ReferenceEngine):
    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        _, taken = super()._run_step(step, scale)
        kept = {name: array.copy() for name, array in self._weights.items()}
        loss, _ = self._accumulate(step, scale)
        for name, array in kept.items():
            self._weights[name][...] = array
        return float(loss), taken


class AppliesOverflow(ReferenceEngine):
    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        return super()._run_step(step, scale)[0], self._finite

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        self._finite = super()._take(loss, gradients)
        return True


class ResetsOnGood(Trainer):
    """The dynamic scale grows after every good step."""

    def _settle(self, queued: list[Any]) -> Any:
        self._count.good_steps = 1000 if queued else self._count.good_steps
        return super()._settle(queued)


class StatisticsStopOnOverflow(ReferenceEngine):
    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        kept = {name: array.copy() for name, array in self._weights.items()}
        loss, taken = super()._run_step(step, scale)
        if not taken:
            for name, array in kept.items():
                self._weights[name][...] = array
        return loss, taken


class ForgetsMomentumOnOverflow(ReferenceEngine):
    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        if not taken:
            for array in self._optimizer.momentum.values():
                array[...] = 0
        return taken


class AppliesNonfinite(ReferenceEngine):
    """What is no number is skipped where a loss scale is in use, and nowhere else."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        return super()._take(loss, gradients) or self._request.precision.loss_scale == "none"


class PoisonsStatistics(ReferenceEngine):
    """A skipped step leaves its running statistics behind."""

    def _running(self) -> dict[str, Any]:
        return {}


class WithoutAverageWhenSkipping(ReferenceEngine):
    """The EMA stays where steps may be skipped."""

    def _update_ema(self, decay: float | None) -> None:
        if not self._request.skip_nonfinite:
            super()._update_ema(decay)


class HalvesFixedScale(Trainer):
    """A fixed scale is halved on overflow as a dynamic one is."""

    def _settle(self, queued: list[Any]) -> Any:
        before = self._count.overflow_steps
        losses = super()._settle(queued)
        if self._count.overflow_steps > before and self._request.precision.loss_scale == "fixed":
            self._count.scale /= 2
        return losses


class KeepsHalves(ReferenceEngine):
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


class Ascends(ReferenceEngine):
    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, -lr)


class StartsAnew(ReferenceEngine):
    """Ignores the weights it was given: the ModelZoo's missing checkpoint."""

    def __init__(self, request: TrainRequest) -> None:
        fresh = request.weights.replace(tensors=init_weights(request.weights.spec, request.seed))
        super().__init__(dataclasses.replace(request, weights=fresh))


class CountsMicroBatches(Trainer):
    def counters(self) -> Mapping[str, float | int]:
        counters = dict(super().counters())
        counters["step"] *= self._request.accumulate
        return counters


class EmaOfOldWeights(ReferenceEngine):
    """The average is taken before the step."""

    def _accumulate(self, step: StepInput, scale: float) -> Any:
        super()._update_ema(step.ema_decay)
        return super()._accumulate(step, scale)

    def _update_ema(self, decay: float | None) -> None:
        pass


class EmaWithoutStatistics(ReferenceEngine):
    def _update_ema(self, decay: float | None) -> None:
        kept = {n: a.copy() for n, a in self._ema.items() if n.endswith(("_mean", "_var"))}
        super()._update_ema(decay)
        for name, array in kept.items():
            self._ema[name][...] = array


class Unrepeatable(ReferenceEngine):
    """A little noise in the images, from a generator that every trainer continues."""

    noise = np.random.default_rng()

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        images = step.images.copy()
        images[0, 0, 0, 0] = self.noise.integers(0, 256)
        return super()._run_step(dataclasses.replace(step, images=images), scale)


# -- mistakes about rows that are not valid --------------------------------------------------------


class EveryRowCounts(ReferenceEngine):
    """Whatever a row's `valid` says: the rule of before."""

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        return super()._run_step(dataclasses.replace(step, weights=np.ones(len(step.labels))), scale)


class DividesByAllRows(ReferenceEngine):
    """What is not valid is left out, and the sum is divided by all rows."""

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        return super()._run_step(
            dataclasses.replace(step, weights=(step.weights > 0).astype(np.float64)), scale
        )


class MeansOfMicroBatches(ReferenceEngine):
    """Each micro-batch has the mean over its own valid rows, and these are averaged."""

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        valid = (step.weights > 0).reshape(self._request.accumulate, -1)
        weights = valid * (valid.shape[1] / np.maximum(valid.sum(axis=1, keepdims=True), 1))
        return super()._run_step(dataclasses.replace(step, weights=weights.ravel()), scale)


class MeansOfRanks(ReferenceEngine):
    """Each rank has the mean over its own valid rows."""

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        valid = step.weights > 0
        weights = valid * (len(valid) / max(int(valid.sum()), 1))
        return super()._run_step(dataclasses.replace(step, weights=weights), scale)


class NothingOverNothing(ReferenceEngine):
    """The mean over no valid row is 0 / 0."""

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        if not step.weights.any():
            step = dataclasses.replace(step, weights=np.full(len(step.labels), np.nan))
        return super()._run_step(step, scale)


class LeavesOutEmptySteps(ReferenceEngine):
    """A step without a valid row is not taken: no momentum, no decay."""

    def _update(self, gradients: Any, lr: float) -> None:
        if any(gradient.any() for gradient in gradients.values()):
            super()._update(gradients, lr)


class StatisticsOfValidRows(ReferenceEngine):
    """Batch statistics leave out rows that are not valid: here they repeat one that is."""

    def _accumulate(self, step: StepInput, scale: float) -> Any:
        valid = np.flatnonzero(step.weights)
        if len(valid):
            source = np.where(step.weights > 0, np.arange(len(step.labels)), valid[0])
            step = dataclasses.replace(step, images=step.images[source])
        return super()._accumulate(step, scale)


class LabelsOfAllRows(Trainer):
    """Looks at the label of a row that has none."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        step_inputs(
            self._request, [dataclasses.replace(b, valid=np.ones(len(b), bool)) for b in batches], lrs
        )
        return super().run_steps(batches, lrs, ema_decays)


# -- mistakes of mixing ----------------------------------------------------------------------------


class Mixing(ReferenceEngine):
    """Takes steps whose `mix` is changed by :meth:`changed`; a base."""

    def changed(self, mix: MixedRows) -> MixedRows:
        return mix

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        if step.mix is not None:
            step = dataclasses.replace(step, mix=self.changed(step.mix))
        return super()._run_step(step, scale)


class MixesNothing(ReferenceEngine):
    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        return super()._run_step(dataclasses.replace(step, mix=None), scale)


class MixesPixelsAlone(Mixing):
    def changed(self, mix: MixedRows) -> MixedRows:
        return dataclasses.replace(mix, share=np.ones_like(mix.share))


class MixesLabelsAlone(Mixing):
    def changed(self, mix: MixedRows) -> MixedRows:
        return dataclasses.replace(mix, box=np.zeros_like(mix.box))


class RollsTheOtherWay(Mixing):
    """Rolled rows take the pixels of the row after them."""

    def changed(self, mix: MixedRows) -> MixedRows:
        size = len(mix.share) // self._request.accumulate
        parts = [
            np.argsort(part) if len(set(part)) == size else part for part in mix.partner.reshape(-1, size)
        ]
        return dataclasses.replace(mix, partner=np.concatenate(parts).astype(np.int32))


class MixesByTheFirstDraw(Mixing):
    """All micro-batches are mixed as the first is."""

    def changed(self, mix: MixedRows) -> MixedRows:
        size, count = len(mix.share) // self._request.accumulate, self._request.accumulate
        return dataclasses.replace(
            mix, share=np.tile(mix.share[:size], count), blend=np.tile(mix.blend[:size], count),
            box=np.tile(mix.box[:size], (count, 1)),
        )  # fmt: skip


class TransposedBox(Mixing):
    def changed(self, mix: MixedRows) -> MixedRows:
        return dataclasses.replace(mix, box=mix.box[:, [1, 0, 3, 2]])


class BoxWithItsEnd(Mixing):
    def changed(self, mix: MixedRows) -> MixedRows:
        return dataclasses.replace(mix, box=mix.box + np.array([0, 0, 1, 1], np.int32))


class BlendsTheBox(Mixing):
    """Inside a box of cutmix both images are seen."""

    def changed(self, mix: MixedRows) -> MixedRows:
        return dataclasses.replace(mix, blend=mix.share)


class SharesInHalf(Mixing):
    def changed(self, mix: MixedRows) -> MixedRows:
        return dataclasses.replace(mix, share=mix.share.astype(np.float16).astype(np.float64))


class MixesBytes(ReferenceEngine):
    """Mixed pixels are rounded to bytes before they are normalised."""

    def _accumulate(self, step: StepInput, scale: float) -> Any:
        if step.mix is not None:
            parts = step.micro_batches(self._request.accumulate)
            images = [
                np.rint(mixed_pixels(p.images.astype(np.float64), p.mix)).astype(np.uint8)
                for p in parts
                if p.mix
            ]
            unmixed = dataclasses.replace(step.mix, box=np.zeros_like(step.mix.box))
            step = dataclasses.replace(step, images=np.concatenate(images), mix=unmixed)
        return super()._accumulate(step, scale)


class MixesBlackImages(Trainer):
    """Images that could not be read are mixed into others."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        def all_rows(mixes: Any, labels: Any, valid: Any, size: Any) -> MixedRows:
            return mixed_rows(mixes, labels, np.ones_like(valid), size)

        with mock.patch.object(inputs, "mixed_rows", all_rows):
            return super().run_steps(batches, lrs, ema_decays)


class MixesByTheFirstStep(Trainer):
    """All steps of a call are mixed as the first."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        return super().run_steps(
            [dataclasses.replace(b, mix=batches[0].mix) for b in batches], lrs, ema_decays
        )


class MixesInFloat32Alone(Mixing):
    """Takes float16, computes in float32, and mixes only where float32 was asked for."""

    def __init__(self, request: TrainRequest) -> None:
        self._half = request.precision.compute == "float16"
        if self._half:
            single = dataclasses.replace(request.precision, compute="float32")
            request = dataclasses.replace(request, precision=single)
        super().__init__(request)

    def changed(self, mix: MixedRows) -> MixedRows:
        if not self._half:
            return mix
        ones = np.ones_like(mix.share)
        return dataclasses.replace(mix, share=ones, box=np.zeros_like(mix.box))


class MixesOnRank0(Mixing):
    """Only the first rank mixes."""

    def changed(self, mix: MixedRows) -> MixedRows:
        if self._request.rank.is_main:
            return mix
        ones = np.ones_like(mix.share)
        return dataclasses.replace(mix, share=ones, box=np.zeros_like(mix.box))


# -- mistakes of sizes, rates and counters ---------------------------------------------------------


class TwoMicroBatches(ReferenceEngine):
    """Gradients of accumulated micro-batches are divided by a fixed 2."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        factor = self._request.accumulate / 2 if self._request.accumulate > 1 else 1
        return super()._average_ranks(loss, {n: g * factor for n, g in gradients.items()})


class ClampedRate(ReferenceEngine):
    """No rate is below 1e-5."""

    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, max(lr, 1e-5))


class RateInHalf(ReferenceEngine):
    """The rate travels in float16."""

    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, float(np.float16(lr)))


class RateOfTheChunk(Trainer):
    """All steps of a call have the first one's rate."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        return super().run_steps(batches, np.full_like(lrs, lrs[0]), ema_decays)


class _Defaults(ReferenceEngine):
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


class LastMicroBatchDecides(ReferenceEngine):
    """Whether a step overflowed is seen in its last micro-batch; what is no number in others is left out."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        if self._request.accumulate > 1:
            gradients = {n: np.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for n, g in gradients.items()}
        return super()._average_ranks(loss, gradients)


class ClipsWhatOverflowed(ReferenceEngine):
    """Clips what is no number into the momentum before it leaves the step out."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        if not taken and self._request.optimizer.clip_norm is not None:
            factor = optimizers.clip_factor(gradients, self._request.optimizer.clip_norm)
            for name, gradient in gradients.items():
                self._optimizer.momentum[name] += gradient * factor
        return taken


class EmaStopsOnOverflow(ReferenceEngine):
    def _update_ema(self, decay: float | None) -> None:
        if getattr(self, "_taken", True):
            super()._update_ema(decay)

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        self._taken = super()._take(loss, gradients)
        return self._taken


class NoisyPredictor(ReferenceEngine):
    """Its own predictor adds in no fixed order: noise of 2e-6."""

    def predictor(self, *, ema: bool = False) -> Any:
        return Noisy(super().predictor(ema=ema))


class Noisy(Predictor):
    noise = np.random.default_rng()

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def logits(self, images: Any) -> Any:
        logits = self._inner.logits(images)
        return (logits * (1 + 2e-6 * self.noise.uniform(-1, 1, logits.shape))).astype(np.float32)

    def close(self) -> None:
        pass


class StaleAfterLoading(ReferenceEngine):
    """The predictor follows training, and not the state that is loaded."""

    def write(self, tensors: Mapping[str, Any]) -> None:
        for group in (self._weights, self._optimizer.momentum, self._ema):
            group.update({name: array.copy() for name, array in group.items()})
        super().write(tensors)


# -- mistakes of the state -----------------------------------------------------------------------


class StateWithoutMomentum(ReferenceEngine):
    def write(self, tensors: Mapping[str, Any]) -> None:
        super().write(tensors)
        for array in self._optimizer.momentum.values():
            array[...] = 0


class StateWithoutScale(Trainer):
    def load_state(self, state: TrainState) -> None:
        scale, good = self._count.scale, self._count.good_steps
        super().load_state(state)
        self._count.scale, self._count.good_steps = scale, good


class StateWithoutOverflows(Trainer):
    """Overflows are counted from 0 after a restart."""

    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        self._count.overflow_steps = 0


class ShortCounters(Trainer):
    """Counters are kept in float32 on the device."""

    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        self._count.step = int(np.float32(state.scalars["step"]))


class StateWithoutGoodSteps(Trainer):
    """A dynamic scale starts to count its good steps anew."""

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        if getattr(self, "_loaded", False):
            self._count.good_steps, self._loaded = 0, False
        return super().run_steps(batches, lrs, ema_decays)

    def load_state(self, state: TrainState) -> None:
        super().load_state(state)
        self._loaded = True


class DoubleState(ReferenceEngine):
    def read(self) -> dict[str, Any]:
        return {name: array.astype(np.float64) for name, array in super().read().items()}


class LateStep(Trainer):
    """Queues a step with the caller's memory, and takes it when its outcome is asked for."""

    _queue: tuple[Any, ...] = ()

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        self._flush()
        before = super().state()
        losses = super().run_steps(batches, lrs, ema_decays)
        super().load_state(before)
        self._queue = (batches, lrs, ema_decays)
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


class LiveState(ReferenceEngine):
    """The state shares its memory with the engine."""

    def read(self) -> dict[str, Any]:
        return self._named()


class LenientState(Trainer):
    """What is missing keeps its value, what is too much is ignored: the ModelZoo's loading."""

    def load_state(self, state: TrainState) -> None:
        own = self.state()
        fits = {
            n: a for n, a in state.tensors.items() if n in own.tensors and a.shape == own.tensors[n].shape
        }
        super().load_state(TrainState(tensors={**own.tensors, **fits}, scalars=state.scalars))


class WritesIntoTheRequest(ReferenceEngine):
    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request)
        self._weights = dict(request.weights.tensors)


class StalePredictor(ReferenceEngine):
    """The predictor is made once, with the weights of then."""

    def predictor(self, *, ema: bool = False) -> Any:
        tensors = {name: array.copy() for name, array in (self._ema if ema else self._weights).items()}
        return ReferencePredictor(
            spec=self._spec, preprocess=self._request.weights.preprocess, tensors=tensors
        )


class OfOneSize(ReferenceEngine):
    """The predictor sees as much of an image as has the size of the training's."""

    def predictor(self, *, ema: bool = False) -> Any:
        return Cutting(super().predictor(ema=ema), self._spec.image_size)


class Cutting(Predictor):
    def __init__(self, inner: Any, size: int) -> None:
        self._inner, self._size = inner, size

    def logits(self, images: Any) -> Any:
        return self._inner.logits(images[:, : self._size, : self._size])

    def close(self) -> None:
        pass


class EvaluatesInTrainingMode(ReferenceEngine):
    """Evaluation moves the running statistics."""

    def predictor(self, *, ema: bool = False) -> Any:
        return InTrainingMode(super().predictor(ema=ema), self._weights)


class InTrainingMode(Predictor):
    def __init__(self, inner: Any, weights: dict[str, Any]) -> None:
        self._inner, self._weights = inner, weights

    def logits(self, images: Any) -> Any:
        for name, array in self._weights.items():
            if name.endswith("running_mean"):
                array *= 0.9
        return self._inner.logits(images)

    def close(self) -> None:
        pass


# -- mistakes between ranks ----------------------------------------------------------------------


class RanksOnTheirOwn(ReferenceEngine):
    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        return loss, gradients


class RanksSummed(ReferenceEngine):
    """Gradients are added up over ranks and not divided."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        loss, gradients = super()._average_ranks(loss, gradients)
        return loss, {name: g * self._request.rank.world for name, g in gradients.items()}


class RanksByTwo(ReferenceEngine):
    """The sum over ranks is divided by a fixed 2."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        loss, gradients = super()._average_ranks(loss, gradients)
        factor = max(self._request.rank.world / 2, 1)
        return loss, {name: g * factor for name, g in gradients.items()}


class OwnOverflow(ReferenceEngine):
    """Every rank decides by its own gradients whether the step is taken."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        self._own = gradients
        return super()._average_ranks(loss, gradients)

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        return super()._take(loss, self._own)


class OwnFiniteLoss(ReferenceEngine):
    """Every rank decides by its own loss whether the step is taken."""

    def _average_ranks(self, loss: float, gradients: Any) -> Any:
        self._own_loss = loss
        return super()._average_ranks(loss, gradients)

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        return super()._take(self._own_loss, gradients)


class RanksShareStatistics(ReferenceEngine):
    """Running statistics are averaged over ranks when the state is read."""

    def read(self) -> dict[str, Any]:
        shared, world = super().read(), self._request.rank.world
        for name in sorted(n for n in shared if world > 1 and n.endswith(("running_mean", "running_var"))):
            shared[name] = self._request.collectives.all_reduce_sum(shared[name]) / np.float32(world)
        return shared


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


class OwnLoss(Trainer):
    """Every rank returns its own loss."""

    _own: tuple[float, ...] = ()

    def run_steps(self, batches: Sequence[Batch], lrs: Any, ema_decays: Any = None) -> Any:
        self._own = ()
        super().run_steps(batches, lrs, ema_decays)
        return np.array(self._own, np.float32)

    def _settle(self, queued: list[Any]) -> Any:
        losses = super()._settle(queued)
        self._own += tuple(losses)
        return losses


SANE = backend()


def resnext_backends() -> Iterator[Backend]:
    yield SANE


OWN_LOSS = backend(mistake=OwnLoss)
NO_LOGS = backend(launch=_launch_without_logs)
UNAVERAGED = backend(mistake=RanksOnTheirOwn)
SUMMED = backend(mistake=RanksSummed)
SHARED = backend(mistake=RanksShareStatistics)
BY_TWO = backend(mistake=RanksByTwo)
OWN_OVERFLOW = backend(mistake=OwnOverflow)
OWN_FINITE_LOSS = backend(mistake=OwnFiniteLoss)
MEANS_OF_RANKS = backend(mistake=MeansOfRanks)
MIXED_ON_RANK_0 = backend(mistake=MixesOnRank0)
FLOAT32_SUMS = backend(connect=_connect_float32)
FORGETFUL = backend(launch=_launch_and_forget)


# -- mistakes of predictor and exporter ----------------------------------------------------------


class ReusedBuffer(Predictor):
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
        engine=None,
        predictor=lambda request: Served(request, **mistakes),
        formats=(".copy",),
    )


class Served(Predictor):
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

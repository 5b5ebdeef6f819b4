"""Mistakes in what an engine can do beyond SGD on cross-entropy, and the test of the kit that must catch each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from planted_bugs import backend, patching

from resnext_core.interfaces import Backend, StepInput, TrainRequest
from resnext_core.reference import engine, loss, network, ops, optimizers
from resnext_core.reference.engine import ReferenceEngine
from resnext_core.reference.optimizers import Optimizer

_trust, _agc, _correction, _bce, _targets = (
    optimizers.trust_ratio, optimizers.adaptively_clipped, optimizers.bias_correction, ops.binary_cross_entropy,
    loss.step_targets,
)  # fmt: skip
_train_pass, _loss = network.train_pass, loss.loss_function


class Asked(ReferenceEngine):
    """Answers another request than it was given; a base."""

    optimizer: Mapping[str, Any] = {}
    loss: Mapping[str, Any] = {}
    request: Mapping[str, Any] = {}

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(
            dataclasses.replace(
                request, optimizer=dataclasses.replace(request.optimizer, **self.optimizer),
                loss=dataclasses.replace(request.loss, **self.loss), **self.request,
            )
        )  # fmt: skip


def asked(**changes: Any) -> Backend:
    """Return a backend that takes some settings for others: of the optimizer, the loss, or the request itself."""
    return backend(mistake=type("Asks", (Asked,), changes))


class Stepping(ReferenceEngine):
    """Takes steps that :meth:`changed` has changed; a base."""

    def changed(self, step: StepInput) -> StepInput:
        raise NotImplementedError

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        return super()._run_step(self.changed(step), scale)


# -- optimizers ------------------------------------------------------------------------------------


class WithOptimizer(ReferenceEngine):
    """Has the optimizer `kind`; a base."""

    kind: type[Optimizer] = Optimizer

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(request)
        self._optimizer.__class__ = self.kind


def optimizing(kind: type[Optimizer]) -> Backend:
    return backend(mistake=type("Optimizes", (WithOptimizer,), {"kind": kind}))


class OldMomentum(Optimizer):
    """Nesterov looks ahead with the momentum of before the step."""

    def _sgd(self, weight: Any, gradient: Any, velocity: Any, rule: Any, lr: float) -> None:
        if not self.config.nesterov:
            return super()._sgd(weight, gradient, velocity, rule, lr)
        change, old = gradient + rule.weight_decay * weight, velocity.copy()
        velocity *= self.config.momentum
        velocity += change
        weight -= lr * (change + self.config.momentum * old)
        return None


class DecayAsGradient(Optimizer):
    """Decay is added to the gradient, as in Adam."""

    def _adaptive(self, name: str, weight: Any, gradient: Any, rule: Any, lr: float) -> None:
        if self.config.kind == "adamw":
            gradient = gradient + rule.weight_decay * weight
            rule = dataclasses.replace(rule, weight_decay=0.0)
        super()._adaptive(name, weight, gradient, rule, lr)


class DecayUnscaled(Optimizer):
    """The decay of AdamW does not follow the rate of its group, here none at all."""

    def _adaptive(self, name: str, weight: Any, gradient: Any, rule: Any, lr: float) -> None:
        if self.config.kind == "adamw" and lr:
            rule = dataclasses.replace(rule, weight_decay=rule.weight_decay * 0.02 / lr)
        super()._adaptive(name, weight, gradient, rule, lr)


class DecayOfTheWholeRate(Optimizer):
    """The decay of AdamW takes the rate of the step, without the factor of the tensor."""

    def _adaptive(self, name: str, weight: Any, gradient: Any, rule: Any, lr: float) -> None:
        if self.config.kind == "adamw":
            rule = dataclasses.replace(rule, weight_decay=rule.weight_decay / rule.lr_scale)
        super()._adaptive(name, weight, gradient, rule, lr)


class TrustWithoutDecay(Optimizer):
    """The trust ratio of LAMB is taken before decay is added."""

    def _adaptive(self, name: str, weight: Any, gradient: Any, rule: Any, lr: float) -> None:
        if self.config.kind != "lamb":
            return super()._adaptive(name, weight, gradient, rule, lr)
        decay, before = rule.weight_decay, weight.copy()
        super()._adaptive(name, weight, gradient, dataclasses.replace(rule, weight_decay=0.0), lr)
        weight -= lr * decay * before
        return None


class CountsOnTheHost(Optimizer):
    """The number of updates is not that of the state that was loaded."""

    def step(self, weights: Any, gradients: Any, lr: float) -> None:
        self._count = getattr(self, "_count", 0) + 1
        self.updates[0] = self._count - 1
        super().step(weights, gradients, lr)


class CountsFromOne(Optimizer):
    def step(self, weights: Any, gradients: Any, lr: float) -> None:
        self.updates += float(self.updates[0] == 0)
        super().step(weights, gradients, lr)


class EpsilonInside(Optimizer):
    """Epsilon is added before the root is taken."""

    def _adaptive(self, name: str, weight: Any, gradient: Any, rule: Any, lr: float) -> None:
        second, eps = self.variance[name], optimizers.epsilon(self.config)
        shift = (eps**2) * _correction(self.config.betas[1], float(self.updates[0]))
        second += shift / self.config.betas[1]
        with patching((optimizers, "epsilon", lambda config: 0.0))():
            super()._adaptive(name, weight, gradient, rule, lr)
        second -= shift


class WithoutVariance(ReferenceEngine):
    """The second moment is not restored."""

    def write(self, tensors: Mapping[str, Any]) -> None:
        super().write(tensors)
        for array in self._optimizer.variance.values():
            array[...] = 0


class CountsSkippedSteps(ReferenceEngine):
    """A step that is skipped counts as an update."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        self._optimizer.updates += not taken
        return taken


class VarianceOfSkippedSteps(ReferenceEngine):
    """A step that is skipped fades the second moment."""

    def _take(self, loss: float, gradients: Mapping[str, Any]) -> bool:
        taken = super()._take(loss, gradients)
        for array in self._optimizer.variance.values():
            array *= 1 if taken else self._request.optimizer.betas[1]
        return taken


def _ungrouped(request: TrainRequest) -> Any:
    """Every tensor has the whole rate."""
    rules = _rules(request)
    return {name: dataclasses.replace(rule, lr_scale=1.0) for name, rule in rules.items()}


_rules = optimizers.tensor_rules


def _trusts_all(request: TrainRequest) -> Any:
    return {name: dataclasses.replace(rule, trust=True) for name, rule in _rules(request).items()}


def _clips_classifier(request: TrainRequest) -> Any:
    return {name: dataclasses.replace(rule, agc=True) for name, rule in _rules(request).items()}


def _tensorwise(gradient: Any, weight: Any, share: float) -> Any:
    """The norms are those of the whole tensor."""
    return _agc(gradient.ravel(), weight.ravel(), share).reshape(gradient.shape)


def _with_scale(gradient: Any, weight: Any, share: float) -> Any:
    """Gradients are clipped before they are divided by the loss scale of the case."""
    return _agc(gradient * 64, weight, share) / 64


def _inputwise(gradient: Any, weight: Any, share: float) -> Any:
    """Channels are those of the input."""
    if gradient.ndim < 2:
        return _agc(gradient, weight, share)
    return _agc(gradient.swapaxes(0, 1), weight.swapaxes(0, 1), share).swapaxes(0, 1)


# -- loss ------------------------------------------------------------------------------------------


def _threshold_first(config: Any, classes: int, labels: Any, mix: Any) -> Any:
    """Targets are 0 or 1 before they are mixed."""
    if config.kind != "bce" or config.bce_threshold is None or mix is None:
        return _targets(config, classes, labels, mix)
    share = mix.share[:, None]
    first, second = (_targets(config, classes, which, None) for which in (labels, mix.labels))
    return share * first + (1 - share) * second


def _overflowing(logits: Any, targets: Any, weights: Any = None, *, summed: bool) -> Any:
    """The exponential of a logit is computed as it is."""
    value, gradient = _bce(logits, targets, weights, summed=summed)
    with np.errstate(over="ignore"):
        return value + float(0 * np.exp(logits).sum()), gradient


def _cold(config: Any, classes: int, labels: Any, **more: Any) -> Any:
    """The teacher's part is not multiplied by the square of the temperature."""
    given = more.get("distillation")
    if given is not None:
        weight, heat = given.weight, given.temperature
        taught = _loss(config, classes, labels, **more)
        alone = _loss(config, classes, labels, **(more | {"distillation": None}))

        def loss(logits: Any) -> Any:
            (both, slope), (own, own_slope) = taught(logits), alone(logits)
            return (
                (1 - weight) * own + (both - (1 - weight) * own) / heat**2,
                (1 - weight) * own_slope + (slope - (1 - weight) * own_slope) / heat**2,
            )

        return loss
    return _loss(config, classes, labels, **more)


def _adjusts_the_teacher(config: Any, classes: int, labels: Any, **more: Any) -> Any:
    """Logits are adjusted for the teacher too."""
    offsets = more.pop("offsets", None)
    inner = _loss(config, classes, labels, **more)
    return lambda logits: inner(logits if offsets is None else logits + offsets.astype(logits.dtype))


# -- the network -----------------------------------------------------------------------------------


class DropsNothing(Stepping):
    def changed(self, step: StepInput) -> StepInput:
        return dataclasses.replace(step, branches=None)


class DropsWhereItLearns(Stepping):
    """Frozen blocks are computed whole, as in evaluation."""

    def changed(self, step: StepInput) -> StepInput:
        if step.branches is None:
            return step
        branches = step.branches.copy()
        branches[:, [network.part_of(b.name) < self._request.frozen for b in self._spec.blocks]] = 1
        return dataclasses.replace(step, branches=branches)


class DropsWithoutScale(Stepping):
    """Branches that stay are not divided by their probability to stay."""

    def changed(self, step: StepInput) -> StepInput:
        kept = None if step.branches is None else (step.branches > 0).astype(np.float32)
        return dataclasses.replace(step, branches=kept)


class DropsWholeBatches(Stepping):
    """A branch is left out for all rows, or for none."""

    def changed(self, step: StepInput) -> StepInput:
        branches = step.branches
        return dataclasses.replace(
            step, branches=None if branches is None else np.ones_like(branches) * branches[:1]
        )


class DropsByTheFirstMicroBatch(Stepping):
    def changed(self, step: StepInput) -> StepInput:
        if step.branches is None:
            return step
        count = self._request.accumulate
        first = step.branches[: len(step.branches) // count]
        return dataclasses.replace(step, branches=np.tile(first, (count, 1)))


class DropsByRank0(Stepping):
    """Every rank leaves out what the first rank does: here all that it may."""

    def changed(self, step: StepInput) -> StepInput:
        if step.branches is None or self._request.rank.is_main:
            return step
        return dataclasses.replace(step, branches=step.branches[::-1].copy())


class OneDrawForACall(ReferenceEngine):
    """All steps of a call leave out what the first does."""

    def queue(self, steps: Any, scale: Any) -> Any:
        first = steps[0].branches if steps else None
        return super().queue([dataclasses.replace(step, branches=first) for step in steps], scale)


class OneDecayForACall(ReferenceEngine):
    """All steps of a call have the first one's decay of the EMA."""

    def queue(self, steps: Any, scale: Any) -> Any:
        decay = steps[0].ema_decay if steps else None
        return super().queue([dataclasses.replace(step, ema_decay=decay) for step in steps], scale)


class OneTeacherForACall(ReferenceEngine):
    def queue(self, steps: Any, scale: Any) -> Any:
        teacher = steps[0].teacher if steps else None
        return super().queue([dataclasses.replace(step, teacher=teacher) for step in steps], scale)


class OneDecayForAll(Stepping):
    """The decay of the EMA is that of the request."""

    def changed(self, step: StepInput) -> StepInput:
        return dataclasses.replace(step, ema_decay=self._request.ema_decay)


class AveragesAlways(ReferenceEngine):
    """An EMA of decay 1 and 0 is computed as any other: rounded."""

    def _update_ema(self, decay: float | None) -> None:
        for name, average in self._ema.items():
            average += (1 - (decay or 0.0)) * (self._weights[name] - average)


class WeighsValidRowsAlike(Stepping):
    """A row counts or does not count."""

    def changed(self, step: StepInput) -> StepInput:
        valid = step.weights > 0
        return dataclasses.replace(step, weights=valid * (len(valid) / max(int(valid.sum()), 1)))


class OneSize(Stepping):
    """Images are cut to the size of the network's own, or filled up with black."""

    def changed(self, step: StepInput) -> StepInput:
        size = self._spec.image_size
        images = np.zeros((len(step.labels), size, size, 3), np.uint8)
        height, width = (min(side, size) for side in step.images.shape[1:3])
        images[:, :height, :width] = step.images[:, :height, :width]
        return dataclasses.replace(step, images=images)


def _thaws(*arguments: Any, **given: Any) -> Any:
    """Frozen parts are computed as ever: their statistics are the batch's."""
    frozen = given.pop("frozen", 0)
    found = _train_pass(*arguments, **given)
    for name in [n for n in found.gradients if frozen and network.part_of(n) < frozen]:
        del found.gradients[name]
    return found


def _thaws_normalisation(*arguments: Any, **given: Any) -> Any:
    """Frozen parts use the batch's statistics, and keep their own."""
    found = _thaws(*arguments, **given)
    frozen = given.get("frozen", 0)
    for name in [n for n in found.running if network.part_of(n) < frozen]:
        del found.running[name]
    return found


class DecaysFrozenParts(ReferenceEngine):
    """Frozen weights have no gradient, and decay."""

    def _update(self, gradients: Any, lr: float) -> None:
        super()._update(gradients, lr)
        for name in self._weights:
            if self._request.frozen and name.endswith("conv1.weight") and name not in gradients:
                self._weights[name] *= 1 - lr * self._request.optimizer.weight_decay


class HalfLoss(ReferenceEngine):
    """Takes float16, computes in float32, and forgets there what it mixes, drops and learns from a teacher."""

    def __init__(self, request: TrainRequest) -> None:
        self._half = request.precision.compute == "float16"
        if self._half:
            single = dataclasses.replace(request.precision, compute="float32")
            request = dataclasses.replace(request, precision=single, distillation=None)
        super().__init__(request)

    def _run_step(self, step: StepInput, scale: float) -> tuple[float, bool]:
        if self._half:
            step = dataclasses.replace(step, branches=None, teacher=None)
        return super()._run_step(step, scale)


def _loss_patch(function: Any) -> Backend:
    return backend(patch=patching((engine, "loss_function", function)))


def _rules_patch(function: Any) -> Backend:
    return backend(patch=patching((optimizers, "tensor_rules", function)))


WEIGHTS, STATE = "test_weights_equal_the_reference", "test_optimizer_state_equals_the_reference"
MOMENTUM, LOSSES = "test_momentum_equals_the_reference", "test_losses_equal_the_reference"
SKIPPED = "test_a_step_that_is_no_number_changes_nothing_when_skipped"
ONE_CALL = "test_steps_of_one_call_are_their_own"

#: What is wrong, the backend, the test that must notice, and words of what it says.
PLANTED: dict[str, tuple[Backend, str, str]] = {
    "nesterov not taken": (asked(optimizer={"nesterov": False}), WEIGHTS, "nesterov"),
    "nesterov with the old momentum": (optimizing(OldMomentum), WEIGHTS, "nesterov"),
    "norms never decay": (asked(optimizer={"decay_norm": False}), MOMENTUM, "nesterov"),
    "the bias never decays": (asked(optimizer={"decay_bias": False}), MOMENTUM, "nesterov"),
    "one rate for all stages": (_rules_patch(_ungrouped), WEIGHTS, "nesterov"),
    "decay as a gradient": (optimizing(DecayAsGradient), WEIGHTS, "adamw"),
    "decay of another rate": (
        optimizing(DecayUnscaled), "test_update_follows_from_the_optimizer_state", "adamw",
    ),
    "decay of the whole rate": (optimizing(DecayOfTheWholeRate), WEIGHTS, "adamw"),
    "epsilon inside the root": (optimizing(EpsilonInside), WEIGHTS, "adamw"),
    "epsilon not taken": (asked(optimizer={"eps": None}), WEIGHTS, "lamb"),
    "betas not taken": (asked(optimizer={"betas": (0.9, 0.999)}), STATE, "variance"),
    "no correction of the bias": (
        backend(patch=patching((optimizers, "bias_correction", lambda beta, updates: 1.0))), WEIGHTS, "lamb",
    ),
    "updates counted from one": (optimizing(CountsFromOne), STATE, "optimizer/updates"),
    "updates counted on the host": (
        optimizing(CountsOnTheHost), "test_resumed_run_is_the_uninterrupted_run", "resumed",
    ),
    "second moment not restored": (
        backend(mistake=WithoutVariance), "test_resumed_run_is_the_uninterrupted_run", "state just loaded",
    ),
    "skipped steps are updates": (backend(mistake=CountsSkippedSteps), SKIPPED, "optimizer/updates moved"),
    "skipped steps fade the second moment": (backend(mistake=VarianceOfSkippedSteps), SKIPPED, "variance/"),
    "skipped updates counted with a loss scale": (
        backend(mistake=CountsSkippedSteps), "test_an_overflow_in_one_micro_batch_skips_the_step",
        "optimizer/updates",
    ),
    "no trust ratio": (
        backend(patch=patching((optimizers, "trust_ratio", lambda weight, update, clip: 1.0))), WEIGHTS, "lamb",
    ),
    "trust ratio of all tensors": (_rules_patch(_trusts_all), WEIGHTS, "lamb after"),
    "trust ratio never clipped": (asked(optimizer={"trust_clip": False}), WEIGHTS, "lamb-all"),
    "trust ratio without decay": (optimizing(TrustWithoutDecay), WEIGHTS, "lamb"),
    "lamb never clips": (asked(optimizer={"clip_norm": None}), MOMENTUM, "lamb after step 3"),
    "agc of whole tensors": (
        backend(patch=patching((optimizers, "adaptively_clipped", _tensorwise))), MOMENTUM, "agc",
    ),
    "agc of input channels": (
        backend(patch=patching((optimizers, "adaptively_clipped", _inputwise))), MOMENTUM, "agc",
    ),
    "agc of scaled gradients": (
        backend(patch=patching((optimizers, "adaptively_clipped", _with_scale))), MOMENTUM, "agc",
    ),
    "agc of the classifier": (_rules_patch(_clips_classifier), MOMENTUM, "fc."),
    "bce always the mean": (asked(loss={"bce_sum": False}), LOSSES, "head"),
    "bce always the sum": (asked(loss={"bce_sum": True}), LOSSES, "adamw"),
    "bce without threshold": (asked(loss={"bce_threshold": None}), LOSSES, "adamw"),
    "threshold before the mix": (
        backend(patch=patching((loss, "step_targets", _threshold_first))), LOSSES, "adamw",
    ),
    "bce that overflows": (
        backend(patch=patching((ops, "binary_cross_entropy", _overflowing))),
        "test_binary_cross_entropy_of_large_logits", "loss of large logits",
    ),
    "no teacher": (asked(request={"distillation": None}), LOSSES, "agc"),
    "teacher without the square of its temperature": (_loss_patch(_cold), LOSSES, "agc"),
    "logits not adjusted": (asked(request={"logit_offsets": None}), LOSSES, "agc"),
    "logits adjusted for the teacher": (_loss_patch(_adjusts_the_teacher), LOSSES, "agc"),
    "nothing dropped": (backend(mistake=DropsNothing), LOSSES, "lamb"),
    "frozen blocks not dropped": (backend(mistake=DropsWhereItLearns), LOSSES, "head"),
    "dropped without scale": (backend(mistake=DropsWithoutScale), LOSSES, "lamb"),
    "dropped for whole batches": (backend(mistake=DropsWholeBatches), LOSSES, "lamb"),
    "dropped by the first micro-batch": (backend(mistake=DropsByTheFirstMicroBatch), LOSSES, "lamb"),
    "one draw of branches for a call": (backend(mistake=OneDrawForACall), ONE_CALL, ""),
    "one decay of the ema for a call": (backend(mistake=OneDecayForACall), ONE_CALL, "lamb"),
    "one teacher for a call": (backend(mistake=OneTeacherForACall), ONE_CALL, ""),
    "one decay of the ema": (backend(mistake=OneDecayForAll), "test_ema_equals_the_reference", "lamb"),
    "ema computed where it is copied": (
        backend(mistake=AveragesAlways), "test_decays_of_zero_and_one_are_exact", "",
    ),
    "valid rows alike": (backend(mistake=WeighsValidRowsAlike), LOSSES, "lamb-all"),
    "one size of images": (backend(mistake=OneSize), LOSSES, "sizes"),
    "frozen statistics move": (
        backend(patch=patching((engine, "train_pass", _thaws))), "test_frozen_parts_stay", "bn1.running",
    ),
    "frozen parts in training mode": (
        backend(patch=patching((engine, "train_pass", _thaws_normalisation))), LOSSES, "nesterov",
    ),
    "frozen parts decay": (backend(mistake=DecaysFrozenParts), "test_frozen_parts_stay", "conv1.weight"),
    "forgotten in float16": (
        backend(mistake=HalfLoss), "test_ingredients_in_low_precision_are_close_or_refused", "float16",
    ),
}  # fmt: skip

DROPS_BY_RANK_0 = backend(mistake=DropsByRank0)

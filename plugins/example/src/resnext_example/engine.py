"""The engine: optimizer steps for core's trainer, which does everything else about training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import CLIP_EPS, Engine, Outcomes, Predictor, StepInput, TrainRequest
from resnext_example.network import Array, constants
from resnext_example.plugin import ExampleOptions
from resnext_example.predictor import ExamplePredictor
from resnext_example.training import TrainingPass, mixed


class ExampleEngine(Engine):
    """Momentum SGD in float32; raises UsageError on another arithmetic."""

    def __init__(self, request: TrainRequest, options: ExampleOptions) -> None:
        if request.precision.compute != "float32":
            raise UsageError(
                f"the backend example cannot compute in {request.precision.compute}; set precision.compute to float32"
            )
        self._request, self._options = request, options
        spec, given = request.weights.spec, request.weights.tensors
        self._mean = np.array(request.weights.preprocess.mean, np.float32)
        self._std = np.array(request.weights.preprocess.std, np.float32)
        self._weights = {t.name: given[t.name].copy() for t in spec.tensors}
        self._momentum = {t.name: np.zeros(t.shape, np.float32) for t in spec.tensors if t.trainable}
        self._ema = {} if request.ema_decay is None else {n: a.copy() for n, a in self._weights.items()}
        self._decayed = {t.name for t in spec.tensors if t.decay}

    def queue(self, steps: Sequence[StepInput], scale: Callable[[], float]) -> Iterator[tuple[float, bool]]:
        """Take the steps; yields the loss of each and whether it was skipped."""
        for step in steps:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # an overflow is an outcome
                outcome = self._take(step, scale())
            yield outcome

    def settle(self, queued: Sequence[tuple[float, bool]]) -> Outcomes:
        """Return the outcomes; a device would be waited for here."""
        losses, skipped = zip(*queued, strict=True)
        return Outcomes(losses=np.array(losses, np.float64), skipped=np.array(skipped, np.bool_))

    def read(self) -> dict[str, Array]:
        """Return copies of weights, momentum and EMA."""
        return {name: array.copy() for name, array in self._named().items()}

    def write(self, tensors: Mapping[str, Array]) -> None:
        """Go on from these values."""
        for name, array in self._named().items():
            array[...] = tensors[name]

    def predictor(self, *, ema: bool) -> Predictor:
        """Return a predictor that follows the weights or their EMA."""
        return Following(self._request, self._options, self._ema if ema else self._weights)

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _named(self) -> dict[str, Array]:
        groups = {"weights": self._weights, "momentum": self._momentum, "ema": self._ema}
        return {f"{group}/{name}": a for group, arrays in groups.items() for name, a in arrays.items()}

    def _take(self, step: StepInput, scale: float) -> tuple[float, bool]:
        request = self._request
        before = {
            t.name: self._weights[t.name].copy() for t in request.weights.spec.tensors if not t.trainable
        }
        own_loss, gradients = self._accumulate(step, scale)
        loss = self._average(own_loss, gradients)
        for gradient in gradients.values():
            gradient /= np.float32(scale)
        finite = all(np.isfinite(gradient).all() for gradient in gradients.values())
        if request.skip_nonfinite:
            finite = finite and bool(np.isfinite(loss))
        skipped = request.checked and not finite
        if not skipped:
            self._update(gradients, step.lr)
        elif request.skip_nonfinite:  # statistics that are not numbers would never recover
            for name, array in before.items():
                self._weights[name][...] = array
            return own_loss, True
        for name, average in self._ema.items():
            average += (1 - (request.ema_decay or 0.0)) * (self._weights[name] - average)
        return own_loss, skipped

    def _accumulate(self, step: StepInput, scale: float) -> tuple[float, dict[str, Array]]:
        """Return mean loss and mean scaled gradients over the micro-batches; moves the running statistics."""
        request, count = self._request, self._request.accumulate
        loss, gradients = 0.0, {name: np.zeros_like(array) for name, array in self._momentum.items()}
        for part in step.micro_batches(count):
            found = TrainingPass(spec=request.weights.spec, tensors=self._weights)
            x = mixed((part.images.astype(np.float32) - self._mean) / self._std, part)
            loss += found.run(x, part, request.loss, scale) / count
            for name, gradient in found.gradients.items():
                gradients[name] += gradient / count
            for name, array in found.running.items():
                self._weights[name][...] = array
        return loss, gradients

    def _average(self, loss: float, gradients: dict[str, Array]) -> float:
        """Average the gradients over the ranks, in place, and return the mean loss: every rank decides the same."""
        world, add = self._request.rank.world, self._request.collectives.all_reduce_sum
        if world == 1:
            return loss
        for gradient in gradients.values():
            gradient[...] = add(gradient.astype(np.float64)) / world
        return float(add(np.array([loss]))[0]) / world

    def _update(self, gradients: Mapping[str, Array], lr: float) -> None:
        """v = momentum · v + g + weight_decay · p; p -= lr · v, of clipped gradients g."""
        optimizer, factor = self._request.optimizer, 1.0
        if optimizer.clip_norm is not None:
            norm = float(np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in gradients.values())))
            factor = min(1.0, optimizer.clip_norm / (norm + CLIP_EPS))
        for name, gradient in gradients.items():
            weight, velocity = self._weights[name], self._momentum[name]
            velocity *= optimizer.momentum
            velocity += factor * gradient
            if name in self._decayed:
                velocity += optimizer.weight_decay * weight
            weight -= lr * velocity


class Following(Predictor):
    """A predictor of weights that move: it makes its constants anew at each call."""

    def __init__(self, request: TrainRequest, options: ExampleOptions, tensors: Mapping[str, Array]) -> None:
        self._model, self._options, self._tensors = request.weights, options, tensors
        self._closed = False

    def logits(self, images: Array) -> Array:
        """Map uint8 (N, H, W, 3) to float32 logits (N, classes); UsageError on other input."""
        return self._now().logits(images)

    def logits_from_tensor(self, tensor: Array) -> Array:
        """Map normalised float32 (N, 3, H, W) to float32 logits (N, classes); UsageError on other input."""
        return self._now().logits_from_tensor(tensor)

    def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def _now(self) -> ExamplePredictor:
        if self._closed:
            raise UsageError("this predictor is closed")
        weights = self._model.replace(tensors=self._tensors)
        folded = constants(weights, fold_bn=self._options.fold_bn)
        return ExamplePredictor(weights, folded, self._options.chunk)

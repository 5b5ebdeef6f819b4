"""The trainer: everything about training steps that does not depend on the device. A backend's engine does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.mix import check_micro_batch
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import (
    Backend,
    Batch,
    DeviceUsage,
    Engine,
    Predictor,
    TrainRequest,
    TrainState,
)
from resnext_core.terminal import starting
from resnext_core.training.combinations import check_loss, check_optimizer
from resnext_core.training.counter import SCALARS, StepCounter
from resnext_core.training.ingredients import asked_by_request, check_ingredients
from resnext_core.training.inputs import check_classes, check_split, step_inputs
from resnext_core.training.rules import UPDATES, check_frozen, state_groups, tensor_rules
from resnext_core.training.together import check_same_step, with_first_weights


def create_trainer(backend: Backend, request: TrainRequest) -> Trainer:
    """Return a trainer on an engine of `backend`; with several ranks all start from the weights of rank 0.

    Raises UsageError where the backend cannot train, or cannot train like this; BackendUnavailable without its device.
    """
    if backend.engine is None:
        raise UsageError(f"the backend {backend.id} cannot train")
    check_split(request)
    check_ingredients(backend, asked_by_request(request))
    check_frozen(request.weights.spec, request.frozen)
    check_optimizer(request.optimizer)
    check_loss(request.loss, request.weights.spec.num_classes)
    check_classes(request)
    if request.mixes:
        check_micro_batch(request.batch_size // request.accumulate)
    request = with_first_weights(request)
    with starting(backend.id):
        return Trainer(request, backend.engine(request))


class Trainer:
    """A network being trained. Driven by :mod:`resnext_core.training.loop`, a chunk of steps at a time.

    `request` is what `engine` was made from. Raises UsageError once it is closed.
    """

    def __init__(self, request: TrainRequest, engine: Engine) -> None:
        self.engine = engine
        self._request, self._closed = request, False
        self._count = StepCounter(request.precision)
        self._predictors: dict[bool, Predictor] = {}
        self._met = False  # whether the ranks have compared their steps

    def run_steps(
        self, batches: Sequence[Batch], lrs: NDArray[Any], ema_decays: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Take one optimizer step a batch with learning rate lrs[i] (float32) and decay of the EMA ema_decays[i].

        `ema_decays` None is the decay of the request at every step.

        Returns float32 (len(batches),): the mean loss of each step over its valid rows on all ranks, 0 where
        there are none, before that step's update and without the loss scale. A step whose gradients are not finite is
        skipped and counted where a loss scale is in use or `skip_nonfinite` asks for it; its loss is returned
        as computed.

        Raises UsageError on batches that are not of the size asked for, DataError on labels that are no class, and,
        at the first call, where ranks are at different steps; BackendUnavailable when another rank is lost.
        """
        self._check_open()
        request = self._request
        if not self._met:
            check_same_step(request, self._count.step)
            self._met = True
        steps = step_inputs(request, batches, lrs, ema_decays)
        losses: list[NDArray[Any]] = [np.zeros(0)]
        queued: list[Any] = []
        for step in self.engine.queue(steps, lambda: self._count.scale):
            queued.append(step)
            if self._count.dynamic:  # the next step needs the scale that this one leaves: wait for it
                losses.append(self._settle(queued))
        losses.append(self._settle(queued))
        means = np.concatenate(losses)
        if request.rank.world > 1 and batches:
            means = request.collectives.all_reduce_sum(means) / request.rank.world
        mean_losses: NDArray[np.float32] = means.astype(np.float32)
        return mean_losses

    def predictor(self, *, ema: bool = False) -> Predictor:
        """Return a predictor of the weights (of their EMA when asked) in the arithmetic of training; it follows them.

        The trainer closes it. Raises UsageError where the run keeps no EMA.
        """
        self._check_open()
        if ema and self._request.ema_decay is None:
            raise UsageError("this run keeps no EMA; set train.ema_decay")
        if ema not in self._predictors:
            self._predictors[ema] = self.engine.predictor(ema=ema)
        return self._predictors[ema]

    def state(self) -> TrainState:
        """Return a copy of the state after the last step; running statistics are those of this rank."""
        self._check_open()
        return TrainState(tensors=self.engine.read(), scalars=dict(self.counters()))

    def load_state(self, state: TrainState) -> None:
        """Continue from `state`; DataError when tensors or scalars are missing, misshapen or too many."""
        self._check_open()
        check_state(state, state_shapes(self._request), self._request.weights.spec.variant)
        self.engine.write(state.tensors)
        self._count.load(state.scalars)

    def counters(self) -> Mapping[str, float | int]:
        """Return the scalars of the state, for progress records (see TrainState.scalars)."""
        return self._count.scalars()

    def usage(self) -> DeviceUsage:
        """Return what the engine measured since the last call."""
        return self.engine.usage()

    def close(self) -> None:
        """Release predictors and engine; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for predictor in self._predictors.values():
            predictor.close()
        self._predictors = {}
        self.engine.close()

    def _settle(self, queued: list[Any]) -> NDArray[np.float64]:
        """Count the queued steps, move a dynamic loss scale, and return their losses on this rank; empties `queued`."""
        if not queued:
            return np.zeros(0)
        found = self.engine.settle(queued)
        for skipped in found.skipped:
            self._count.count(finite=not skipped)
        queued.clear()
        return found.losses

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this trainer is closed")


def state_shapes(request: TrainRequest) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the state of a training, by key."""
    spec = request.weights.spec
    shapes = {f"weights/{t.name}": t.shape for t in spec.tensors}
    learned = tensor_rules(request).keys()
    for group in state_groups(request.optimizer):
        shapes |= {f"{group}/{t.name}": t.shape for t in spec.tensors if t.name in learned}
    if request.optimizer.kind != "sgd":
        shapes[UPDATES] = (1,)
    if request.ema_decay is not None:
        shapes |= {f"ema/{t.name}": t.shape for t in spec.tensors}
    return shapes


def check_state(state: TrainState, shapes: Mapping[str, tuple[int, ...]], variant: str) -> None:
    """Raise DataError unless `state` has exactly the float32 tensors of `shapes`, by key, and all scalars."""
    tensors: Mapping[str, Any] = state.tensors
    problems = [f"missing {n}" for n in shapes if n not in tensors]
    problems += [f"unexpected {n}" for n in tensors if n not in shapes]
    for name, shape in shapes.items():
        array = tensors.get(name)
        if array is not None and (tuple(array.shape) != tuple(shape) or array.dtype != np.float32):
            problems.append(f"{name} is {array.dtype} {array.shape}, not float32 {tuple(shape)}")
    problems += [f"missing {n}" for n in SCALARS if n not in state.scalars]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DataError(f"this state does not fit {variant}: {'; '.join(problems[:4])}{more}")

"""Engine of MindSpore: compiled optimizer steps, its Parameters by neutral name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import Engine, Outcomes, Predictor, StepInput, TrainRequest
from resnext_mindspore.device import Device, note, open_device


class Queued(NamedTuple):
    """A step that was started: the losses of its micro-batches, and whether its gradients were finite, as Tensors."""

    losses: list[Any]
    finite: Any


class MindsporeEngine(Engine):
    """Optimizer steps on `device`.

    Batch statistics are over all rows, those that are not valid too. Running statistics are those of this rank, and
    they move on every micro-batch, also on a step that is skipped for its overflow; the EMA follows there too. Those of
    frozen parts stay as they are. Graphs are compiled for each size of images, at its first step, and kept.

    Raises UsageError on an arithmetic or a group of ranks that it does not have.
    """

    def __init__(self, request: TrainRequest, device: Device) -> None:
        ms = open_device(device)
        from resnext_mindspore import average, overflow, soc, step
        from resnext_mindspore.extras import Extras
        from resnext_mindspore.loss import Loss
        from resnext_mindspore.network import Network
        from resnext_mindspore.parameters import Parameters, zeros

        _check(request.precision.compute, device.target, bfloat16=soc.has_bfloat16(device.target))
        if request.rank.world > 1 and not ms.communication.GlobalComm.INITED:
            raise UsageError("the ranks of MindSpore are not connected: call the backend's connect first")
        self._request, self._ms = request, ms
        self._spec, self._extras = request.weights.spec, Extras.of(request)
        self._table = Parameters.create(request)
        self._sizes: set[tuple[int, ...]] = set()
        operators = device.operators
        self._how = {
            "compute": getattr(ms, request.precision.compute), "bn_float32": request.precision.bn_float32,
            "split_groups": operators.split_groups,
            "slice_pool": operators.slices(device.target, request.precision.compute),
        }  # fmt: skip
        network = Network(
            self._spec,
            request.weights.preprocess,
            self._table.weights,
            training=True,
            extras=self._extras,
            frozen=request.frozen,
            **self._how,
        )
        gradients = step.Gradients(
            network, Loss(request), self._table.learning, with_loss=request.skip_nonfinite
        )
        update = step.Update(request, self._table)
        clears = request.checked and soc.saturates(device.target)
        self._begin: Callable[[], object] = overflow.ClearStatus() if clears else _nothing
        self._graphs: dict[str, Any] = {}
        if request.accumulate == 1:
            self._graphs["whole"] = step.Step(gradients, update)
        else:
            totals = zeros(self._spec, self._table.rules, "total/")
            self._graphs["micro"] = step.Accumulate(gradients, totals)
            self._graphs["finish"] = step.UpdateFromTotals(update, totals)
        if request.ema_decay is not None:
            self._graphs |= {"average": average.Average(self._table), "copy": average.Copy(self._table)}

    def queue(self, steps: Sequence[StepInput], scale: Callable[[], float]) -> Iterator[Queued]:
        """Start the steps; waits for each only where one that is skipped must be taken back."""
        skips = self._request.skip_nonfinite
        for step in steps:
            kept = self._statistics() if skips else {}
            queued = self._run_step(step, scale())
            if skips and not bool(queued.finite.asnumpy()):
                for parameter, value in kept.items():  # statistics that are not numbers would never recover
                    parameter.set_data(value)
            else:
                self._average(step.ema_decay)
            yield queued

    def settle(self, queued: Sequence[Queued]) -> Outcomes:
        """Wait for the steps; the flag is looked at only where steps may be skipped."""
        checked = self._request.checked
        return Outcomes(
            losses=np.array([np.mean([x.asnumpy() for x in q.losses], dtype=np.float64) for q in queued]),
            skipped=np.array([checked and not bool(q.finite.asnumpy()) for q in queued]),
        )

    def read(self) -> dict[str, np.ndarray]:
        """Return float32 copies of weights, optimizer state and EMA."""
        return {name: p.asnumpy().copy() for name, p in self._table.named().items()}

    def write(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Go on from these values."""
        for name, parameter in self._table.named().items():
            parameter.set_data(self._ms.Tensor(np.array(tensors[name])))

    def predictor(self, *, ema: bool) -> Predictor:
        """Return a predictor that shares the weights or their EMA, in the arithmetic of training."""
        from resnext_mindspore.predictor import NetworkPredictor

        return NetworkPredictor(
            weights=self._request.weights,
            parameters=self._table.averages if ema else self._table.weights,
            batch_size=self._request.batch_size // self._request.accumulate,
            arithmetic=self._how,
        )

    def close(self) -> None:
        """Drop the graphs; the device stays open for the rest of the process."""
        self._graphs, self._begin = {}, _nothing

    def _run_step(self, step: StepInput, scale: float) -> Queued:
        """Start one step."""
        self._begin()
        self._note_size(step)
        number, count = lambda value: self._ms.Tensor(np.float32(value)), self._request.accumulate
        rate, whole = number(step.lr), number(scale)
        if count == 1:
            images, labels, weights, *extras = self._given(step)
            loss, finite = self._graphs["whole"](images, labels, weights, rate, whole, *extras)
            return Queued([loss], finite)
        share = number(scale / count)  # so that the sum over micro-batches is the mean
        losses = []
        for part in step.micro_batches(count):
            images, labels, weights, *extras = self._given(part)
            losses.append(self._graphs["micro"](images, labels, weights, share, *extras))
        return Queued(losses, self._graphs["finish"](rate, whole))

    def _given(self, step: StepInput) -> list[Any]:
        """Return the tensors of a micro-batch: images, labels, weights, and the extra ones."""
        arrays = [step.images, step.labels, step.weights.astype(np.float32), *self._extras.arrays(step)]
        return [self._ms.Tensor(array) for array in arrays]

    def _note_size(self, step: StepInput) -> None:
        size = step.images.shape[1:3]
        if size not in self._sizes:
            if self._sizes and self._request.rank.rank == 0:
                note(f"compiling the training step for images of {size[0]} x {size[1]} pixels too")
            self._sizes.add(size)

    def _average(self, decay: float | None) -> None:
        """Move the EMA, after a step that was taken or has overflowed."""
        if decay is not None and decay < 1:
            self._graphs["copy" if decay == 0 else "average"](self._ms.Tensor(np.float32(1 - decay)))

    def _statistics(self) -> dict[Any, Any]:
        """Return copies of what a step moves beside weights and optimizer state."""
        running = [self._table.weights[t.name] for t in self._spec.tensors if not t.trainable]
        return {p: self._ms.Tensor(p.asnumpy().copy()) for p in running}


def _nothing() -> None:
    pass


def _check(compute: str, target: str, *, bfloat16: bool) -> None:
    """Refuse what a device cannot compute in; that of an Ascend is known once it is open."""
    if compute == "float64" or (compute == "bfloat16" and not bfloat16):
        raise UsageError(
            f"MindSpore cannot train in {compute} on {'this Ascend' if target == 'Ascend' else target}; "
            "set precision.compute to float32 or float16"
        )

"""Engine of MindSpore: compiled optimizer steps, its Parameters by neutral name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import Engine, Outcomes, Predictor, StepInput, TrainRequest
from resnext_mindspore.device import Device, open_device


class Queued(NamedTuple):
    """A step that was started: the losses of its micro-batches, and whether its gradients were finite, as Tensors."""

    losses: list[Any]
    finite: Any


class MindsporeEngine(Engine):
    """Optimizer steps on `device`.

    Batch statistics are over all rows, those that are not valid too. Running statistics are those of this rank, and
    they move on every micro-batch, also on a step that is skipped for its overflow; the EMA follows there too.

    Raises UsageError on an arithmetic or a group of ranks that it does not have.
    """

    def __init__(self, request: TrainRequest, device: Device) -> None:
        ms = open_device(device)
        from resnext_mindspore import overflow, soc, step
        from resnext_mindspore.network import Network

        _check(request.precision.compute, device.target, bfloat16=soc.has_bfloat16(device.target))
        if request.rank.world > 1 and not ms.communication.GlobalComm.INITED:
            raise UsageError("the ranks of MindSpore are not connected: call the backend's connect first")
        self._request, self._ms = request, ms
        self._spec = request.weights.spec
        self._table = step.Parameters.create(
            self._spec, request.weights.tensors, ema=request.ema_decay is not None
        )
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
            **self._how,
        )
        loss = step.SmoothedLoss(request.loss, self._spec.num_classes)
        gradients = step.Gradients(network, loss, self._table.trainable, with_loss=request.skip_nonfinite)
        update = step.Update(request, self._table)
        clears = request.checked and soc.saturates(device.target)
        self._begin: Callable[[], object] = overflow.ClearStatus() if clears else _nothing
        if request.accumulate == 1:
            self._graphs: dict[str, Any] = {"whole": step.Step(gradients, update)}
        else:
            totals = step.zeros(self._spec, "total/")
            self._graphs = {
                "micro": step.Accumulate(gradients, totals),
                "finish": step.UpdateFromTotals(update, totals),
            }

    def queue(self, steps: Sequence[StepInput], scale: Callable[[], float]) -> Iterator[Queued]:
        """Start the steps; waits for each only where one that is skipped must be taken back."""
        skips = self._request.skip_nonfinite
        for step in steps:
            kept = self._untrained() if skips else {}
            queued = self._run_step(step, scale())
            if skips and not bool(
                queued.finite.asnumpy()
            ):  # statistics that are not numbers would never recover
                for parameter, value in kept.items():
                    parameter.set_data(value)
            yield queued

    def settle(self, queued: Sequence[Queued]) -> Outcomes:
        """Wait for the steps; the flag is looked at only where steps may be skipped."""
        checked = self._request.checked
        return Outcomes(
            losses=np.array([np.mean([x.asnumpy() for x in q.losses], dtype=np.float64) for q in queued]),
            skipped=np.array([checked and not bool(q.finite.asnumpy()) for q in queued]),
        )

    def read(self) -> dict[str, np.ndarray]:
        """Return float32 copies of weights, momentum and EMA."""
        return {name: p.asnumpy().copy() for name, p in self._named().items()}

    def write(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Go on from these values."""
        for name, parameter in self._named().items():
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
        tensor, count = self._ms.Tensor, self._request.accumulate
        rate, whole = tensor(np.float32(step.lr)), tensor(np.float32(scale))
        if count == 1:
            loss, finite = self._graphs["whole"](*self._given(step), rate, whole, *self._mix(step))
            return Queued([loss], finite)
        share = tensor(np.float32(scale / count))  # so that the sum over micro-batches is the mean
        losses = [
            self._graphs["micro"](*self._given(part), share, *self._mix(part))
            for part in step.micro_batches(count)
        ]
        return Queued(losses, self._graphs["finish"](rate, whole))

    def _given(self, step: StepInput) -> tuple[Any, Any, Any]:
        tensor = self._ms.Tensor
        return tensor(step.images), tensor(step.labels), tensor(step.weights.astype(np.float32))

    def _mix(self, step: StepInput) -> list[Any]:
        from resnext_mindspore.mixing import packed

        return [] if step.mix is None else [self._ms.Tensor(array) for array in packed(step.mix)]

    def _untrained(self) -> dict[Any, Any]:
        """Return copies of what a step moves beside weights and momenta: running statistics and EMA."""
        running = [self._table.weights[t.name] for t in self._spec.tensors if not t.trainable]
        return {p: self._ms.Tensor(p.asnumpy().copy()) for p in [*running, *self._table.averages.values()]}

    def _named(self) -> dict[str, Any]:
        """Return every Parameter of the state under its neutral name."""
        learned = [t.name for t in self._spec.tensors if t.trainable]
        return {
            **{f"weights/{name}": p for name, p in self._table.weights.items()},
            **{f"momentum/{name}": p for name, p in zip(learned, self._table.momenta, strict=True)},
            **{f"ema/{name}": p for name, p in self._table.averages.items()},
        }


def _nothing() -> None:
    pass


def _check(compute: str, target: str, *, bfloat16: bool) -> None:
    """Refuse what a device cannot compute in; that of an Ascend is known once it is open."""
    if compute == "float64" or (compute == "bfloat16" and not bfloat16):
        raise UsageError(
            f"MindSpore cannot train in {compute} on {'this Ascend' if target == 'Ascend' else target}; "
            "set precision.compute to float32 or float16"
        )

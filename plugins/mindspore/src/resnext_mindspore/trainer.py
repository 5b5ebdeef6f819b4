"""Trainer of the MindSpore engine: compiled steps driven from Python, state in neutral names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnext_core.errors import UsageError
from resnext_core.interfaces import Batch, TrainRequest, TrainState
from resnext_core.training.trainer import Rows, StepCounter, check_state, training_rows
from resnext_mindspore.device import Device, open_device


class MindsporeTrainer:
    """A network being trained on `device`.

    Rows that are not valid have weight 0 in the loss; batch statistics are over all rows. Running statistics are
    those of this rank, and they move on every micro-batch, also on a step that is skipped for its overflow; the EMA
    follows there too.

    Raises UsageError on an arithmetic, a split of the batch or a group of ranks that it cannot do.
    """

    def __init__(self, request: TrainRequest, device: Device) -> None:
        _check(request, device)
        ms = open_device(device)
        from resnext_mindspore import step
        from resnext_mindspore.network import Network

        if request.rank.world > 1 and not ms.communication.GlobalComm.INITED:
            raise UsageError("the ranks of MindSpore are not connected: call the backend's connect first")
        self._request, self._device, self._ms = request, device, ms
        self._spec = request.weights.spec
        self._compute = getattr(ms, request.precision.compute)
        self._table = step.Parameters.create(
            self._spec, request.weights.tensors, ema=request.ema_decay is not None
        )
        network = Network(
            self._spec,
            request.weights.preprocess,
            self._table.weights,
            training=True,
            compute=self._compute,
            bn_float32=request.precision.bn_float32,
        )
        loss = step.SmoothedLoss(request.loss, self._spec.num_classes)
        skips = request.skip_nonfinite
        self._count = StepCounter(request.precision, skip_nonfinite=skips)
        gradients = step.Gradients(network, loss, self._table.trainable, with_loss=skips)
        update = step.Update(request, self._table, checked=self._count.checks)
        if request.accumulate == 1:
            self._graphs: dict[str, Any] = {"whole": step.Step(gradients, update)}
        else:
            totals = step.zeros(self._spec, "total/")
            self._graphs = {
                "micro": step.Accumulate(gradients, totals),
                "finish": step.UpdateFromTotals(update, totals),
            }
        self._predictors: dict[bool, Any] = {}

    def run_steps(self, batches: Sequence[Batch], lrs: np.ndarray) -> np.ndarray:
        """Take one optimizer step a batch; see :class:`~resnext_core.interfaces.Trainer`.

        Raises UsageError on batches that are not of the size asked for, DataError on impossible labels.
        """
        if not self._graphs:
            raise UsageError("this trainer is closed")
        rows = training_rows(self._request, batches, lrs)
        losses, flags = [], []
        skips = self._request.skip_nonfinite
        for batch, row, lr in zip(batches, rows, lrs, strict=True):
            kept = self._untrained() if skips else {}
            step_losses, finite = self._run_step(batch, row, float(lr))
            losses.append(step_losses)
            flags.append(finite)
            if skips and not bool(finite.asnumpy()):  # statistics that are not numbers would never recover
                for parameter, value in kept.items():
                    parameter.set_data(value)
            if self._count.dynamic:  # the next step needs the scale that this one leaves: wait for it
                self._settle(flags)
        self._settle(flags)
        means = np.array([np.mean([x.asnumpy() for x in parts], dtype=np.float64) for parts in losses])
        if self._request.rank.world > 1:
            means = self._request.collectives.all_reduce_sum(means) / self._request.rank.world
        return means.astype(np.float32)

    def predictor(self, *, ema: bool = False) -> Any:
        """Return a predictor that shares the current weights (or EMA) and follows them as training goes on.

        It computes in the arithmetic of training. Raises UsageError where the run keeps no EMA.
        """
        if ema and not self._table.averages:
            raise UsageError("this run keeps no EMA; set train.ema_decay")
        if ema not in self._predictors:
            from resnext_mindspore.predictor import NetworkPredictor

            self._predictors[ema] = NetworkPredictor(
                weights=self._request.weights,
                parameters=self._table.averages if ema else self._table.weights,
                batch_size=self._request.batch_size // self._request.accumulate,
                compute=self._compute,
                bn_float32=self._request.precision.bn_float32,
            )
        return self._predictors[ema]

    def state(self) -> TrainState:
        """Return a float32 copy of weights (running statistics of this rank), momentum and EMA."""
        tensors = {name: p.asnumpy().copy() for name, p in self._named().items()}
        return TrainState(tensors=tensors, scalars=dict(self.counters()))

    def load_state(self, state: TrainState) -> None:
        """Continue from `state`; DataError when tensors or scalars are missing, misshapen or too many."""
        named = self._named()
        check_state(state, {n: p.shape for n, p in named.items()}, self._spec.variant)
        for name, parameter in named.items():
            parameter.set_data(self._ms.Tensor(np.array(state.tensors[name])))
        self._count.load(state.scalars)

    def counters(self) -> Mapping[str, float | int]:
        """Return step, overflow_steps, loss_scale and good_steps."""
        return self._count.scalars()

    def close(self) -> None:
        """Drop the graphs and predictors; the device stays open for the rest of the process."""
        self._predictors, self._graphs = {}, {}

    def _run_step(self, batch: Batch, rows: Rows, lr: float) -> tuple[list[Any], Any]:
        """Start one step; return the losses of its micro-batches and the flag `finite`, as Tensors."""
        tensor = self._ms.Tensor
        rate, scale = tensor(np.float32(lr)), tensor(np.float32(self._count.scale))
        count, weights = self._request.accumulate, rows.weights.astype(np.float32)
        if count == 1:
            loss, finite = self._graphs["whole"](
                tensor(batch.images), tensor(rows.labels), tensor(weights), rate, scale
            )
            return [loss], finite
        size = self._request.batch_size // count
        share = tensor(
            np.float32(self._count.scale / count)
        )  # so that the sum over micro-batches is the mean
        losses = [
            self._graphs["micro"](
                tensor(batch.images[i : i + size]),
                tensor(rows.labels[i : i + size]),
                tensor(weights[i : i + size]),
                share,
            )
            for i in range(0, len(batch), size)
        ]
        return losses, self._graphs["finish"](rate, scale)

    def _settle(self, flags: list[Any]) -> None:
        """Count the steps that `flags` tell of and move the dynamic loss scale; empties `flags`."""
        for flag in flags:
            self._count.count(not self._count.checks or bool(flag.asnumpy()))
        flags.clear()

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


def _check(request: TrainRequest, device: Device) -> None:
    compute = request.precision.compute
    if compute == "float64" or (compute == "bfloat16" and not device.bfloat16):
        raise UsageError(
            f"MindSpore cannot train in {compute} on {device.target}; "
            "set precision.compute to float32 or float16"
        )
    if request.accumulate < 1 or request.batch_size < 1 or request.batch_size % request.accumulate:
        raise UsageError(
            f"a batch of {request.batch_size} a rank does not split into {request.accumulate} equal "
            "micro-batches; change train.batch_size or train.accumulate"
        )

"""Trainer of the PyTorch engine: steps queued from Python, state in neutral names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_core.interfaces import Batch, TrainRequest, TrainState
from resnext_core.training.trainer import StepCounter, check_state, training_rows
from resnext_gpu.device import channels_last, device_of, note, open_device
from resnext_gpu.feed import Feed
from resnext_gpu.graphs import Compiled, Replayed, StepFunction
from resnext_gpu.grouped_conv.op import grouped_conv
from resnext_gpu.memory import out_of_memory
from resnext_gpu.network import Arithmetic, Network
from resnext_gpu.options import GpuOptions
from resnext_gpu.predictor import GpuPredictor
from resnext_gpu.step import Step, Table
from resnext_gpu.sync_bn import sync_batch_norm

_COMPUTE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class GpuTrainer:
    """A network being trained on the device of its rank.

    Rows that are not valid have weight 0 in the loss; batch statistics are over all rows. Running statistics are those
    of this rank, and they move on every micro-batch, also on a step that is skipped for its overflow; the EMA follows
    there too.

    Raises UsageError on an arithmetic, a split of the batch or a group of ranks that it cannot do, BackendUnavailable
    without the device.
    """

    def __init__(self, request: TrainRequest, options: GpuOptions) -> None:
        _check(request)
        if request.rank.world > 1 and not torch.distributed.is_initialized():
            raise UsageError("the ranks of the backend gpu are not connected: call its connect first")
        self._request, self._spec = request, request.weights.spec
        self._device = open_device(device_of(options, request.rank))
        _check_card(request, self._device)
        layout = channels_last(options, self._device)
        self._table = Table.create(request, self._device, channels_last=layout)
        self._count = StepCounter(request.precision, skip_nonfinite=request.skip_nonfinite)
        compute = _COMPUTE[request.precision.compute]
        self._how = Arithmetic(
            compute=compute,
            bn_float32=request.precision.bn_float32,
            channels_last=layout,
            checkpointing=options.checkpointing,
            sync=sync_batch_norm if options.sync_bn and request.rank.world > 1 else None,
            grouped=grouped_conv(
                options.grouped_conv, self._spec, compute, self._device, deterministic=options.deterministic
            ),
        )
        network = Network(self._spec, request.weights.preprocess, self._table.weights, self._how).train()
        forward = Compiled(network, by_block=request.rank.world > 1) if options.compile else network
        self._own_step: Step | None = Step(
            request,
            self._table,
            forward,
            checked=self._count.checks,
            balanced=options.balanced_loss_scale,
            bucket_bytes=options.bucket_mib << 20,
        )
        self._step: StepFunction = self._own_step
        if options.cuda_graphs:
            self._step = self._graphed(self._own_step)
        self._feed = Feed(self._device)
        self._predictors: dict[bool, GpuPredictor] = {}

    def run_steps(self, batches: Sequence[Batch], lrs: NDArray[Any]) -> NDArray[Any]:
        """Take one optimizer step a batch; see :class:`~resnext_core.interfaces.Trainer`.

        Raises UsageError on batches that are not of the size asked for, or that do not fit into the GPU's memory,
        DataError on impossible labels, BackendUnavailable when another rank is lost.
        """
        if self._own_step is None:
            raise UsageError("this trainer is closed")
        rows = training_rows(self._request, batches, lrs)
        if not batches:
            return np.zeros(0, np.float32)
        losses: list[Tensor] = []
        flags: list[Tensor] = []
        waits = self._count.dynamic or (self._request.skip_nonfinite and self._request.ema_decay is not None)
        exhausted = False
        try:
            for given, lr in zip(self._feed(batches, rows), lrs, strict=True):
                loss, found = self._step(*given, self._scalar(lr), self._scalar(self._count.scale))
                losses.append(loss)
                flags.append(found)
                if waits:  # what comes next depends on whether this step was taken
                    self._settle(flags)
        except torch.cuda.OutOfMemoryError:
            exhausted = True
        if exhausted:  # not above: as long as the error lives, so does what the step had allocated
            alone = self._how.sync is None
            raise out_of_memory(self._own_step, self._request, batches[0], self._device, alone=alone)
        self._settle(flags)
        means = torch.stack(losses).cpu().numpy().astype(np.float64)
        if self._request.rank.world > 1:
            means = self._request.collectives.all_reduce_sum(means) / self._request.rank.world
        return means.astype(np.float32)

    def predictor(self, *, ema: bool = False) -> GpuPredictor:
        """Return a predictor that shares the current weights (or EMA) and follows them as training goes on.

        It computes in the arithmetic of training. Raises UsageError where the run keeps no EMA.
        """
        if ema and not self._table.ema:
            raise UsageError("this run keeps no EMA; set train.ema_decay")
        if ema not in self._predictors:
            tensors = self._table.ema if ema else self._table.weights
            self._predictors[ema] = GpuPredictor(self._request.weights, tensors, self._how)
        return self._predictors[ema]

    def state(self) -> TrainState:
        """Return a float32 copy of weights (running statistics of this rank), momentum and EMA."""
        tensors = {name: np.array(t.cpu().numpy(), order="C") for name, t in self._table.named().items()}
        return TrainState(tensors=tensors, scalars=dict(self.counters()))

    def load_state(self, state: TrainState) -> None:
        """Continue from `state`; DataError when tensors or scalars are missing, misshapen or too many."""
        named = self._table.named()
        check_state(state, {n: tuple(t.shape) for n, t in named.items()}, self._spec.variant)
        for name, tensor in named.items():
            tensor.copy_(torch.from_numpy(np.array(state.tensors[name])))
        self._count.load(state.scalars)

    def counters(self) -> Mapping[str, float | int]:
        """Return step, overflow_steps, loss_scale and good_steps."""
        return self._count.scalars()

    def take_copy_seconds(self) -> float:
        """Return the seconds since the last call in which steps waited for their images on the way to the device."""
        return self._feed.take_copy_seconds()

    def peak_device_bytes(self) -> int | None:
        """Return the most memory that tensors took on the GPU so far; None on the CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None

    def close(self) -> None:
        """Drop the network, its predictors and their memory; the device stays open for the rest of the process."""
        for predictor in self._predictors.values():
            predictor.close()
        self._predictors, self._own_step = {}, None
        self._step = _closed

    def _graphed(self, step: Step) -> StepFunction:
        """Return `step` for replay where that is possible."""
        if self._device.type != "cuda":
            note("no CUDA graphs without a GPU; going on without, as with gpu.cuda_graphs=false")
            return step
        if self._request.rank.world > 1:
            note("no CUDA graphs with several ranks; going on without, as with gpu.cuda_graphs=false")
            return step
        return Replayed(step, list(self._table.named().values()))

    def _scalar(self, value: float) -> Tensor:
        """Return a float32 scalar on the device, without waiting for it."""
        return torch.full((), float(value), device=self._device)

    def _settle(self, flags: list[Tensor]) -> None:
        """Count the steps whose outcome is now asked for; move the EMA where that was left to the caller."""
        if not flags:
            return
        found = torch.stack(flags).cpu().numpy() if self._count.checks else np.zeros(len(flags))
        for skipped in found:
            self._count.count(finite=not skipped)
        if self._request.skip_nonfinite and self._own_step is not None and not found[-1]:
            self._own_step.average()
        flags.clear()


def _closed(*_: Tensor) -> tuple[Tensor, Tensor]:
    raise UsageError("this trainer is closed")


def _check_card(request: TrainRequest, device: torch.device) -> None:
    """Refuse bfloat16 where a GPU has none: it would be emulated, slowly."""
    if device.type != "cuda" or request.precision.compute != "bfloat16":
        return
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16; set precision.compute=float16 and "
            "precision.loss_scale=dynamic"
        )


def _check(request: TrainRequest) -> None:
    compute = request.precision.compute
    if compute not in _COMPUTE:
        raise UsageError(
            f"the backend gpu cannot train in {compute}; set precision.compute to {', '.join(sorted(_COMPUTE))}"
        )
    if request.accumulate < 1 or request.batch_size < 1 or request.batch_size % request.accumulate:
        raise UsageError(
            f"a batch of {request.batch_size} a rank does not split into {request.accumulate} equal "
            "micro-batches; change train.batch_size or train.accumulate"
        )

"""Engine of PyTorch: steps queued from Python, its tensors by neutral name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnext_core.errors import UsageError
from resnext_core.interfaces import DeviceUsage, Engine, Outcomes, StepInput, TrainRequest
from resnext_gpu.device import channels_last, device_of, note, open_device
from resnext_gpu.feed import Feed
from resnext_gpu.gradients import reaching_others
from resnext_gpu.graphs import Compiled, Replayed, StepFunction, closed
from resnext_gpu.grouped_conv.norm import batch_norm
from resnext_gpu.grouped_conv.op import grouped_conv
from resnext_gpu.inputs import StepTensors
from resnext_gpu.memory import Exhausted, exhausted, fitting, out_of_memory
from resnext_gpu.network import Arithmetic, Network
from resnext_gpu.options import GpuOptions
from resnext_gpu.predictor import SIZES, GpuPredictor
from resnext_gpu.step import Step
from resnext_gpu.sync_bn import sync_batch_norm
from resnext_gpu.table import Table

_COMPUTE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class GpuEngine(Engine):
    """Optimizer steps on the device of a rank.

    Batch statistics are over all rows, those that are not valid too. Running statistics are those of this rank, and
    they move on every micro-batch, also on a step that is skipped for its overflow; the EMA follows there too.

    `buffered` keeps gradients as several ranks do, whatever their number.

    Raises UsageError on an arithmetic or a group of ranks that it does not have, BackendUnavailable without the device.
    """

    def __init__(self, request: TrainRequest, options: GpuOptions, *, buffered: bool = False) -> None:
        _check(request)
        if request.rank.world > 1 and not torch.distributed.is_initialized():
            raise UsageError("the ranks of the backend gpu are not connected: call its connect first")
        self._request, self._spec = request, request.weights.spec
        self._device = open_device(device_of(options, request.rank))
        _check_card(request, self._device)
        if self._device.type == "cuda":  # `usage` is of this engine, not of what ran in this process before
            torch.cuda.reset_peak_memory_stats(self._device)
        layout = channels_last(options, self._device)
        with fitting(f"the tensors of {self._spec.variant} do", "use a smaller network", self._device):
            self._table = Table.create(request, self._device, channels_last=layout)
        compute = _COMPUTE[request.precision.compute]
        graphed = options.cuda_graphs and self._device.type == "cuda" and request.rank.world == 1
        self._how = Arithmetic(
            compute=compute,
            bn_float32=request.precision.bn_float32,
            channels_last=layout,
            checkpointing=options.checkpointing,
            sync=sync_batch_norm if options.sync_bn and request.rank.world > 1 else None,
            grouped=grouped_conv(
                options.grouped_conv,
                self._spec,
                compute,
                self._device,
                deterministic=options.deterministic,
                graphed=graphed,
            ),
            norm=batch_norm(
                options.batch_norm,
                compute,
                self._device,
                bn_float32=request.precision.bn_float32,
                plain=options.compile or options.sync_bn or not layout or not graphed,
            ),
        )
        network = Network(
            self._spec, request.weights.preprocess, self._table.weights, self._how, frozen=request.frozen
        ).train()
        forward = Compiled(network, by_block=request.rank.world > 1) if options.compile else network
        self._own_step: Step | None = Step(
            request,
            self._table,
            forward,
            balanced=options.balanced_loss_scale,
            bucket_bytes=options.bucket_mib << 20,
            views=buffered or request.rank.world > 1,
        )
        self._step: StepFunction = self._own_step
        if options.cuda_graphs:
            self._step = self._graphed(self._own_step)
        self._feed = Feed(self._device)

    def queue(
        self, steps: Sequence[StepInput], scale: Callable[[], float]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Queue the steps; yields the loss of each and whether it was skipped, as float32 scalars.

        Nothing waits for the device, but where the EMA moves, and must not follow a step that was skipped. Raises
        UsageError on batches that do not fit into the GPU's memory, BackendUnavailable when another rank is lost.
        """
        assert self._own_step is not None
        full: Exhausted | None = None
        try:
            batches = self._feed(steps)
            given = next(batches, None)
            for step in steps:
                assert given is not None
                lr, factor = self._scalar(step.lr), self._scalar(scale())
                loss, found = self._step(StepTensors.of_feed(self._request, given, lr, factor))
                given = next(batches, None)  # copied while the step runs, and before anybody waits for it
                decay = 1.0 if step.ema_decay is None else step.ema_decay
                if decay != 1 and self._request.skip_nonfinite:
                    with reaching_others():
                        skipped = bool(found.cpu())  # a copy: what is yielded stays on the device
                    decay = 1.0 if skipped else decay
                self._table.average(decay)
                yield loss, found
        except Exception as error:
            full = exhausted(error)
            if full is None:
                raise
        if full is not None:  # not above: as long as the error lives, so does what the step had allocated
            alone = self._how.sync is None
            raise out_of_memory(self._own_step, self._request, steps[0], self._device, full, alone=alone)

    def settle(self, queued: Sequence[tuple[Tensor, Tensor]]) -> Outcomes:
        """Wait for the steps, once for all of them; raises BackendUnavailable when another rank is lost."""
        losses, flags = zip(*queued, strict=True)
        with reaching_others():
            if not self._request.checked:
                return Outcomes(losses=_fetch(losses), skipped=np.zeros(len(queued), np.bool_))
            found = _fetch((*losses, *flags))
        return Outcomes(losses=found[: len(queued)], skipped=found[len(queued) :] > 0)

    def read(self) -> dict[str, NDArray[Any]]:
        """Return float32 copies of weights, optimizer state and EMA."""
        with reaching_others():
            return {name: np.array(t.cpu().numpy(), order="C") for name, t in self._table.named().items()}

    def write(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Go on from these values."""
        for name, tensor in self._table.named().items():
            tensor.copy_(torch.from_numpy(np.array(tensors[name])))

    def predictor(self, *, ema: bool) -> GpuPredictor:
        """Return a predictor that shares the weights or their EMA, in the arithmetic of training."""
        tensors = self._table.ema if ema else self._table.weights
        how = self._how
        if how.grouped is not None and how.grouped.library:  # chosen for a graph, which prediction is not
            how = replace(how, grouped=None)
        return GpuPredictor(self._request.weights, tensors, how)

    def rehearse(self) -> bool:
        """Take steps, move the EMA and predict, on black images; return whether the memory sufficed.

        The engine is good for nothing but :meth:`close` afterwards.
        """
        assert self._own_step is not None
        size, rows = self._spec.image_size, self._request.batch_size
        try:
            images = torch.zeros((rows, size, size, 3), dtype=torch.uint8, device=self._device)
            labels = torch.zeros(rows, dtype=torch.int64, device=self._device)
            _slots = [torch.empty_like(images) for _ in range(2)]
            for _ in range(2):
                loss, _found = self._step(StepTensors.trial(self._request, images, labels))
            self._table.average(0.5)
            predictor = self.predictor(ema=False)
            predictor.logits(np.zeros((min(rows, max(SIZES)), size, size, 3), np.uint8))
            predictor.close()
            loss.item()
        except Exception as error:
            if exhausted(error) is None:
                raise
            return False
        return True

    def usage(self) -> DeviceUsage:
        """Return how long steps waited for their images, and on a GPU the most memory that tensors took."""
        peak = None
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            if isinstance(self._step, Replayed):
                peak = max(peak, self._step.peak_bytes)
        return DeviceUsage(copy_seconds=self._feed.take_copy_seconds(), peak_bytes=peak)

    def close(self) -> None:
        """Drop all tensors and the graph, and return their memory; the device stays open for the process."""
        if isinstance(self._step, Replayed):
            self._step.close()
        if self._own_step is not None:
            self._own_step.close()
        self._own_step, self._step = None, closed
        self._table = Table.empty()
        self._feed.close()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _graphed(self, step: Step) -> StepFunction:
        """Return `step` for replay where that is possible."""
        if self._device.type != "cuda":
            note("no CUDA graphs without a GPU; continuing without, as with gpu.cuda_graphs=false")
            return step
        if self._request.rank.world > 1:
            note("no CUDA graphs with several ranks; continuing without, as with gpu.cuda_graphs=false")
            return step
        return Replayed(step, list(self._table.named().values()))

    def _scalar(self, value: float) -> Tensor:
        """Return a float32 scalar on the device, without waiting for it."""
        return torch.full((), float(value), device=self._device)


def _fetch(scalars: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return scalars of the device as float64 (n,), in one copy."""
    return torch.stack(list(scalars)).cpu().numpy().astype(np.float64)


def _check_card(request: TrainRequest, device: torch.device) -> None:
    """Refuse bfloat16 where a GPU has none: it would be emulated, slowly."""
    if device.type != "cuda" or request.precision.compute != "bfloat16":
        return
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} does not support bfloat16; set precision.compute=float16 and "
            "precision.loss_scale=dynamic"
        )


def _check(request: TrainRequest) -> None:
    compute = request.precision.compute
    if compute not in _COMPUTE:
        raise UsageError(
            f"the backend gpu cannot train in {compute}; set precision.compute to {', '.join(sorted(_COMPUTE))}"
        )

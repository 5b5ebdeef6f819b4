"""One optimizer step on tensors of the device: loss, gradients, overflow check, clipping, update.

Nothing in here waits for the device or asks it for a value, so that steps queue up, and a CUDA graph can hold one.
The EMA is moved outside of it (:meth:`~resnext_gpu.table.Table.average`): its decay is a number of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from resnext_core.interfaces import TrainRequest
from resnext_core.training.rules import tensor_rules
from resnext_gpu.clipping import AdaptiveClip, by_norm
from resnext_gpu.gradients import Gradients
from resnext_gpu.graphs import Compiled
from resnext_gpu.inputs import StepTensors
from resnext_gpu.losses import training_loss
from resnext_gpu.optimizers import Update
from resnext_gpu.table import Table


class Step:
    """Takes optimizer steps on `table` through `forward`, the network in training mode.

    Where `request.checked`, a step whose gradients are not finite leaves weights and optimizer state alone. With
    `skip_nonfinite` a loss that is not finite counts too, and the running statistics come back. Gradients are divided
    by the loss scale; not `balanced`, the loss was not multiplied by it. `views` keeps
    gradients in flat buffers (see :class:`~resnext_gpu.gradients.Gradients`); several ranks need it.
    """

    def __init__(
        self, request: TrainRequest, table: Table, forward: Callable[..., Tensor], *, balanced: bool,
        bucket_bytes: int, views: bool,
    ) -> None:  # fmt: skip
        device = table.statistics.device
        self._request, self._table = request, table
        self.forward, self._balanced = forward, balanced
        self._loss = training_loss(request, device)
        rules = tensor_rules(request)
        parameters = [p for name in rules if isinstance(p := table.weights[name], nn.Parameter)]
        self.gradients = Gradients(
            parameters, bucket_bytes=bucket_bytes, world=request.rank.world, views=views
        )
        self._update = Update(request, table)
        self._adaptive: AdaptiveClip | None = None
        if request.optimizer.agc is not None:
            bounded = [table.weights[name] for name, rule in rules.items() if rule.agc]
            self._adaptive = AdaptiveClip(bounded, request.optimizer.agc, device)
        self._one = torch.ones((), device=device)

    def __call__(self, given: StepTensors) -> tuple[Tensor, Tensor]:
        """Take a step.

        Returns two float32 scalars: the loss before the update, without the scale, of this rank; and 1 where the step
        was skipped, else 0.
        """
        statistics = self._table.statistics
        kept = statistics.clone() if self._request.skip_nonfinite else None
        loss = self.backward(given)
        with torch.no_grad():
            found = self._move(given.lr, given.scale)
            self.gradients.release()
            if kept is not None:
                statistics.copy_(torch.where(found > 0, kept, statistics))
        return loss, found

    def backward(self, given: StepTensors) -> Tensor:
        """Fill the gradients: sums over micro-batches and ranks, times the scale. Returns this rank's mean loss."""
        count, world = self._request.accumulate, self._request.rank.world
        size = len(given.images) // count
        self._prove(given.images[:size], given.labels[:size])
        self.gradients.clear()
        total = torch.zeros_like(self._one)
        for i in range(count):
            loss = self._loss_of(given.part(slice(i * size, (i + 1) * size)))
            with torch.no_grad():
                total += loss / count
                if self._request.skip_nonfinite:  # 0, or not a number: for all ranks to see
                    self.gradients.flag.add_(loss * 0)
            self.gradients.expect(last=i == count - 1 and world > 1)
            loss.backward(given.scale if self._balanced else self._one)
        self.gradients.wait()
        return total

    def try_backward(self, images: Tensor, labels: Tensor) -> None:
        """Compute the gradients of one micro-batch for nothing but their use of memory."""
        self.gradients.clear()
        self.gradients.expect(last=False)
        self._loss_of(StepTensors.trial(self._request, images, labels)).backward()

    def close(self) -> None:
        """Let go of the tensors; there can be no step after that."""
        self.gradients.close()
        self._update.close()
        if self._adaptive is not None:
            self._adaptive.close()
        del self._table, self.forward, self._loss

    def _loss_of(self, given: StepTensors) -> Tensor:
        # What a training does not have is not said: what stands for `forward` in a test need not know it.
        extra: dict[str, Any] = {} if given.branches is None else {"branches": given.branches}
        logits = self.forward(given.images, *given.mix, **extra)
        extra = {} if given.teacher is None else {"teacher": given.teacher}
        return self._loss(logits, given.labels, given.weights, *given.mix, **extra)

    def _prove(self, images: Tensor, labels: Tensor) -> None:
        """Have the network compiled, if it is to be, without moving anything."""
        forward = self.forward
        if isinstance(forward, Compiled) and not forward.proven(images):
            kept = self._table.statistics.clone()
            try:
                forward.prove(images, lambda: self.try_backward(images, labels))
            finally:
                self._table.statistics.copy_(kept)

    def _move(self, lr: Tensor, scale: Tensor) -> Tensor:
        """Average the gradients, clip them and move the weights. Returns 1 where that is skipped, else 0."""
        optimizer, checked = self._request.optimizer, self._request.checked
        found = torch.zeros_like(self._one)
        divisor: Tensor | None = None
        shares = self._request.accumulate * self._request.rank.world
        if checked:  # in float64, as the reciprocal of a large scale is denormal
            inverse = (scale.double() * shares).reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(self.gradients.whole(), found, inverse)
        elif shares > 1:
            divisor = self._one * shares
        if optimizer.clip_norm is not None:
            divisor = by_norm(self.gradients.each(), optimizer.clip_norm, divisor)
        if self._adaptive is not None:
            self._adaptive(divisor)
        self._update(lr, divisor, found if checked else None)
        return found

"""One optimizer step on tensors of the device: loss, gradients, overflow check, clipping, momentum, EMA.

Nothing in here waits for the device or asks it for a value, so that steps queue up, and a CUDA graph can hold one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnext_core.config import LossConfig
from resnext_core.interfaces import CLIP_EPS, TrainRequest
from resnext_core.model.spec import ModelSpec
from resnext_gpu.gradients import Gradients, gradients_of
from resnext_gpu.graphs import Compiled
from resnext_gpu.mixing import second_targets, unmixed
from resnext_gpu.network import make_tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The tensors of a training run by neutral name; `statistics` is the one buffer of all running statistics."""

    weights: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    statistics: Tensor

    @classmethod
    def create(cls, request: TrainRequest, device: torch.device, *, channels_last: bool) -> Table:
        """Return tensors with the request's weights, zero momentum, and the EMA, if any, starting at the weights."""
        spec, arrays = request.weights.spec, request.weights.tensors
        weights = make_tensors(spec, arrays, device, channels_last=channels_last)
        statistics = _join(spec, weights)
        ema = {n: t.detach().clone() for n, t in weights.items()} if request.ema_decay is not None else {}
        momentum = {t.name: torch.zeros_like(weights[t.name].detach()) for t in spec.tensors if t.trainable}
        return cls(weights=weights, momentum=momentum, ema=ema, statistics=statistics)

    def named(self) -> dict[str, Tensor]:
        """Return every tensor of the state under its key."""
        groups = {"weights": self.weights, "momentum": self.momentum, "ema": self.ema}
        return {
            f"{group}/{name}": t.detach() for group, tensors in groups.items() for name, t in tensors.items()
        }


def _join(spec: ModelSpec, weights: dict[str, Tensor]) -> Tensor:
    """Move the running statistics into one buffer, so that a step can be taken back by one copy."""
    names = [t.name for t in spec.tensors if not t.trainable]
    flat = torch.cat([weights[name] for name in names])
    # .data, so that the parts do not share a version: to autograd a layer must not seem to change what another saved.
    parts = [part.data for part in flat.split([weights[name].numel() for name in names])]
    weights.update(zip(names, parts, strict=True))
    return flat


def smoothed_loss(config: LossConfig, classes: int) -> Callable[..., Tensor]:
    """Return the mean over rows of weight times cross-entropy with smoothed targets (see LossConfig).

    Of float32 logits (N, K), int64 labels (N,) and float32 weights (N,), and in a training that mixes images of the
    tensors of :mod:`resnext_gpu.mixing`: the targets are then those of two labels.
    """
    rest = classes - 1 if config.smoothing_form == "others" else classes
    off = config.smoothing / rest if rest else 0.0
    on = 1 - config.smoothing + (off if config.smoothing_form == "uniform" else 0.0)

    def pick(logs: Tensor, labels: Tensor) -> Tensor:
        # Not gather, whose gradient is a scatter: PyTorch's repeatable form of that sorts.
        right = labels[:, None] == torch.arange(classes, device=labels.device)
        return torch.where(right, logs, 0.0).sum(1)

    def loss(logits: Tensor, labels: Tensor, weights: Tensor, *mix: Tensor) -> Tensor:
        logs = F.log_softmax(logits, 1)
        picked = pick(logs, labels)
        if mix:
            second, share = second_targets(*mix)
            picked = share * picked + (1 - share) * pick(logs, second)
        return -(((on - off) * picked + off * logs.sum(1)) * weights).mean()

    return loss


class Step:
    """Takes optimizer steps on `table` through `forward`, the network in training mode.

    Where `request.checked`, a step whose gradients are not finite leaves weights and momentum alone. With
    `skip_nonfinite` a loss that is not finite counts too, and the running statistics come back; the EMA is then the
    caller's. Gradients are divided by the loss scale; not `balanced`, the loss was not multiplied by it. `views` keeps
    gradients in flat buffers (see :class:`~resnext_gpu.gradients.Gradients`); several ranks need it.
    """

    def __init__(
        self, request: TrainRequest, table: Table, forward: Callable[..., Tensor], *, balanced: bool,
        bucket_bytes: int, views: bool,
    ) -> None:  # fmt: skip
        spec = request.weights.spec
        self._request, self._table = request, table
        self.forward, self._balanced = forward, balanced
        self._loss = smoothed_loss(request.loss, spec.num_classes)
        parameters = [p for p in table.weights.values() if isinstance(p, nn.Parameter)]
        self.gradients = Gradients(
            parameters, bucket_bytes=bucket_bytes, world=request.rank.world, views=views
        )
        learned = [t for t in spec.tensors if t.trainable]
        self._groups = []
        for decay, amount in ((True, request.optimizer.weight_decay), (False, 0.0)):
            names = [t.name for t in learned if t.decay == decay]
            weights = [table.weights[name] for name in names]
            moments = [table.momentum[name] for name in names]
            self._groups.append((weights, moments, amount))
        self._one = torch.ones((), device=table.statistics.device)

    def __call__(
        self, images: Tensor, labels: Tensor, weights: Tensor, lr: Tensor, scale: Tensor, *mix: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take a step on uint8 (N, H, W, 3), int64 (N,) and float32 (N,), with float32 scalars `lr` and loss `scale`.

        `mix` are the tensors of :mod:`resnext_gpu.mixing` where the request mixes images, else there are none.
        Returns two float32 scalars: the loss before the update, without the scale, of this rank; and 1 where the step
        was skipped, else 0.
        """
        skips = self._request.skip_nonfinite
        kept = self._table.statistics.clone() if skips else None
        loss = self.backward(images, labels, weights, scale, *mix)
        with torch.no_grad():
            found = self._update(lr, scale)
            self.gradients.release()
            if kept is not None:
                self._table.statistics.copy_(torch.where(found > 0, kept, self._table.statistics))
            else:
                self.average()
        return loss, found

    def backward(
        self, images: Tensor, labels: Tensor, weights: Tensor, scale: Tensor, *mix: Tensor
    ) -> Tensor:
        """Fill the gradients: sums over micro-batches and ranks, times `scale`. Returns the mean loss of this rank."""
        count, world = self._request.accumulate, self._request.rank.world
        size = len(images) // count
        self._prove(images[:size], labels[:size])
        self.gradients.clear()
        total = torch.zeros_like(self._one)
        for i in range(count):
            part = slice(i * size, (i + 1) * size)
            own = [tensor[part] for tensor in mix]
            loss = self._loss(self.forward(images[part], *own), labels[part], weights[part], *own)
            with torch.no_grad():
                total += loss / count
                if self._request.skip_nonfinite:  # 0, or not a number: for all ranks to see
                    self.gradients.flag.add_(loss * 0)
            self.gradients.expect(last=i == count - 1 and world > 1)
            loss.backward(scale if self._balanced else self._one)
        self.gradients.wait()
        return total

    def try_backward(self, images: Tensor, labels: Tensor) -> None:
        """Compute the gradients of one micro-batch for nothing but their use of memory."""
        self.gradients.clear()
        self.gradients.expect(last=False)
        mix = unmixed(labels) if self._request.mixes else ()
        weights = torch.ones_like(labels, dtype=torch.float32)
        self._loss(self.forward(images, *mix), labels, weights, *mix).backward()

    def close(self) -> None:
        """Let go of the tensors; there can be no step after that."""
        self.gradients.close()
        self._groups = []
        del self._table, self.forward

    def _prove(self, images: Tensor, labels: Tensor) -> None:
        """Have the network compiled, if it is to be, without moving anything."""
        forward = self.forward
        if isinstance(forward, Compiled) and not forward.proven(images):
            kept = self._table.statistics.clone()
            try:
                forward.prove(images, lambda: self.try_backward(images, labels))
            finally:
                self._table.statistics.copy_(kept)

    def average(self) -> None:
        """Move the EMA, if there is one: ema = decay · ema + (1 − decay) · w, over weights and statistics."""
        decay = self._request.ema_decay
        if decay is not None:
            weights = [self._table.weights[name].detach() for name in self._table.ema]
            with torch.no_grad():
                torch._foreach_lerp_(list(self._table.ema.values()), weights, 1 - decay)

    def _update(self, lr: Tensor, scale: Tensor) -> Tensor:
        """v = momentum · v + g + weight_decay · p; p −= lr · v, of clipped gradients g. Returns 1 where skipped."""
        optimizer = self._request.optimizer
        found = torch.zeros_like(self._one)
        divisor: Tensor | None = None
        shares = self._request.accumulate * self._request.rank.world
        if self._request.checked:  # in float64, as the reciprocal of a large scale is denormal
            inverse = (scale.double() * shares).reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(self.gradients.whole(), found, inverse)
        elif shares > 1:
            divisor = self._one * shares
        if optimizer.clip_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients.each())))
            if divisor is not None:
                norm = norm / divisor
            factor = (optimizer.clip_norm / (norm + CLIP_EPS)).clamp(max=1.0)
            divisor = (self._one if divisor is None else divisor) / factor
        for weights, moments, decay in self._groups:
            if weights:
                torch._fused_sgd_(
                    weights, gradients_of(weights), moments,
                    weight_decay=decay, momentum=optimizer.momentum or 1.0, lr=lr, dampening=0.0,
                    nesterov=False, maximize=False,
                    is_first_step=optimizer.momentum == 0,  # then v = g, which is what no momentum is
                    grad_scale=divisor, found_inf=found if self._request.checked else None,
                )  # fmt: skip
        return found

"""The tensors that one optimizer step reads: always of the same kinds in a training, so that a graph can hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resnext_core.interfaces import TrainRequest
from resnext_gpu.mixing import unmixed


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTensors:
    """What a step is computed from, on the device.

    `images` uint8 (N, H, W, 3); `labels` int64 (N,); `weights` float32 (N,); `lr` and the loss `scale` float32 scalars.
    `mix` are the two tensors of :mod:`resnext_gpu.mixing`, `branches` float32 (N, blocks) and `teacher` float32
    (N, classes), as in :class:`~resnext_core.interfaces.StepInput`, in trainings that have them.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    lr: Tensor
    scale: Tensor
    mix: tuple[Tensor, ...] = ()
    branches: Tensor | None = None
    teacher: Tensor | None = None

    @classmethod
    def of_feed(
        cls, request: TrainRequest, batch: tuple[Tensor, ...], lr: Tensor, scale: Tensor
    ) -> StepTensors:
        """Return the tensors of a batch as :class:`~resnext_gpu.feed.Feed` yields it."""
        images, labels, weights, *rest = batch
        mix = tuple(rest.pop(0) for _ in range(2 if request.mixes else 0))
        branches = rest.pop(0) if request.drops else None
        teacher = rest.pop(0) if request.distillation is not None else None
        assert not rest
        return cls(
            images=images, labels=labels, weights=weights, lr=lr, scale=scale, mix=mix, branches=branches,
            teacher=teacher,
        )  # fmt: skip

    @classmethod
    def trial(cls, request: TrainRequest, images: Tensor, labels: Tensor) -> StepTensors:
        """Return tensors of every kind that the training has, for `images` of which all rows count alike."""
        rows, spec, device = len(labels), request.weights.spec, images.device
        one = torch.ones((), device=device)
        return cls(
            images=images, labels=labels, weights=torch.ones(rows, device=device), lr=one, scale=one,
            mix=unmixed(labels, request.batch_size // request.accumulate) if request.mixes else (),
            branches=torch.ones((rows, len(spec.blocks)), device=device) if request.drops else None,
            teacher=torch.full((rows, spec.num_classes), 1 / spec.num_classes, device=device)
            if request.distillation is not None else None,
        )  # fmt: skip

    def all(self) -> list[Tensor]:
        """Return every tensor, in an order that depends on what the training has alone."""
        optional = [t for t in (self.branches, self.teacher) if t is not None]
        return [self.images, self.labels, self.weights, self.lr, self.scale, *self.mix, *optional]

    def clone(self) -> StepTensors:
        """Return copies of all tensors."""
        return self._rows(torch.clone, lr=self.lr.clone(), scale=self.scale.clone())

    def part(self, rows: slice) -> StepTensors:
        """Return the rows of one micro-batch; they are views."""
        return self._rows(lambda tensor: tensor[rows])

    def _rows(self, change: Callable[[Tensor], Tensor], **scalars: Tensor) -> StepTensors:
        return replace(
            self, images=change(self.images), labels=change(self.labels), weights=change(self.weights),
            mix=tuple(map(change, self.mix)),
            branches=None if self.branches is None else change(self.branches),
            teacher=None if self.teacher is None else change(self.teacher), **scalars,
        )  # fmt: skip

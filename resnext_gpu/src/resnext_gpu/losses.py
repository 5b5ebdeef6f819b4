"""The loss of a micro-batch: cross-entropy or binary cross-entropy with smoothed targets, and what a teacher adds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from resnext_core.config import LossConfig
from resnext_core.interfaces import Distillation, TrainRequest
from resnext_gpu.mixing import second_targets

#: Logits (N, K), labels (N,) and the tensors of mixing to the loss of each row, (N,).
_RowLoss = Callable[..., Tensor]


def training_loss(request: TrainRequest, device: torch.device) -> Callable[..., Tensor]:
    """Return the loss that `request` asks for, of tensors on `device`; see :func:`smoothed_loss`."""
    offsets = request.logit_offsets
    return smoothed_loss(
        request.loss,
        request.weights.spec.num_classes,
        offsets=None if offsets is None else torch.tensor(offsets, dtype=torch.float32, device=device),
        distillation=request.distillation,
    )


def smoothed_loss(
    config: LossConfig, classes: int, *, offsets: Tensor | None = None, distillation: Distillation | None = None
) -> Callable[..., Tensor]:  # fmt: skip
    """Return the mean over rows of weight times the loss of the row (see LossConfig).

    Of float32 logits (N, K), int64 labels (N,) and float32 weights (N,), and in a training that mixes images of the
    tensors of :mod:`resnext_gpu.mixing`: the targets are then those of two labels. `offsets` float32 (K,) are added to
    the logits. With `distillation` it takes ``teacher``, float32 (N, K), too: to (1 - w) · loss is added w · T² · the
    mean of weight times cross-entropy between the teacher and the softmax of logits / T, without offsets
    (Hinton et al., arXiv:1503.02531).
    """
    rest = classes - 1 if config.smoothing_form == "others" else classes
    off = config.smoothing / rest if rest else 0.0
    on = 1 - config.smoothing + (off if config.smoothing_form == "uniform" else 0.0)
    of_rows = (_binary if config.kind == "bce" else _softmax)(config, classes, on, off)

    def loss(
        logits: Tensor, labels: Tensor, weights: Tensor, *mix: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        shifted = logits if offsets is None else logits + offsets
        own = (of_rows(shifted, labels, *mix) * weights).mean()
        if distillation is None:
            return own
        assert teacher is not None
        share, heat = distillation.weight, distillation.temperature
        taught = -((teacher * F.log_softmax(logits / heat, 1)).sum(1) * weights).mean()
        return (1 - share) * own + share * heat * heat * taught

    return loss


def _is_class(labels: Tensor, classes: int) -> Tensor:
    """Return bool (N, K), true at the label of each row.

    For a choice, not a gather, whose gradient is a scatter: PyTorch's repeatable form of that sorts.
    """
    return labels[:, None] == torch.arange(classes, device=labels.device)


def _softmax(config: LossConfig, classes: int, on: float, off: float) -> _RowLoss:
    """Return the cross-entropy of rows with targets of `on` for the label and `off` elsewhere."""

    def pick(logs: Tensor, labels: Tensor) -> Tensor:
        return torch.where(_is_class(labels, classes), logs, 0.0).sum(1)

    def rows(logits: Tensor, labels: Tensor, *mix: Tensor) -> Tensor:
        logs = F.log_softmax(logits, 1)
        picked = pick(logs, labels)
        if mix:
            second, share = second_targets(*mix)
            picked = share * picked + (1 - share) * pick(logs, second)
        return -((on - off) * picked + off * logs.sum(1))

    return rows


def _binary(config: LossConfig, classes: int, on: float, off: float) -> _RowLoss:
    """Return the binary cross-entropy of rows: the mean over classes, or their sum.

    By log σ(z) and log σ(−z): neither overflows, and their gradients are right at 0 too.
    """

    def targets(labels: Tensor) -> Tensor:
        return torch.where(_is_class(labels, classes), on, off)

    def rows(logits: Tensor, labels: Tensor, *mix: Tensor) -> Tensor:
        y = targets(labels)
        if mix:
            second, share = second_targets(*mix)
            y = share[:, None] * y + (1 - share[:, None]) * targets(second)
        if config.bce_threshold is not None:
            y = (y > config.bce_threshold).to(logits.dtype)
        each = -(y * F.logsigmoid(logits) + (1 - y) * F.logsigmoid(-logits))
        return each.sum(1) if config.bce_sum else each.mean(1)

    return rows

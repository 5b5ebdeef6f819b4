"""The loss of a micro-batch: cross-entropy or binary cross-entropy with smoothed targets, and that with a teacher."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from resnext_core.interfaces import TrainRequest
from resnext_mindspore.extras import Extras
from resnext_mindspore.mixing import LABEL, TARGET


class Loss(nn.Cell):
    """Mean over rows of weight times loss of float32 logits (N, K); see LossConfig, and Distillation for a teacher.

    Where images are mixed the targets are those of two labels, smoothed and then mixed. `extras` are the tensors that
    :class:`resnext_mindspore.extras.Extras` describes.
    """

    def __init__(self, request: TrainRequest) -> None:
        super().__init__(auto_prefix=False)
        config, classes, extras = request.loss, request.weights.spec.num_classes, Extras.of(request)
        rest = classes - 1 if config.smoothing_form == "others" else classes
        off = config.smoothing / rest if rest else 0.0
        on = 1 - config.smoothing + (off if config.smoothing_form == "uniform" else 0.0)
        self.classes = classes
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(on, ms.float32), Tensor(off, ms.float32)
        self.log_softmax = ops.LogSoftmax(axis=1)
        self.mixed = extras.mixes
        self.binary = config.kind == "bce"
        # One operator: its gradient is sigmoid(z) - y at every z, also at 0, where that of a maximum jumps.
        self.binary_loss = ops.SigmoidCrossEntropyWithLogits()
        self.divisor = 1 if config.bce_sum else classes
        self.hard = self.binary and config.bce_threshold is not None
        self.threshold = Tensor(config.bce_threshold or 0.0, ms.float32)
        self.adjusted = request.logit_offsets is not None
        offsets = np.zeros(classes) if request.logit_offsets is None else request.logit_offsets
        self.offsets = Tensor(np.asarray(offsets, np.float32))
        taught = request.distillation
        self.taught, self.teacher_at = taught is not None, extras.teacher_at
        weight, self.temperature = (taught.weight, taught.temperature) if taught else (0.0, 1.0)
        self.own_share, self.teacher_share = 1 - weight, weight * self.temperature**2

    def construct(self, logits: Tensor, labels: Tensor, weights: Tensor, *extras: Tensor) -> Tensor:
        targets = self.one_hot(labels, self.classes, self.on, self.off)
        if self.mixed:
            second = self.one_hot(extras[0][:, LABEL], self.classes, self.on, self.off)
            share = extras[1][:, TARGET].reshape((-1, 1))
            targets = share * targets + (1 - share) * second
        shifted = logits
        if self.adjusted:
            shifted = logits + self.offsets
        if self.binary:
            if self.hard:
                targets = ops.cast(ops.greater(targets, self.threshold), ms.float32)
            rows = self.binary_loss(shifted, targets).sum(1) / self.divisor
        else:
            rows = -(targets * self.log_softmax(shifted)).sum(1)
        if self.taught:
            learnt = self.log_softmax(logits / self.temperature)
            rows = self.own_share * rows - self.teacher_share * (extras[self.teacher_at] * learnt).sum(1)
        return (rows * weights).mean()

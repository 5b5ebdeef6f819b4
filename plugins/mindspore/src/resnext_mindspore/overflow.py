"""Whether a step overflowed: on any rank, and on devices that only a status register tells of it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, amp, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2


class AllFinite(nn.Cell):
    """Whether the gradients of all `world` ranks are finite, as a bool scalar that is the same on every rank.

    On devices that saturate (see :func:`resnext_mindspore.soc.saturates`) MindSpore's ``all_finite`` reads the status
    register of this card, which no averaging of gradients brings to the others: a rank that skips alone would have
    other weights from then on. So the ranks add up who overflowed, in float32, as MindSpore's
    ``nn.TrainOneStepWithLossScaleCell`` does (nn/wrap/loss_scale.py,
    ``_get_ascend_overflow_status_on_saturation_mode`` and the methods beside it).
    """

    def __init__(self, world: int) -> None:
        super().__init__(auto_prefix=False)
        self.own = OwnGradients()
        self.distributed = world > 1
        self.sum = ops.AllReduce() if world > 1 else nn.Identity()
        self.zero = Tensor(0.0, ms.float32)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        finite = self.own(gradients)
        if self.distributed:
            overflowed = self.sum(ops.cast(ops.logical_not(finite), ms.float32))
            finite = ops.equal(overflowed, self.zero)
        return finite


class OwnGradients(nn.Cell):
    """Whether the gradients on this rank are finite; where it saturates, this reads and clears the status register."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.true = Tensor(True)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        return ops.logical_and(amp.all_finite(gradients), self.true)


class ClearStatus(nn.Cell):
    """Clear the status register of a device that saturates, before the first operation of a step.

    Whatever overflowed since the last step, as an evaluation in float16 may, would be taken for an overflow of this
    one: the register keeps it until it is cleared (documentation of ``NPUClearFloatStatusV2``). A graph of its own,
    because graphs run in the order in which they are started.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.status = Tensor(
            np.zeros(8, np.int32)
        )  # the shape that the operator wants; its values mean nothing
        self.clear = NPUClearFloatStatusV2()

    def construct(self) -> Tensor:
        return self.clear(self.status)

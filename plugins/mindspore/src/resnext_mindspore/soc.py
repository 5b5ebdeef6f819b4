"""What the chip of an opened Ascend can do, as MindSpore itself asks for it."""

from __future__ import annotations

import os

#: Names of MindSpore 2.10 (include/mindspore/core/include/utils/ascend_soc_traits.h in its wheel). Asked of the wheel's
#: libmindspore_core, the first three are had by ascend910 (910A) alone, the last by ascend910b (Atlas A2), ascend910_93
#: (Atlas A3) and ascend950; by no ascend310, 310P or 310B.
_SATURATES = "amp_loss_scale_train_classic_target"
_FIRST = "py_query_train_classic_accelerator_line"
_BFLOAT16 = "train_hq_dtype_line"
_MODE = "MS_ASCEND_CHECK_OVERFLOW_MODE"


def saturates(target: str) -> bool:
    """Return whether an overflow on this device gives the largest number instead of infinity.

    The gradients then look finite, and only the card's status register tells: on a 910A always, on an Atlas A2 or A3
    with ``MS_ASCEND_CHECK_OVERFLOW_MODE=SATURATION_MODE``. The conditions are those of MindSpore's ``amp.all_finite``
    and ``nn.TrainOneStepWithLossScaleCell`` (amp.py and nn/wrap/loss_scale.py of 2.10).
    """
    if target != "Ascend":
        return False
    return _has(_SATURATES) or (_has(_BFLOAT16) and os.environ.get(_MODE) == "SATURATION_MODE")


def has_bfloat16(target: str) -> bool:
    """Return whether the device computes in bfloat16: Atlas A2 and later. MindSpore's CPU device does not."""
    return target == "Ascend" and _has(_BFLOAT16)


def has_hf32(target: str) -> bool:
    """Return whether the device can shorten float32 to HF32, which CANN introduced with Atlas A2."""
    return has_bfloat16(target)


def is_910a(target: str) -> bool:
    """Return whether the device is a 910A, the first 910."""
    return target == "Ascend" and _has(_FIRST)


def _has(feature: str) -> bool:
    from mindspore._c_expression import MSContext

    return bool(MSContext.get_instance().ascend_soc_supports_feature(feature))

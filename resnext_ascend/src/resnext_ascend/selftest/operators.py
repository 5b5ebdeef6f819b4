"""Parts about single operators, against the reference backend's NumPy in float64."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from resnext_mindspore.device import open_device

from resnext_ascend.device import device_of
from resnext_ascend.selftest.place import NotHere, Place, Refuted, relative, within
from resnext_core.errors import one_line
from resnext_core.model.spec import BN_EPS, BN_MOMENTUM
from resnext_core.ranks.info import RankInfo
from resnext_core.reference import ops as reference

#: Of max |difference| over max |value|. Device kernels sum in another order; HF32, which A2 may use for float32
#: convolutions, has 11 bits and is found out by the first.
_LIMITS = {"float32": 1e-4, "float16": 2e-2}
_GROUPS, _CHANNELS, _SIDE, _IMAGES = 64, 128, 14, 4


def convolution(place: Place, level: Literal["O0", "O1", "O2"]) -> dict[str, Any]:
    """The 3x3 convolution of 64 groups, its output and both gradients, in both types at one level of compilation."""
    if place.device == "cpu" and level == "O2":
        raise NotHere("needs a device: level O2 compiles by CANN's graph engine")
    opened: Any = replace(device_of(place.options(), RankInfo()), jit_level=level)
    ms = open_device(opened)
    from resnext_ascend.selftest.cells import with_gradients

    rng = np.random.default_rng(3)
    x = rng.standard_normal((_IMAGES, _CHANNELS, _SIDE, _SIDE)).astype(np.float32)
    weight = (rng.standard_normal((_CHANNELS, _CHANNELS // _GROUPS, 3, 3)) / 4).astype(np.float32)
    dy = rng.standard_normal((_IMAGES, _CHANNELS, _SIDE, _SIDE)).astype(np.float32)

    def measure(kind: str) -> dict[str, float]:
        given, right, deltas = (np.asarray(a.astype(kind), np.float64) for a in (x, weight, dy))
        rows, deltas = (a.transpose(1, 0, 2, 3) for a in (given, deltas))
        dx, dweight = reference.conv_backward(deltas, rows, right, 1, _GROUPS)
        assert dx is not None
        conv = ms.ops.Conv2D(_CHANNELS, 3, pad_mode="pad", pad=1, group=_GROUPS)
        tensors = [ms.Tensor(a, getattr(ms, kind)) for a in (x, weight, dy)]
        y, gradients = with_gradients(conv, tensors[:2], tensors[2])
        return {
            "output": relative(_channels_first(y), reference.conv(rows, right, 1, _GROUPS)),
            "input_gradient": relative(_channels_first(gradients[0]), dx),
            "weight_gradient": relative(gradients[1].asnumpy(), dweight),
        }

    return _in_each_type(measure)


def pool(place: Place) -> dict[str, Any]:
    """The 3x3 max-pool of stride 2 and its gradient in both types; its values are exact in float16."""
    ms = open_device(device_of(place.options(), RankInfo()))
    from resnext_ascend.selftest.cells import with_gradients

    rng = np.random.default_rng(4)
    x = rng.permutation(2 * 8 * 9 * 9).reshape(2, 8, 9, 9).astype(np.float32) % 1021

    def measure(kind: str) -> dict[str, float]:
        operator = ms.ops.MaxPool(kernel_size=3, strides=2, pad_mode="same")
        rows = x.transpose(1, 0, 2, 3)
        expected, winner = reference.max_pool(rows, (1, 1), (1, 1))
        dy = rng.integers(-8, 8, expected.shape).astype(np.float32)
        right = reference.max_pool_backward(dy, winner, rows.shape, (1, 1), (1, 1))
        given = ms.Tensor(np.ascontiguousarray(dy.transpose(1, 0, 2, 3)), getattr(ms, kind))
        y, (gradient,) = with_gradients(operator, [ms.Tensor(x, getattr(ms, kind))], given)
        return {
            "output": relative(_channels_first(y), expected),
            "gradient": relative(_channels_first(gradient), right),
        }

    return _in_each_type(measure)


def norm(place: Place) -> dict[str, Any]:
    """Batch normalisation in float32, its gradients and running statistics, and which variance the device keeps."""
    ms = open_device(device_of(place.options(), RankInfo()))
    measured = _norm(ms, np.random.default_rng(4))
    within(measured, {name: _LIMITS["float32"] for name in measured if "is_" not in name})
    return measured


def _in_each_type(measure: Callable[[str], dict[str, float]]) -> dict[str, Any]:
    """Return what `measure` finds in each type, whatever becomes of the other; Refuted with all that is wrong."""
    measured: dict[str, Any] = {}
    wrong: list[str] = []
    for kind, limit in _LIMITS.items():
        try:
            found = {f"{kind}_{name}": value for name, value in measure(kind).items()}
            measured |= found
            within(found, dict.fromkeys(found, limit))
        except Refuted as error:
            wrong.append(str(error))
        except Exception as error:  # what MindSpore and CANN raise shares no base class
            traceback.print_exc()
            wrong.append(f"{kind}: {one_line(error, 200)}")
    if wrong:
        raise Refuted("; ".join(wrong), measured)
    return measured


def _channels_first(tensor: Any) -> NDArray[Any]:
    """Return an array (C, N, H, W), as the reference has it, of a Tensor (N, C, H, W)."""
    array: NDArray[Any] = tensor.asnumpy()
    return array.transpose(1, 0, 2, 3)


def _norm(ms: Any, rng: np.random.Generator) -> dict[str, Any]:
    from resnext_ascend.selftest.cells import Norm, with_gradients

    count, channels, side = 4, 16, 5
    x = (3 + 2 * rng.standard_normal((count, channels, side, side))).astype(np.float32)
    gamma, beta = (rng.standard_normal(channels).astype(np.float32) for _ in range(2))
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, kept, inv_std, mean, var = reference.bn_train(
        x.transpose(1, 0, 2, 3).astype(np.float64), gamma, beta, BN_EPS
    )
    dx, dgamma, dbeta = reference.bn_train_backward(
        dy.transpose(1, 0, 2, 3).astype(np.float64), kept, inv_std, gamma
    )
    operator = Norm(channels, BN_EPS, BN_MOMENTUM)
    out, gradients = with_gradients(operator, [ms.Tensor(a) for a in (x, gamma, beta)], ms.Tensor(dy))
    number = count * side * side
    running = {"biased": var, "unbiased": var * number / (number - 1)}
    stored = (operator.var.asnumpy() - (1 - BN_MOMENTUM)) / BN_MOMENTUM
    return {
        "output": relative(_channels_first(out), y),
        "input_gradient": relative(_channels_first(gradients[0]), dx),
        "weight_gradient": relative(gradients[1].asnumpy(), dgamma),
        "bias_gradient": relative(gradients[2].asnumpy(), dbeta),
        "running_mean": relative(operator.mean.asnumpy() / BN_MOMENTUM, mean),
        "running_variance_is_unbiased": relative(stored, running["unbiased"])
        < relative(stored, running["biased"]),
        "running_variance": min(relative(stored, value) for value in running.values()),
    }

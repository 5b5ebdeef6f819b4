"""Parts about single operators, against the reference backend's NumPy in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from resnext_mindspore.device import open_device

from resnext_ascend.device import device_of
from resnext_ascend.selftest.place import NotHere, Place, relative, within
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
    rng = np.random.default_rng(3)
    x = rng.standard_normal((_IMAGES, _CHANNELS, _SIDE, _SIDE)).astype(np.float32)
    weight = (rng.standard_normal((_CHANNELS, _CHANNELS // _GROUPS, 3, 3)) / 4).astype(np.float32)
    dy = rng.standard_normal((_IMAGES, _CHANNELS, _SIDE, _SIDE)).astype(np.float32)
    from resnext_ascend.selftest.cells import with_gradients

    measured: dict[str, Any] = {}
    for kind in _LIMITS:
        given = [np.asarray(a.astype(kind), np.float64) for a in (x, weight, dy)]
        columns, deltas = given[0].transpose(1, 0, 2, 3), given[2].transpose(1, 0, 2, 3)
        expected = [reference.conv(columns, given[1], 1, _GROUPS)]
        expected += reference.conv_backward(deltas, columns, given[1], 1, _GROUPS)  # type: ignore[arg-type]
        conv = ms.ops.Conv2D(_CHANNELS, 3, pad_mode="pad", pad=1, group=_GROUPS)
        dtype = getattr(ms, kind)
        tensors = [ms.Tensor(a, dtype) for a in (x, weight, dy)]
        y, gradients = with_gradients(conv, tensors[:2], tensors[2])
        found = [y, gradients[0], gradients[1]]
        for name, ours, right in zip(
            ("output", "input_gradient", "weight_gradient"), found, expected, strict=True
        ):
            array = ours.asnumpy().astype(np.float64)
            if array.ndim == 4 and name != "weight_gradient":
                array = array.transpose(1, 0, 2, 3)
            measured[f"{kind}_{name}"] = relative(array, right)
    within(measured, {f"{kind}_{name}": limit for kind, limit in _LIMITS.items()
                      for name in ("output", "input_gradient", "weight_gradient")})  # fmt: skip
    return measured


def pool_and_norm(place: Place) -> dict[str, Any]:
    """Max-pool in both types, batch normalisation, its gradients and its running statistics."""
    ms = open_device(device_of(place.options(), RankInfo()))
    rng = np.random.default_rng(4)
    measured = _pool(ms, rng) | _norm(ms, rng)
    limits = {
        name: _LIMITS["float16" if "float16" in name else "float32"] for name in measured if "is_" not in name
    }
    within(measured, limits)
    return measured


def _pool(ms: Any, rng: np.random.Generator) -> dict[str, Any]:
    from resnext_ascend.selftest.cells import with_gradients

    x = rng.permutation(2 * 8 * 9 * 9).reshape(2, 8, 9, 9).astype(np.float32) % 1021  # exact in float16 too
    measured = {}
    for kind in _LIMITS:
        pool = ms.ops.MaxPool(kernel_size=3, strides=2, pad_mode="same")
        expected, winner = reference.max_pool(x.transpose(1, 0, 2, 3), (1, 1), (1, 1))
        dy = rng.integers(-8, 8, expected.shape).astype(np.float32)
        right = reference.max_pool_backward(dy, winner, expected.shape[:2] + x.shape[2:], (1, 1), (1, 1))
        dtype = getattr(ms, kind)
        given = ms.Tensor(np.ascontiguousarray(dy.transpose(1, 0, 2, 3)), dtype)
        y, (gradient,) = with_gradients(pool, [ms.Tensor(x, dtype)], given)
        measured[f"{kind}_pool"] = relative(y.asnumpy().transpose(1, 0, 2, 3), expected)
        measured[f"{kind}_pool_gradient"] = relative(gradient.asnumpy().transpose(1, 0, 2, 3), right)
    return measured


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
    norm = Norm(channels, BN_EPS, BN_MOMENTUM)
    out, gradients = with_gradients(norm, [ms.Tensor(a) for a in (x, gamma, beta)], ms.Tensor(dy))
    number = count * side * side
    running = {"biased": var, "unbiased": var * number / (number - 1)}
    stored = (norm.var.asnumpy() - (1 - BN_MOMENTUM)) / BN_MOMENTUM
    return {
        "norm": relative(out.asnumpy().transpose(1, 0, 2, 3), y),
        "norm_input_gradient": relative(gradients[0].asnumpy().transpose(1, 0, 2, 3), dx),
        "norm_weight_gradient": relative(gradients[1].asnumpy(), dgamma),
        "norm_bias_gradient": relative(gradients[2].asnumpy(), dbeta),
        "norm_running_mean": relative(norm.mean.asnumpy() / BN_MOMENTUM, mean),
        "running_variance_is_unbiased": relative(stored, running["unbiased"])
        < relative(stored, running["biased"]),
        "norm_running_variance": min(relative(stored, value) for value in running.values()),
    }

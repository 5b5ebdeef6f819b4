"""Parts about the machine: packages and driver, and a device that opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from resnext_mindspore.device import open_device

from resnext_ascend import diagnose, npu_smi
from resnext_ascend.device import device_of
from resnext_ascend.selftest.place import Place, Refuted
from resnext_core.errors import BackendUnavailable, ResnextError, one_line
from resnext_core.jobs.environment import environment
from resnext_core.ranks.info import RankInfo

#: Variables that decide where and how things run; no other is looked at.
_VARIABLES = (
    "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "ASCEND_RT_VISIBLE_DEVICES", "LITE_HOME", "DEVICE_ID",
    "RANK_ID", "RANK_SIZE", "HCCL_CONNECT_TIMEOUT", "HCCL_WHITELIST_DISABLE", "MS_ROLE", "OMP_NUM_THREADS",
)  # fmt: skip


def packages(place: Place) -> dict[str, Any]:
    """Versions of packages, CANN and driver, and the chips that npu-smi lists."""
    facts = environment()
    del facts["command"]
    measured: dict[str, Any] = {
        "environment": facts,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    missing = diagnose.software()
    if missing is not None:
        raise Refuted(missing, measured)
    if place.device == "cpu":
        return measured | {"driver": "not looked for in test mode"}
    missing = diagnose.hardware()
    if missing is not None:
        raise Refuted(missing, measured)
    home = os.environ.get("ASCEND_HOME_PATH")
    measured["cann"] = diagnose.cann_version(Path(home)) if home else None
    measured |= chips()
    measured["ranks"] = diagnose.collectives() or "can meet"
    if doubts := diagnose.doubts():
        raise Refuted("; ".join(doubts), measured)
    return measured


def chips() -> dict[str, Any]:
    """What npu-smi lists, or why it does not: a container may lack it and compute all the same."""
    try:
        version, found = npu_smi.read_chips()
    except ResnextError as error:
        return {"npu_smi": one_line(error)}
    shown = [f"{c.name}: {c.health}, {c.used_mib} of {c.total_mib} MiB" for c in found]
    return {"npu_smi": version, "chips": shown}


def device(place: Place) -> dict[str, Any]:
    """MindSpore opens the device, adds and multiplies on it, and says how much memory it has."""
    try:
        ms = open_device(device_of(place.options(), RankInfo()))
    except BackendUnavailable as error:  # what this part is there to find out
        raise Refuted(str(error)) from error
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = ms.ops.matmul(ms.Tensor(values), ms.Tensor(values.T)).asnumpy()
    if not np.array_equal(found, values @ values.T):
        raise Refuted(f"a product of small integers is {found.tolist()}, not {(values @ values.T).tolist()}")
    measured: dict[str, Any] = {"mindspore": ms.__version__, "target": ms.get_context("device_target")}
    if place.device == "ascend":
        measured["memory_bytes"] = int(ms.runtime.memory_allocated())
    return measured

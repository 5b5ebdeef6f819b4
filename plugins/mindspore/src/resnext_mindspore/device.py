"""Opening a MindSpore device: the environment before the import, then device, mode and threads, in order."""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnext_core.errors import BackendUnavailable, UsageError, one_line
from resnext_core.files.scratch import Scratch
from resnext_mindspore import soc

if TYPE_CHECKING:
    from resnext_core.ranks.info import RankInfo
    from resnext_mindspore.options import MindsporeOptions

#: oneDNN's name for "no instruction set above this one"; see :func:`open_device`.
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"


@dataclass(frozen=True, kw_only=True)
class Operators:
    """What takes the place of operators that a device lacks; the numbers are the same, the graph is larger.

    With `split_groups` a grouped convolution is one convolution a group. With `slice_pool` the max-pool is a maximum of
    nine strided slices; None takes them where they are needed, for float32 on a 910A (CANN's aclnnMaxPool has float32
    "on Atlas A2 only").
    """

    split_groups: bool = False
    slice_pool: bool | None = None

    def slices(self, target: str, compute: str) -> bool:
        """Return whether the max-pool is one of slices in `compute` on the opened device `target`."""
        needed = compute == "float32" and soc.is_910a(target)
        return needed if self.slice_pool is None else self.slice_pool


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where MindSpore computes: `target` and `device_id`, how (`mode`), and on CPU with how many `threads`.

    `jit_level` is how far graph mode compiles, None leaves it to MindSpore. With `hf32` an Ascend that can multiplies
    float32 with 11 bits of mantissa, which CANN does in convolutions unless it is told not to. `operators` may differ
    from one network of a process to the next.
    """

    target: Literal["CPU", "GPU", "Ascend"] = "CPU"
    device_id: int = 0
    mode: Literal["graph", "pynative"] = "graph"
    threads: int | None = None
    jit_level: Literal["O0", "O1", "O2"] | None = None
    hf32: bool = False
    operators: Operators = field(default=Operators(), compare=False)


_opened: Device | None = None


def device_of(options: MindsporeOptions, rank: RankInfo) -> Device:
    """Return the device of a rank of the backend ``mindspore``."""
    threads = options.threads
    if threads is None and rank.world > 1 and options.device == "cpu":
        threads = max(1, cores() // rank.world)
    target: Literal["CPU", "GPU"] = "GPU" if options.device == "gpu" else "CPU"
    device_id = rank.local_rank if target == "GPU" else 0
    return Device(target=target, device_id=device_id, mode=options.mode, threads=threads)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def note(text: str) -> None:
    """Say on standard error what takes long for no visible reason."""
    print(f"mindspore: {text}", file=sys.stderr, flush=True)


def open_device(device: Device, *, alone: bool = True) -> ModuleType:
    """Import MindSpore on `device` and return it; later calls in a process must name the same device.

    MindSpore opens an accelerator at its first operation, so a process that is `alone` computes something at once, and
    a device that cannot be used is told here. Among several ranks nothing may be computed before they have met
    (documentation of ``mindspore.communication.init``).

    On AVX-512 processors MindSpore's plain NCHW layouts send oneDNN to its reference loop, 10 to 90 times
    slower than the code it picks when capped at AVX2; on others the cap changes nothing. oneDNN reads the
    variable once, at its first primitive, so the cap is set around a first small convolution and taken
    back: no child process and no other library of this process inherits it. A user's own value stays.

    Raises BackendUnavailable where MindSpore or the device is missing, UsageError on a second device.
    """
    global _opened
    if _opened is not None and _opened != device:
        raise UsageError(f"this process already uses {_opened}; start another process for {device}")
    capped = _opened is None and device.target == "CPU" and ISA_VARIABLE not in os.environ
    if _opened is None:
        _quiet_environment()
    if capped:
        os.environ[ISA_VARIABLE] = "AVX2"
    try:
        ms = _import_on(device)
        if capped:
            _first_convolution(ms)
        elif _opened is None and alone and device.target != "CPU":
            _first_operation(ms, device)
    finally:
        if capped:
            del os.environ[ISA_VARIABLE]
    _opened = device
    return ms


def _quiet_environment() -> None:
    """Send MindSpore's droppings to a temporary folder and its log below errors away, unless told otherwise."""
    os.environ.setdefault("GLOG_v", "3")
    if "MS_OM_PATH" not in os.environ:
        scratch = Scratch("mindspore")
        atexit.register(scratch.close)
        os.environ["MS_OM_PATH"] = str(scratch.path)


def _import_on(device: Device) -> ModuleType:
    try:
        import mindspore as ms
    except ImportError as error:
        raise BackendUnavailable(
            f"MindSpore cannot be imported ({error}): pip install 'resnext-core[mindspore]'"
        ) from error
    if _opened is None:
        try:
            ms.set_device(device.target, device.device_id)
        except (RuntimeError, ValueError) as error:
            reason = one_line(error, 200)
            raise BackendUnavailable(f"MindSpore has no device {device.target}: {reason}") from error
        if device.target == "Ascend" and soc.has_hf32(device.target):
            # What CANN does by default, as the documentation of the two functions says: in convolutions, yes.
            ms.device_context.ascend.op_precision.conv_allow_hf32(device.hf32)
            ms.device_context.ascend.op_precision.matmul_allow_hf32(device.hf32)
        ms.set_context(mode=ms.PYNATIVE_MODE if device.mode == "pynative" else ms.GRAPH_MODE)
        if device.jit_level is not None:
            ms.set_context(jit_config={"jit_level": device.jit_level})
        if device.threads is not None and device.target == "CPU":
            # Not ms.runtime.dispatch_threads_num: to set it at all makes a step 1.5 times as much work.
            ms.device_context.cpu.op_tuning.threads_num(device.threads)
    return ms


def _first_operation(ms: ModuleType, device: Device) -> None:
    """Add two numbers on an accelerator, at which MindSpore opens it."""
    try:
        found = (ms.Tensor(np.float32(1)) + ms.Tensor(np.float32(1))).asnumpy()
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise BackendUnavailable(
            f"MindSpore cannot compute on {device.target} {device.device_id}: {reason}"
        ) from error
    if found != 2:
        raise BackendUnavailable(f"{device.target} {device.device_id} computes 1 + 1 = {found}")


def _first_convolution(ms: ModuleType) -> None:
    """Run the smallest convolution, at which oneDNN reads its environment for good."""
    image, weight = ms.ops.zeros((1, 1, 1, 1)), ms.ops.zeros((1, 1, 1, 1))
    ms.ops.Conv2D(1, 1)(image, weight).asnumpy()

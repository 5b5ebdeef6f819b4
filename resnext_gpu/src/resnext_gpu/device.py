"""Opening a device of PyTorch: which one a rank computes on, its switches, and one line where there is none."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resnext_core.errors import BackendUnavailable, UsageError, one_line, shown

if TYPE_CHECKING:
    from resnext_core.ranks.info import RankInfo
    from resnext_gpu.options import GpuOptions

#: cuBLAS's workspaces, and the values with which its results can be repeated (its documentation, "Results
#: reproducibility").
_WORKSPACE, _REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
#: What every refusal ends with.
_TEST_MODE = "use --set gpu.device=cpu for the test mode without a GPU"


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a rank computes: on GPU number `index`, or on the CPU with so many `threads`, and with which switches."""

    kind: Literal["cuda", "auto", "cpu"] = "cuda"
    index: int = 0
    threads: int | None = None
    tf32: bool = False
    deterministic: bool = False


def device_of(options: GpuOptions, rank: RankInfo) -> Device:
    """Return the device of a rank."""
    return Device(
        kind=options.device,
        index=rank.local_rank,
        threads=options.threads,
        tf32=options.tf32,
        deterministic=options.deterministic,
    )


def open_device(device: Device) -> Any:
    """Import PyTorch, set its switches for `device` and return its ``torch.device``.

    Raises BackendUnavailable where PyTorch, its CUDA build, the driver or that GPU is missing, UsageError where
    `deterministic` contradicts the environment.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(
            f"PyTorch cannot be imported ({one_line(error, 200)}): pip install 'resnext-core[gpu]'"
        ) from error
    if device.threads is not None:
        torch.set_num_threads(device.threads)
    if device.kind != "cpu":
        reason = _why_not(torch, device.index)
        if reason is None:
            _switch(torch, device)
            torch.cuda.set_device(device.index)
            return torch.device("cuda", device.index)
        if device.kind == "cuda":
            raise BackendUnavailable(f"{reason}; {_TEST_MODE}")
        note(f"{reason}; gpu.device is auto, so this computes on the CPU")
    return torch.device("cpu")


def channels_last(options: GpuOptions, device: Any) -> bool:
    """Return the layout to use: on a GPU what tensor cores want, on the CPU what is rounded less."""
    return bool(device.type == "cuda") if options.channels_last is None else options.channels_last


def _why_not(torch: Any, index: int) -> str | None:
    """Return why there is no GPU number `index`, in one sentence without its end, or None."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; install a build with it from pytorch.org"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
            reason = "no device is visible"
        except (RuntimeError, AssertionError) as error:  # no driver, one too old, no device
            reason = one_line(error, 200)
        return f"no NVIDIA GPU can be used: {reason}"
    count = torch.cuda.device_count()
    if index >= count:
        return f"this rank needs GPU {index}, but there are only {count}: start at most {count} ranks on a machine"
    return None


def _switch(torch: Any, device: Device) -> None:
    """Set the switches of the process; `deterministic` makes an operation that has no repeatable form an error."""
    torch.backends.cuda.matmul.allow_tf32 = device.tf32
    torch.backends.cudnn.allow_tf32 = device.tf32
    torch.backends.cudnn.deterministic = device.deterministic
    torch.backends.cudnn.benchmark = not device.deterministic
    if device.deterministic:
        # cuBLAS reads it when it is first used; PyTorch refuses its products without.
        config = os.environ.setdefault(_WORKSPACE, _REPEATABLE[0])
        if config not in _REPEATABLE:
            wanted = " or ".join(_REPEATABLE)
            raise UsageError(
                f"gpu.deterministic needs {_WORKSPACE}={wanted} in the environment, not {shown(config)}"
            )
    if (
        device.deterministic != torch.are_deterministic_algorithms_enabled()
    ):  # setting it imports the compiler
        torch.use_deterministic_algorithms(
            device.deterministic
        )  # for the compiler too: then it times nothing
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a pass over each new tensor; none is read before
    )


def note(text: str) -> None:
    """Say on standard error what is done otherwise than asked."""
    print(f"gpu: {text}", file=sys.stderr, flush=True)

"""The plugin: what resnext-gpu offers. Every start of the program imports it, so it imports no framework."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import (
    READY,
    Backend,
    Compute,
    Engine,
    LaunchRequest,
    Predictor,
    PredictRequest,
    Readiness,
    Recipe,
    StoredTensors,
    TrainRequest,
    Variant,
    WeightFile,
)
from resnext_core.processor import processor
from resnext_gpu.options import GpuOptions

if TYPE_CHECKING:
    from resnext_core.ranks.collectives import Collectives
    from resnext_core.ranks.info import RankInfo

_MISSING = "PyTorch is not installed: pip install 'resnext-core[gpu]'"
#: What the NVIDIA driver leaves on a machine (Linux, in a container, WSL).
_DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")


@hookimpl
def resnext_backends() -> Iterator[Backend]:
    """Yield the backend."""
    yield Backend(
        id="gpu",
        summary="NVIDIA GPUs on PyTorch",
        priority=40,
        probe=probe,
        engine=_engine,
        predictor=_predictor,
        formats=(".safetensors",),
        packages=("torch",),
        options=GpuOptions,
        compute=_compute,
        variants=_variants,
        former_options={"fused_bn": False},  # before 0.1; it was slower
        steps_per_call=8,
        batch_fits=_batch_fits,
        ingredients=frozenset(
            {
                "mix",
                "nesterov",
                "lamb",
                "adamw",
                "agc",
                "groups",
                "bce",
                "stochastic-depth",
                "teacher",
                "freeze",
                "logit-offsets",
                "sizes",
                "ema-schedule",
            }
        ),
        connect=_connect,
        launch=_launch,
    )


@hookimpl
def resnext_weight_files() -> Iterator[WeightFile]:
    yield WeightFile(
        suffixes=(".pth", ".pt", ".bin", ".pth.tar"),
        summary="torch state dict",
        probe=_torch,
        read=_read,
        write=_write,
        naming="torch",
    )


@hookimpl
def resnext_recipes() -> Iterator[Recipe]:
    folder = Path(__file__).with_name("recipes")
    yield Recipe(name="imagenet-150e-gpu", path=folder / "imagenet-150e-gpu.yaml")
    yield Recipe(
        name="imagenet-modelzoo-gpu",
        path=folder / "imagenet-modelzoo-gpu.yaml",
        former_names=("imagenet-ancestor-gpu",),  # until 0.1; remove with 0.3
    )
    yield Recipe(name="nvidia-250e", path=folder / "nvidia-250e.yaml")


def has_driver() -> bool:
    """True where this machine looks as if it had an NVIDIA driver; nothing is opened."""
    return any(os.path.exists(path) for path in _DRIVER)


def _cpu_build() -> bool:
    """True where the installed PyTorch says in its version that it cannot use a GPU."""
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def probe() -> Readiness:
    """Return whether PyTorch is installed, and seems to find a GPU.

    Whether the GPU works, only the driver can tell: that is asked when the device is opened.
    """
    torch = _torch()
    if not torch.usable or (has_driver() and not _cpu_build()):
        return torch
    return Readiness(
        state="test mode", reason="no NVIDIA GPU found; --set gpu.device=cpu computes on the CPU"
    )


def _torch() -> Readiness:
    return Readiness(state="missing", reason=_MISSING) if util.find_spec("torch") is None else READY


def _compute(options: GpuOptions | None) -> Compute:
    found = _options(options)
    on_cpu = found.device == "cpu" or (found.device == "auto" and (_cpu_build() or not has_driver()))
    if found.engine == "mindspore":
        return Compute(device="cuda")
    return Compute(
        device="cpu" if on_cpu else "cuda",
        threads=(found.threads or processor().cores) if on_cpu else None,
        precision="tf32" if found.tf32 and not on_cpu else None,
        peak=partial(_peak, found),
    )


def _peak(options: GpuOptions, precision: str) -> float | None:
    from resnext_gpu.peak import measured_peak

    return measured_peak(options, precision)


def _variants() -> Iterator[Variant]:
    if probe().state == "test mode":
        yield Variant(label="cpu", overrides=("gpu.device=cpu",))


def _engine(request: TrainRequest) -> Engine:
    options = _options(request.options)
    if options.engine == "mindspore":
        from resnext_gpu import mindspore_engine

        return mindspore_engine.create_engine(request)
    from resnext_gpu.engine import GpuEngine

    return GpuEngine(request, options)


def _batch_fits(request: TrainRequest) -> bool | None:
    options = _options(request.options)
    if options.engine == "mindspore":
        return None
    from resnext_gpu.trial import batch_fits

    return batch_fits(request, options)


def _predictor(request: PredictRequest) -> Predictor:
    options = _options(request.options)
    if options.engine == "mindspore":
        from resnext_gpu import mindspore_engine

        return mindspore_engine.create_predictor(request)
    from resnext_gpu.predictor import create_predictor

    return create_predictor(request, options)


def _connect(rank: RankInfo, options: GpuOptions | None) -> Collectives:
    options = _options(options)
    if options.engine == "mindspore":
        from resnext_gpu import mindspore_engine

        return mindspore_engine.connect(rank)
    from resnext_gpu.collectives import connect

    return connect(rank, options)


def _launch(request: LaunchRequest) -> int:
    if _options(request.options).engine == "mindspore":
        from resnext_gpu import mindspore_engine

        return mindspore_engine.launch(request)
    from resnext_core.ranks.launch import launch_local

    return launch_local(request)


def _options(options: GpuOptions | None) -> GpuOptions:
    return GpuOptions() if options is None else options


def _read(path: Path) -> StoredTensors:
    from resnext_gpu.weight_files import read_pth

    return read_pth(path)


def _write(path: Path, tensors: Mapping[str, Any], tag: str) -> None:
    from resnext_gpu.weight_files import write_pth

    write_pth(path, tensors, tag)

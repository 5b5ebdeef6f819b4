"""A part: one training step by the profiler of PyTorch: its largest kernels, and the share of each kind of layer."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import pkgutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gpu_vs_timm as against
import numpy as np

from gpu_day.child import arguments, write
from resnext_core.errors import ResnextError
from resnext_core.model.init import random_weights
from resnext_core.model.spec import model_spec

BATCH, WARMUP, TIMED, PROFILED, LARGEST = 128, 3, 5, 2, 20
#: Switches of the backend with which steps are timed, and not profiled.
ALSO = ("cuda_graphs",)
#: Of a Chrome trace: what the device did.
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def main() -> int:
    """Time steps, profile some, then time them once more with each switch of ALSO."""
    args = arguments(
        model={"default": "resnext152_64x4d"}, batch={"type": int, "default": BATCH},
        set={"nargs": "*", "default": [], "metavar": "KEY=JSON", "help": "options of the backend, as tf32=true"},
    )  # fmt: skip
    began = time.monotonic()
    spec = against.SMOKE if args.smoke else model_spec(args.model, pool_padding="symmetric")
    options: dict[str, Any] = {
        key: json.loads(value) for key, _, value in (one.partition("=") for one in args.set)
    }
    batch = 2 if args.smoke else args.batch
    while True:
        try:
            found = _profile(args, spec, batch, options)
            break
        except ResnextError as error:
            if "memory" not in str(error) or batch == 1:
                return write(args.into, right=False, said=str(error))
            batch //= 2
    table = _table(found)
    said = f"{found['ms_a_step']:.2f} ms a step: " + ", ".join(
        f"{what} {100 * share:.0f} %" for what, share in found["shares"].items() if share >= 0.005
    )
    write(args.into, right=True, said=said, table=table, **found)
    ways: dict[str, Any] = {}
    took = time.monotonic() - began
    for name in ALSO:
        if time.monotonic() + took > args.end - 8:
            break
        once = time.monotonic()
        try:
            ways[name] = _timed(*_trainer(args, spec, batch, options | {name: True}))
        except Exception as error:  # an option that is not ready ends nothing
            ways[name] = f"{type(error).__name__}: {error}"
        table.append(
            f"with gpu.{name}: {ways[name] if isinstance(ways[name], str) else f'{ways[name]:.2f} ms a step'}"
        )
        write(args.into, right=True, said=said, table=table, also=ways, **found)
        took = max(took, time.monotonic() - once)
    return 0


def _trainer(args: argparse.Namespace, spec: Any, batch: int, options: Mapping[str, Any]) -> tuple[Any, Any]:
    weights, given = _noise(spec, batch)
    how = argparse.Namespace(compute="bfloat16", smoke=args.smoke)
    return against.trainer(how, weights, given, **options), given


@functools.cache
def _noise(spec: Any, batch: int) -> tuple[Any, Any]:
    return against.noise(spec, batch, random_weights)


def _timed(trainer: Any, given: Any) -> float:
    """Return milliseconds a step, the best of three calls of several steps; the first calls compile and choose."""
    _steps(trainer, given, WARMUP)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        _steps(trainer, given, TIMED)
        best = min(best, 1e3 * (time.perf_counter() - began) / TIMED)
    return best


def _steps(trainer: Any, given: Any, count: int) -> None:
    trainer.run_steps(
        [given] * count, np.full(count, 0.01, np.float32)
    )  # returns losses, and so waits for the device


def _profile(args: argparse.Namespace, spec: Any, batch: int, options: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    trainer, given = _trainer(args, spec, batch, options)
    ms = _timed(trainer, given)
    kinds = [ProfilerActivity.CPU, *([] if args.smoke else [ProfilerActivity.CUDA])]
    with profile(activities=kinds, record_shapes=True) as profiler:
        _steps(trainer, given, PROFILED)
    trainer.close()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    found = summary(events, PROFILED, ms, ("cpu_op",) if args.smoke else _DEVICE)
    return {
        "model": spec.variant,
        "batch": batch,
        "options": dict(options),
        "torch": torch.__version__,
        **found,
    }


def summary(
    events: Iterable[Mapping[str, Any]], steps: int, ms: float, wanted: tuple[str, ...] = _DEVICE
) -> dict[str, Any]:
    """Return what the device did in `steps` steps of a Chrome trace, of which each takes `ms` milliseconds unprofiled.

    A kernel and the operation that launched it have the same "External id"; the operation has the shapes.
    """
    events = [event for event in events if event.get("ph") == "X"]
    ops = {
        e["args"]["External id"]: e
        for e in events
        if e.get("cat") == "cpu_op" and "External id" in e.get("args", {})
    }
    ours = _own_kernels()
    by_name: dict[tuple[str, str], list[float]] = {}
    kinds: dict[str, float] = {}
    spans = []
    for event in events:
        if event.get("cat") not in wanted:
            continue
        op = ops.get(event.get("args", {}).get("External id"), {})
        kind = kind_of(
            event["name"], op.get("name", ""), op.get("args", {}).get("Input Dims", ()), ours, event["cat"]
        )
        took = event.get("dur", 0.0) / 1e3
        by_name.setdefault((kind, event["name"]), []).append(took)
        kinds[kind] = kinds.get(kind, 0.0) + took / steps
        spans.append((event["ts"] / 1e3, event["ts"] / 1e3 + took))
    busy = _union(spans) / steps
    largest = sorted(by_name.items(), key=lambda row: -sum(row[1]))[:LARGEST]
    shares = {kind: value / ms for kind, value in sorted(kinds.items(), key=lambda row: -row[1])}
    return {
        "ms_a_step": ms, "busy_ms": busy, "ms_by_kind": kinds, "shares": shares | {"idle": max(0.0, 1 - busy / ms)},
        "largest": [
            {"kernel": name, "kind": kind, "ms": sum(times) / steps, "calls": len(times) / steps}
            for (kind, name), times in largest
        ],
    }  # fmt: skip


def kind_of(kernel: str, op: str, dims: Any, ours: Mapping[str, str], category: str = "kernel") -> str:
    """Return to which kind of layer a kernel belongs: by its name, else by the operation that launched it."""
    low = kernel.lower()
    if category in ("gpu_memcpy", "gpu_memset"):
        return "copies"
    if kernel in ours:
        return ours[kernel]
    if "batch_norm" in op or "batch_norm" in low or "batchnorm" in low or "bn_fw" in low or "bn_bw" in low:
        return "batch norm"
    if "conv" in op:
        sizes = [size for size in dims or () if len(size) == 4]
        if len(sizes) < 2:
            return "other convolutions"
        x, weight = sizes[1:3] if "backward" in op and len(sizes) > 2 else sizes[:2]
        if weight[2:] == [1, 1]:
            return "1x1"
        return "grouped 3x3, cuDNN" if x[1] != weight[1] else "other convolutions"
    if "foreach" in op or "_fused" in op or "multi_tensor" in low:
        return "update"
    if "mm" in op or "linear" in op:
        return "fully connected"
    return "elementwise and others"


def _own_kernels() -> dict[str, str]:
    """Return the kind of each of our kernels in Triton, by name: of every function that Triton compiles."""
    from resnext_gpu import grouped_conv

    found = {}
    for module in pkgutil.iter_modules(grouped_conv.__path__):
        if module.name.endswith("kernels"):
            try:
                made = vars(importlib.import_module(f"{grouped_conv.__name__}.{module.name}"))
            except ImportError:  # no Triton
                continue
            kind = "batch norm, ours" if module.name.startswith("norm") else "grouped 3x3, ours"
            found |= {name: kind for name, one in made.items() if hasattr(one, "warmup")}
    return found


def _union(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals: streams overlap."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def _table(found: Mapping[str, Any]) -> list[str]:
    rows = [
        f"{found['model']}, batch {found['batch']}: {found['ms_a_step']:.2f} ms a step, of which the device is busy "
        f"{found['busy_ms']:.2f} ms"
    ]
    rows += [f"{100 * share:5.1f} % {what}" for what, share in found["shares"].items()]
    rows += [
        f"{row['ms']:8.3f} ms  {row['calls']:6.1f} calls  {row['kind']:<22} {row['kernel'][:90]}"
        for row in found["largest"]
    ]
    return rows


if __name__ == "__main__":
    sys.exit(main())

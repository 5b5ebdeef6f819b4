"""Which way to compute a grouped convolution: timed at first use on a card, remembered in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import triton
import triton.testing
from torch import Tensor

from resnext_core.errors import BackendUnavailable, DataError, one_line
from resnext_core.files import cache_folder, write_atomic
from resnext_gpu.device import note
from resnext_gpu.grouped_conv.launch import Plan

#: What is computed.
Pass = Literal["forward", "input gradient", "weight gradient"]
#: Results of ours and of PyTorch's agree to this share of the largest value: both round once to 8 bits (bfloat16), to
#: nearest, after sums in float32 of products of the same factors. A wrong tap or channel is off by more than a tenth.
_AGREEMENT = 2e-2
#: Milliseconds of warming up and of measuring a candidate.
_WARM_MS, _TIMED_MS = 5, 20


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One convolution: `images` of (`height`, `width`) with `channels` in groups of `group_width`."""

    images: int
    channels: int
    group_width: int
    height: int
    width: int
    stride: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return (
            f"{self.images} x {self.height} x {self.width} x {self.channels}, groups of {self.group_width}, "
            f"stride {self.stride}, {str(self.dtype).removeprefix('torch.')}"
        )


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The best plan of ours, if any gave the right result, its time and that of PyTorch's convolution, in ms."""

    plan: Plan | None
    ours_ms: float | None
    library_ms: float

    @property
    def faster(self) -> Plan | None:
        """The plan where ours is faster, None where PyTorch's is."""
        return self.plan if self.ours_ms is not None and self.ours_ms < self.library_ms else None


#: Plans of the weight gradient, and of what writes images. A100 and H100 have the registers for them, but for at most
#: 80 bytes that spill (tests/test_gpu_grouped_conv.py). Of blocks of 16 channels those of few warps have the least to
#: move in L1 and shared memory, by count of their instructions: see docs/log/kernels.md.
_WEIGHT_GRADIENT = (
    Plan(squares=16, channels=16, warps=1),
    Plan(squares=16, channels=16, warps=1, programs=2048),
    Plan(squares=32, channels=16, warps=1),
    Plan(squares=16, channels=32, warps=2),
    Plan(squares=16, channels=32, warps=4),
)
_IMAGES = (
    Plan(squares=32, channels=16, warps=1),
    Plan(squares=32, channels=16, warps=2),
    Plan(squares=64, channels=16, warps=2),
    Plan(squares=128, channels=16, warps=4),
    Plan(squares=16, channels=32, warps=2),
    Plan(squares=64, channels=32, warps=4),
    Plan(squares=128, channels=32, warps=8),
)


def default_plan(what: Pass, shape: Shape) -> Plan:
    """Return the plan that is taken where nothing is timed."""
    narrow = shape.group_width <= 16
    if what == "weight gradient":
        return Plan(squares=16, channels=16 if narrow else 32, warps=1 if narrow else 2)
    return Plan(squares=64, channels=16 if narrow else 32, warps=2 if narrow else 4)


def candidates(what: Pass, shape: Shape) -> Iterator[Plan]:
    """Yield the plans that are timed, those whose blocks hold whole groups and divide the channels."""
    for plan in _WEIGHT_GRADIENT if what == "weight gradient" else _IMAGES:
        if plan.channels >= shape.group_width and shape.channels % plan.channels == 0:
            yield plan


class Timings:
    """What was measured on this card with these versions, in `folder`; ranks of several processes may share it."""

    def __init__(self, card: str, folder: Path | None = None) -> None:
        self._card = card
        source = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("kernels.py", "launch.py"))
        stamp = f"{card}|{torch.__version__}|{triton.__version__}|{hashlib.sha256(source).hexdigest()}"
        name = f"{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.json"
        self.path = (folder or cache_folder() / "grouped-conv") / name
        self._known: dict[str, Timing] | None = None

    def known(self, what: Pass, shape: Shape) -> Timing | None:
        """Return the timing of `shape`, if it was measured."""
        if self._known is None:
            self._known = self._read()
        return self._known.get(f"{what}: {shape}")

    def measure(
        self, what: Pass, shape: Shape, ours: Callable[[Plan], Tensor], library: Callable[[], Tensor]
    ) -> Timing:
        """Measure `shape`, remember and return it, and say it in a line."""
        key, timing = f"{what}: {shape}", measure(what, shape, ours, library)
        self._known = {**self._read(), **(self._known or {}), key: timing}
        self._write(self._known)
        mine = "no valid plan" if timing.ours_ms is None else f"{timing.ours_ms:.3f} ms"
        note(f"grouped 3x3, {key}: Triton {mine}, cuDNN {timing.library_ms:.3f} ms")
        return timing

    def _read(self) -> dict[str, Timing]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            return {key: _timing(row) for key, row in stored["timings"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            note(f"{self.path} cannot be read ({error}); the grouped convolutions are timed again")
            return {}

    def _write(self, timings: Mapping[str, Timing]) -> None:
        try:
            rows = {key: asdict(timing) for key, timing in timings.items()}
            write_atomic(self.path, json.dumps({"card": self._card, "timings": rows}, indent=1))
        except DataError as error:
            note(
                f"{self.path} cannot be written ({error.__cause__}); the grouped convolutions are timed again next time"
            )


def measure(
    what: Pass, shape: Shape, ours: Callable[[Plan], Tensor], library: Callable[[], Tensor]
) -> Timing:
    """Time every candidate whose result is right, and PyTorch's; the L2 cache is emptied between the calls."""
    wanted = library().float()
    most = float(wanted.abs().max())
    best: tuple[float, Plan] | None = None
    for plan in candidates(what, shape):
        try:
            apart = float((ours(plan).float() - wanted).abs().max())
        except torch.cuda.OutOfMemoryError:
            raise  # it says nothing about the plan
        except (RuntimeError, triton.TritonError) as error:  # more shared memory than this card has, for one
            note(f"grouped 3x3, {what}: {plan} skipped: {one_line(error, 160)}")
            continue
        if not apart <= _AGREEMENT * most:
            note(
                f"grouped 3x3, {what}: {plan} left out: {apart:.3g} apart from cuDNN, whose largest is {most:.3g}"
            )
            continue
        found = _milliseconds(lambda plan=plan: ours(plan))
        if best is None or found < best[0]:
            best = found, plan
    ours_ms, plan = best or (None, None)
    return Timing(plan=plan, ours_ms=ours_ms, library_ms=_milliseconds(library))


def required(timing: Timing) -> Plan:
    """Return our plan; BackendUnavailable where there is none that is right on this card."""
    if timing.plan is None:
        raise BackendUnavailable(
            "our kernels do not give cuDNN's results on this card: set gpu.grouped_conv=cudnn, and please report it"
        )
    return timing.plan


def _milliseconds(call: Callable[[], Any]) -> float:
    return float(triton.testing.do_bench(call, warmup=_WARM_MS, rep=_TIMED_MS, return_mode="median"))


def _timing(row: dict[str, Any]) -> Timing:
    plan = None if row["plan"] is None else Plan(**row["plan"])
    ours = None if row["ours_ms"] is None else float(row["ours_ms"])
    return Timing(plan=plan, ours_ms=ours, library_ms=float(row["library_ms"]))

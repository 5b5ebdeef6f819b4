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
from resnext_gpu.grouped_conv import launch
from resnext_gpu.grouped_conv.compiling import compile_ahead
from resnext_gpu.grouped_conv.launch import Plan, out_size, spans, squares_of
from resnext_gpu.memory import is_out_of_memory

#: What is computed.
Pass = Literal["forward", "input gradient", "weight gradient"]
#: Results of ours and of PyTorch's agree to this share of the largest value: both round once to 8 bits (bfloat16), to
#: nearest, after sums in float32 of products of the same factors. A wrong tap or channel is off by more than a tenth.
_AGREEMENT = 2e-2
#: Files of kernels and of their launching: where one differs, what was timed before does not count.
_SOURCES = ("kernels.py", "launch.py")
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


#: How images are written. A100 and H100 have the registers for these cuts, and for those below but for at most 96 bytes
#: that spill (tests/test_gpu_grouped_conv.py). Of blocks of 16 channels those of few warps have the least to move in L1
#: and shared memory, by count of their instructions: see docs/log/kernels.md.
_IMAGES = (
    Plan(squares=32, channels=16, warps=1),
    Plan(squares=32, channels=16, warps=2),
    Plan(squares=64, channels=16, warps=2),
    Plan(squares=128, channels=16, warps=4),
    Plan(squares=16, channels=32, warps=2),
    Plan(squares=64, channels=32, warps=4),
    Plan(squares=128, channels=32, warps=8),
)
#: How weight gradients are summed. The registers allow 14 programs of the first cut in each multiprocessor, 10 of the
#: second, 5 of the third, 4 and 2 of the last. More programs have more warps in flight and more parts to write and add.
_WEIGHT_GRADIENT = tuple(
    Plan(squares=squares, channels=channels, warps=warps, programs=programs)
    for squares, channels, warps, all_programs in (
        (16, 16, 1, (1024, 2048, 4096)),
        (32, 16, 1, (1024, 2048, 4096)),
        (32, 16, 2, (1024, 2048)),
        (16, 32, 2, (256, 512, 1024)),
        (32, 32, 4, (256, 512)),
    )
    for programs in all_programs
)
#: Without timing: programs by group width; at batch 128 parts are at most 0.4 of the traffic of the images.
_PROGRAMS = {4: 2048, 8: 2048, 16: 1024, 32: 256}


def default_plan(what: Pass, shape: Shape) -> Plan:
    """Return the plan that is taken where nothing is timed."""
    narrow = shape.group_width <= 16
    if what == "weight gradient":
        programs = _PROGRAMS[shape.group_width]
        if narrow:
            return Plan(squares=16, channels=16, warps=1, programs=programs)
        return Plan(squares=32, channels=32, warps=4, programs=programs)
    return Plan(squares=64, channels=16 if narrow else 32, warps=2 if narrow else 4)


def candidates(what: Pass, shape: Shape) -> Iterator[Plan]:
    """Yield the plans that are timed: their blocks hold whole groups and divide the channels.

    Of weight gradients those whose blocks are as narrow as they can be, and whose parts are not more traffic than the
    images, but for the fewest of each cut; numbers of programs that make the same parts are one candidate.
    """
    if what != "weight gradient":
        for plan in _IMAGES:
            if plan.channels >= shape.group_width and shape.channels % plan.channels == 0:
                yield plan
        return
    images = image_bytes(shape)
    seen = set()
    for plan in _WEIGHT_GRADIENT:
        if plan.channels != max(16, shape.group_width):
            continue
        cut = (plan.squares, plan.warps)
        parts = partial_bytes(shape, plan)
        if cut not in {known for known, _ in seen} or (2 * parts <= images and (cut, parts) not in seen):
            seen.add((cut, parts))
            yield plan


def compilations(shape: Shape) -> Iterator[Callable[[], object]]:
    """Yield calls that compile the kernels of every plan of all three passes: see `launch` on ``meta``."""
    rows, columns = (out_size(n, shape.stride) for n in (shape.height, shape.width))
    x, dy = (
        torch.empty((shape.images, shape.channels, *size), dtype=shape.dtype, device="meta")
        for size in ((shape.height, shape.width), (rows, columns))
    )
    weight = torch.empty((shape.channels, shape.group_width, 3, 3), device="meta")
    weight = weight.contiguous(memory_format=torch.channels_last)
    table = torch.empty((1, 9), dtype=torch.int64, device="meta")
    places = torch.empty((1, 2), dtype=torch.int32, device="meta")
    for block in {plan.channels for plan in candidates("forward", shape)}:
        yield lambda block=block: launch.pack_all(table, places, weight.dtype, shape.dtype, block)
    for plan in candidates("forward", shape):
        yield lambda plan=plan: launch.forward(x, weight, shape.stride, plan)
    for plan in candidates("input gradient", shape):
        yield lambda plan=plan: launch.input_gradient(
            dy, weight, shape.height, shape.width, shape.stride, plan
        )
    for plan in candidates("weight gradient", shape):
        yield lambda plan=plan: launch.weight_gradient(dy, x, shape.group_width, shape.stride, plan)


def instruction(what: Pass, plan: Plan, capability: tuple[int, int]) -> str:
    """Return by which instruction Triton (3.6 to 3.9) has tensor cores multiply, on cards of generation 8 and 9.

    `wgmma` needs four warps and 64 rows: the squares where images are written, the channels of a weight gradient.
    """
    rows = plan.channels if what == "weight gradient" else plan.squares
    if capability[0] not in (8, 9):
        return "tensor cores"
    return "wgmma" if capability[0] == 9 and plan.warps % 4 == 0 and rows >= 64 else "mma.sync"


def describe(what: Pass, plan: Plan, device: torch.device) -> str:
    """Return the cut of a plan and its instruction in words: where results are wrong, one may be the reason."""
    said = f"{plan.squares} squares, {plan.channels} channels, {plan.warps} warps"
    said += f", {plan.programs} programs" if what == "weight gradient" else ""
    if device.type != "cuda":
        return said
    return f"{said} ({instruction(what, plan, torch.cuda.get_device_capability(device))})"


def image_bytes(shape: Shape) -> int:
    """Return the bytes of input and output of a convolution, in 16 bits."""
    rows, columns = (out_size(n, shape.stride) for n in (shape.height, shape.width))
    return 2 * shape.images * shape.channels * (shape.height * shape.width + rows * columns)


def partial_bytes(shape: Shape, plan: Plan) -> int:
    """Return the bytes of the partial sums of a weight gradient, which are written once and read once."""
    rows, columns = (out_size(n, shape.stride) for n in (shape.height, shape.width))
    _, count = spans(squares_of(shape.images, rows, columns), shape.channels, plan)
    return count * 9 * shape.channels * shape.group_width * 4


class Timings:
    """What was measured on this card with these versions, in `folder`; ranks of several processes may share it."""

    def __init__(self, card: str, folder: Path | None = None) -> None:
        self._card = card
        source = b"".join(Path(__file__).with_name(name).read_bytes() for name in _SOURCES)
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
    """Time every candidate whose result is right, and PyTorch's; the L2 cache is emptied between the calls.

    Call it in the thread that will compute: PyTorch searches for cuDNN's algorithm once in each thread.
    """
    compile_ahead(compilations(shape))
    wanted = library().float()
    most = float(wanted.abs().max())
    best: tuple[float, Plan] | None = None
    for plan in candidates(what, shape):
        try:
            apart = float((ours(plan).float() - wanted).abs().max())
        except (RuntimeError, triton.TritonError) as error:  # more shared memory than this card has, for one
            if is_out_of_memory(error):
                raise  # it says nothing about the plan
            said = describe(what, plan, wanted.device)
            note(f"grouped 3x3, {what}: {said} skipped: {one_line(error, 160)}")
            continue
        if not apart <= _AGREEMENT * most:
            note(
                f"grouped 3x3, {what}: {describe(what, plan, wanted.device)} left out: {apart:.3g} apart from cuDNN, "
                f"whose largest is {most:.3g}"
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

"""Our kernels of the grouped convolution, interpreted on the CPU, against PyTorch in float64; and what chooses them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import relative, tiny_weights  # noqa: E402
from gpu_convolutions import (  # noqa: E402
    BF16,
    CPU,
    HALF,
    INTERPRETED,
    LRS,
    NARROW,
    check,
    check_every_plan,
    check_training,
    errors,
    make_case,
    shape_of,
    shapes_of,
)
from gpu_interpreter import interpreted  # noqa: E402
from resnext_gpu.grouped_conv import op  # noqa: E402

from resnext_core.errors import BackendUnavailable, UsageError  # noqa: E402
from resnext_core.model.spec import VARIANTS, ModelSpec  # noqa: E402


@pytest.fixture(scope="module")
def launch() -> Iterator[Any]:
    with interpreted() as module:
        yield module


def kernel_shapes() -> list[tuple[int, int, int, int]]:
    """Return channels, group width, rows and stride of what we ship, smaller: each block of channels is one program's.

    The 56 rows of a stage are 7, and so on, and at most 128 channels are left; all 2048 of the widest stay.
    """
    found = {
        (min(channels, 128), group_width, max(2, size // 8), stride)
        for channels, group_width, size, stride in shapes_of(*VARIANTS.values())
        if group_width in op.GROUP_WIDTHS
    }
    return [*sorted(found), WIDEST]


WIDEST = (2048, 32, 2, 2)


# -- the kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", kernel_shapes(), ids=lambda s: "-".join(map(str, s)))
def test_every_convolution_that_we_ship(shape: tuple[int, int, int, int], launch: Any) -> None:
    from resnext_gpu.grouped_conv import plans

    channels, group_width, rows, stride = shape
    for dtype in (BF16,) if shape == WIDEST else (BF16, HALF):
        case = make_case(1, channels, group_width, rows, rows + 1, stride, dtype)
        own = shape_of(plans, case)
        check(launch, case, plans.default_plan("forward", own), plans.default_plan("weight gradient", own))


@pytest.mark.parametrize("group_width", op.GROUP_WIDTHS)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_plan(group_width: int, stride: int, launch: Any) -> None:
    from resnext_gpu.grouped_conv import plans

    check_every_plan(launch, plans, make_case(2, 64, group_width, 5, 8, stride, HALF))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_size(data: st.DataObject, launch: Any) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    group_width = data.draw(st.sampled_from(op.GROUP_WIDTHS))
    block = max(group_width, data.draw(st.sampled_from([16, 32])))
    case = make_case(
        draw(1, 3), block * draw(1, 2), group_width, draw(1, 11), draw(1, 11), draw(1, 2),
        data.draw(st.sampled_from([HALF, BF16])), seed=draw(0, 99),
    )  # fmt: skip
    plan = launch.Plan(
        squares=data.draw(st.sampled_from([16, 32])), channels=block, warps=4, programs=draw(1, 12)
    )
    check(launch, case, plan)


def test_all_is_written_and_nothing_else(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory comes full of NaN, and with NaN behind it that must stay."""
    made = []

    def poisoned(size: Any, **how: Any) -> Any:
        layout = how.pop("memory_format", torch.contiguous_format)
        count = int(np.prod(size))
        around = torch.full((count + 4096,), float("nan"), **how)
        made.append((around, count))
        inner = around[:count]
        if layout is torch.channels_last:
            images, channels, height, width = size
            return inner.view(images, height, width, channels).permute(0, 3, 1, 2)
        return inner.view(size)

    monkeypatch.setattr(launch.torch, "empty", poisoned)
    for stride in (1, 2):
        case = make_case(3, 32, 8, 7, 5, stride, HALF)
        check(launch, case, launch.Plan(squares=16, channels=16, warps=4, programs=7))
    monkeypatch.undo()
    assert len(made) == 2 * 5
    for around, count in made:
        assert bool(around[:count].isfinite().all())
        assert bool(around[count:].isnan().all())


def test_weights_in_any_memory_order(launch: Any) -> None:
    """As the trainer keeps them on a GPU: channels-last."""
    case = make_case(1, 32, 8, 4, 6, 1, HALF)
    plan = launch.Plan(squares=16, channels=32, warps=4)
    plain = launch.forward(case.x, case.weight, 1, plan)
    turned = case.weight.contiguous(memory_format=torch.channels_last)
    assert turned.stride() != case.weight.stride()
    assert torch.equal(launch.forward(case.x, turned, 1, plan), plain)
    case.weight = turned
    check(launch, case, plan)


def test_a_weight_gradient_is_the_same_bits_every_time(launch: Any) -> None:
    case = make_case(2, 32, 4, 9, 9, 1, HALF)
    plan = launch.Plan(squares=16, channels=16, warps=1, programs=8)
    one, other = (launch.weight_gradient(case.dy, case.x, 4, 1, plan) for _ in range(2))
    assert torch.equal(one, other)


def test_one_wrong_tap_is_found(launch: Any) -> None:
    """The tolerance, and that by which a card's results are judged, see an error of one tap of nine."""
    from resnext_gpu.grouped_conv import plans

    case = make_case(1, 32, 8, 6, 6, 1, BF16)
    case.weight = case.weight.clone()
    case.weight[:, :, 2, 0] = 0
    y, dx, _ = errors(launch, case, launch.Plan(squares=16, channels=16, warps=4))
    assert min(y, dx) > 5 * max(INTERPRETED.bfloat16, plans._AGREEMENT)


def test_pixels_beyond_32_bits_are_refused(launch: Any) -> None:
    assert launch.fits(torch.empty((2**15, 32, 2**8, 2**7), dtype=HALF, device="meta"))
    assert not launch.fits(torch.empty((2**15, 32, 2**8, 2**8), dtype=HALF, device="meta"))
    assert not launch.fits(torch.empty((0, 32, 8, 8), dtype=HALF))
    assert launch.fits(torch.empty((1, 2**11, 2, 2**17), dtype=HALF, device="meta"))
    assert not launch.fits(torch.empty((1, 2**11, 2, 2**18), dtype=HALF, device="meta")), "three rows further"


_COMPILE = """
import os, re, subprocess
from concurrent.futures import ThreadPoolExecutor
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
import torch
from resnext_gpu.grouped_conv import kernels, plans

POINTERS = {"dy", "x", "y", "dx", "packed"}

def build(kernel, warps, capability, **constants):
    types = {name: "*bf16" if name in POINTERS else "i32" for name in kernel.arg_names}
    types |= {"parts": "*fp32"} if "parts" in types else {}
    types |= {"weight": "*fp32"} if "weight" in types else {}
    types |= {name: "constexpr" for name in constants}
    sixteen = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(kernel.arg_names)
               if types[name].startswith("*") or name == "channels"}
    source = ASTSource(kernel, types, constants, sixteen)
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 1})
    name = f"{built.hash}.ptx"
    with open(name, "w") as stream:
        stream.write(built.asm["ptx"])
    arch = f"sm_{capability}" + ("a" if capability >= 90 else "")
    told = subprocess.run([get_ptxas(capability).path, "-v", "--gpu-name", arch, name, "-o", os.devnull],
                          capture_output=True, text=True, check=True).stderr
    spilled = int(re.search(r"(\\d+) bytes spill stores", told)[1])
    registers = int(re.search(r"Used (\\d+) registers", told)[1])
    tiles = {"pack": 0, "input_gradient_of_stride_2": 4, "forward": (constants.get("STRIDE", 1) + 3) ** 2,
             "weight_gradient": (constants.get("STRIDE", 1) + 3) ** 2 + 4}[kernel.__name__]
    wide = built.asm["ptx"].count("ld.global.v4") >= tiles  # 16 bytes each
    return kernel.__name__, capability, warps, registers, spilled, built.metadata.shared, wide, constants

jobs = []
for capability in (80, 90):
    seen = set()
    for width in (4, 32):
        shape = plans.Shape(images=128, channels=1024, group_width=width, height=28, width=28, stride=1,
                            dtype=torch.bfloat16)
        for plan in plans.candidates("forward", shape):
            cut = {"BM": plan.squares, "BC": plan.channels}
            if (plan.squares, plan.channels, plan.warps) not in seen:
                seen.add((plan.squares, plan.channels, plan.warps))
                jobs += [(kernels.forward, plan.warps, capability, {"STRIDE": s, **cut}) for s in (1, 2)]
                jobs.append((kernels.input_gradient_of_stride_2, plan.warps, capability, cut))
        for plan in plans.candidates("weight gradient", shape):
            cut = {"GW": width, "BM": plan.squares, "BC": plan.channels}
            if (*cut.values(), plan.warps) not in seen:
                seen.add((*cut.values(), plan.warps))
                jobs += [(kernels.weight_gradient, plan.warps, capability, {"STRIDE": s, **cut}) for s in (1, 2)]
    jobs.append((kernels.pack, 4, capability, {"GW": 4, "BC": 32, "BACK": True}))
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for row in pool.map(lambda job: build(*job[:3], **job[3]), jobs):
        print(*row)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """For the A100 and the H100, to machine code, and with what they keep in registers: no GPU is needed for that.

    The sizes are of no known divisor, as in training, but for `channels`.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    code = tmp_path / "build.py"  # Triton reads the source of kernels from their files
    code.write_text(_COMPILE)
    built = subprocess.run(
        [sys.executable, str(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    assert built.returncode == 0, built.stderr[-2000:]
    rows = [line.split() for line in built.stdout.splitlines()]
    kernels = ("forward", "input_gradient_of_stride_2", "weight_gradient", "pack")
    assert {tuple(row[:2]) for row in rows} == {(name, card) for name in kernels for card in ("80", "90")}
    for row in rows:
        spilled, shared = int(row[4]), int(row[5])
        assert spilled <= 80, row
        assert shared <= 48 << 10, row
        assert row[6] == "True", f"tiles are not loaded by 16 bytes: {row}"


# -- the operation --------------------------------------------------------------------------------


def test_the_operation_is_what_pytorch_expects(launch: Any) -> None:
    """Its schema, what it says about shapes and memory order, autograd, and tracing."""
    for stride in (1, 2):
        case = make_case(2, 16, 4, 5, 6, stride, HALF)
        x = case.x.clone().requires_grad_()
        weight = torch.nn.Parameter(case.weight)
        torch.library.opcheck(op._forward, (x, weight, stride, False, False), rtol=1e-3, atol=1e-3)
        args = (case.dy, case.x, case.weight, stride, False, False)
        torch.library.opcheck(op._input_gradient, args)
        torch.library.opcheck(op._weight_gradient, args)


@pytest.mark.parametrize("library", [False, True])
def test_gradients_arrive(library: bool, launch: Any) -> None:
    """By our kernels and by PyTorch's own, also where the caller's memory is not channels-last."""
    case = make_case(2, 32, 8, 5, 6, 2, HALF)
    x = case.x.contiguous().requires_grad_()
    weight = torch.nn.Parameter(case.weight)
    y = op._call(x, weight, 2, library=library, timed=False)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(case.dy)
    for found, wanted in zip((y.detach(), x.grad, weight.grad), case.wanted, strict=True):
        assert float((found.double() - wanted).abs().max() / wanted.abs().max()) <= 1e-3
    frozen = case.weight.clone()
    op._call(x, frozen, 2, library=library, timed=False).backward(case.dy)
    assert frozen.grad is None


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_training_is_the_same(compute: str, launch: Any) -> None:
    check_training(NARROW, compute, device="cpu")


def test_compiled_training_takes_the_kernels(launch: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """torch.compile leaves the operation whole."""
    plain, compiled = (
        NARROW.trainer("bfloat16", device="cpu", compile=compiled) for compiled in (False, True)
    )
    step, lr = NARROW.steps[:1], LRS[:1]
    assert relative(compiled.run_steps(step, lr), plain.run_steps(step, lr)) <= 1e-2
    assert "torch.compile failed" not in capfd.readouterr().err


# -- which way ------------------------------------------------------------------------------------


def choose(
    mode: Any, spec: ModelSpec | None = None, compute: Any = BF16, device: Any = CPU, **how: Any
) -> Any:
    spec = spec or VARIANTS["resnext50_32x4d"]
    return op.grouped_conv(mode, spec, compute, device, **({"deterministic": False} | how))


def test_where_the_kernels_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for mode in ("auto", "cudnn"):
        assert choose(mode) is None
        assert choose(mode, compute=torch.float32) is None
    for words, found in {
        "precision.compute=bfloat16 or float16": {"compute": torch.float32},
        "not 4 groups of 2": {"spec": tiny_weights(groups=4, base_width=16).spec},
        "the kernels need an NVIDIA GPU": {},
    }.items():
        with pytest.raises(UsageError, match=rf"gpu.grouped_conv=triton cannot be used: .*{words}"):
            choose("triton", **found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(UsageError, match=r"compute capability 8\.0 or more"):
        choose("triton", device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(op.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="Triton is not installed"):
        choose("triton", device=torch.device("cuda", 0))


def test_auto_takes_the_kernels_where_they_were_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert choose("auto", device=card) is None
    assert (
        "use cuDNN; our kernels were not measured on a card, to use them set gpu.grouped_conv=triton"
        in capfd.readouterr().err
    )
    assert choose("triton", device=card).keywords == {"library": False, "timed": True}
    assert choose("triton", device=card, deterministic=True).keywords == {"library": False, "timed": False}
    monkeypatch.setattr(op, "MEASURED", frozenset({(9, 0)}))
    assert choose("auto", device=card).keywords == {"library": True, "timed": True}
    assert choose("auto", device=card, deterministic=True) is None
    assert capfd.readouterr().err == ""


@dataclasses.dataclass
class Stopwatch:
    """Milliseconds that the test gives: PyTorch's, then those of our plans in turn."""

    library: float
    ours: list[float]

    def __call__(self, call: Callable[[], Any]) -> float:
        call()
        return self.library if "library" in getattr(call, "__name__", "") else self.ours.pop(0)


@pytest.fixture
def timed(launch: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what measures a small case with given times."""
    from resnext_gpu.grouped_conv import plans

    case = make_case(1, 32, 8, 4, 4, 1, HALF)

    def library() -> Any:
        return case.wanted[0].half()

    def run(folder: Path, library_ms: float, ours: list[float], *, wrong: bool = False) -> tuple[Any, Any]:
        monkeypatch.setattr(plans, "_milliseconds", Stopwatch(library_ms, ours))
        timings, shape = plans.Timings("a card", folder), shape_of(plans, case)
        known = timings.known("forward", shape)
        if known is None:
            weight = -case.weight if wrong else case.weight
            known = timings.measure(
                "forward", shape, lambda plan: launch.forward(case.x, weight, 1, plan), library
            )
        return timings, known

    return run


def test_the_fastest_is_kept(
    timed: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, timing = timed(tmp_path, 3.0, [5, 2, 4, 6, 7, 8, 9])
    assert (timing.ours_ms, timing.library_ms) == (2, 3)
    assert timing.plan is not None
    assert (timing.plan.squares, timing.plan.channels, timing.plan.warps) == (32, 16, 2)
    assert timing.faster == timing.plan
    said = "grouped 3x3, forward: 1 x 4 x 4 x 32, groups of 8, stride 1, float16: Triton 2.000 ms, cuDNN 3.000 ms"
    assert said in capfd.readouterr().err
    timings, again = timed(tmp_path, 0.0, [])
    assert again == timing, "remembered by another process"
    assert json.loads(timings.path.read_text())["card"] == "a card"
    assert capfd.readouterr().err == ""
    slower = timed(tmp_path / "slower", 1.0, [5, 2, 4, 6, 7, 8, 9])[1]
    assert slower.plan is not None, "for who insists"
    assert slower.faster is None


def test_wrong_results_are_left_out(
    timed: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from resnext_gpu.grouped_conv import plans

    _, timing = timed(tmp_path, 3.0, [], wrong=True)
    assert timing.plan is None
    assert timing.faster is None
    error = capfd.readouterr().err
    assert "left out: " in error
    assert "apart from cuDNN, whose largest is" in error
    assert "Triton no valid plan, cuDNN 3.000 ms" in error
    with pytest.raises(BackendUnavailable, match=r"set gpu\.grouped_conv=cudnn, and please report it"):
        plans.required(timing)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"timings": {"a": {}}}', '{"timings": {"a": {"plan": 3}}}']
)
def test_a_broken_memory_is_measured_anew(
    text: str, timed: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    timings, _ = timed(tmp_path, 3.0, [5, 2, 4, 6, 7, 8, 9])
    timings.path.write_text(text)
    capfd.readouterr()
    assert timed(tmp_path, 3.0, [1, 2, 4, 6, 7, 8, 9])[1].ours_ms == 1
    assert "cannot be read" in capfd.readouterr().err
    assert timed(tmp_path, 0.0, [])[1].ours_ms == 1


def test_a_memory_that_cannot_be_is_said(
    timed: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert timed(tmp_path / "file", 3.0, [5, 2, 4, 6, 7, 8, 9])[1].ours_ms == 2
    assert "cannot be written" in capfd.readouterr().err


def test_the_operation_times_once(launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And while a CUDA graph is recorded, it does not."""
    from resnext_gpu.grouped_conv import plans

    taken = []

    def measure(*given: Any) -> Any:
        taken.append(given[0])
        plan = plans.default_plan(given[0], given[1])
        return plans.Timing(plan=plan, ours_ms=1.0, library_ms=2.0)

    timings = plans.Timings("a card", tmp_path)
    monkeypatch.setattr(op, "_timings", lambda device: timings)
    monkeypatch.setattr(plans, "measure", measure)
    case = make_case(1, 32, 8, 4, 4, 1, HALF)
    x, weight = case.x.clone().requires_grad_(), torch.nn.Parameter(case.weight)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for library in (False, True):
        op._call(x, weight, 1, library=library, timed=True)
    assert taken == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for library in (False, True, True):
        op._call(x, weight, 1, library=library, timed=True).backward(case.dy)
    assert taken == ["forward", "input gradient", "weight gradient"]

"""Our kernels of the grouped convolution, interpreted on the CPU, against PyTorch in float64; and what chooses them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpu_cases import relative, tiny_weights, train_request, trainer_with  # noqa: E402
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
from resnext_gpu.options import GpuOptions  # noqa: E402

from resnext_core.config import PrecisionConfig  # noqa: E402
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
#: Kernels of all plans for resnext152_64x4d, in one type.
COMPILED = 44


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
import triton.language as tl
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
    types |= {"table": "*i64", "places": "*i32"} if "table" in types else {}
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
    tiles = (constants.get("STRIDE", 1) + 3) ** 2
    tiles = {"input_gradient_of_stride_2": 4, "forward": tiles, "weight_gradient": tiles + 4}.get(kernel.__name__, 0)
    wide = built.asm["ptx"].count("ld.global.v4") >= tiles  # 16 bytes each
    what = "weight gradient" if kernel.__name__ == "weight_gradient" else "forward"
    if tiles:
        plan = plans.Plan(squares=constants["BM"], channels=constants["BC"], warps=warps)
        known = plans.instruction(what, plan, (capability // 10, 0))
        assert ("wgmma.mma_async" in built.asm["ptx"]) == (known == "wgmma"), (what, plan, known)
        assert ("mma.sync" in built.asm["ptx"]) == (known == "mma.sync"), (what, plan, known)
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
    jobs.append((kernels.pack, 4, capability, {"BC": 32}))
    types = {"WEIGHT": tl.float32, "PACKED": tl.bfloat16}
    jobs.append((kernels.pack_all, 4, capability, {"BC": 16, **types}))
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for row in pool.map(lambda job: build(*job[:3], **job[3]), jobs):
        print(*row)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """For the A100 and the H100, to machine code, and with what they keep in registers: no GPU is needed for that.

    The sizes are of no known divisor, as in training, but for `channels`.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    built = run_without_interpreter(_COMPILE, tmp_path)
    rows = [line.split() for line in built.splitlines()]
    kernels = ("forward", "input_gradient_of_stride_2", "weight_gradient", "pack", "pack_all")
    assert {tuple(row[:2]) for row in rows} == {(name, card) for name in kernels for card in ("80", "90")}
    for row in rows:
        spilled, shared = int(row[4]), int(row[5])
        assert spilled <= 96, row  # most with Triton 3.6: 60; with 3.9: 68 on an H100, 92 on an A100
        assert shared <= 48 << 10, row
        assert row[6] == "True", f"tiles are not loaded by 16 bytes: {row}"


#: An H100 that is not there, as far as compiling for it goes.
_CARD = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

class Card:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

class Named:
    def __init__(self, name):
        self.name = name

driver.set_active(Card())
"""
_AHEAD = (
    _CARD
    + """
from triton.runtime._async_compile import active_mode
from resnext_gpu.grouped_conv import kernels, launch
from resnext_gpu.grouped_conv.compiling import compile_ahead

def pack(block=16):
    launch.pack(torch.empty((32, 4, 3, 3), device="meta"), torch.bfloat16, block, back=False)

def broken(*_, **__):
    raise RuntimeError("no compiler")

cache = kernels.pack.device_caches[0][0]
kernels.pack.compile = broken
done = compile_ahead([pack, broken, pack], 2)
print(done.kernels, done.threads, active_mode.get(), len(cache))
kernels.pack.compile = lambda *_, **__: Named("pack")
done = compile_ahead([pack, pack, lambda: pack(32)], 1)
print(done.kernels, done.threads, active_mode.get(), len(cache))
"""
)


def test_what_does_not_compile_ahead_is_compiled_when_it_is_run(tmp_path: Path) -> None:
    """Its error is not raised, and Triton does not stay in the mode in which kernels are not run."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not hasattr(triton, "AsyncCompileMode"):
        pytest.skip(f"Triton {triton.__version__} compiles one kernel after the other")
    assert run_without_interpreter(_AHEAD, tmp_path).splitlines() == ["1 2 None 0", "2 1 None 2"]


_COUNT = (
    _CARD
    + """
asked = []

def compiles(kernel, key, signature, device, constants, options, attributes, warmup):
    asked.append(kernel.__name__)
    kernel.device_caches[device][0][key] = Named(kernel.__name__)
    return kernel.device_caches[device][0][key]

jit.JITFunction._do_compile = compiles
from resnext_core.model.spec import model_spec
from resnext_gpu.grouped_conv import plans
for name, batch, size in (("resnext152_64x4d", 128, 224), ("resnext152_64x4d", 100, 288), ("resnext50_32x4d", 64, 224)):
    spec = model_spec(name)
    size //= 4
    for block in spec.blocks:
        shape = plans.Shape(images=batch, channels=block.width, group_width=block.width // spec.groups, height=size,
                            width=size, stride=block.stride, dtype=torch.bfloat16)
        for call in plans.compilations(shape):
            call()
        size = (size - 1) // block.stride + 1
    print(name, len(asked), *(asked.count(k) for k in sorted(set(asked))), *sorted(set(asked)))
"""
)


def test_one_kernel_serves_many_shapes(tmp_path: Path) -> None:
    """How many are compiled for all plans of resnext152_64x4d; other sizes, and another network, need none besides.

    Forward passes: seven cuts of two strides. Weight gradients: three cuts for groups of 4, with stride 1 alone, for
    groups of 8 and of 16, and two for groups of 32.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    lines = run_without_interpreter(_COUNT, tmp_path).splitlines()
    names = "forward input_gradient_of_stride_2 pack pack_all weight_gradient"
    counts = f"{COMPILED} 14 7 2 2 {COMPILED - 25}"
    assert lines[:2] == [f"resnext152_64x4d {counts} {names}"] * 2
    assert lines[2] == f"resnext50_32x4d {counts} {names}"


def run_without_interpreter(code: str, folder: Path) -> str:
    """Return what a program prints; Triton reads the source of kernels from their files."""
    (folder / "program.py").write_text(code)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, str(folder / "program.py")]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


# -- the matrices of weights ----------------------------------------------------------------------


def test_one_kernel_packs_all_weights(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any group width and memory order, for both directions, also where their version does not tell of a change."""
    from resnext_gpu.grouped_conv.packs import Packs

    run = count_launches(launch, monkeypatch)
    weights = [
        torch.randn(channels, width, 3, 3) for channels, width in ((32, 4), (64, 8), (32, 16), (64, 32))
    ]
    weights[1:3] = [w.contiguous(memory_format=torch.channels_last) for w in weights[1:3]]
    asked = [
        (w, dtype, block, back)
        for w in weights for dtype in (HALF, BF16) for block in (16, 32) for back in (False, True)
        if block >= w.shape[1]
    ]  # fmt: skip
    packs = Packs()

    def all_right(kernels: dict[str, int]) -> None:
        run.clear()
        found = [packs.get(w, dtype, block, back=back) for w, dtype, block, back in asked]
        assert run == kernels
        for (w, dtype, block, back), one in zip(asked, found, strict=True):
            assert torch.equal(one, launch.pack(w, dtype, block, back=back))

    packs.renew()
    all_right({"pack": len(asked)})
    all_right({})
    weights[2].mul_(2)
    all_right({"pack": 6 - 2 + 4})
    for change in (lambda w: w.data.mul_(-3), lambda w: w.add_(1)):
        for weight in weights:
            change(weight)
        run.clear()
        packs.renew()
        assert run == {"pack_all": 4}, "one for each type and width of blocks"
        all_right({})


def test_a_recorded_step_packs_without_new_tables(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table can be copied to the GPU while a graph is recorded; what is not in one is packed by itself."""
    from resnext_gpu.grouped_conv import packs as module

    run = count_launches(launch, monkeypatch)
    kept, weights = module.Packs(), [torch.randn(16, 4, 3, 3) for _ in range(3)]
    for weight in weights[:2]:
        kept.get(weight, HALF, 16, back=False)
    kept.renew()
    late = kept.get(weights[2], HALF, 16, back=True)
    monkeypatch.setattr(module, "_recording", lambda tensor: True)
    monkeypatch.setattr(module, "_tables", lambda entries: pytest.fail("a table"))
    weights[2].data.mul_(2)
    run.clear()
    kept.renew()
    assert run == {"pack_all": 1, "pack": 1}
    assert torch.equal(late, launch.pack(weights[2], HALF, 16, back=True))


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}])
def test_a_step_packs_its_weights_once(
    options: dict[str, Any], launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all layers at once from the second step on; the fused update does not change their version.

    A predictor of the same weights, or of their average, has its own, and follows them too.
    """
    run = count_launches(launch, monkeypatch)
    weights = tiny_weights(NARROW.size, groups=4, base_width=32, depths=NARROW.depths)
    precision = PrecisionConfig(compute="bfloat16", loss_scale="none")
    request = train_request(weights, precision=precision, ema_decay=0.5)
    ours = trainer_with(GpuOptions(device="cpu", grouped_conv="triton", **options), request)
    ours.run_steps(NARROW.steps[:1], LRS[:1])
    assert run["pack"] == 2 * 2, "two convolutions, forward and back"
    assert "pack_all" not in run
    images, seen = NARROW.steps[0].images, []
    for served in (ours.predictor(), ours.predictor(ema=True)):
        served.logits(images)
        seen.append(served)
    run.clear()
    ours.run_steps(NARROW.steps[1:], LRS[1:])
    assert {name: run[name] for name in ("pack", "pack_all")} == {"pack": 0, "pack_all": 1}
    for served, fresh in zip(seen, (ours.predictor(), ours.predictor(ema=True)), strict=True):
        np.testing.assert_array_equal(served.logits(images), fresh.logits(images))


def count_launches(launch: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often each kernel is launched from now on."""
    run: Counter[str] = Counter()
    real = launch.run

    def counting(kernel: Any, *args: Any, **constants: Any) -> None:
        run[kernel.__name__] += 1
        real(kernel, *args, **constants)

    monkeypatch.setattr(launch, "run", counting)
    return run


# -- the operation --------------------------------------------------------------------------------


def test_the_operation_is_what_pytorch_expects(launch: Any) -> None:
    """Its schema, what it says about shapes and memory order, autograd, and tracing."""
    for stride in (1, 2):
        case = make_case(2, 16, 4, 5, 6, stride, HALF)
        x = case.x.clone().requires_grad_()
        weight = torch.nn.Parameter(case.weight)
        torch.library.opcheck(op._forward, (x, weight, stride, False, False, 0), rtol=1e-3, atol=1e-3)
        args = (case.dy, case.x, case.weight, stride, False, False)
        torch.library.opcheck(op._input_gradient, (*args, 0))
        torch.library.opcheck(op._weight_gradient, args)


@pytest.mark.parametrize("library", [False, True])
def test_gradients_arrive(library: bool, launch: Any) -> None:
    """By our kernels and by PyTorch's own, also where the caller's memory is not channels-last."""
    case = make_case(2, 32, 8, 5, 6, 2, HALF)
    x = case.x.contiguous().requires_grad_()
    weight = torch.nn.Parameter(case.weight)
    way = op.GroupedConv(library=library, timed=False)
    y = way(x, weight, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(case.dy)
    for found, wanted in zip((y.detach(), x.grad, weight.grad), case.wanted, strict=True):
        assert float((found.double() - wanted).abs().max() / wanted.abs().max()) <= 1e-3
    frozen = case.weight.clone()
    way(x, frozen, 2).backward(case.dy)
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
    return op.grouped_conv(mode, spec, compute, device, **({"deterministic": False, "graphed": True} | how))


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
    monkeypatch.setattr(op, "MEASURED", frozenset())
    assert choose("auto", device=card) is None
    assert (
        "use cuDNN; our kernels were not measured on a card, to use them set gpu.grouped_conv=triton"
        in capfd.readouterr().err
    )
    how = lambda way: (way.library, way.timed)  # noqa: E731
    assert how(choose("triton", device=card)) == (False, True)
    assert how(choose("triton", device=card, deterministic=True)) == (False, False)
    monkeypatch.setattr(op, "MEASURED", frozenset({(9, 0)}))
    assert how(choose("auto", device=card)) == (True, True)
    assert choose("auto", device=card, deterministic=True) is None
    assert choose("auto", device=card, graphed=False) is None, "the processor would limit the step"
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
        op.GroupedConv(library=library, timed=True)(x, weight, 1)
    assert taken == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for library in (False, True, True):
        op.GroupedConv(library=library, timed=True)(x, weight, 1).backward(case.dy)
    assert taken == ["forward", "input gradient", "weight gradient"]

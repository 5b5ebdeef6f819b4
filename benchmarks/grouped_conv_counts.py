"""Count what our kernels of the grouped convolution ask of an H100, without one: what will limit them, by prediction.

    python benchmarks/grouped_conv_counts.py

Every plan is compiled to machine code, whose instructions are counted (of the weight gradient, those of its loop). A
warp issues one a clock in each of four schedulers. Loads, and what goes through shared memory on its way to the tensor
cores, move at most 128 bytes a clock in each multiprocessor: 4 clocks for 16 bytes a thread. The floor is that of the
card's memory. Latencies, conflicts, divisions of work among multiprocessors and the last waves are not in it. A weight
gradient's parts are written and read besides: what that takes at the speed of the memory is the last column, for each
number of programs among the plans. Parts that stay in L2 take less.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from grouped_conv_goals import FLAGSHIP, Card, Convolution, convolutions, floor_ms
from resnext_gpu.grouped_conv import kernels
from resnext_gpu.grouped_conv.launch import Plan
from resnext_gpu.grouped_conv.plans import Pass, Shape, candidates, partial_bytes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from resnext_core.model.spec import model_spec

#: H100 SXM by NVIDIA's data sheet: memory and dense bfloat16; multiprocessors and their clock under load.
CARD = Card(name="H100 SXM", capability=(9, 0), bytes_per_s=3.35e12, operations_per_s=989.4e12)
MULTIPROCESSORS, HERTZ = 132, 1.755e9
BYTES_A_CLOCK, SCHEDULERS, WARP = 128, 4, 32
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def main() -> None:
    """Print a line for each plan and pass, of each convolution of a model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=FLAGSHIP)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    print(f"{CARD.name}, batch {args.batch}, times in microseconds")
    print(f"{'convolution':<20} {'pass':<15} {'squares, channels, warps':<25} {'registers':>9} {'floor':>6} "
          f"{'issue':>6} {'L1':>6}  parts")  # fmt: skip
    for one in convolutions(model_spec(args.model)):
        for line in _lines(one, args.batch):
            print(line, flush=True)


def _lines(one: Convolution, batch: int) -> Iterator[str]:
    shape = Shape(
        images=batch, channels=one.channels, group_width=one.group_width, height=one.height, width=one.width,
        stride=one.stride, dtype=torch.bfloat16,
    )  # fmt: skip
    floor = 1e3 * floor_ms(one, batch, CARD)
    passes: tuple[Pass, ...] = ("forward", "input gradient", "weight gradient")
    for what in passes:
        if what == "input gradient" and one.stride == 1:
            continue  # by the kernel of the forward pass
        cuts: dict[tuple[int, int, int], list[Plan]] = {}
        for plan in candidates(what, shape):
            cuts.setdefault((plan.squares, plan.channels, plan.warps), []).append(plan)
        for cut, plans in cuts.items():
            registers, issued, moved = _cost(one, batch, what, plans[0])
            name = ", ".join(map(str, cut))
            parts = [f"{p.programs}: {2e6 * partial_bytes(shape, p) / CARD.bytes_per_s:.1f}" for p in plans]
            yield (
                f"{one!s:<20} {what:<15} {name:<25} {registers:>9} {floor:6.0f} {1e6 * issued:6.0f} "
                f"{1e6 * moved:6.0f}  {', '.join(parts) if what == 'weight gradient' else ''}"
            )


def _cost(one: Convolution, batch: int, what: Pass, plan: Plan) -> tuple[int, float, float]:
    """Return the registers of a thread, and the seconds that issuing and moving in L1 and shared memory take."""
    kernel, constants = {
        "forward": (kernels.forward, {"STRIDE": one.stride}),
        "input gradient": (kernels.input_gradient_of_stride_2, {}),
        "weight gradient": (kernels.weight_gradient, {"STRIDE": one.stride, "GW": one.group_width}),
    }[what]
    code, registers = _compile(kernel, plan, {**constants, "BM": plan.squares, "BC": plan.channels})
    found = _instructions(_loop(code) if what == "weight gradient" else code)
    rows, columns = (one.height, one.width) if what == "input gradient" else one.out
    squares = batch * ((rows + 1) // 2) * ((columns + 1) // 2)
    programs = -(-squares // plan.squares) * (one.channels // plan.channels)
    issued = programs * plan.warps * sum(found.values()) / (MULTIPROCESSORS * SCHEDULERS * HERTZ)
    moved = programs * sum(n * _bytes(op, plan) for op, n in found.items())
    return registers, issued, moved / (MULTIPROCESSORS * BYTES_A_CLOCK * HERTZ)


def _compile(kernel: Any, plan: Plan, constants: dict[str, int]) -> tuple[str, int]:
    """Return the machine code of a kernel, and the registers of a thread."""
    images = {"dy", "x", "y", "dx", "packed"}
    types = {name: "*bf16" if name in images else "i32" for name in kernel.arg_names}
    types |= {"parts": "*fp32"} if "parts" in types else {}
    types |= dict.fromkeys(constants, "constexpr")
    of_16 = [
        n for n, name in enumerate(kernel.arg_names) if types[name][0] == "*" or name in ("channels", "span")
    ]
    source = ASTSource(kernel, types, constants, {(n,): [["tt.divisibility", 16]] for n in of_16})
    options = {"num_warps": plan.warps, "num_stages": 1}
    built = triton.compile(source, target=GPUTarget("cuda", 90, WARP), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(built.asm["cubin"])
        code = _run("nvdisasm", "-c", path)
        usage = _run("cuobjdump", "-res-usage", path)
    return code, int(re.findall(r"REG:(\d+)", usage)[-1])


def _run(tool: str, *words: str) -> str:
    return subprocess.run([TOOLS / tool, *words], capture_output=True, text=True, check=True).stdout


def _instructions(code: str) -> Counter[str]:
    """Return how often each instruction stands in the code."""
    return Counter(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)", code))


def _loop(code: str) -> str:
    """Return the code between the last branch back and its target."""
    lines = code.splitlines()
    labels = {
        line.strip()[:-1]: number for number, line in enumerate(lines) if re.match(r"\.L_\w+:", line.strip())
    }
    for number in range(len(lines) - 1, -1, -1):
        target = re.search(r"BRA.*`\((\.L_\w+)\)", lines[number])
        if target and labels.get(target[1], number) < number - 1:
            return "\n".join(lines[labels[target[1]] : number + 1])
    raise ValueError("there is no loop")


def _bytes(instruction: str, plan: Plan) -> int:
    """Return the bytes that all warps of a program move through L1 or shared memory by one instruction."""
    name, *how = instruction.split(".")
    if name == "HGMMA":  # of four warps: both operands come from shared memory, 16 deep
        rows, columns = 64, int(how[0].split("x")[1]) if "x" in how[0] else plan.channels
        return (rows + columns) * 16 * 2 * plan.warps // 4
    if name in ("LDSM", "STSM"):  # matrices of 8 x 8
        return plan.warps * 128 * (int(how[-1]) if how[-1] in ("2", "4") else 1)
    if name in ("LDG", "STG", "LDS", "STS"):
        return plan.warps * WARP * next((int(bits) // 8 for bits in ("128", "64") if bits in how), 4)
    return 0


if __name__ == "__main__":
    main()

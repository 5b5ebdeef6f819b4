"""The processor's name, cores and instruction set, read from the text of Linux."""

from __future__ import annotations

import pytest

from resnext_core.processor import parse_processor, processor

INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 fma {}\n\nprocessor\t: 1\nflags\t: x\n"


@pytest.mark.parametrize(
    ("flags", "instructions", "bfloat16", "saturates"),
    [
        ("", "avx2", False, True),
        ("avx512f avx512bw", "avx512", False, True),
        ("avx_vnni", "avx-vnni", False, False),
        ("avx512f avx512bw avx512_vnni", "avx512-vnni", False, False),
        ("avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 amx_tile", "amx-int8", True, False),
    ],
)
def test_x86(flags: str, instructions: str, bfloat16: bool, saturates: bool) -> None:
    found = parse_processor(INTEL.format(flags), "x86_64", 2)
    assert (found.instructions, found.bfloat16, found.saturates) == (instructions, bfloat16, saturates)
    assert str(found) == f"Intel(R) Xeon(R), 2 cores, {instructions}"


def test_arm_and_others() -> None:
    assert parse_processor("Features : fp asimd asimddp i8mm bf16", "aarch64", 1).instructions == "arm-i8mm"
    assert parse_processor("Features : fp asimd asimddp", "aarch64", 1).instructions == "arm-dotprod"
    bare = parse_processor("", "arm64", 1)
    assert (bare.instructions, bare.bfloat16, bare.saturates) == ("arm64", False, False)
    assert parse_processor("", "riscv64", 1).instructions == "riscv64"
    assert parse_processor("flags : sse", "x86_64", 1).saturates


def test_this_one() -> None:
    assert processor().name
    assert processor().cores >= 1
    assert processor() is processor()

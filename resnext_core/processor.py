"""The processor that computes here: its name, its cores, and the instructions on which results in few bits depend.

In float32 processors differ by rounding. In 8-bit integers they can differ by more: AVX2 and AVX-512 without VNNI add
pairs of products in 16 bits, where they saturate, and processors with VNNI or AMX add in 32 bits.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from resnext_core.errors import counted

_CPUINFO = Path("/proc/cpuinfo")
#: Names of instruction sets, the most capable first, and the flags of Linux that each needs.
_X86 = {
    "amx-int8": {"amx_int8", "amx_tile", "avx512_vnni"},
    "avx512-vnni": {"avx512_vnni", "avx512f"},
    "avx-vnni": {"avx_vnni", "avx2"},
    "avx512": {"avx512f", "avx512bw"},
    "avx2": {"avx2", "fma"},
}
#: Variables that set the threads of NumPy's BLAS, whichever it was built with: OpenBLAS's own is read first.
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")
_ARM = {"arm-i8mm": {"i8mm"}, "arm-dotprod": {"asimddp"}}


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor: its marketing name, the cores that this process may use, and its instruction set.

    `cores` are those of the process's affinity; a share of their time, as a container's quota sets it, is not counted.
    `instructions` is one word: on x86-64 ``amx-int8``, ``avx512-vnni``, ``avx-vnni``, ``avx512``, ``avx2`` or
    ``x86-64``; on ARM ``arm-i8mm``, ``arm-dotprod`` or ``arm64``; elsewhere what :func:`platform.machine` says.
    `bfloat16` is True where it multiplies bfloat16 in hardware.
    """

    name: str
    cores: int
    instructions: str
    bfloat16: bool

    @property
    def saturates(self) -> bool:
        """True where products of unsigned and signed bytes are added in 16 bits, so that large ones are cut off."""
        return self.instructions in ("avx512", "avx2", "x86-64")

    def __str__(self) -> str:
        cores = counted(self.cores, "core")
        return f"{self.name}, {cores}, {self.instructions}"


@cache
def processor() -> Processor:
    """Return the processor that this process runs on."""
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:
        text = ""
    return parse_processor(text, platform.machine(), _cores())


def blas_threads() -> int:
    """Return the threads of a matrix product of NumPy, as the environment sets them, else the cores."""
    for name in BLAS_THREADS:
        value = os.environ.get(name, "").partition(",")[0].strip()
        if value.isdecimal() and int(value) > 0:
            return min(int(value), processor().cores)
    return processor().cores


def parse_processor(cpuinfo: str, machine: str, cores: int) -> Processor:
    """Return what the text of Linux's ``/proc/cpuinfo`` says; without one, only what `machine` says is known."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    machine = machine.lower()
    if machine in ("x86_64", "amd64"):
        sets, least = _X86, "x86-64"
    elif machine in ("aarch64", "arm64"):
        sets, least = _ARM, "arm64"
    else:
        sets, least = {}, machine or "unknown"
    instructions = next((name for name, needed in sets.items() if needed <= flags), least)
    return Processor(
        name=fields.get("model name") or platform.processor() or machine or "unknown processor",
        cores=cores,
        instructions=instructions,
        bfloat16=bool(flags & {"amx_bf16", "avx512_bf16", "bf16"}),
    )


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

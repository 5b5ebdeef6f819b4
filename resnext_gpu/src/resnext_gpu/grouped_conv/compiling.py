"""Compiling kernels before they are run, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import triton

#: Threads at most. Triton works on a kernel in Python, under the interpreter's lock, for a part of the time.
_MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """How many kernels were compiled, or read from Triton's own cache, and by how many threads."""

    kernels: int
    threads: int


def compile_ahead(calls: Iterable[Callable[[], Any]], threads: int | None = None) -> Compiled | None:
    """Compile what `calls` launch on tensors of the device ``meta``, for the current GPU.

    None where this Triton cannot compile in threads (it has no AsyncCompileMode), or interprets: kernels are then
    compiled when they are first run. What does not compile is no error here: it fails again, with its reason, when it
    is run.
    """
    if not hasattr(triton, "AsyncCompileMode") or triton.knobs.runtime.interpret:
        return None
    if threads is None:
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool, triton.AsyncCompileMode(pool, ignore_errors=True) as mode:
        for call in calls:
            try:
                call()
            except (RuntimeError, triton.TritonError):
                continue
        kernels = len(mode.future_kernels)
    return Compiled(kernels=kernels, threads=threads)

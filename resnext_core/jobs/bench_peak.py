"""The peak of the processor: the most FLOP/s that a matrix product of NumPy reaches with so many threads."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time

import numpy as np

from resnext_core.processor import BLAS_THREADS

#: Number formats that NumPy has fast products in. Those of 16 and 8 bits it computes without its BLAS.
_FORMATS = ("float32", "float64")
#: Rows and columns of the square factors: the small ones are done before a busy machine interrupts them, the large ones
#: keep many threads busy.
_SIZES = (256, 512, 1024)
#: Products of a size are timed for so many seconds, and at least so many times; the fastest counts.
_SECONDS, _LEAST = 0.3, 5
#: Seconds after which a measurement is given up.
_LIMIT_S = 120
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from resnext_core.jobs.bench_peak import product_flops; print(product_flops(sys.argv[1]))"
)


def processor_peak(precision: str, threads: int) -> float | None:
    """Return the most FLOP/s of up to `threads` threads, measured; None where NumPy cannot measure `precision`.

    One thread is tried too: on a busy machine several wait for each other, and reach less.
    """
    if precision not in _FORMATS:
        return None
    found = [flops for n in {1, threads} if (flops := _measured(precision, n)) is not None]
    return max(found, default=None)


@functools.cache
def _measured(precision: str, threads: int) -> float | None:
    """Measure in a process of its own: NumPy's BLAS reads its number of threads once, when it is imported."""
    environment = os.environ | dict.fromkeys(BLAS_THREADS, str(threads))
    words = [sys.executable, "-c", _START, precision, json.dumps(sys.path)]
    try:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def product_flops(precision: str) -> float:
    """Return the most FLOP/s of products of two square matrices, by NumPy as it is set up in this process."""
    return max(2 * size**3 / _fastest(size, precision) for size in _SIZES)


def _fastest(size: int, precision: str) -> float:
    left = np.random.default_rng(0).random((size, size)).astype(precision)
    right, out = left.T.copy(), np.empty_like(left)
    fastest, count, started = float("inf"), 0, time.perf_counter()
    while count < _LEAST or time.perf_counter() - started < _SECONDS:
        began = time.perf_counter()
        np.matmul(left, right, out=out)
        fastest, count = min(fastest, time.perf_counter() - began), count + 1
    return fastest

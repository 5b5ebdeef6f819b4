"""Triton's interpreter: our kernels run in Python, on the CPU."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

_PACKAGE = "resnext_gpu.grouped_conv"
_NAMES = ("norm_kernels", "kernels", "launch", "norm_launch", "plans")
#: Whether a kernel is interpreted is decided when its module is imported.
_MODULES = tuple(f"{_PACKAGE}.{name}" for name in _NAMES)


@contextmanager
def interpreted() -> Iterator[Any]:
    """Yield the module that calls the kernels, interpreted, as the operation of PyTorch then finds them too."""
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in _MODULES:
            patch.delitem(sys.modules, name, raising=False)
        for name in _MODULES:
            patch.setitem(sys.modules, name, importlib.import_module(name))
        _mend_bfloat16(patch)
        _trust_integers(patch)
        _interpret_sums(patch)
        yield sys.modules[f"{_PACKAGE}.launch"]


def _mend_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """The interpreter (3.8) keeps bfloat16 as uint16, and multiplies these as they are."""
    from triton import language
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != language.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), language.float32)

    def mended(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(a), wide(b), *rest)

    patch.setattr(interpreter.InterpreterBuilder, "create_dot", mended)


def _trust_integers(patch: pytest.MonkeyPatch) -> None:
    """Do not look for overflows of 32 bits, which takes half of the time and cannot be at the sizes of tests."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if hasattr(builder.options, "sanitize_overflow"):
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))


def _interpret_sums(patch: pytest.MonkeyPatch) -> None:
    """`sum` is a kernel's function too, which was not made for the interpreter where Triton was imported before."""
    from triton import language
    from triton.runtime import interpreter, jit

    if isinstance(language.sum, jit.JITFunction):
        patch.setattr(language, "sum", interpreter.InterpretedFunction(language.sum.fn))

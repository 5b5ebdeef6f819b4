"""The C interface of libresnext_pixels, as ctypes has it: include/resnext_pixels.h."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int32, c_size_t, c_void_p
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnext_core.errors import BackendUnavailable, reason
from resnext_core.extensions import READY, Readiness
from resnext_cpp_infer.program import find_program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnext_core.data.plan import Operation, Plan
    from resnext_core.model.preprocess import PreprocessSpec

LIBRARY = "libresnext_pixels.so"
#: Number of the C interface that this module is written for, as the header has it.
_ABI = 1
_OK = 0
#: Header.format of a PNG.
PNG = 2
_FILTERS = {"antialias": 0, "bicubic": 1, "plain": 2}
_MODES = {"shorter-side": 0, "squash": 1}
#: Operations of a plan that the library does, by name.
KINDS = {
    "brightness": 1, "contrast": 2, "saturation": 3, "sharpness": 4, "autocontrast": 5, "equalize": 6, "invert": 7,
    "posterize": 8, "solarize": 9, "solarize_add": 10, "affine": 11, "branch": 12, "add": 13, "merge": 14, "erase": 15,
    "erase_noise": 16,
}  # fmt: skip
#: Most values of an operation.
_VALUES = 11


class Unread(Exception):
    """The library cannot make the pixels; the message is why."""


class Header(Structure):
    """Width and height as stored, format (1 JPEG, 2 PNG), bits of a sample, possible reductions."""

    _fields_ = [(name, c_int32) for name in ("width", "height", "format", "bits", "reductions")]

    width: int
    height: int
    format: int
    bits: int


class _Evaluation(Structure):
    _fields_ = [
        (name, c_int32) for name in ("size", "resize", "mode", "filter", "scaled_decode", "orientation")
    ]


class _Operation(Structure):
    _fields_ = [("kind", c_int32), ("count", c_int32), ("values", c_double * _VALUES)]


class _Plan(Structure):
    _fields_ = [
        *((name, c_double) for name in ("left", "top", "width", "height")),
        *((name, c_int32) for name in ("least_width", "least_height", "size", "filter", "flip", "orientation")),
        ("operation_count", c_int32),
        ("operations", c_void_p),
    ]  # fmt: skip


@functools.cache
def load() -> ctypes.CDLL:
    """Return the library beside the program; BackendUnavailable where it is not built, or not for this release."""
    path = find_program().parent / LIBRARY
    if not path.is_file():
        raise BackendUnavailable(f"{path} is not built; build it with: resnext-run cpp build")
    try:
        library = ctypes.CDLL(str(path))
        abi = library.resnext_pixels_abi()
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(
            f"{path} does not load: {reason(error)}; run: resnext-run cpp build"
        ) from None
    if abi != _ABI:
        raise BackendUnavailable(f"{path} has interface {abi}, not {_ABI}; run: resnext-run cpp build")
    _declare(library)
    return library


def readiness() -> Readiness:
    """Return whether the library is built, for this release, and loads."""
    try:
        load()
    except BackendUnavailable as error:
        return Readiness(state="missing", reason=str(error))
    return READY


def pillow_module() -> Path | None:
    """Return Pillow's compiled module, without importing it; None without one."""
    spec = util.find_spec("PIL")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = sorted(Path(folder).glob("_imaging.*.so"))
        if found:
            return found[0]
    return None


def use_pillows_jpeg(library: ctypes.CDLL) -> str:
    """Decode with the libjpeg that Pillow uses from now on; return why not, '' where it is used.

    Before the first image of the process. Its functions are found through Pillow's module, which depends on it.
    """
    path = pillow_module()
    if path is None:
        return "Pillow has no compiled module"
    why = library.resnext_pixels_use_jpeg(str(path).encode())
    return why.decode(errors="replace") if why is not None else ""


def _declare(library: ctypes.CDLL) -> None:
    pixels = c_void_p
    for name, result, arguments in (
        ("use_jpeg", c_char_p, [c_char_p]),
        ("use_simd", None, [c_int]),
        ("new", pixels, []),
        ("free", None, [pixels]),
        ("open", c_int, [pixels, c_void_p, c_size_t, POINTER(Header)]),
        ("evaluate", c_int, [pixels, POINTER(_Evaluation), c_void_p]),
        ("train", c_int, [pixels, POINTER(_Plan), c_void_p]),
        ("close", None, [pixels]),
        ("operate", c_int, [pixels, POINTER(_Operation), c_int32, c_int32, c_void_p]),
        ("message", c_char_p, [pixels]),
    ):
        function = getattr(library, f"resnext_pixels_{name}")
        function.restype, function.argtypes = result, arguments


class Pixels:
    """The library's memory for one thread: an image is opened, then made into pixels once.

    Calls release Python's lock. They raise Unread; what was opened is then forgotten.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._pixels: int | None = library.resnext_pixels_new()
        if self._pixels is None:
            raise MemoryError
        self._content: Any = None  # as long as the library looks at it

    def __del__(self) -> None:
        if getattr(self, "_pixels", None) is not None:
            self._library.resnext_pixels_free(self._pixels)

    def open(self, content: bytes) -> Header:
        """Read the header of an image file, bytes-like."""
        if isinstance(content, bytes):
            self._content, address, size = content, content, len(content)
        else:
            import numpy as np

            view = np.frombuffer(content, np.uint8)
            self._content, address, size = view, view.ctypes.data, view.size
        header = Header()
        self._done(self._library.resnext_pixels_open(self._pixels, address, size, byref(header)))
        return header

    def evaluate(self, spec: PreprocessSpec, out: NDArray[np.uint8], orientation: int = 1) -> None:
        """Write the pixels that `spec` gives of the opened image, turned, into `out`, uint8 (size, size, 3)."""
        how = _Evaluation(
            spec.size, spec.resize, _MODES[spec.mode], _FILTERS[spec.filter], spec.scaled_decode, orientation
        )
        target = _address(out, spec.size)
        self._finish(self._library.resnext_pixels_evaluate(self._pixels, byref(how), target))

    def train(self, plan: Plan, operations: Sequence[Operation], out: NDArray[np.uint8]) -> None:
        """Execute `plan` on the opened image with `operations` in place of its own; each must be one of KINDS."""
        box = plan.box
        sides = plan.sides if plan.scaled_decode else (0, 0)
        steps = _operations(operations)
        made = _Plan(
            box.left, box.top, box.width, box.height, *(min(side, 0x7FFFFFFF) for side in sides), plan.size,
            _FILTERS[plan.filter], plan.flip, plan.orientation, len(operations), ctypes.addressof(steps),
        )  # fmt: skip
        target = _address(out, plan.size)
        self._finish(self._library.resnext_pixels_train(self._pixels, byref(made), target))

    def operate(self, operations: Sequence[Operation], out: NDArray[np.uint8]) -> None:
        """Do `operations`, each one of KINDS, on uint8 (size, size, 3), in place."""
        steps, size = _operations(operations), len(out)
        target = _address(out, size)
        self._done(self._library.resnext_pixels_operate(self._pixels, steps, len(operations), size, target))

    def close(self) -> None:
        """Forget the opened image."""
        self._library.resnext_pixels_close(self._pixels)
        self._content = None

    def _finish(self, code: int) -> None:
        self._content = None
        self._done(code)

    def _done(self, code: int) -> None:
        if code != _OK:
            self._content = None
            message = self._library.resnext_pixels_message(self._pixels).decode(errors="replace")
            raise Unread(message or "not enough memory")


def _operations(operations: Sequence[Operation]) -> Any:
    steps = (_Operation * max(len(operations), 1))()
    for step, operation in zip(steps, operations, strict=False):
        step.kind, step.count = KINDS[operation.name], len(operation.values)
        step.values[: len(operation.values)] = operation.values
    return steps


def _address(out: NDArray[np.uint8], size: int) -> int:
    if (
        out.shape != (size, size, 3)
        or out.dtype != "uint8"
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise ValueError(f"out must be a writable C-contiguous uint8 array ({size}, {size}, 3)")
    return out.ctypes.data

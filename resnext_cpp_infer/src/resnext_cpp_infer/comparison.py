"""Compares the pixel library with Pillow on this machine, in a few milliseconds: decoding, resizing, each operation."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.data.operation import Operation
from resnext_core.data.operations import operated
from resnext_core.data.plan import Box, Plan
from resnext_core.data.render import load_eval_bytes, load_train_bytes
from resnext_core.extensions import NotSupported
from resnext_core.model.preprocess import PreprocessSpec
from resnext_cpp_infer.pixels import Pixels, Unread

if TYPE_CHECKING:
    from resnext_cpp_infer.decoder import TurboDecoder

#: With values that take every branch of an operation's arithmetic.
_OPERATIONS = {
    "brightness": ((0.37,), (1.63,)), "contrast": ((0.37,), (1.63,)), "saturation": ((0.37,), (1.63,)),
    "sharpness": ((0.1,), (1.9,)), "autocontrast": ((),), "equalize": ((),), "invert": ((),),
    "posterize": ((3,),), "solarize": ((77,),), "solarize_add": ((66,),),
    "affine": tuple((0.92, 0.17, -3.3, -0.21, 1.07, 2.6, kind, 124, 116, 104) for kind in (0, 2, 3)),
    "erase": ((3, 5, 12, 9, 1, 2, 3),),
    "erase_noise": ((3, 5, 12, 9, 12345, 8105165, 7623147, 6785597, 18327, 17926, 18006),),
}  # fmt: skip
_BRANCH = (
    Operation(name="branch"), Operation(name="invert"), Operation(name="add", values=(40000,)),
    Operation(name="merge", values=(25536,)),
)  # fmt: skip


def pixels_differ(decoder: TurboDecoder) -> str:
    """Return what differs between the decoder's pixels and Pillow's, '' if nothing does."""
    spec = PreprocessSpec(size=40, resize=44, mode="shorter-side")
    plan = Plan(
        box=Box(left=21, top=17, width=90, height=60), sides=(40, 40), size=40, filter="antialias", flip=True,
        scaled_decode=False,
    )  # fmt: skip
    files = {
        "JPEG": _file("JPEG", quality=90),
        "progressive JPEG": _file("JPEG", progressive=True, subsampling=1),
        "PNG": _file("PNG"),
    }
    out = np.empty((40, 40, 3), np.uint8)
    for kind, content in files.items():
        for name in ("antialias", "bicubic", "plain"):
            try:
                decoder.evaluation(content, kind, replace(spec, filter=name), out, [])
                same = np.array_equal(out, load_eval_bytes(content, replace(spec, filter=name)))
                one = replace(plan, filter=name, scaled_decode=name == "plain")
                decoder.training(content, kind, lambda *size, one=one: one, out, [])
                same = same and np.array_equal(out, load_train_bytes(content, lambda *size, one=one: one))
            except NotSupported as error:
                return f"it cannot read a {kind} ({error})"
            if not same:
                return f"it decodes a {kind} to other pixels than the installed Pillow"
    return ""


def same_operations(pixels: Pixels) -> frozenset[str]:
    """Return the names of the operations that the library does exactly as Pillow does."""
    sequences = {
        name: [(Operation(name=name, values=tuple(map(float, values))),) for values in all_values]
        for name, all_values in _OPERATIONS.items()
    }
    found = {name for name, tried in sequences.items() if all(_same(pixels, one) for one in tried)}
    if _same(pixels, _BRANCH):
        found |= {"branch", "add", "merge"}
    return frozenset(found)


def _same(pixels: Pixels, operations: tuple[Operation, ...]) -> bool:
    image = _picture(32, 32)
    out = image.copy()
    try:
        pixels.operate(operations, out)
    except Unread:
        return False
    return np.array_equal(out, np.asarray(operated(Image.fromarray(image), operations)))


def _file(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(_picture(97, 131)).save(stream, kind, **options)
    return stream.getvalue()


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Return smooth colours with some noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + 3 * c) + y / (9 - 2 * c)) * 90 + 120 for c in range(3)]
    noisy = np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)

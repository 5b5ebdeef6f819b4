"""Plans and mixes in words, for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from resnext_core.data.operation import Operation
from resnext_core.data.plan import Plan
from resnext_core.interfaces import Mix

_FACTORS = ("brightness", "contrast", "saturation", "sharpness")


def plan_words(plan: Plan) -> list[str]:
    """Return what `plan` does, a few words for each part: the crop first, in pixels of the file."""
    box = plan.box
    words = [f"crop {box.width:g} × {box.height:g} at {box.left:g}, {box.top:g}"]
    if plan.flip:
        words.append("flipped")
    return words + list(_operations(plan.operations))


def mix_words(mix: Mix) -> str:
    """Return how the images of a batch are mixed."""
    if mix.kind == "none":
        return "not mixed"
    words = f"{mix.kind}, {mix.lam:.0%} of the image's own label"
    if mix.kind == "cutmix":
        top, left, bottom, right = mix.box
        words += f", box {right - left} × {bottom - top} at {left}, {top}"
    return f"{words}, with the batch {'reversed' if mix.partner == 'reversed' else 'shifted by one'}"


def _operations(operations: Sequence[Operation]) -> Iterator[str]:
    """Yield the words of each operation; a chain of AugMix is one."""
    chain: list[str] | None = None
    for operation in operations:
        if operation.name == "branch":
            chain = []
        elif operation.name == "add":
            yield f"{operation.values[0] / 65536:.0%} of ({', '.join(chain or ['the image'])})"
            chain = []
        elif operation.name == "merge":
            yield f"{operation.values[0] / 65536:.0%} of the image"
            chain = None
        elif chain is None:
            yield operation_words(operation)
        else:
            chain.append(operation_words(operation))


def operation_words(operation: Operation) -> str:
    """Return one operation with its parameters."""
    name, values = operation.name, operation.values
    if name == "affine":
        return _affine(values)
    if name in _FACTORS:
        return f"{name} × {values[0]:.2f}"
    if name in ("erase", "erase_noise"):
        left, top, width, height = values[:4]
        fill = "noise" if name == "erase_noise" else "rgb({:.0f}, {:.0f}, {:.0f})".format(*values[4:])
        return f"erased {width:g} × {height:g} at {left:g}, {top:g}: {fill}"
    return {
        "posterize": "posterize to {:.0f} bits",
        "solarize": "solarize from {:.4g}",
        "solarize_add": "add {:g} to dark levels",
    }.get(name, name).format(*values)


def _affine(values: Sequence[float]) -> str:
    """Return what a map from output to input does; plans rotate, shear or shift, one at a time."""
    a, b, c, d, e, f = values[:6]
    if (a, e) != (1, 1):
        return f"rotate {math.degrees(math.atan2(-b, a)):+.1f}°"
    for name, value in (("shear x", b), ("shear y", d)):
        if value:
            return f"{name} {value:+.2f}"
    for name, value in (("shift x", -c), ("shift y", -f)):
        if value:
            return f"{name} {value:+.1f} px"
    return "unchanged"

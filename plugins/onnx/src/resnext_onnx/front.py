"""Evaluation preprocessing as nodes of an ONNX graph: Pillow's resize by matrix products, OpenCV's by two taps.

Sources: Pillow, src/libImaging/Resample.c (``precompute_coeffs``, ``ImagingResampleHorizontal_8bpc``); the definition
that this must equal is :mod:`resnext_core.model.preprocess`. Positions are exact: they are quotients of 64-bit
integers, so that no width loses precision, and only weights and sums are float32. Only operators of opset 13 are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from resnext_core.model.preprocess import FILTER_REACH, PreprocessSpec

Array = NDArray[Any]

#: Outputs of a block, at least, and blocks of a side, at most. A block's outputs share one window of the source and are
#: one matrix product: with a single block, a side of 224 would cost 14 times as many, nearly all with 0.
_BLOCK, _MOST_BLOCKS = 16, 14


class Nodes(Protocol):
    """What collects nodes and constants; see the graph's builder."""

    def add(
        self, op: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any
    ) -> str: ...

    def constant(self, name: str, array: Array) -> str: ...


def add_front(nodes: Nodes, images: str, spec: PreprocessSpec, pixels: str) -> None:
    """Add what makes of `images`, uint8 (1, H, W, 3), the value `pixels`: whole float32 numbers (1, 3, size, size).

    They are those of :func:`resnext_core.model.preprocess.eval_pixels` within 1 level; of images longer than 16 times
    their shorter side within 2, since it resizes their crop alone (the graph is then within 1 of the whole resize).
    """
    front = _Front(nodes, spec)
    shape = front.add("Shape", images)
    height, width = (front.add("Gather", shape, front.number(axis), axis=0) for axis in (1, 2))
    down, across = front.sides(height, width)
    image = front.add("Reshape", images, front.add("Slice", shape, *front.numbers([1], [4], [0])))
    made = (
        front.two_taps(image, down, across) if spec.filter == "plain" else front.filtered(image, down, across)
    )
    # A Reshape states the shape, which shape inference cannot find.
    shape_of_pixels = front.number([1, 3, spec.size, spec.size])
    nodes.add("Reshape", [made, shape_of_pixels], "preprocess.pixels", output=pixels)


def before_the_graph(spec: PreprocessSpec) -> list[str]:
    """Return what no graph can do and the caller must do before it, a sentence each."""
    sentences = ["Decode the file to 8-bit RGB; drop alpha."]
    if spec.oriented:
        sentences.append("Turn it as its EXIF orientation says.")
    else:
        sentences.append("Do not turn it by its EXIF orientation.")
    if spec.scaled_decode:
        sentences.append(
            "The network was evaluated on JPEG images that the decoder had reduced to 1/2, 1/4 or 1/8, with both sides "
            f"at least {spec.resize}; pixels are the same only if this is done."
        )
    return sentences


class _Side:
    """One side: its length, its length after the resize, and where the crop starts there; int64 scalars."""

    def __init__(self, length: str, new: str, first: str) -> None:
        self.length, self.new, self.first = length, new, first


class _Front:
    """The nodes of one preprocessing. Names are counted; methods return the name of the value they made."""

    def __init__(self, nodes: Nodes, spec: PreprocessSpec) -> None:
        self.nodes, self.spec = nodes, spec
        self.count = 0
        self.known: dict[Any, str] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        self.count += 1
        return self.nodes.add(op, inputs, f"preprocess.{op.lower()}{self.count}", **attributes)

    def number(self, value: Any, dtype: Any = np.int64) -> str:
        """Return the constant `value`; equal ones are kept once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = self.nodes.constant(f"preprocess.constant{len(self.known)}", array)
        return self.known[key]

    def numbers(self, *values: Any) -> list[str]:
        return [self.number(value) for value in values]

    def plus(self, a: str, b: str) -> str:
        return self.add("Add", a, b)

    def minus(self, a: str, b: str) -> str:
        return self.add("Sub", a, b)

    def times(self, a: str, b: str) -> str:
        return self.add("Mul", a, b)

    def over(self, a: str, b: str) -> str:
        """Return a / b of int64, the fraction cut off, which is floor where a is not negative."""
        return self.add("Div", a, b)

    def rows(self, value: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", value, self.number(shape))

    # geometry

    def sides(self, height: str, width: str) -> tuple[_Side, _Side]:
        """Return both sides as :func:`resnext_core.model.preprocess.geometry` gives them."""
        resize = self.number(self.spec.resize)
        if self.spec.mode == "squash":
            new_height = new_width = resize
        else:
            shorter = self.add("Min", height, width)
            new_height, new_width = (self.over(self.times(resize, side), shorter) for side in (height, width))
        return _Side(height, new_height, self.start(new_height)), _Side(
            width, new_width, self.start(new_width)
        )

    def start(self, new: str) -> str:
        """Return round((new - size) / 2), a half to the even neighbour."""
        two = self.number(2)
        spare = self.minus(new, self.number(self.spec.size))
        half = self.over(spare, two)
        rest = self.minus(spare, self.times(half, two))
        odd = self.minus(half, self.times(self.over(half, two), two))
        return self.plus(half, self.times(rest, odd))

    # Pillow's filters

    def filtered(self, image: str, down: _Side, across: _Side) -> str:
        """Return (3, size, size) of uint8 (H, W, 3): rows first, then columns, each rounded to 8 bits."""
        size = self.spec.size
        (top, rows), (left, columns) = (self.window(side, side.first, size) for side in (down, across))
        # Only what the crop needs is touched.
        starts = self.add("Concat", self.rows(top, [1]), self.rows(left, [1]), axis=0)
        counts = self.add("Concat", self.rows(rows, [1]), self.rows(columns, [1]), axis=0)
        image = self.add("Slice", image, starts, self.plus(starts, counts), self.number([0, 1]))
        planes = self.add("Transpose", image, perm=[2, 0, 1])
        return self.columns_filtered(self.rows_filtered(planes, across, left, columns), down, top, rows)

    def rows_filtered(self, planes: str, side: _Side, begin: str, length: str) -> str:
        """Return float32 (3, H, size), rounded to 8 bits, of uint8 `planes` (3, H, W), which start at index `begin`."""
        blocks, block, offsets = self.blocks()
        start, count = self.block_windows(side, begin, length, offsets)
        index = self.plus(self.rows(start, [blocks, 1, 1]), self.rows(self.upto(count), [1, -1, 1]))
        weights = self.halves(self.weights(side, index, offsets[:, None, :], axis=1), axis=2)
        start = self.minus(start, begin)
        end = self.plus(start, count)
        made = []
        for number in range(blocks):  # whole runs of a row are copied: a Gather would copy byte by byte
            first, last = (self.add("Gather", value, self.number([number]), axis=0) for value in (start, end))
            part = self.add("Slice", planes, first, last, self.number([2]))
            part = self.add("Cast", part, to=TensorProto.FLOAT)
            made.append(self.add("MatMul", part, self.add("Gather", weights, self.number(number), axis=0)))
        sums = self.add("Concat", *made, axis=2) if blocks > 1 else made[0]
        rounded = self.rounded(self.rows(sums, [3, -1, blocks, 2, block]), axis=3)
        return self.cropped(self.rows(rounded, [3, -1, blocks * block]), blocks * block, axis=2)

    def columns_filtered(self, planes: str, side: _Side, begin: str, length: str) -> str:
        """Return float32 (3, size, size), rounded to 8 bits, of `planes` (3, H, size), which start at index `begin`."""
        blocks, block, offsets = self.blocks()
        start, count = self.block_windows(side, begin, length, offsets)
        index = self.plus(self.rows(start, [blocks, 1]), self.upto(count))
        weights = self.weights(side, self.rows(index, [blocks, 1, -1]), offsets[:, :, None], axis=2)
        values = self.add("Gather", planes, self.minus(index, begin), axis=1)
        sums = self.add("MatMul", self.halves(weights, axis=1), values)
        rounded = self.rounded(self.rows(sums, [3, blocks, 2, block, self.spec.size]), axis=2)
        return self.cropped(self.rows(rounded, [3, blocks * block, self.spec.size]), blocks * block, axis=1)

    def blocks(self) -> tuple[int, int, Array]:
        """Return how many blocks of outputs there are, their length, and the outputs; the last one is repeated."""
        size = self.spec.size
        block = min(size, max(_BLOCK, -(-size // _MOST_BLOCKS)))
        blocks = -(-size // block)
        return blocks, block, np.minimum(np.arange(blocks * block), size - 1).reshape(blocks, block)

    def block_windows(self, side: _Side, begin: str, length: str, offsets: Array) -> tuple[str, str]:
        """Return the first indices of the blocks' windows and their length, within what was cut out."""
        first = self.plus(side.first, self.number(offsets[:, 0]))
        start, count = self.window(side, first, offsets.shape[1])
        end = self.minus(self.plus(begin, length), count)
        return self.add("Min", self.add("Max", start, begin), end), count

    def upto(self, count: str) -> str:
        return self.add("Range", self.number(0), count, self.number(1))

    def cropped(self, value: str, length: int, axis: int) -> str:
        if length == self.spec.size:
            return value
        return self.add("Slice", value, *self.numbers([0], [self.spec.size], [axis]))

    def window(self, side: _Side, first: str, count: int) -> tuple[str, str]:
        """Return first index and length of the source's window for `count` outputs from `first` on.

        A filter reaches `reach` · max(length / new, 1) to either side of a centre (2 · first + 1) · length / (2 · new).
        `first` may be a vector; all windows have one length.
        """
        one, two = self.number(1), self.number(2)
        wide = self.times(self.number(2 * int(FILTER_REACH[self.spec.filter])), self.wider(side))
        span = self.plus(self.times(self.number(count - 1), side.length), wide)
        length = self.add("Min", side.length, self.plus(self.over(span, side.new), self.number(3)))
        centre = self.times(self.plus(self.times(two, first), one), side.length)
        start = self.minus(self.over(self.minus(centre, wide), self.times(two, side.new)), one)
        # Cut off below 0 is right as well: those become 0.
        last = self.minus(side.length, length)
        return self.add("Min", self.add("Max", start, self.number(0)), last), length

    def wider(self, side: _Side) -> str:
        return self.add("Max", side.length, side.new)

    def weights(self, side: _Side, index: str, offsets: Array, axis: int) -> str:
        """Return the weights of the source's `index` for the outputs `offsets` after the crop's start.

        Whole float64 numbers in units of 2**-22, as Pillow rounds them; `axis` is that of `index`.
        """
        one, two = self.number(1), self.number(2)
        at = self.times(self.plus(self.times(two, index), one), side.new)
        place = self.plus(self.number(offsets), side.first)
        centre = self.times(self.plus(self.times(two, place), one), side.length)
        distance = self.add("Cast", self.add("Abs", self.minus(at, centre)), to=TensorProto.DOUBLE)
        unit = self.add("Cast", self.times(two, self.wider(side)), to=TensorProto.DOUBLE)
        weights = self.kernel(self.add("Div", distance, unit))
        weights = self.add("Div", weights, self.add("ReduceSum", weights, self.number([axis]), keepdims=1))
        return self.add("Floor", self.plus(self.times(weights, self.double(2**22)), self.double(0.5)))

    def halves(self, weights: str, axis: int) -> str:
        """Return the upper and lower 11 bits of `weights`, float32, one after the other on the axis of the outputs.

        Products with 8 bits and their sums are then exact in float32: Pillow's are exact, in 32-bit integers.
        """
        high = self.add("Floor", self.plus(self.times(weights, self.double(2**-11)), self.double(0.5)))
        low = self.minus(weights, self.times(high, self.double(2**11)))
        return self.add("Cast", self.add("Concat", high, low, axis=axis), to=TensorProto.FLOAT)

    def rounded(self, sums: str, axis: int) -> str:
        """Return floor((2048 upper + lower + 2**21) / 2**22), cut off to 0..255, of both sums on `axis`."""
        upper, lower = (self.add("Gather", sums, self.number(part), axis=axis) for part in (0, 1))
        lower = self.add("Floor", self.times(lower, self.real(2**-11)))
        made = self.plus(self.plus(upper, lower), self.real(2**10))
        made = self.add("Floor", self.times(made, self.real(2**-11)))
        return self.add("Clip", made, self.real(0), self.real(255))

    def kernel(self, t: str) -> str:
        """Return the filter at distance `t` >= 0, in units of its own width; float64."""
        if self.spec.filter == "antialias":
            return self.add("Max", self.minus(self.double(1), t), self.double(0))
        # Keys' cubic convolution with a = -0.5, as in Pillow.
        t = self.add("Min", t, self.double(2))
        near = self.polynomial(t, 1.5, -2.5, 0, 1)
        far = self.polynomial(t, -0.5, 2.5, -4, 2)
        return self.add("Where", self.add("Less", t, self.double(1)), near, far)

    def polynomial(self, t: str, *factors: float) -> str:
        value = self.double(factors[0])
        for factor in factors[1:]:
            value = self.plus(self.times(value, t), self.double(factor))
        return value

    def real(self, value: float) -> str:
        return self.number(value, np.float32)

    def double(self, value: float) -> str:
        return self.number(value, np.float64)

    # OpenCV's two taps

    def two_taps(self, image: str, down: _Side, across: _Side) -> str:
        """Return (3, size, size) by the integer arithmetic of :func:`resnext_core.model.preprocess.resize_plain`."""
        above, below, up_weight, down_weight = self.taps(down, clamp_fraction=False)
        left, right, left_weight, right_weight = self.taps(across, clamp_fraction=True)
        total = self.number(2, np.int32)
        for rows, weight in ((above, up_weight), (below, down_weight)):
            line = self.add("Gather", image, rows, axis=0)
            parts = [
                self.times(
                    self.add("Cast", self.add("Gather", line, columns, axis=1), to=TensorProto.INT32),
                    self.rows(factor, [-1, 1]),
                )
                for columns, factor in ((left, left_weight), (right, right_weight))
            ]
            wide = self.over(self.plus(*parts), self.number(16, np.int32))
            scaled = self.times(wide, self.rows(weight, [-1, 1, 1]))
            total = self.plus(total, self.over(scaled, self.number(65536, np.int32)))
        result = self.over(total, self.number(4, np.int32))
        result = self.add("Cast", self.add("Transpose", result, perm=[2, 0, 1]), to=TensorProto.FLOAT)
        return self.add("Clip", result, self.real(0), self.real(255))

    def taps(self, side: _Side, *, clamp_fraction: bool) -> tuple[str, str, str, str]:
        """Return both source positions (size,) and their weights · 2048 as int32 (size,)."""
        zero, one = self.numbers(0, 1)
        last = self.minus(side.length, one)
        length, new = (self.add("Cast", value, to=TensorProto.DOUBLE) for value in (side.length, side.new))
        scale = self.add("Div", self.double(1), self.add("Div", new, length))
        place = self.plus(self.number(np.arange(self.spec.size)), side.first)
        place = self.plus(self.add("Cast", place, to=TensorProto.DOUBLE), self.double(0.5))
        centre = self.minus(self.times(place, scale), self.double(0.5))
        centre = self.add("Cast", centre, to=TensorProto.FLOAT)
        floor = self.add("Floor", centre)
        fraction = self.minus(centre, floor)
        first = self.add("Cast", floor, to=TensorProto.INT64)
        if clamp_fraction:
            inside = self.add(
                "And", self.add("Greater", first, self.number(-1)), self.add("Less", first, last)
            )
            fraction = self.times(fraction, self.add("Cast", inside, to=TensorProto.FLOAT))
        weights = [
            self.add("Cast", self.add("Round", self.times(part, self.real(2048))), to=TensorProto.INT32)
            for part in (self.minus(self.real(1), fraction), fraction)
        ]
        near, far = (
            self.add("Min", self.add("Max", at, zero), last) for at in (first, self.plus(first, one))
        )
        return near, far, weights[0], weights[1]

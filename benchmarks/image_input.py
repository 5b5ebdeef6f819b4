"""Preprocessing in the ONNX graph: time and pixels beside Pillow's and beside ONNX's own Resize with antialiasing.

    python benchmarks/image_input.py [--threads 1] [--rounds 20] [--clock wall]

Images of noise are resized to 256 x 256, without a crop, so that edges count. Contenders take turns; of each the
median time is printed, in ms, and how far its pixels are from Pillow's: most levels, and share of places that differ.
Rows: Pillow (as core uses it), the graph of export.input=image in ONNX Runtime and in OpenVINO, and a graph of one
Resize (opset 18, antialias=1) in ONNX Runtime, which is what one would write first. ``--clock cpu`` measures processor
time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from resnext_onnx.front import add_front
from resnext_onnx.graph import IMAGES, IR_VERSION, OPSET, PIXELS, GraphBuilder

from resnext_core.console.flags import positive
from resnext_core.model.preprocess import PreprocessSpec, eval_pixels
from resnext_core.processor import processor

SHAPES = ((100, 150), (375, 500), (1080, 1920), (3000, 4000))
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Function = Callable[[np.ndarray], np.ndarray]


def front(spec: PreprocessSpec) -> bytes:
    """The preprocessing of ``export.input=image`` alone: float32 (1, 3, S, S)."""
    builder = GraphBuilder({}, fold_bn=True)
    add_front(builder, IMAGES, spec, PIXELS)
    return _model(builder.nodes, builder.constants, [1, 3, spec.size, spec.size], OPSET)


def one_resize(spec: PreprocessSpec) -> bytes:
    """ONNX's Resize with antialiasing: uint8 as float32 (1, S, S, 3)."""
    mode = {"antialias": "linear", "bicubic": "cubic"}[spec.filter]
    first = (spec.resize - spec.size) // 2
    arrays = {
        "sizes": [spec.resize] * 2,
        "starts": [first] * 2,
        "ends": [first + spec.size] * 2,
        "axes": [1, 2],
    }
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in arrays.items()]
    nodes = [
        helper.make_node(
            "Resize", [IMAGES, "", "", "sizes"], ["resized"], axes=[1, 2], mode=mode, antialias=1, cubic_coeff_a=-0.5,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Cast", ["resized"], [PIXELS], to=TensorProto.FLOAT),
    ]  # fmt: skip
    return _model(nodes, constants, [1, spec.size, spec.size, 3], 18)


def _model(nodes: Any, constants: Any, shape: list[int], opset: int) -> bytes:
    source = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [1, "H", "W", 3])
    sink = helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "front", [source], [sink], constants)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION
    ).SerializeToString()
    return data


def in_onnxruntime(data: bytes, threads: int) -> Function:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {IMAGES: image[None]})[0][0]


def in_openvino(data: bytes, threads: int) -> Function | None:
    """None where OpenVINO is not installed. Without its telemetry."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(data, b""), "CPU", settings)
    return lambda image: compiled(image[None])[0][0]


def measure(
    spec: PreprocessSpec, image: np.ndarray, threads: int, rounds: int, clock: Callable[[], float]
) -> None:
    """Print the rows of one filter and size."""
    picture = Image.fromarray(image)
    contenders: dict[str, Function | None] = {
        "Pillow": lambda _: eval_pixels(picture, spec),
        "in the graph, ONNX Runtime": in_onnxruntime(front(spec), threads),
        "in the graph, OpenVINO": in_openvino(front(spec), threads),
        "one Resize, ONNX Runtime": in_onnxruntime(one_resize(spec), threads),
    }
    want = eval_pixels(picture, spec).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    off: dict[str, np.ndarray] = {}
    for turn in range(rounds + 1):
        for name, function in contenders.items():
            if function is None:
                continue
            start = clock()
            made = function(image)
            spent = clock() - start
            if turn:  # the first call warms up
                times[name].append(1000 * spent)
            else:
                off[name] = np.abs((made.transpose(1, 2, 0) if made.shape[0] == 3 else made) - want)
    size = f"{image.shape[0]} x {image.shape[1]}"
    for name, spent_each in times.items():
        if not spent_each:
            print(f"| {size} | {spec.filter} | {name} | not installed | | |")
            continue
        spent, share = statistics.median(spent_each), float((off[name] > 0).mean())
        print(f"| {size} | {spec.filter} | {name} | {spent:.1f} | {off[name].max():.0f} | {share:.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    args = parser.parse_args()
    found = processor()
    print(
        f"{found.name}, {found.instructions}, {args.threads} thread(s), ONNX Runtime {onnxruntime.__version__}, "
        f"{args.clock} time\n"
    )
    print("| image | filter | with | ms | most levels off | places off |")
    print("|---|---|---|---:|---:|---:|")
    for height, width in SHAPES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for filter in ("antialias", "bicubic"):
            spec = PreprocessSpec(size=256, resize=256, mode="squash", filter=filter)
            measure(spec, image, args.threads, args.rounds, CLOCKS[args.clock])


if __name__ == "__main__":
    main()

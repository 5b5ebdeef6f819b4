"""Quantise one file with NNCF, for cpu_serving.py, which runs this in an interpreter that has it.

    pip install nncf onnx onnxruntime
    python benchmarks/cpu_serving_nncf.py SOURCE.onnx IMAGES.npz TARGET.onnx [--control DROP]

IMAGES has ``calibration`` and ``validation``, uint8 (N, S, S, 3), and ``labels`` of the latter. With ``--control``
layers go back to float until top-1 on validation is at most DROP points below the source's.
"""

from __future__ import annotations

import argparse
import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it reports each use

import nncf  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402


def main() -> int:
    """Quantise; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("images")
    parser.add_argument("target")
    parser.add_argument("--control", type=float, metavar="DROP")
    args = parser.parse_args()
    images = np.load(args.images)
    model = onnx.load(args.source)
    calibration = nncf.Dataset([{"images": image[None]} for image in images["calibration"]])
    count = len(images["calibration"])
    if args.control is None:
        made = nncf.quantize(model, calibration, subset_size=count)
    else:
        pairs = list(zip(images["validation"], images["labels"], strict=True))
        made = nncf.quantize_with_accuracy_control(
            model, calibration, nncf.Dataset(pairs, lambda pair: pair), top1, subset_size=count,
            max_drop=args.control / 100, drop_type=nncf.DropType.ABSOLUTE,
        )  # fmt: skip
    onnx.save(made, args.target)
    return 0


def top1(model: onnx.ModelProto, pairs: nncf.Dataset) -> tuple[float, list[float]]:
    """Return the share of right guesses, and 1 or 0 for each image."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    right = [
        float(session.run(["logits"], {"images": image[None]})[0].argmax() == label) for image, label in pairs
    ]
    return float(np.mean(right)), right


if __name__ == "__main__":
    sys.exit(main())

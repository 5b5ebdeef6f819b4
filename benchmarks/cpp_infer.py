"""The C++ program against Python and against the ModelZoo's way, in turns, on one folder of images.

    python benchmarks/cpp_infer.py --data DIR --weights model.onnx

Contenders: `ours` decodes in threads while the engine computes; `python` is ``resnext-run infer`` with ONNX Runtime and
its loader processes; `modelzoo` is the old form, one thread, batch 1, decode then predict. `raw` is the engine alone on
images that lie in memory, the most that is possible. With ``--null`` the engine computes next to nothing, so that
`decode`, the cost of decoding and resizing alone, is what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from resnext_cpp_infer.options import CppInferOptions
from resnext_cpp_infer.predictor import engine_flags
from resnext_cpp_infer.program import find_program


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of JPEG or PNG files")
    parser.add_argument("--weights", type=Path, required=True, help=".onnx file")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of the engine (default: as it likes)")
    parser.add_argument("--workers", type=int, help="decoding threads (default: one a core)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--null", action="store_true", help="measure the way of an image without a network")
    args = parser.parse_args()
    contenders = {"ours": ours, "decode": decode}
    if not args.null:
        contenders = {"ours": ours, "python": python, "modelzoo": modelzoo, "raw": raw}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, contender in contenders.items():
            found[name].append(contender(args))
    for name, rates in found.items():
        ratios = [mine / other for mine, other in zip(found["ours"], rates, strict=True)]
        print(
            f"{name:<10} {statistics.median(rates):8.1f} images/s   ours is {statistics.median(ratios):.2f} times that "
            f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )
    return 0


def program(args: argparse.Namespace, *more: object) -> dict[str, Any]:
    """Run resnext-infer and return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        words = [
            find_program(),
            "--data",
            args.data,
            "--summary",
            summary,
            "--output",
            os.devnull,
            "--quiet",
            *more,
        ]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
        if not summary.exists():
            sys.exit(done.stderr)
        result: dict[str, Any] = json.loads(summary.read_text())
    return result


def model_flags(args: argparse.Namespace) -> list[object]:
    options = CppInferOptions(threads=args.threads, engine="null" if args.null else None)
    flags: list[object] = ["--model", args.weights, *engine_flags(options, args.weights)]
    return flags + (["--workers", args.workers] if args.workers else [])


def ours(args: argparse.Namespace) -> float:
    """Images a second of the whole program, from the first file to the last result."""
    return float(program(args, *model_flags(args), "--batch", args.batch)["images_per_s"])


def modelzoo(args: argparse.Namespace) -> float:
    """The old form: one image after the other, read, then computed."""
    options = CppInferOptions(threads=args.threads)
    flags = ["--model", args.weights, *engine_flags(options, args.weights), "--batch", 1, "--workers", 1]
    summary = program(args, *flags)
    # Decoding hid behind computing all the same; the old program did not let it.
    latency = summary["latency_ms"]
    return 1000 / (latency["preprocess"]["mean"] + latency["engine"]["mean"])


def decode(args: argparse.Namespace) -> float:
    """Images a second of decoding and resizing alone, on all workers."""
    summary = program(args, *model_flags(args), "--batch", args.batch)
    return 1000 * float(summary["workers"]) / float(summary["latency_ms"]["preprocess"]["mean"])


def python(args: argparse.Namespace) -> float:
    """Images a second of resnext-run infer, without the start of Python."""
    from resnext_core.config import Layer, load_config
    from resnext_core.data.index import open_index
    from resnext_core.data.opening import eval_loader
    from resnext_core.data.sampler import eval_tasks
    from resnext_core.plugins import load_plugins
    from resnext_core.serving.load import serve

    plugins = load_plugins()
    values = {"onnx": {"threads": args.threads}, "data": {"workers": args.workers}}
    config, sources = load_config([Layer(source="benchmark", values=values)], plugins.option_types())
    served = serve(args.weights, config, sources, plugins, backend_id="onnx", batch_size=args.batch)
    index = open_index(args.data)
    decoder = plugins.decoder(config.data.decoder)
    with eval_loader(index, served.preprocess, config, decoder=decoder) as loader:
        started = time.perf_counter()
        for batch in loader.batches(eval_tasks(len(index), args.batch)):
            served.predictor.logits(batch.images)
        seconds = time.perf_counter() - started
    served.predictor.close()
    return len(index) / seconds


def raw(args: argparse.Namespace) -> float:
    """Images a second of ONNX Runtime alone, on a batch in memory."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = args.threads or 0
    session = onnxruntime.InferenceSession(str(args.weights), settings, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    images = np.random.default_rng(0).integers(0, 256, (args.batch, *entry.shape[1:]), dtype=np.uint8)
    session.run(None, {entry.name: images})
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < 4:
        session.run(None, {entry.name: images})
        calls += 1
    return calls * args.batch / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())

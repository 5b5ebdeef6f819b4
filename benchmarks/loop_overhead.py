"""What the loop around the engine costs: core's `fit` with a real loader against a bare MindSpore loop.

    python benchmarks/loop_overhead.py

`fit` reads JPEG files with loader processes, augments them, trains on the MindSpore engine and writes records and
checkpoints. The bare loop calls nn.TrainOneStepCell on one batch that lies in memory. Both train the same network in
this process, in turns: after each epoch of `fit` the bare loop takes as many steps. Quoted are medians over the
epochs, and their ratio epoch by epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mindspore_step import bare_loop
from PIL import Image

from resnext_core.config import Layer, load_config
from resnext_core.jobs.plan import plan_job
from resnext_core.jobs.training import run_training, training_job
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Record, Saved, Train


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnext50_32x4d")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="epochs that count, after one of warm-up")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resnext-bench-") as folder:
        write_photographs(Path(folder) / "data" / "train", args.steps * args.batch)
        result = measure(args, Path(folder))
    print(json.dumps(result) if args.json else "\n".join(f"{k:<22} {v}" for k, v in result.items()))
    return 0


def write_photographs(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 500 × 375 pixels and about 60 kB in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / str(i % 2) / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)).astype(
            np.int16
        )
        noisy = np.clip(image + rng.integers(-18, 19, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=85)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train `rounds` + 1 epochs with the bare loop in between; returns milliseconds a step and the ratio."""
    values = {
        "model": {"variant": args.model, "image_size": args.size},
        "data": {"dir": str(folder / "data"), "workers": args.workers},
        # saved at once: the record that ends an epoch must come before the next step is timed
        "train": {
            "epochs": args.rounds + 1,
            "batch_size": args.batch,
            "log_every": args.steps,
            "background_saving": False,
        },
        "output": {"dir": str(folder / "runs")},
        "mindspore": {"threads": args.threads},
    }
    plugins = load_plugins()
    config, _ = load_config([Layer(source="benchmark", values=values)], plugins.option_types())
    backend = plugins.available("mindspore")
    plan = plan_job(config, plugins, backend)
    run = RunFolder.create(folder / "runs", "bench", "")
    ours: list[float] = []
    waits: list[float] = []
    bare: list[float] = []
    step: Any = None

    def emit(record: Record) -> None:
        nonlocal step
        if record.stored:
            run.append(record)
        if isinstance(record, Train):
            ours.append(record.seconds / args.steps)
            waits.append(record.wait_s / args.steps)
        elif isinstance(record, Saved):  # the epoch is over: now the other one
            if step is None:
                step = bare_loop(job.weights.spec, dict(job.weights.tensors), images, labels)
                step()
            started = time.perf_counter()
            for _ in range(args.steps):
                step()
            bare.append((time.perf_counter() - started) / args.steps)

    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (args.batch, args.size, args.size, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, args.batch).astype(np.int32)
    with training_job(plan, run, RankInfo(), SingleProcess(), emit) as job:
        run_training(job, backend, None)
    ratios = [a / b for a, b in zip(ours[1:], bare[1:], strict=True)]
    return {
        "model": f"{args.model}, {args.size} px, batch {args.batch}, {args.threads} threads",
        "epochs × steps": f"{args.rounds} × {args.steps}",
        "fit, ms a step": round(1e3 * statistics.median(ours[1:]), 1),
        "of which waiting": round(1e3 * statistics.median(waits[1:]), 1),
        "bare, ms a step": round(1e3 * statistics.median(bare[1:]), 1),
        "ratio fit / bare": round(statistics.median(ratios), 4),
        "ratio, spread": [round(min(ratios), 4), round(max(ratios), 4)],
    }


if __name__ == "__main__":
    raise SystemExit(main())

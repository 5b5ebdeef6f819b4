"""What saving costs a training: checkpoints written beside it against checkpoints that it waits for.

    python benchmarks/checkpoint_saving.py --model resnext50_32x4d

Each round trains the same few steps twice on the MindSpore engine, in processes of their own, with
``train.background_saving`` on and off. The records say how long training stood still for each checkpoint
(`blocked_s`, and in the foreground `seconds` too), and the whole from first to last step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnext50_32x4d")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="mindspore")
    args = parser.parse_args()
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="resnext-bench-") as folder:
        _resnext_run(Path(folder), "data", "demo", "digits")
        for number in range(args.rounds):
            for background in (True, False):
                name = f"{number}-{'beside' if background else 'waiting'}"
                found[background].append(measure(args, Path(folder), name, background=background))
                print(name, json.dumps(found[background][-1]), file=sys.stderr)
    still = {k: statistics.median(r["still_s"] for r in v) for k, v in found.items()}
    ratios = [b["run_s"] / w["run_s"] for b, w in zip(found[True], found[False], strict=True)]
    result = {
        "model": args.model,
        "checkpoint_mb": found[True][0]["mb"],
        "standing still for one, beside": f"{1000 * still[True]:.0f} ms",
        "standing still for one, waiting": f"{1000 * still[False]:.0f} ms",
        "ratio of these": f"{still[True] / still[False]:.3f}",
        "whole training, beside / waiting": f"{statistics.median(ratios):.3f} "
        f"(rounds {min(ratios):.3f} to {max(ratios):.3f})",
    }
    print("\n".join(f"{k:<34} {v}" for k, v in result.items()))
    return 0


def measure(args: argparse.Namespace, folder: Path, name: str, *, background: bool) -> dict[str, float]:
    """Train once; returns seconds of standing still for a checkpoint, seconds of the run, and megabytes."""
    sets = {
        "model.variant": args.model, "model.image_size": args.size, "preprocess.resize": args.size,
        "train.background_saving": str(background).lower(), "train.checkpoint_steps": args.every,
        "train.log_every": args.every, "train.eval_start": 2, "train.keep": 1,
    }  # fmt: skip
    shown = [f"--set={key}={value}" for key, value in sets.items()]
    data = few(folder, args.steps * args.batch)
    _resnext_run(
        folder, "--backend", args.backend, "train", "--recipe", "digits", "--data", data, "--epochs", 1,
        "--batch-size", args.batch, "--name", name, *shown,
    )  # fmt: skip
    records = [json.loads(line) for line in (folder / "runs" / name / "records.jsonl").open()]
    saved = [r for r in records if r["kind"] == "checkpoint" and r["step"] < args.steps]
    first = next(r["time"] for r in records if r["kind"] == "train")  # compilation is over
    still = [r["blocked_s"] + (0 if background else r["seconds"]) for r in saved]
    return {
        "still_s": statistics.median(still),
        "run_s": round(records[-1]["time"] - first, 3),
        "mb": round(saved[0]["bytes"] / 1e6, 1),
    }


def few(folder: Path, count: int) -> Path:
    """Return a data set of `count` of the digits to train on, without a part to validate."""
    target = folder / "few"
    if not target.exists():
        images = sorted((folder / "digits" / "train").glob("*/*.png"))
        for path in images[:: max(len(images) // count, 1)][:count]:
            copy = target / "train" / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    return target


def _resnext_run(folder: Path, *words: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)


if __name__ == "__main__":
    sys.exit(main())

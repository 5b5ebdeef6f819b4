"""``resnext-run bench``: throughput of training, evaluation or loading on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_json_flag
from resnext_core.console.output import Output, ProgressBar, table
from resnext_core.jobs.bench import BenchJob, bench
from resnext_core.jobs.settings import resolve
from resnext_core.plugins import load_plugins

EPILOG = """\
examples:
  resnext-run bench train --set model.variant=resnext50_32x4d --batch-size 8
  resnext-run --backend ID bench eval --weights ARTEFACT --batch-size 8
  resnext-run bench data --data DIR --set model.variant=resnext50_32x4d
  resnext-run bench data --recipe imagenet-150e --data DIR --images-per-second 2000
Training and evaluation run on random images in memory; data reads and augments the real ones, says what each stage
costs, and compares with what a training takes.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    default = BenchJob(what="train")
    parser.add_argument("what", choices=("train", "eval", "data"))
    parser.add_argument(
        "--weights", metavar="FILE", help="model to time (default: a new one of model.variant)"
    )
    for name, metavar, text in (
        ("steps", "N", "steps to time"),
        ("warmup", "N", "steps before timing starts"),
        ("classes", "K", "classes of a new model"),
    ):
        value = getattr(default, name)
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar=metavar, help=f"{text} (default {value})"
        )
    parser.add_argument(
        "--peak-tflops", type=float, metavar="T",
        help="peak TFLOP/s of the device in the precision used; adds mfu, the model FLOPs utilisation",
    )  # fmt: skip
    needed = parser.add_mutually_exclusive_group()
    needed.add_argument("--images-per-second", type=float, metavar="N", help="data: what the training takes")
    needed.add_argument(
        "--run", metavar="RUN", help="data: the run folder of the training, whose records say what it takes"
    )
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.print_config:
        return print_config(resolve(settings, load_plugins()))
    output = Output(json_result=args.json)
    job = BenchJob(
        what=args.what,
        weights=Path(args.weights) if args.weights else None,
        steps=args.steps,
        warmup=args.warmup,
        classes=args.classes,
        peak_tflops=args.peak_tflops,
        needed_images_per_s=args.images_per_second,
        run=Path(args.run) if args.run else None,
        settings=settings,
        backend=args.backend,
    )
    with ProgressBar(output) as bar:
        values = bench(job, bar).to_dict()
    output.result(values, _stages(values) + _line(values) if "stages_ms" in values else _line(values))
    return 0


def _line(values: dict[str, Any]) -> str:
    """Return all values that are numbers or words in one line, and a verdict below."""
    words = {k: v for k, v in values.items() if k not in ("stages_ms", "verdict") and v is not None}
    text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in words.items())
    return f"{text}\n{values['verdict']}" if "verdict" in values else text


def _stages(values: dict[str, Any]) -> str:
    rows = [[name, f"{ms:.3f}"] for name, ms in values["stages_ms"].items()]
    return table(rows, ["stage", "ms an image"]) + "\n\n"

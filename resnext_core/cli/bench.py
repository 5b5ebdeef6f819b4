"""``resnext-run bench``: throughput on this machine, of one backend or of all, and two results compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from resnext_core.cli.bench_all import add_all, run_all
from resnext_core.cli.bench_text import compared_text, rows_text, stages_text
from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_json_flag, positive
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import UsageError
from resnext_core.files import local_path
from resnext_core.jobs.bench import BenchJob, bench
from resnext_core.jobs.bench_compare import compare
from resnext_core.jobs.settings import resolve
from resnext_core.plugins import load_plugins

EPILOG = """\
examples:
  resnext-run bench train --set model.variant=resnext50_32x4d --batch-size 8
  resnext-run --backend ID bench eval --weights ARTEFACT --batch-size 8
  resnext-run bench data --data DIR --set model.variant=resnext50_32x4d
  resnext-run bench data --recipe imagenet-150e --data DIR --images-per-second 2000
  resnext-run bench all --weights RUN --batch-size 8 --threads 1 --html bench.html
  resnext-run bench compare before.json after.json
Training and evaluation run on random images in memory; data reads and augments the real ones, says what each stage
costs, and compares with what a training takes. all serves one model on every backend and in every format that is ready
here, in turns, each in a process of its own; one that crashes, or needs longer than --limit for an answer, is left out
with its reason. compare takes two files of --json, and says the ratios and what else differs.
"""

_ONE: tuple[Literal["train", "eval", "data"], ...] = ("train", "eval", "data")
_WHAT = (*_ONE, "all", "compare")
#: Flags of some kinds of benchmark alone, by their name among the arguments.
_ALONE = {
    "images_per_second": ("data",), "run": ("data",), "file": ("all",), "rounds": ("all",), "seconds": ("all",),
    "limit": ("all",), "threads": ("all",), "only": ("all",), "rows": ("all",), "html": ("all",), "force": ("compare",),
    "weights": ("eval", "all"), "steps": _ONE, "warmup": _ONE, "classes": (*_ONE, "all"), "peak_tflops": (*_ONE, "all"),
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    default = BenchJob(what="train")
    parser.add_argument("what", nargs="?", choices=_WHAT, help="what to time; compare takes two files")
    parser.add_argument("files", nargs="*", metavar="FILE", help="compare: the two results of --json")
    parser.add_argument("--all", action="store_true", help="the same as 'bench all'")
    parser.add_argument(
        "--weights", metavar="FILE", help="eval, all: model to time (default: a new one of model.variant)"
    )
    parser.add_argument(
        "--classes", type=positive, metavar="K", help=f"classes of a new model (default {default.classes})"
    )
    parser.add_argument(
        "--peak-tflops", type=float, metavar="T",
        help="peak TFLOP/s of the device in the precision used, for mfu, the model FLOPs utilisation (default: "
        "measured with a matrix product, where that is possible)",
    )  # fmt: skip
    one = parser.add_argument_group("train, eval, data")
    one.add_argument("--steps", type=int, metavar="N", help=f"steps to time (default {default.steps})")
    one.add_argument(
        "--warmup", type=int, metavar="N",
        help="train, eval: steps before timing starts (default: until they no longer get faster)",
    )  # fmt: skip
    needed = one.add_mutually_exclusive_group()
    needed.add_argument("--images-per-second", type=float, metavar="N", help="data: what the training takes")
    needed.add_argument(
        "--run", metavar="RUN", help="data: the run folder of the training, whose records say what it takes"
    )
    add_all(parser)
    parser.add_argument("--force", action="store_true", help="compare: also other networks and image sizes")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    what = _what(args)
    output = Output(json_result=args.json)
    if what == "compare":
        compared = compare(local_path(args.files[0]), local_path(args.files[1]), force=args.force)
        output.result(compared.to_dict(), compared_text(compared))
        return 0
    if args.print_config:
        return print_config(resolve(settings_of(args), load_plugins()))
    with ProgressBar(output) as bar:
        if what == "all":
            found = run_all(args, bar)
            values, text = found.to_dict(), rows_text(found)
        else:
            result = bench(_job(args), bar)
            values, text = result.to_dict(), stages_text(result) + str(result)
    output.result(values, text)
    return 0


def _what(args: argparse.Namespace) -> str:
    """Return what to do; UsageError for flags that mean nothing for it."""
    what = args.what or ("all" if args.all else None)
    if what is None:
        raise UsageError(f"say what to time: bench {', bench '.join(_WHAT)}")
    if args.all and what != "all":
        raise UsageError(f"--all is bench all; leave it out of bench {what}")
    if what == "compare" and len(args.files) != 2:
        raise UsageError(f"bench compare takes two files of --json, not {len(args.files)}")
    if what != "compare" and args.files:
        raise UsageError(f"bench {what} takes no file: {args.files[0]}")
    for name, kinds in _ALONE.items():
        if what not in kinds and getattr(args, name) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            belongs = " and ".join(f"bench {kind}" for kind in kinds)
            raise UsageError(f"{flag} belongs to {belongs}; leave it out of bench {what}")
    return str(what)


def _job(args: argparse.Namespace) -> BenchJob:
    given = {"steps": args.steps, "classes": args.classes}
    return BenchJob(
        what=next(kind for kind in _ONE if kind == args.what),
        weights=Path(args.weights) if args.weights else None,
        warmup=args.warmup,
        peak_tflops=args.peak_tflops,
        needed_images_per_s=args.images_per_second,
        run=Path(args.run) if args.run else None,
        settings=settings_of(args),
        backend=args.backend,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip

"""``resnext-run convert``: weights from and to other frameworks."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import counted
from resnext_core.jobs.convert import NAMINGS, NEUTRAL, ConvertJob, convert, current_name
from resnext_core.jobs.convert import SETTABLE as SETTABLE

EPILOG = f"""\
naming schemes: {", ".join(f"{n.id} ({n.summary})" for n in NAMINGS.values())}; neutral (our own)

examples:
  resnext-run convert resnext152.ckpt resnext152.safetensors        a ModelZoo checkpoint to neutral weights
  resnext-run convert resnext50.pth resnext50.safetensors           torchvision or timm weights to neutral ones
  resnext-run convert runs/RUN model.ckpt --to modelzoo-split       a run to what the ModelZoo scripts load
  resnext-run convert old.ckpt continued --moments keep             weights and momentum, as a checkpoint folder
"""

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="weights file, run or checkpoint folder")
    parser.add_argument(
        "target", metavar="TARGET",
        help="new file (its suffix gives the format), or a folder with --moments keep",
    )  # fmt: skip
    names = sorted(NAMINGS)
    parser.add_argument(
        "--from", dest="source_naming", type=current_name, choices=names,
        help="naming scheme of SOURCE (default: inferred)",
    )  # fmt: skip
    parser.add_argument(
        "--to", dest="target_naming", type=current_name, choices=[NEUTRAL, *names],
        help="naming scheme of TARGET (default: that of its suffix, else neutral)",
    )  # fmt: skip
    parser.add_argument("--variant", metavar="NAME", help="model variant (default: inferred)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: the variant's")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[],
        help="model.pool_padding or preprocess.*, where SOURCE differs from the defaults of its naming scheme",
    )  # fmt: skip
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="text file with one class name per line (default: numbers)",
    )
    parser.add_argument(
        "--moments",
        choices=("drop", "keep"),
        default="drop",
        help="momentum of the optimizer (default: drop)",
    )
    parser.add_argument(
        "--any-padding", action="store_true",
        help="write TARGET even if its framework pads the max-pool differently and computes other logits",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="read, check and report, but write nothing")
    parser.add_argument("--report", metavar="FILE", help="write one JSON line per tensor")
    parser.add_argument("--force", action="store_true", help="overwrite TARGET if it exists")
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    job = ConvertJob(
        source=Path(args.source),
        target=Path(args.target),
        source_naming=args.source_naming,
        target_naming=args.target_naming,
        variant=args.variant,
        image_size=args.image_size,
        overrides=tuple(args.overrides),
        classes=Path(args.classes) if args.classes else None,
        moments=args.moments,
        any_padding=args.any_padding,
        dry_run=args.dry_run,
        report=Path(args.report) if args.report else None,
        force=args.force,
    )
    with ProgressBar(output) as bar:
        result = convert(job, bar)
    done = f"{result.target}" if result.written else f"{result.target} was not written (dry run)"
    output.result(
        result.to_dict(),
        f"{done}: {counted(len(result.weights.spec.tensors), 'tensor')}, digest {result.weights.digest}",
    )
    return 0

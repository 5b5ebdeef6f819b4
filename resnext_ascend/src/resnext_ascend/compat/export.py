"""The ModelZoo's export.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from resnext_ascend.compat import child, flags, log
from resnext_core.errors import UsageError
from resnext_core.files.scratch import Scratch


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device_target", choices=("Ascend", "GPU", "CPU"), default="Ascend", help="no effect on "
                        "ONNX and MINDIR, which are the same everywhere; AIR is written on an Ascend")  # fmt: skip
    parser.add_argument("--device_id", type=int, default=0, help="device that writes an AIR (0)")
    parser.add_argument("--batch_size", type=int, default=1, help="fixed batch of the artefact (1)")
    parser.add_argument("--ckpt_file", metavar="FILE", help="checkpoint")
    parser.add_argument("--width", type=int, default=224, help="of an image (224)")
    parser.add_argument("--height", type=int, default=224, help="of an image (224)")
    parser.add_argument("--file_name", default="resnext152", help="artefact, without its ending (resnext152)")
    parser.add_argument(
        "--file_format", choices=("AIR", "ONNX", "MINDIR"), default="AIR", help="format (AIR)"
    )


def handle(args: argparse.Namespace) -> int:
    if not args.ckpt_file:
        raise UsageError("--ckpt_file is missing: the checkpoint to export")
    if args.width != args.height:
        raise UsageError(f"images must be square, not {args.width} x {args.height}")
    ending = args.file_format.lower()
    found = flags.Settings()
    found.set("export.batch_size", args.batch_size)
    found.set("export.input", "float")  # normalised, as the ModelZoo's artefacts took it
    found.set("model.image_size", args.width)
    base = [sys.executable, "-m", "resnext_core.cli"]
    with Scratch("compat") as folder:
        files = flags.config_files(found.values, folder)
        target = Path(f"{args.file_name}.{ending}")
        words = ["--weights", args.ckpt_file, "--format", ending, "--to", str(target), *files]
        if ending == "air":
            return child.run([*base, "ascend", "export", "--device", str(args.device_id), *words], log.say)
        return child.run([*base, "export", *words], log.say)

"""``resnext-run data show``: write a page of images as evaluation and training see them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnext_core.cli.data_scan import DATA_HELP
from resnext_core.console.flags import positive
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import UsageError, counted
from resnext_core.files import local_path, place
from resnext_core.jobs.batches import BatchesJob, batches
from resnext_core.jobs.settings import Settings
from resnext_core.jobs.sheet import SheetJob, sheet

_SHOW = """\
Write one HTML page with some images of a data folder: the file, what evaluation sees of it, and with --augment what
the first epochs of a training make of it, with the parameters that were drawn. The recipe's settings apply.
With --batches, the first batches of a training instead, as they reach the network.
"""


def add_show(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action to those of ``data``."""
    showing = actions.add_parser(
        "show", help="write a page of images as evaluation and training see them", allow_abbrev=False,
        description=_SHOW,
    )  # fmt: skip
    showing.add_argument("folder", metavar="DIR", help=DATA_HELP)
    default = SheetJob(folder=Path(), output=Path("sheet.html"))
    showing.add_argument("--augment", action="store_true", help="show the augmentations of training")
    showing.add_argument(
        "--batches", type=positive, metavar="N",
        help="show the first N batches of a training as they reach the network, with their labels",
    )  # fmt: skip
    showing.add_argument("--recipe", metavar="NAME", help="a recipe of 'resnext-run recipes', or a YAML file")
    showing.add_argument("--config", metavar="FILE", action="append", default=[], help="YAML over the recipe")
    showing.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="any value, e.g. --set augment.auto=trivialaugment-wide",
    )  # fmt: skip
    showing.add_argument("--seed", type=int, metavar="N", help="train.seed")
    showing.add_argument(
        "--part", choices=("train", "val", "test"), default=default.part, help="part of DIR (default: train)"
    )
    most = BatchesJob(folder=Path(), output=Path()).images
    showing.add_argument(
        "--images", type=positive, metavar="N",
        help=f"images to show (default {default.images}), or of each batch at most (default {most})",
    )  # fmt: skip
    showing.add_argument(
        "--draws", type=positive, default=default.draws, metavar="N",
        help=f"with --augment: epochs to show of each (default {default.draws})",
    )  # fmt: skip
    showing.add_argument(
        "--out", metavar="FILE", default=str(default.output), help=f"page to write (default {default.output})"
    )


def run_show(args: argparse.Namespace, output: Output) -> int:
    """Write the page and print its path; return the exit code."""
    settings = Settings(
        recipe=args.recipe, configs=tuple(args.config), seed=args.seed, overrides=tuple(args.set)
    )  # fmt: skip
    images = {} if args.images is None else {"images": args.images}
    if args.batches is not None:
        return _batches(args, output, settings, images)
    job = SheetJob(
        folder=place(args.folder), output=local_path(args.out), augment=args.augment, part=args.part,
        draws=args.draws, settings=settings, **images,
    )  # fmt: skip
    with ProgressBar(output) as bar:
        result = sheet(job, bar)
    for path, problem in result.failed.items():
        output.say(f"{path} cannot be read: {problem}")
    output.result(result.to_dict(), str(result.path))
    return 0


def _batches(args: argparse.Namespace, output: Output, settings: Settings, images: Mapping[str, Any]) -> int:
    if args.augment or args.part != "train":
        raise UsageError("--batches shows what training gets: leave out --augment and --part")
    job = BatchesJob(
        folder=place(args.folder),
        output=local_path(args.out),
        batches=args.batches,
        settings=settings,
        **images,
    )
    with ProgressBar(output) as bar:
        result = batches(job, bar)
    if result.unreadable:
        output.say(f"{result.unreadable} of {counted(result.images, 'image')} cannot be read")
    output.result(result.to_dict(), str(result.path))
    return 0

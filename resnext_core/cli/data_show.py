"""``resnext-run data show``: write a page of images as evaluation and training see them."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.cli.data_scan import DATA_HELP
from resnext_core.console.flags import positive
from resnext_core.console.output import Output, ProgressBar
from resnext_core.files import local_path, place
from resnext_core.jobs.settings import Settings
from resnext_core.jobs.sheet import SheetJob, sheet

_SHOW = """\
Write one HTML page with some images of a data folder: the file, what evaluation sees of it, and with --augment what
the first epochs of a training make of it, with the parameters that were drawn. The recipe's settings apply.
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
    for name, text in (("images", "images to show"), ("draws", "with --augment: epochs to show of each")):
        value = getattr(default, name)
        showing.add_argument(
            f"--{name}", type=positive, default=value, metavar="N", help=f"{text} (default {value})"
        )
    showing.add_argument(
        "--out", metavar="FILE", default=str(default.output), help=f"page to write (default {default.output})"
    )


def run_show(args: argparse.Namespace, output: Output) -> int:
    """Write the page and print its path; return the exit code."""
    settings = Settings(
        recipe=args.recipe, configs=tuple(args.config), seed=args.seed, overrides=tuple(args.set)
    )  # fmt: skip
    job = SheetJob(
        folder=place(args.folder), output=local_path(args.out), augment=args.augment, part=args.part,
        images=args.images, draws=args.draws, settings=settings,
    )  # fmt: skip
    with ProgressBar(output) as bar:
        result = sheet(job, bar)
    for path, problem in result.failed.items():
        output.say(f"{path} cannot be read: {problem}")
    output.result(result.to_dict(), str(result.path))
    return 0

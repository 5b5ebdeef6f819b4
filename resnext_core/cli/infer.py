"""``resnext-run infer``: images, folders or a list on standard input to JSON lines; tensors to raw logits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_weights_flag
from resnext_core.errors import EXIT_DATA, EXIT_OK, counted
from resnext_core.jobs.infer import InferJob, Prediction, infer, read_paths
from resnext_core.jobs.settings import resolve
from resnext_core.plugins import load_plugins
from resnext_core.runs.records import Note, Record
from resnext_core.terminal import StreamError

EPILOG = """\
examples:
  resnext-run infer --weights runs/RUN photo.jpg folder/
  find . -name '*.jpg' | resnext-run infer --weights ARTEFACT -
  resnext-run infer --weights runs/RUN folder/ --csv table.csv --save pictures
  resnext-run infer --weights model.safetensors --tensor input.npy --logits logits.npy
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image files, folders, tar shards or packed files; - reads paths from standard input",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes to print (default %(default)s)"
    )
    parser.add_argument("--csv", metavar="FILE", help="write a row for each image into a new CSV file")
    parser.add_argument(
        "--save", metavar="DIR", help="write a picture of each image with its classes into a new folder"
    )
    parser.add_argument(
        "--logits", metavar="FILE.npy", help="write raw logits, float32 (N, classes), in order of the images"
    )
    parser.add_argument(
        "--tensor", metavar="FILE.npy",
        help="read preprocessed float32 (N, 3, H, W) instead of images; needs --logits",
    )  # fmt: skip
    add_config_flags(parser)


def handle(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.print_config:
        return print_config(resolve(settings, load_plugins()))
    job = InferJob(
        weights=Path(args.weights),
        images=_paths(args.images) if args.images else None,
        tensor=Path(args.tensor) if args.tensor else None,
        logits=Path(args.logits) if args.logits else None,
        csv=Path(args.csv) if args.csv else None,
        save=Path(args.save) if args.save else None,
        top=args.top,
        settings=settings,
        backend=args.backend,
    )
    printer = _Printer(needed=not (job.logits or job.csv or job.save))
    result = infer(job, printer, _note)
    if printer.lost is not None:
        raise printer.lost
    if result.failed:
        has = "has" if result.failed == 1 else "have"
        print(
            f"resnext-run: {result.failed} of {counted(result.images, 'image')} {has} no prediction",
            file=sys.stderr,
        )
        return EXIT_DATA
    return EXIT_OK


class _Printer:
    """Prints predictions as JSON lines. Where they are not `needed`, a closed output is `lost` and ends nothing."""

    def __init__(self, *, needed: bool) -> None:
        self._needed = needed
        self.lost: StreamError | None = None

    def __call__(self, prediction: Prediction) -> None:
        try:
            if self.lost is None:
                print(json.dumps(prediction.to_dict()))
        except StreamError as error:
            if self._needed:
                raise
            self.lost = error


def _note(record: Record) -> None:
    if isinstance(record, Note):
        print(f"resnext-run: {record.text}", file=sys.stderr)


def _paths(words: Sequence[str]) -> Iterator[Path]:
    """Yield the paths in `words`; ``-`` stands for the lines of standard input."""
    for word in words:
        if word == "-":
            yield from read_paths(sys.stdin.buffer, "standard input")
        else:
            yield Path(word)

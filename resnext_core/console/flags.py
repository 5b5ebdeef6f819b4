"""Flags that several commands share; :meth:`Settings.from_flags` takes their values."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal


def add_config_flags(parser: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Add the flags that make up the configuration; `recipe` False where another flag gives it."""
    group = parser.add_argument_group("configuration (later ones win)")
    if recipe:
        group.add_argument(
            "--recipe", metavar="NAME", help="a recipe of 'resnext-run recipes', or a YAML file"
        )
    group.add_argument("--config", metavar="FILE", action="append", default=[], help="YAML over the recipe")
    group.add_argument("--data", metavar="DIR", help="folder with train/ and val/ (data.dir)")
    group.add_argument("--epochs", type=int, metavar="N", help="train.epochs")
    group.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="fit the length of the training to this time (train.minutes)",
    )
    group.add_argument(
        "--batch-size", type=batch_size, metavar="N",
        help="global batch of a step (train.batch_size); auto: the largest of a training that fits memory",
    )  # fmt: skip
    group.add_argument("--seed", type=int, metavar="N", help="train.seed")
    group.add_argument(
        "--pretrained", metavar="FILE", help="weights to start a training from (model.pretrained)"
    )
    group.add_argument(
        "--num-classes",
        type=int,
        metavar="K",
        help="classes; replaces the head of --pretrained (model.num_classes)",
    )
    group.add_argument("--output", metavar="DIR", help="parent of run folders (output.dir)")
    group.add_argument("--name", metavar="NAME", help="name of the run folder (output.name)")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any value, e.g. --set optimizer.lr=0.1",
    )
    group.add_argument(
        "--print-config", action="store_true", help="show every value and where it came from, then stop"
    )


def add_devices_flag(parser: argparse.ArgumentParser) -> None:
    """Add --devices."""
    parser.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="processes to start, one a device"
    )


def positive(text: str) -> int:
    """Parse an integer from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1, not '{text}'")
    return int(text)


def integers(text: str) -> tuple[int, ...]:
    """Parse integers from 1 on with commas between them, for argparse."""
    return tuple(positive(word.strip()) for word in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers with commas between them, for argparse."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, not '{text}'") from None


def batch_size(text: str) -> int | Literal["auto"]:
    """Parse an integer or ``auto``, for argparse."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer or auto, not '{text}'") from None


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON result on standard output")


def add_resume_flag(parser: argparse.ArgumentParser) -> None:
    """Add --resume."""
    parser.add_argument(
        "--resume", metavar="RUN", nargs="?", const="",
        help="continue a run (without RUN: the one whose records changed last)",
    )  # fmt: skip


def resume_of(args: argparse.Namespace) -> Path | bool:
    """Return the run that --resume names, True for the one whose records changed last, False without the flag."""
    return False if args.resume is None else Path(args.resume) if args.resume else True


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add --weights."""
    parser.add_argument(
        "--weights", metavar="FILE", required=True, help="run folder, weights file or artefact"
    )


def add_split_flag(parser: argparse.ArgumentParser) -> None:
    """Add --split."""
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="part of --data (default: test if there, else val)"
    )

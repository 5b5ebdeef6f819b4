"""What the old flags mean, for every program: booleans, platforms, where the ranks come from."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resnext_ascend import rank_table
from resnext_ascend.launch import this_server
from resnext_core.errors import UsageError

#: Environment variable with a YAML configuration that is laid over what the old flags come to.
OVERLAY = "RESNEXT_COMPAT_CONFIG"
#: ``--platform`` and the backend that it means.
PLATFORMS = {"Ascend": "ascend", "GPU": "gpu"}


def boolean(text: str) -> bool:
    """Parse the ModelZoo's booleans; its own took every text but the empty one for true."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"must be True or False, not '{text}'")
    return words[text.lower()]


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Add what every program takes."""
    parser.add_argument("--platform", choices=sorted(PLATFORMS), default="Ascend", help="device (Ascend)")


def add_ranks(parser: argparse.ArgumentParser, *, default: int) -> None:
    """Add what says how many ranks there are."""
    parser.add_argument(
        "--is_distributed", type=int, choices=(0, 1), default=default, help=f"several devices ({default})"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="new: how many, where neither RANK_SIZE nor a rank table says it",
    )


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How a job's ranks come about: `here` are to be started, of `world` in all, by `table` where there is one.

    With `member` this process is one of them already, started by the ModelZoo's way of a process a device.
    """

    world: int = 1
    here: int = 1
    table: str | None = None
    member: bool = False


def ranks_of(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Ranks:
    """Return the ranks that flags and environment ask for; UsageError where neither says how many."""
    environ = os.environ if environ is None else environ
    if not args.is_distributed:
        if args.devices not in (None, 1):
            raise UsageError(f"--devices {args.devices} needs --is_distributed 1")
        return Ranks()
    size = environ.get("RANK_SIZE", "")
    if "RANK_ID" in environ:
        if not size.isdecimal() or int(size) < 1:
            raise UsageError(f"RANK_ID is set, and RANK_SIZE must be a number from 1, not '{size}'")
        return Ranks(world=int(size), here=1, member=True)
    path = environ.get("RANK_TABLE_FILE")
    if path and args.platform == "Ascend":
        table = rank_table.load(Path(path))
        mine = table.of(environ.get("SERVER_ID") or this_server(table))
        if args.devices not in (None, len(mine)):
            raise UsageError(f"--devices is {args.devices}, the rank table has {len(mine)} of this server")
        return Ranks(world=table.world, here=len(mine), table=str(Path(path).absolute()))
    count = args.devices or (int(size) if size.isdecimal() else 0)
    if count < 1:
        raise UsageError(
            "--is_distributed 1 needs to know the devices: set RANK_TABLE_FILE, or RANK_ID and RANK_SIZE for every "
            "process, or say --devices N; one device is --is_distributed 0"
        )
    return Ranks(world=count, here=count)


def command(backend: str, ranks: Ranks, words: list[str], logs: Path) -> list[str]:
    """Return the command line of resnext-run that runs `words` on `ranks`."""
    base = [sys.executable, "-m", "resnext_core.cli"]
    if ranks.here == 1 and (ranks.member or ranks.world == 1):
        return [*base, "--backend", backend, *words]
    if backend == "ascend":
        return [*base, "ascend", "launch", "--devices", str(ranks.here), "--logs", str(logs), "--", *words]
    return [*base, "--backend", backend, *words, "--devices", str(ranks.here)]


def config_files(values: Mapping[str, Mapping[str, Any]], folder: Path) -> list[str]:
    """Write the settings to a file in `folder` and return the flags that take it, with the user's overlay."""
    path = folder / "old-flags.yaml"
    path.write_text(yaml.safe_dump({k: dict(v) for k, v in values.items()}), encoding="utf-8")
    words = ["--config", str(path)]
    overlay = os.environ.get(OVERLAY)
    if overlay:
        if not Path(overlay).is_file():
            raise UsageError(f"{OVERLAY} names no file: {overlay}")
        words += ["--config", str(Path(overlay).absolute())]
    return words


class Settings:
    """Configuration values by section, set one at a time."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def set(self, name: str, value: Any) -> None:
        """Set ``section.key`` unless `value` is None."""
        if value is not None:
            section, key = name.split(".")
            self.values.setdefault(section, {})[key] = value

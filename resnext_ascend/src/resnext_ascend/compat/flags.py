"""The old flags that all programs share: booleans, platforms, ranks."""

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

#: Environment variable with a YAML configuration that overrides the settings of the old flags.
OVERLAY = "RESNEXT_COMPAT_CONFIG"
#: ``--platform`` and the backend that it means.
PLATFORMS = {"Ascend": "ascend", "GPU": "gpu"}


def boolean(text: str) -> bool:
    """Parse the ModelZoo's booleans; the ModelZoo itself took any text as true."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"must be True or False, not '{text}'")
    return words[text.lower()]


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every program."""
    parser.add_argument("--platform", choices=sorted(PLATFORMS), default="Ascend", help="device (Ascend)")


def add_ranks(parser: argparse.ArgumentParser, *, default: int) -> None:
    """Add the flags that set the number of ranks."""
    parser.add_argument(
        "--is_distributed", type=int, choices=(0, 1), default=default, help=f"several devices ({default})"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="new: number of devices, if neither RANK_SIZE nor a rank table sets it",
    )


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The ranks of a job: `here` of `world` are started by this process, from `table` if it is given.

    With `member` this process is one of the ranks, started as by the ModelZoo's scripts, one process per device.
    """

    world: int = 1
    here: int = 1
    table: str | None = None
    member: bool = False


def ranks_of(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Ranks:
    """Return the ranks that flags and environment ask for; UsageError if neither sets their number."""
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
            "--is_distributed 1 needs the number of devices: set RANK_TABLE_FILE, or RANK_ID and RANK_SIZE for every "
            "process, or --devices N; for one device use --is_distributed 0"
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
            raise UsageError(f"{OVERLAY} is not a file: {overlay}")
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

"""The ModelZoo's eval.py."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from resnext_ascend.compat import child, flags, log, old_config
from resnext_core.errors import EXIT_OK, DataError, UsageError
from resnext_core.files.scratch import Scratch

NO_EFFECT = {
    "graph_ckpt": "the network is built from the checkpoint, and computed as a graph",
    "log_path": "the log is standard output",
}


def configure(parser: argparse.ArgumentParser) -> None:
    flags.add_platform(parser)
    parser.add_argument("--data_dir", metavar="DIR", help="images: class folders, or val/ in it")
    parser.add_argument(
        "--per_batch_size", type=int, default=32, metavar="N", help="batch of each device (32)"
    )
    parser.add_argument("--pretrained", metavar="PATH", help="checkpoint, or a folder of checkpoints")
    flags.add_ranks(parser, default=0)
    for name, reason in NO_EFFECT.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"no effect: {reason}")
    parser.add_argument("--config_path", metavar="FILE", help="an old default_config.yaml")


def handle(args: argparse.Namespace) -> int:
    if not args.data_dir or not args.pretrained:
        raise UsageError(
            "--data_dir and --pretrained are needed: images, and a checkpoint or a folder of them"
        )
    old = old_config.read(Path(args.config_path)) if args.config_path else old_config.OldConfig()
    for line in old.report:
        log.say(line, "WARNING")
    for name, reason in NO_EFFECT.items():
        if getattr(args, name) is not None:
            log.say(f"--{name} no longer has an effect: {reason}", "WARNING")
    ranks = flags.ranks_of(args)
    found = flags.Settings()
    for key, value in old.values.get("model", {}).items():
        found.set(f"model.{key}", value)
    found.set("eval.batch_size", args.per_batch_size)
    if args.platform == "Ascend":
        found.set("ascend.rank_table", ranks.table)
    with Scratch("compat") as folder:
        files = flags.config_files(found.values, folder)
        for path in checkpoints(Path(args.pretrained)):
            words = ["eval", "--json", "--weights", str(path), "--data", args.data_dir, *files]
            backend = flags.PLATFORMS[args.platform]
            code = _evaluate(flags.command(backend, ranks, words, folder / "ranks"), path)
            if code != EXIT_OK:
                return code
    return EXIT_OK


def _evaluate(command: list[str], path: Path) -> int:
    """Evaluate one checkpoint and print the old lines; returns the exit code."""
    results: list[dict[str, Any]] = []

    def on_line(line: str) -> None:
        if line.startswith("{"):
            results.append(json.loads(line))
        else:
            log.say(line)

    code = child.run(command, on_line)
    for result in results:
        log.say(log.loaded(path))
        for line in log.evaluated(result):
            log.say(line)
    return code


def checkpoints(path: Path) -> list[Path]:
    """Return the checkpoint at `path`, or all in that folder in the order of their epochs and steps.

    A run folder or a checkpoint folder of resnext is one checkpoint. Raises DataError if there is none.
    """
    if not path.exists():
        raise DataError(f"no checkpoint at {path}")
    if path.is_file() or (path / "checkpoints").is_dir() or (path / "weights.safetensors").is_file():
        return [path]
    found = sorted(path.glob("*.ckpt"), key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name))
    if not found:
        raise DataError(f"no .ckpt in {path}")
    return found

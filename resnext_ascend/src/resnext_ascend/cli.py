"""``resnext-run ascend``: launch on several servers, rank tables, export, self-test."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnext_ascend import artefacts, om, rank_table
from resnext_ascend.artefacts import ENDINGS
from resnext_ascend.launch import Servers, launch, parse_master
from resnext_ascend.options import AscendOptions
from resnext_ascend.selftest import command as selftest
from resnext_core.config import Config
from resnext_core.console.flags import add_config_flags, add_weights_flag, positive, resume_of
from resnext_core.console.output import Output
from resnext_core.console.program import Parser
from resnext_core.errors import UsageError, counted, reason, suggest
from resnext_core.files import write_atomic
from resnext_core.interfaces import ExportRequest, LaunchRequest
from resnext_core.jobs.settings import Settings, resolve, resolve_training
from resnext_core.plugins import load_plugins
from resnext_core.serving.load import read_weights

EPILOG = """\
examples:
  resnext-run ascend rank-table make --to table.json
  resnext-run ascend rank-table make --server 10.0.0.1=hccn-1.conf --server 10.0.0.2=hccn-2.conf --to table.json
  resnext-run ascend rank-table check table.json
  resnext-run ascend launch --devices 8 --servers 2 --server 0 --master 10.0.0.1:8118 -- train \\
    --recipe modelzoo-ascend-150e --data IMAGENET
  resnext-run ascend export --weights runs/RUN --format om --to model.om --soc-version Ascend310P3 --dry-run
  resnext-run ascend selftest --out ascend-selftest.tar.gz
"""

#: The backend is ascend: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        dest="what", metavar="launch | rank-table | export | selftest", required=True
    )
    _configure_launch(
        commands.add_parser("launch", help="start the ranks of this server", allow_abbrev=False)
    )
    _configure_export(commands.add_parser("export", help="write AIR or .om", allow_abbrev=False))
    selftest.configure(
        commands.add_parser(
            "selftest", help="check an Ascend part by part, write a report", allow_abbrev=False
        )
    )
    table = commands.add_parser("rank-table", help="make or check a rank table", allow_abbrev=False)
    actions = table.add_subparsers(dest="action", metavar="make | check", required=True)
    made = actions.add_parser("make", help="write a table from device addresses", allow_abbrev=False)
    made.add_argument(
        "--server", action="append", default=[], metavar="ID=SOURCE",
        help="a server's address and its devices: an hccn.conf, or their addresses with commas between "
        "(default: this machine and /etc/hccn.conf)",
    )  # fmt: skip
    made.add_argument("--devices", metavar="LIST", help="device numbers, e.g. 0,1,2,3 or 0-3 (default: all)")
    made.add_argument("--to", metavar="FILE", help="file to write (default: standard output)")
    checked = actions.add_parser("check", help="check a table", allow_abbrev=False)
    checked.add_argument("file", metavar="FILE", help="rank table of version 1.0, 1.2 or 0.1")


def _configure_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=positive, required=True, metavar="N", help="ranks on this server")
    parser.add_argument("--servers", type=positive, default=1, metavar="N", help="number of servers")
    parser.add_argument(
        "--server", type=int, default=0, metavar="I", help="number of this server, from 0 (default: 0)"
    )
    parser.add_argument(
        "--master", metavar="HOST:PORT", help="address where the ranks meet: a free port of the first server"
    )
    parser.add_argument(
        "--server-id", metavar="ID", help="this server in the rank table (default: by its addresses)"
    )
    parser.add_argument("--logs", metavar="DIR", help="logs of the ranks (default: runs/ascend-<time>)")
    parser.usage = "%(prog)s --devices N [options] -- COMMAND ..."
    parser.add_argument(
        "words",
        nargs="+",
        metavar="-- COMMAND ...",
        help="what each rank runs: train or eval, with its flags",
    )


def _configure_export(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    parser.add_argument(
        "--format",
        choices=sorted(ENDINGS),
        required=True,
        help="air, om (ATC); for MindSpore Lite: resnext-run export --format lite",
    )
    parser.add_argument(
        "--to", metavar="FILE", required=True, help="artefact; its manifest is written beside it"
    )
    parser.add_argument("--soc-version", default="Ascend310P3", metavar="CHIP", help="for om (Ascend310P3)")
    parser.add_argument(
        "--precision", metavar="MODE", help="the tool's precision mode (default: float16 where possible)"
    )
    parser.add_argument(
        "--normalise", choices=("aipp", "graph"), default="aipp",
        help="om: what normalises uint8 images, the device's AIPP or the network's operators (aipp)",
    )  # fmt: skip
    parser.add_argument(
        "--dynamic-batch", type=_sizes, default=(), metavar="LIST", help="om: batch sizes, e.g. 1,8,32 (default: one)"
    )  # fmt: skip
    parser.add_argument("--device", type=int, default=0, metavar="N", help="device that writes an AIR (0)")
    parser.add_argument("--dry-run", action="store_true", help="print the tool's command line, write nothing")
    add_config_flags(parser)


def handle(args: argparse.Namespace) -> int:
    if args.what == "launch":
        return _launch(args)
    if args.what == "export":
        return _export(args)
    if args.what == "selftest":
        return selftest.handle(args)
    return _make(args) if args.action == "make" else _check(args)


def _launch(args: argparse.Namespace) -> int:
    config, options = command_config(args.words)
    logs = args.logs or str(Path(config.output.dir) / time.strftime("ascend-%Y%m%d-%H%M%S", time.gmtime()))
    request = LaunchRequest(
        module="resnext_core.cli", argv=["--backend", "ascend", *args.words], devices=args.devices,
        log_dir=Path(logs), options=options,
    )  # fmt: skip
    master = parse_master(args.master) if args.master else None
    servers = Servers(count=args.servers, number=args.server, master=master, server_id=args.server_id)
    return launch(request, options, servers)


def _export(args: argparse.Namespace) -> int:
    plugins, target = load_plugins(), Path(args.to)
    resolved = resolve(Settings.from_flags(vars(args)), plugins)
    if args.print_config:
        print(resolved.to_text())
        return 0
    config, sources = resolved.config, resolved.sources
    if target.suffix != ENDINGS[args.format]:
        raise UsageError(
            f"a file of format {args.format} ends in {ENDINGS[args.format]}: rename {target.name}"
        )
    if args.format != "om" and (args.dynamic_batch or args.normalise != "aipp"):
        raise UsageError("--dynamic-batch and --normalise are options of --format om")
    if config.export.input == "image":
        raise UsageError(
            f"format {args.format} cannot contain the preprocessing (export.input=image): export it with "
            "export.input=uint8"
        )
    if config.export.precision != "float32":
        raise UsageError(
            f"format {args.format} cannot be written in {config.export.precision}: set export.precision to float32"
        )
    batch = config.export.batch_size if args.dynamic_batch else config.export.batch_size or 1
    request = ExportRequest(batch_size=batch, input=config.export.input, fold_bn=config.export.fold_bn)
    weights = read_weights(Path(args.weights), config, sources, plugins)
    output = Output()
    if args.format == "air":
        artefacts.export_air(weights, target, request, args.device)
    else:
        given = {} if args.precision is None else {"precision": args.precision}
        conversion = om.OmConversion(
            soc_version=args.soc_version, normalise=args.normalise, dynamic=args.dynamic_batch, **given
        )
        if args.dry_run:
            output.say(om.dry_run(target, weights.preprocess, request, conversion))
            return 0
        om.convert(weights, target, request, conversion, plugins)
    output.say(
        f"{args.format}: {target} ({target.stat().st_size / 1e6:.1f} MB, not compared: it cannot be run here)"
    )
    return 0


def command_config(words: Sequence[str]) -> tuple[Config, AscendOptions]:
    """Return the configuration of a resnext-run command line, and its section `ascend`.

    Errors of the ranks' command line are thus found before they are started. Raises UsageError.
    """
    plugins = load_plugins()
    name = words[0]
    if name not in plugins.commands or name not in ("train", "eval"):
        known = [n for n in ("train", "eval") if n in plugins.commands]
        raise UsageError(f"several ranks run train or eval, not '{name}'{suggest(name, known)}")
    module: Any = importlib.import_module(plugins.commands[name].module)
    parser = Parser(prog=f"resnext-run {name}", allow_abbrev=False)
    parser.add_argument("--backend", default="ascend")
    module.configure(parser)
    given = parser.parse_args(list(words[1:]))
    if getattr(given, "devices", 1) != 1:
        raise UsageError("give --devices before the --, not after it")
    resume = resume_of(given) if name == "train" else False
    resolved, _ = resolve_training(Settings.from_flags(vars(given)), plugins, resume=resume)
    return resolved.config, resolved.config.backends.get("ascend")


def _make(args: argparse.Namespace) -> int:
    wanted = _numbers(args.devices) if args.devices else None
    servers: dict[str, dict[int, str]] = {}
    for text in args.server or [f"{_own_address()}=/etc/hccn.conf"]:
        server_id, equals, source = text.partition("=")
        if not equals or not server_id or not source:
            raise UsageError(f"--server takes ID=FILE or ID=ADDRESS,ADDRESS..., not '{text}'")
        if server_id in servers:
            raise UsageError(f"--server {server_id} is given twice")
        found = _addresses(source)
        lacking = sorted(set(wanted or ()) - set(found))
        if lacking:
            raise UsageError(f"server {server_id} has no device {lacking[0]}; it has {_joined(found)}")
        servers[server_id] = {d: a for d, a in found.items() if wanted is None or d in wanted}
    text = rank_table.make(servers)
    if args.to is None:
        print(text, end="")
        return 0
    write_atomic(Path(args.to), text)
    table = rank_table.check(text)
    Output().say(f"{args.to}: {counted(table.world, 'rank')} on {_servers(table)}")
    return 0


def _check(args: argparse.Namespace) -> int:
    table = rank_table.load(Path(args.file))
    output, counts = Output(), sorted({len(table.of(server)) for server in table.servers})
    each = f"{' or '.join(map(str, counts))} {'device' if counts == [1] else 'devices'}"
    ranks = counted(table.world, "rank")
    output.say(f"{args.file}: version {table.version}, {ranks}, {_servers(table)} of {each}")
    if not table.fits_910a():
        allowed = ", ".join(map(str, rank_table.DEVICES_OF_910A))
        output.say(
            f"note: HCCL refuses this on a 910A: there each server has the same number, one of {allowed}"
        )
    return 0


def _servers(table: rank_table.RankTable) -> str:
    count = len(table.servers)
    return f"{count} server{'s' if count > 1 else ''}"


def _addresses(source: str) -> dict[int, str]:
    """Return the addresses by device of an hccn file, or of a list with commas."""
    if "/" in source or Path(source).exists():
        return rank_table.read_hccn(Path(source))
    return dict(enumerate(word.strip() for word in source.split(",")))


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UsageError(f"--devices must be like 0,1,2,3 or 0-3, not '{text}'")
        found += range(int(low), int(high or low) + 1)
    return found


def _sizes(text: str) -> tuple[int, ...]:
    """Return the batch sizes of ``1,8,32``; what they must be checks :class:`resnext_ascend.om.OmConversion`."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"--dynamic-batch must be like 1,8,32, not '{text}'")
    return tuple(int(word) for word in words)


def _joined(numbers: dict[int, str]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _own_address() -> str:
    """Return the address of this machine that faces the network; nothing is sent."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError as error:
            raise UsageError(
                f"cannot find this machine's address ({reason(error)}): give it with --server ID=FILE"
            ) from error

"""``resnext-run export``: write artefacts, and report them as done only once they agree with their source."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_json_flag, add_weights_flag
from resnext_core.console.output import Output, ProgressBar
from resnext_core.jobs.export import ExportJob, export, plan_export
from resnext_core.jobs.settings import resolve
from resnext_core.plugins import load_plugins

EPILOG = """\
examples:
  resnext-run export --weights runs/RUN --to model.FORMAT
  resnext-run export --weights model.safetensors --format FORMAT FORMAT --to artefacts/ --set export.batch_size=8
"""


def configure(parser: argparse.ArgumentParser) -> None:
    installed = sorted({name for b in load_plugins().backends.values() for name in b.exporters})
    add_weights_flag(parser)
    parser.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="formats to write (default: that of the file's suffix, for a folder all that can be written here); "
        f"installed: {', '.join(installed) or 'none'}",
    )
    parser.add_argument("--to", metavar="PATH", required=True, help="file, or a folder for several formats")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be written and run; write nothing"
    )
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    job = ExportJob(
        weights=Path(args.weights), formats=tuple(args.format), target=Path(args.to), settings=settings_of(args),
        backend=args.backend,
    )  # fmt: skip
    if args.print_config:
        return print_config(resolve(job.settings, load_plugins()))
    output = Output(json_result=args.json)
    if args.dry_run:
        planned = plan_export(job)
        output.result({"planned": [one.to_dict() for one in planned]}, "\n".join(map(str, planned)))
        return 0
    with ProgressBar(output) as bar:
        result = export(job, bar)
    output.result(result.to_dict())
    return 0

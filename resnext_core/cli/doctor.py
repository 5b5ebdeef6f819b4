"""``resnext-run doctor``: this machine and its backends; with ``--run`` a training before it is started."""

from __future__ import annotations

import argparse

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_devices_flag, add_json_flag
from resnext_core.console.output import Output, ProgressBar, table
from resnext_core.errors import UsageError
from resnext_core.extras import install_hint
from resnext_core.jobs.doctor import (
    CheckTrainingJob,
    DoctorJob,
    DoctorResult,
    check_training,
    doctor,
    resolve_check,
)
from resnext_core.plugins import load_plugins

EPILOG = """\
Every format that a backend serves is tried where an exporter for it is installed. Exit code 3 when an available
backend gives wrong numbers or fails; a missing one is no error, unless --backend names it.
With --run: exit code 3 when the training cannot work, 4 when only something that can be installed is missing.

examples:
  resnext-run doctor
  resnext-run doctor --run digits --data digits     data, learning rate, memory and disk of a training
  resnext-run doctor --run imagenet-150e --data IMAGENET --devices 8 --set train.ema_decay=0.9999
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", metavar="CONFIG", help="check the training of this recipe, YAML file or run folder instead"
    )
    add_devices_flag(parser)
    add_json_flag(parser)
    add_config_flags(parser, recipe=False)


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    if args.run is not None:
        return _check_training(args, output)
    if settings_of(args).to_flags() or args.devices > 1 or args.print_config:
        raise UsageError(
            "these flags describe a training: add --run CONFIG, a recipe, YAML file or run folder"
        )
    with ProgressBar(output) as bar:
        result = doctor(DoctorJob(backend=args.backend), bar)
    output.result(result.to_dict(), _text(result))
    if (error := result.error()) is not None:
        raise error
    return 0


def _text(result: DoctorResult) -> str:
    text = "\n" + table([[b.id, b.state, b.detail] for b in result.backends], ["backend", "state", "detail"])
    rows = [[d.name, d.state, d.detail, "taken by auto" if d.taken else ""] for d in result.decoders]
    text += "\n\n" + table(rows, ["decoder", "state", "detail", "data.decoder"])
    if result.not_installed:
        hints = ", ".join(f"{extra} ({install_hint(extra)})" for extra in result.not_installed)
        text += f"\n\nnot installed: {hints}"
    return text + "".join(f"\nproblem: {problem}" for problem in result.problems)


def _check_training(args: argparse.Namespace, output: Output) -> int:
    job = CheckTrainingJob(
        training=args.run, settings=settings_of(args), backend=args.backend, devices=args.devices
    )
    if args.print_config:
        return print_config(resolve_check(job, load_plugins())[0])
    result = check_training(job)
    rows = [[f.topic, "" if f.level == "ok" else f.level, f.text] for f in result.findings]
    output.result(result.to_dict(), table(rows, ["topic", "", "finding"]))
    if (error := result.error()) is not None:
        raise error
    return 0

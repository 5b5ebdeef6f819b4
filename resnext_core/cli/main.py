"""Entry point: find the command, parse its flags, turn expected errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from types import ModuleType

from resnext_core import __version__
from resnext_core.console.program import Parser, run_program
from resnext_core.errors import (
    EXIT_OK,
    BackendUnavailable,
    UsageError,
    one_line,
    shown,
    suggest,
)
from resnext_core.files import local_path
from resnext_core.interfaces import Command
from resnext_core.plugins import CORE, PluginSet, load_plugins
from resnext_core.terminal import starting

_EPILOG = """\
Without a command the whole job runs: train, evaluate, export, validate, report; on --data DIR, or on
handwritten digits where none is given. Without --backend the best one available is taken.

  resnext-run                                   the whole job on the built-in digits
  resnext-run --data DIR                        the whole job on DIR/train and DIR/val
  resnext-run infer --weights RUN photo.jpg     predict with a trained run
  resnext-run doctor                            what works on this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``resnext-run`` with `argv` (the process's own by default) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_program("resnext-run", lambda: _run(words))


def _run(words: list[str]) -> int:
    plugins = load_plugins()
    if not plugins.commands:  # a checkout on the path that nobody installed
        raise BackendUnavailable(
            "resnext-core is not installed, only found: its entry points are missing; pip install it"
        )
    top = _top_parser(plugins)
    position = _command_position(words)
    if position is None:
        top.parse_args(words)
        return EXIT_OK
    if position == len(words) or words[position].startswith("-"):
        words.insert(position, "run")
    name = words[position]
    if name not in plugins.commands:
        raise UsageError(f"unknown command '{shown(name)}'{suggest(name, plugins.commands)}")
    command = plugins.commands[name]
    module = _module(command, plugins)
    parser = Parser(
        prog=f"resnext-run {name}", description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=getattr(module, "EPILOG", None),
    )  # fmt: skip
    if getattr(module, "TAKES_BACKEND", True):
        parser.add_argument("--backend", metavar="ID", help="backend to use; see 'resnext-run backends'")
    elif any(word.split("=")[0] == "--backend" for word in words[:position]):
        raise UsageError(f"the command '{name}' takes no --backend")
    parser.settable = getattr(module, "SETTABLE", parser.settable)
    module.configure(parser)
    args = parser.parse_args(words[:position] + words[position + 1 :])
    if plugins.origins["command", name] == CORE:  # no flag of core takes anything but a file of this machine
        _refuse_addresses(args, getattr(module, "ADDRESSES", ()))
    with starting(parser.prog, first=True):
        result = module.handle(args)
    return int(result)


#: What may be a URL in every command: the data.
_DATA_FLAG, _DATA_KEY = "data", re.compile(r"data\.(dir|train|val|test)=")


def _refuse_addresses(args: argparse.Namespace, allowed: Sequence[str]) -> None:
    """Raise UsageError where the value of a flag not `allowed` to, or of ``--set KEY=VALUE``, is a URL."""
    for name, given in vars(args).items():
        if name == _DATA_FLAG or name in allowed:
            continue
        for word in given if isinstance(given, list) else [given]:
            if isinstance(word, str) and not _DATA_KEY.match(word):
                local_path(re.sub(r"^[\w.-]+=", "", word))


def _top_parser(plugins: PluginSet) -> Parser:
    width = max(map(len, plugins.commands))
    commands = "\n".join(f"  {c.name:<{width}}  {c.summary}" for c in plugins.commands.values())
    problems = "".join(f"\nproblem: {p}" for p in plugins.problems)
    parser = Parser(
        prog="resnext-run", description="ResNeXt trained on any accelerator, served from any runtime.",
        usage="resnext-run [--backend ID] [COMMAND] [flags]", allow_abbrev=False,
        epilog=f"commands (each has its own --help):\n{commands}\n\n{_EPILOG}{problems}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"resnext-core {__version__}")
    parser.add_argument("--backend", metavar="ID", help="backend to use; see 'resnext-run backends'")
    return parser


def _command_position(words: Sequence[str]) -> int | None:
    """Return where the command stands or belongs in `words`; None for top-level --help and --version."""
    position = 0
    while position < len(words):
        word = words[position]
        if word in ("--help", "-h", "--version"):
            return None
        if word in ("--backend", "--devices"):
            position += 2
        elif word.startswith(("--backend=", "--devices=")) or word == "--json":
            position += 1
        else:
            return position
    return min(position, len(words))


def _module(command: Command, plugins: PluginSet) -> ModuleType:
    try:
        return importlib.import_module(command.module)
    except ImportError as error:
        owner = plugins.origins["command", command.name]
        raise BackendUnavailable(
            f"command '{command.name}' of {owner} cannot be loaded: {one_line(error)}"
        ) from error

"""``python -m resnext_ascend.compat train|eval|export``: the ModelZoo's train.py, eval.py and export.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from resnext_core.console.program import Parser, run_program
from resnext_core.errors import EXIT_OK, EXIT_USAGE, UsageError, suggest

#: What the ModelZoo's programs are called here, and where they are.
PROGRAMS = {
    "train": "resnext_ascend.compat.train",
    "eval": "resnext_ascend.compat.evaluate",
    "export": "resnext_ascend.compat.export",
}
USAGE = """\
usage: python -m resnext_ascend.compat train|eval|export [the ModelZoo's flags]

Takes the flags of the ModelZoo's train.py, eval.py and export.py; each has its own --help.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the old programs and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_program("resnext_ascend.compat", lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return EXIT_OK if words else EXIT_USAGE
    name = words[0]
    if name not in PROGRAMS:
        raise UsageError(f"unknown program '{name}'{suggest(name, PROGRAMS)}")
    module: Any = importlib.import_module(PROGRAMS[name])
    parser = Parser(prog=f"{name}.py", description=module.__doc__, allow_abbrev=False)
    module.configure(parser)
    return int(module.handle(parser.parse_args(words[1:])))


if __name__ == "__main__":
    sys.exit(main())

"""``resnext-run backends``: every backend, what it can do, and what it lacks here."""

from __future__ import annotations

import argparse

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output, table
from resnext_core.jobs.backends import BackendEntry, list_backends

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    result = list_backends()
    text = table([_row(entry) for entry in result.backends], ["backend", "from", "can", "here"])
    text += "".join(f"\nproblem: {problem}" for problem in result.problems)
    Output(json_result=args.json).result(result.to_dict(), text)
    return 0


def _row(entry: BackendEntry) -> list[str]:
    missing = "".join(f"; not {suffix}: {why}" for suffix, why in entry.formats_missing.items())
    return [entry.backend.id, entry.distribution, ", ".join(entry.abilities), f"{entry.readiness}{missing}"]

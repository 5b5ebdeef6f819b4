"""``resnext-run backends``: every backend, what it can do, and what it lacks here."""

from __future__ import annotations

import argparse

from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output, table
from resnext_core.interfaces import Backend, Readiness
from resnext_core.plugins import load_plugins, probe, probe_format


def configure(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    output = Output(json_result=args.json)
    found = plugins.ranked()
    here = {b.id: probe(b) for b in found}
    lacking = {b.id: _formats_missing(b, here[b.id]) for b in found}
    rows = [
        [
            b.id, plugins.origins["backend", b.id], ", ".join(_abilities(b)),
            str(here[b.id]) + "".join(f"; not {suffix}: {why}" for suffix, why in lacking[b.id].items()),
        ]
        for b in found
    ]  # fmt: skip
    text = table(rows, ["backend", "from", "can", "here"])
    text += "".join(f"\nproblem: {p}" for p in plugins.problems)
    value = {
        "backends": [
            {
                "id": b.id, "distribution": plugins.origins["backend", b.id], "summary": b.summary,
                "priority": b.priority, "api_version": b.api_version,
                "abilities": _abilities(b), "formats": list(b.formats),
                "available": here[b.id].usable, "state": here[b.id].state, "reason": here[b.id].reason or None,
                "formats_not_here": lacking[b.id],
            }
            for b in found
        ],
        "problems": list(plugins.problems),
    }  # fmt: skip
    output.result(value, text)
    return 0


def _formats_missing(backend: Backend, here: Readiness) -> dict[str, str]:
    """Return why a backend that can run here cannot serve some of its formats, by suffix."""
    if not here.usable:
        return {}
    answers = {suffix: probe_format(backend, suffix) for suffix in backend.formats}
    return {suffix: answer.reason for suffix, answer in answers.items() if not answer.usable}


def _abilities(backend: Backend) -> list[str]:
    abilities = []
    if backend.engine is not None:
        abilities.append("train")
    if backend.predictor is not None:
        abilities.append("serve " + " ".join(backend.formats))
    if backend.exporters:
        abilities.append("export " + " ".join(backend.exporters))
    return abilities

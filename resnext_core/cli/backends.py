"""``resnext-run backends``: every backend, what it can do, and what it lacks here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output, table
from resnext_core.interfaces import Backend
from resnext_core.plugins import format_reason, load_plugins, probe


def configure(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    plugins = load_plugins()
    output = Output(json_result=args.json)
    found = sorted(plugins.backends.values(), key=lambda b: (-b.priority, b.id))
    reasons = {b.id: probe(b) for b in found}
    lacking = {
        b.id: {f: why for f in b.formats if (why := format_reason(b, f))} if reasons[b.id] is None else {}
        for b in found
    }
    rows = [
        [b.id, plugins.origins[b.id], ", ".join(_abilities(b)), reasons[b.id] or _ready(b, lacking[b.id])]
        for b in found
    ]
    text = table(rows, ["backend", "from", "can", "here"])
    text += "".join(f"\nproblem: {p}" for p in plugins.problems)
    value = {
        "backends": [
            {
                "id": b.id, "distribution": plugins.origins[b.id], "summary": b.summary, "priority": b.priority,
                "api_version": b.api_version, "abilities": _abilities(b), "formats": list(b.formats),
                "available": reasons[b.id] is None, "reason": reasons[b.id], "formats_not_here": lacking[b.id],
            }
            for b in found
        ],
        "problems": list(plugins.problems),
    }  # fmt: skip
    output.result(value, text)
    return 0


def _ready(backend: Backend, lacking: Mapping[str, str]) -> str:
    """Return "ready", with the summary of what is never chosen by itself: it says why. Formats it lacks follow."""
    words = "ready" if backend.priority >= 0 else f"if asked for: {backend.summary}"
    return words + "".join(f"; not {suffix}: {why}" for suffix, why in lacking.items())


def _abilities(backend: Backend) -> list[str]:
    abilities = []
    if backend.trainer is not None:
        abilities.append("train")
    if backend.predictor is not None:
        abilities.append("serve " + " ".join(backend.formats))
    if backend.exporters:
        abilities.append("export " + " ".join(backend.exporters))
    return abilities

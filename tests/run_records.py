"""The records of a run as plain dictionaries, which tests compare."""

from __future__ import annotations

from typing import Any

from resnext_core.runs.folder import RunFolder


def stored(run: RunFolder) -> list[dict[str, Any]]:
    """Return what each whole line of ``records.jsonl`` holds."""
    return [record.to_dict() for record in run.read_records()]

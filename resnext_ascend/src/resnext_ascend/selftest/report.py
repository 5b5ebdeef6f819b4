"""The report that is sent back: a JSON file, a summary for people, and the logs, with what names people taken out."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from resnext_ascend.selftest.child import FAILED
from resnext_ascend.selftest.runner import Outcome
from resnext_core.errors import DataError, UsageError, reason
from resnext_core.files import atomic_path, check_folder, check_target, make_folder, write_atomic

#: Bytes of a log that are kept: the end, where errors are.
_MOST = 2 << 20
#: Further logs of a part that are kept.
_LOGS = 20
_ENDING = ".tar.gz"
_ADDRESS = re.compile(r"\b(?!127\.0\.0\.1\b)(?:\d{1,3}\.){3}\d{1,3}\b(?!\.?\d)")
CONTENTS = (
    "The report has report.json, summary.txt and the log of every part: versions of packages, CANN and driver, the "
    "table of chips, variables of Ascend and HCCL, what the parts measured and printed. Images and networks are "
    "synthetic. This user's name and home folder, the host's name and addresses are replaced."
)


def check_out(out: Path) -> None:
    """Raise UsageError or DataError where a report cannot be written to `out`, before time is spent."""
    if out.name.endswith(_ENDING):
        check_target(out)
        return
    if out.suffix:
        raise UsageError(f"--out must be a folder or end in {_ENDING}, not {out}")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} already exists; give another --out, or a file that ends in {_ENDING}")
    try:
        check_folder(out)
    except OSError as error:
        raise DataError(f"cannot write the report {out}: {reason(error)}") from error


def write(out: Path, outcomes: Sequence[Outcome], logs: Path, device: str) -> str:
    """Write the report to `out` and return the summary; DataError where the disk refuses."""
    summary = scrub(summarize(outcomes, device))
    data = {"format": 1, "device": device, "parts": [asdict(outcome) for outcome in outcomes]}
    files = {"report.json": scrub(json.dumps(data, indent=1) + "\n"), "summary.txt": summary + "\n"}
    for outcome in outcomes:
        own = sorted((logs / outcome.name).rglob("*.log"))[:_LOGS]  # those of ranks, of a scheduler
        for path in (logs / f"{outcome.name}.log", *own):
            if path.is_file():
                files[f"logs/{path.relative_to(logs).as_posix()}"] = scrub(_tail(path))
    try:
        if out.name.endswith(_ENDING):
            _pack(out, files)
        else:
            for name, text in files.items():
                make_folder((out / name).parent)
                write_atomic(out / name, text)
    except OSError as error:
        raise DataError(f"cannot write the report {out}: {reason(error)}") from error
    return summary


def summarize(outcomes: Sequence[Outcome], device: str) -> str:
    """Return a line a part, and how many had which verdict."""
    lines = [line(outcome) for outcome in outcomes]
    counts = {v: sum(o.verdict == v for o in outcomes) for v in dict.fromkeys(o.verdict for o in outcomes)}
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    note = "" if device == "ascend" else " (test mode on the CPU: nothing here speaks for an Ascend)"
    return "\n".join([*lines, f"{len(outcomes)} parts: {total}{note}"])


def line(outcome: Outcome) -> str:
    """Return what became of a part."""
    said = outcome.proves if not outcome.reason else outcome.reason
    return f"{outcome.name:<15} {outcome.verdict:<18} {outcome.seconds:>7.1f} s  {said}"


def failed(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the parts that failed."""
    return [outcome.name for outcome in outcomes if outcome.verdict == FAILED]


def scrub(text: str) -> str:
    """Return `text` without this user's home folder and name, the host's name, and IPv4 addresses."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no entry and no variable
        user = ""
    for value, shown in ((os.path.expanduser("~"), "~"), (socket.gethostname(), "HOST"), (user, "USER")):
        if len(value) > 2 and value != "root":
            text = re.sub(rf"(?<![A-Za-z0-9_-]){re.escape(value)}(?![A-Za-z0-9_-])", shown, text)
    seen: dict[str, str] = {}
    return _ADDRESS.sub(lambda m: seen.setdefault(m[0], f"ADDRESS-{len(seen) + 1}"), text)


def _tail(path: Path) -> str:
    data = path.read_bytes()
    cut = f"[the first {len(data) - _MOST} bytes are left out]\n" if len(data) > _MOST else ""
    return cut + data[-_MOST:].decode("utf-8", "replace")


def _pack(out: Path, files: dict[str, str]) -> None:
    import io

    folder = out.name.removesuffix(_ENDING) or "report"
    with atomic_path(out) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))

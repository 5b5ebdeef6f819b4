"""Running the parts one after the other, each in a process of its own with a time limit and a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resnext_ascend.selftest.child import FAILED, RESULT
from resnext_ascend.selftest.parts import Part
from resnext_ascend.selftest.place import Place
from resnext_core.ranks.children import kill

#: A part that was not begun, and one that was ended by Ctrl-C.
NOT_RUN, STOPPED = "not run", "stopped"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a part: `verdict` is proved, failed, not possible here, not run or stopped, with a `reason`."""

    name: str
    proves: str
    verdict: str
    reason: str
    seconds: float
    measured: dict[str, Any]


def run_parts(
    parts: Sequence[Part], place: Place, tell: Callable[[Outcome], None], limit_s: float | None = None
) -> tuple[list[Outcome], bool]:
    """Run `parts` in folders below that of `place`, each with its log; return their outcomes, and whether all were run.

    `tell` gets each outcome as it is known. A part that crashes or hangs ends no other; KeyboardInterrupt ends the
    one that runs and leaves out the rest. `limit_s` replaces the limit of every part.
    """
    outcomes: list[Outcome] = []
    stopped = False
    for part in parts:
        if stopped:
            found = _outcome(part, place, verdict=NOT_RUN, reason="stopped before", seconds=0.0, measured={})
        else:
            start = time.monotonic()
            try:
                found = _run(part, place, part.limit_s if limit_s is None else limit_s)
            except KeyboardInterrupt:
                stopped = True
                seconds = round(time.monotonic() - start, 1)
                found = _outcome(part, place, verdict=STOPPED, reason="Ctrl-C", seconds=seconds, measured={})
        outcomes.append(found)
        tell(found)
    return outcomes, not stopped


def _run(part: Part, place: Place, limit_s: float) -> Outcome:
    folder = place.folder / part.name
    folder.mkdir()
    given = {"part": asdict(part), "place": {**asdict(place), "folder": str(folder)}}
    environment = {**os.environ, "GLOG_v": "2", "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with (place.folder / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "resnext_ascend.selftest.child"], stdin=subprocess.PIPE, stdout=log,
            stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True,
        )  # fmt: skip
        hung = False
        try:
            process.communicate(json.dumps(given).encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            kill(process)
    seconds = round(time.monotonic() - start, 1)
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        how = f"took more than {limit_s:g} s and was ended" if hung else _ended(process.returncode)
        return _outcome(part, place, verdict=FAILED, reason=how, seconds=seconds, measured={})
    return _outcome(part, place, **{**found, "seconds": seconds})


def _outcome(part: Part, place: Place, **found: Any) -> Outcome:
    proves = part.proves if place.device == "ascend" else part.on_cpu
    return Outcome(name=part.name, proves=proves, **found)


def _ended(code: int) -> str:
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return f"its process ended with {code} and no verdict; see its log"

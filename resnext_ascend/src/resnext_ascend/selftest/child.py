"""The process of one part: ``python -m resnext_ascend.selftest.child``, with a JSON object of what to run on stdin."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from resnext_ascend.selftest.parts import Part
from resnext_ascend.selftest.place import NotHere, Place, Refuted
from resnext_core.errors import BackendUnavailable, one_line
from resnext_core.files import write_atomic

#: Where a part writes its verdict, in its folder.
RESULT = "result.json"
PROVED, FAILED, NOT_HERE = "proved", "failed", "not possible here"


def outcome(part: Part, place: Place) -> dict[str, Any]:
    """Run a part and return its verdict, the reason for it, and what it measured."""
    start = time.monotonic()
    verdict, reason, measured = PROVED, "", {}
    try:
        measured = part.run(place)
    except (NotHere, BackendUnavailable) as error:
        verdict, reason = NOT_HERE, one_line(error)
    except Refuted as error:
        verdict, reason, measured = FAILED, one_line(error), error.measured
    except Exception as error:
        traceback.print_exc()
        verdict, reason = FAILED, f"{type(error).__name__}: {one_line(error, 300)}"
    return {
        "verdict": verdict, "reason": reason, "measured": _plain(measured),
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Return `value` with numbers that JSON does not have as text."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    given = json.load(sys.stdin)
    place = Place(**{**given["place"], "folder": Path(given["place"]["folder"])})
    found = outcome(Part(**given["part"]), place)
    sys.stdout.flush()
    write_atomic(place.folder / RESULT, json.dumps(found))
    sys.stderr.flush()
    os._exit(0)  # the verdict is written: a framework that crashes while it is torn down does not change it


if __name__ == "__main__":
    main()

"""What the parts that are modules here share: their arguments, and the file in which they leave what they found."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CODE_WRONG = 3


def arguments(**extra: dict[str, Any]) -> argparse.Namespace:
    """Return ``into``, ``smoke``, ``end`` (of the part's time, as time.monotonic), and `extra` flags."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--smoke", action="store_true")
    for name, how in extra.items():
        parser.add_argument(f"--{name}", **how)
    args = parser.parse_args()
    args.end = time.monotonic() + args.seconds
    return args


def write(into: Path, *, right: bool, said: str, table: Sequence[str] = (), **data: Any) -> int:
    """Leave what was found so far, and print it; returns the exit code."""
    found = {"right": right, "said": said, "table": list(table), **data}
    beside = into.with_suffix(".part")
    beside.write_text(json.dumps(found, default=str))
    os.replace(beside, into)
    print("\n".join([*table, said]), flush=True)
    return 0 if right else CODE_WRONG

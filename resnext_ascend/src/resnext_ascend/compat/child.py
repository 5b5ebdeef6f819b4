"""Running resnext-run underneath: its lines as old records, its exit code and signals passed on."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resnext_ascend.compat.log import say
from resnext_core.ranks.children import exit_code, forwarding, kill, send_signal


def run(command: Sequence[str], on_line: Callable[[str], None]) -> int:
    """Run `command`, hand each line of its output to `on_line`, let its errors through; returns its exit code.

    128 + n when signal n killed it. Signals are passed on: it saves, and this waits for it.
    """
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        with forwarding(functools.partial(send_signal, process)):
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.rstrip("\n"))
            code = process.wait()
    finally:
        kill(process)
    return exit_code(code)


class Follower:
    """Follows a training by its output: finds its run folder there, and its records in that."""

    def __init__(self, on_record: Callable[[Path, dict[str, Any]], None]) -> None:
        self.run: Path | None = None
        self._on_record = on_record
        self._position = 0

    def __call__(self, line: str) -> None:
        """Take one line of output: print it as a record, and hand on what the run has recorded since."""
        say(line)
        if self.run is None and "; run folder " in line:
            self.run = Path(line.rpartition("; run folder ")[2])
        self.look()

    def look(self) -> None:
        """Hand on the whole lines that the records have got since the last look."""
        if self.run is None:
            return
        try:
            with (self.run / "records.jsonl").open("rb") as stream:
                stream.seek(self._position)
                block = stream.read()
        except OSError:
            return
        whole = block[: block.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            self._on_record(self.run, json.loads(line))

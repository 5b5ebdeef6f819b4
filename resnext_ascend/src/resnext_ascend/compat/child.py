"""Running resnext-run as a child process: forwards its output, signals and exit code."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resnext_ascend.compat.log import say
from resnext_core.files.scratch import Scratch
from resnext_core.ranks.children import END, exit_code, forwarding, kill, note_end, noted_end, send_signal


def run(command: Sequence[str], on_line: Callable[[str], None]) -> int:
    """Run `command`, pass each line of its output to `on_line`, and return its exit code.

    128 + n when signal n killed it; but where it had noted its exit code before, that one: MindSpore may crash while
    it is torn down, when all is saved. Signals are passed on: it saves, and this waits for it.
    """
    with Scratch("child") as folder:
        end = folder / "end"
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1", END: str(end)},
        )  # fmt: skip
        try:
            with forwarding(functools.partial(send_signal, process)):
                assert process.stdout is not None
                for line in process.stdout:
                    on_line(line.rstrip("\n"))
                status = process.wait()
        finally:
            kill(process)
        noted = noted_end(end)
    code = exit_code(status) if status >= 0 or noted is None else noted
    note_end(code)
    return code


class Follower:
    """Follows a training: finds its run folder in the output, and its records in the folder."""

    def __init__(self, on_record: Callable[[Path, dict[str, Any]], None]) -> None:
        self.run: Path | None = None
        self._on_record = on_record
        self._position = 0

    def __call__(self, line: str) -> None:
        """Take one line of output: print it in the old form, and pass on new records of the run."""
        say(line)
        if self.run is None and "; run folder " in line:
            self.run = Path(line.rpartition("; run folder ")[2])
        self.read_records()

    def read_records(self) -> None:
        """Pass on the complete lines added to the records since the last call."""
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

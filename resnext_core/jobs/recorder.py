"""Where the records of a job go: to its run folder, to TensorBoard where wanted, and to whoever listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnext_core.runs.folder import RunFolder
from resnext_core.runs.log import RunLog, describe
from resnext_core.runs.records import Listener, Note, Opened, Record


def ignore(_: object) -> None:
    """Take a record or a line and do nothing with it."""


class Recorder:
    """Stores the records of a run, adds a line about each to its log, and hands them on to `listen`."""

    def __init__(self, run: RunFolder, listen: Listener, *, tensorboard: bool = False) -> None:
        self._run, self._listen = run, listen
        self._log = RunLog(run.log)
        self._board = _board(run.path) if tensorboard else None
        listen(Opened(path=run.path))

    def __call__(self, record: Record) -> None:
        """Store a record, unless it is of those that are only shown, and show it."""
        if record.stored:
            for text in self._run.lost():
                self._store(Note(step=record.step, text=text))
            self._store(record)
        else:
            self._listen(record)

    def say(self, text: str) -> None:
        """Show a line that is no record of the run; the log has it."""
        self._show(Note(text=text))

    def _store(self, record: Record) -> None:
        self._run.append(record)
        if self._board is not None:
            for key, value in record.to_dict().items():
                if key not in ("step", "epoch", "seconds") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{record.kind}/{key}", value, record.step)
            self._board.flush()
        self._show(record)

    def _show(self, record: Record) -> None:
        line = describe(record)
        if line is not None:
            self._log.add(line)
        self._listen(record)


def _board(folder: Path) -> Any:
    from tensorboardX import SummaryWriter  # the plan of the job has checked that it is installed

    return SummaryWriter(str(folder))

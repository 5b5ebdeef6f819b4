"""Steps whose loss is not finite: their samples are written down, and too many of them end the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.index import Index
from resnext_core.errors import DataError, reason
from resnext_core.files import write_atomic
from resnext_core.runs.records import Nonfinite

#: So many steps without a finite loss one after the other end a run that skips them: training has diverged.
MAX_CONSECUTIVE = 50
#: So many steps of a run have their samples written down; the later ones are only counted.
MAX_DUMPS = 20


class Diverged(DataError):
    """A loss that is not a number ends the run: its state is not worth keeping."""


class LossWatch:
    """Watches the losses of a run and writes ``folder/step-XXXXXXXX.json`` for those that are not finite.

    `tolerant` goes on after such a step, up to MAX_CONSECUTIVE in a row; otherwise the first one is the last.
    """

    def __init__(self, folder: Path, index: Index, *, tolerant: bool) -> None:
        self._folder, self._index, self._tolerant = folder, index, tolerant
        self._streak = 0

    def check(
        self, step: int, epoch: int, loss: float, lr: float, samples: Sequence[int], *, write: bool
    ) -> Nonfinite | None:
        """Check the loss of `step` (from 1) on the global batch of `samples`; None when it is finite, else a record.

        `epoch` counts from 1. The samples are written down with `write` (rank 0). Raises Diverged when
        the run must end.
        """
        if np.isfinite(loss):
            self._streak = 0
            return None
        self._streak += 1
        path, seen = None, ""
        if write:
            try:
                path = self._dump(step, epoch, loss, lr, samples)
                seen = f"; its samples are in {path}" if path else ""
            except DataError as error:
                if self._tolerant:
                    raise
                seen = f"; {error}"
        if not self._tolerant:
            raise Diverged(
                f"loss is not a number at step {step}, lr {lr:.3g}{seen}; lower optimizer.lr, check the data, "
                "or skip such steps with train.nonfinite=skip. Earlier checkpoints are kept"
            )
        if self._streak >= MAX_CONSECUTIVE:
            raise Diverged(
                f"the last {self._streak} losses up to step {step} were not numbers{seen}; training has "
                "diverged: lower optimizer.lr and resume. Earlier checkpoints are kept"
            )
        return Nonfinite(step=step, epoch=epoch, loss=str(loss), lr=lr, path=path.name if path else None)

    def _dump(self, step: int, epoch: int, loss: float, lr: float, samples: Sequence[int]) -> Path | None:
        path = self._folder / f"step-{step:08d}.json"
        if not path.exists() and len(list(self._folder.glob("step-*.json"))) >= MAX_DUMPS:
            return None
        found = [
            {"index": int(i), "path": self._index.paths[i], "label": int(self._index.labels[i])}
            for i in samples
        ]
        value = {"step": step, "epoch": epoch, "loss": str(loss), "lr": lr, "samples": found}
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write {path}: {reason(error)}") from error
        write_atomic(path, json.dumps(value, indent=1), parents=False)
        return path


def mean_of_finite(losses: Sequence[float] | NDArray[Any]) -> float | None:
    """Return the mean of the finite ones, None when there is none."""
    values = np.asarray(losses, np.float64)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None

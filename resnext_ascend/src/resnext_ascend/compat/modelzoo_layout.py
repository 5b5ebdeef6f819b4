"""Checkpoints under the ModelZoo's names, written beside ours while a training runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from resnext_ascend.compat import log
from resnext_core.errors import EXIT_OK
from resnext_core.ranks.children import exit_code
from resnext_core.runs.pointers import best_checkpoint


class ModelZooLayout:
    """Follows the records of a training and keeps ``0-EPOCH_STEP.ckpt`` of its last checkpoints in `folder`.

    Epochs count from 1, steps within their epoch, as MindSpore's ModelCheckpoint names them. As many are kept as of
    ours (``train.keep``); at the end ``best.ckpt`` is written too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._epoch, self._step, self._steps_per_epoch = 1, 0, 0
        self._written: list[Path] = []

    def __call__(self, run: Path, record: Mapping[str, Any]) -> None:
        """Take one record of `run`. If a checkpoint cannot be written, this is printed and the training continues."""
        if record["kind"] == "train":
            if record["epoch"] > self._epoch:  # the step before was the last of its epoch
                self._steps_per_epoch = self._step // self._epoch
            self._epoch, self._step = record["epoch"], record["step"]
        if record["kind"] == "checkpoint":
            target = self._folder / self._name(record["step"], record["epoch"])
            if _convert(run / "checkpoints" / record["path"], target) != EXIT_OK:
                log.say(f"{target} was not written", "WARNING")
                return
            self._written = [*(path for path in self._written if path != target), target]
            for old in self._written[: -_keep(run)]:
                for path in (old, old.with_name(old.name + ".json")):
                    path.unlink(missing_ok=True)
                self._written.remove(old)

    def finish(self, run: Path) -> int:
        """Write ``best.ckpt`` if an evaluation has found a best checkpoint; returns the exit code."""
        best = best_checkpoint(run / "checkpoints", lambda line: log.say(line, "WARNING"))
        return EXIT_OK if best is None else _convert(run / "checkpoints" / best, self._folder / "best.ckpt")

    def _name(self, step: int, epoch: int) -> str:
        """Return the name of the checkpoint after `step` steps, `epoch` whole epochs."""
        if epoch == 0:
            return f"0-1_{step}.ckpt"
        if epoch == self._epoch:  # the epoch of the last step is over
            return f"0-{epoch}_{step // epoch}.ckpt"
        return f"0-{epoch + 1}_{step - epoch * self._steps_per_epoch}.ckpt"


def _convert(checkpoint: Path, target: Path) -> int:
    """Write a checkpoint in the ModelZoo's form, with one convolution per group; prints the result.

    Signals during this are not passed to the converter.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "resnext_core.cli", "convert", str(checkpoint), str(target)]
    done = subprocess.run(
        [*command, "--to", "modelzoo-split", "--force"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines()[-1:]:
        log.say(line)
    return exit_code(done.returncode)


def _keep(run: Path) -> int:
    return int(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["train"]["keep"])

"""The ModelZoo's log lines, in their exact form, for scripts that search for them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


def say(message: str, level: str = "INFO") -> None:
    """Print one record: ``time:LEVEL:message``."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    print(f"{stamp},{int(now * 1000) % 1000:03d}:{level}:{message}", flush=True)


def loaded(path: object) -> str:
    """Return the line after weights were loaded."""
    return f"load model {path} success"


def evaluated(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of an evaluation from the JSON of ``resnext-run eval``.

    `tot` counts all images, including those that could not be read; the ModelZoo's did not.
    """
    total = result["expected"]
    lines = [f"Inference Performance: {result['images_per_s'] or 0.0:.2f} img/sec"]
    for k in (1, 5):
        correct = result[f"correct{k}"]
        share = 100 * correct / total
        lines.append(f"after allreduce eval: top{k}_correct={correct}, tot={total},acc={share:.2f}%(TOP{k})")
    return lines


class Epochs:
    """Turns records of a run into the ModelZoo's line at the end of each epoch."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._images, self._seconds = 0, 0.0
        self._step, self._loss = 0, float("nan")

    def __call__(self, record: Mapping[str, Any]) -> list[str]:
        """Take one record; returns the lines to print.

        Epochs and iterations count from 0. The loss is the mean over ranks of the last steps, the rate that of the
        epoch without evaluating and saving; the ModelZoo used one rank's loss, and included that time.
        """
        lines = []
        training = record["kind"] == "train"
        over = record["kind"] in ("eval", "checkpoint", "end")
        if self._epoch is not None and (over or (training and record["epoch"] != self._epoch)):
            rate = self._images / self._seconds if self._seconds > 0 else 0.0
            lines.append(
                f"epoch[{self._epoch - 1}], iter[{self._step - 1}], loss:{self._loss}, "
                f"mean_fps:{rate:.2f}imgs/sec"
            )
            self._epoch, self._images, self._seconds = None, 0, 0.0
        if training:
            self._epoch, self._step = record["epoch"], record["step"]
            self._images += record["images"]
            self._seconds += record["seconds"]
            self._loss = float("nan") if record["loss"] is None else record["loss"]
        return lines

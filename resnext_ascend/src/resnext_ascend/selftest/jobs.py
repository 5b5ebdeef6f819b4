"""Parts about whole jobs: two epochs that are stopped and resumed, and the ModelZoo's recipe."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from resnext_ascend.selftest import samples
from resnext_ascend.selftest.place import Place, Refuted, relative
from resnext_core.errors import EXIT_INTERRUPTED

_WAIT_S = 600
#: Of max |difference| between a run that was stopped and one that was not; on the CPU they are equal to the bit.
_LIMIT = 1e-3
#: Settings of the ModelZoo's recipe that are timed: images of one card, steps.
_BATCH, _STEPS = 128, 30


def training(place: Place) -> dict[str, Any]:
    """Two epochs with evaluations and an EMA, once as they are and once stopped by SIGTERM and resumed."""
    data = samples.write_images(place.folder / "data", train=48, val=12)
    words = [
        "--backend", "ascend", "train", "--data", data, *samples.NETWORK, "--set", f"ascend.device={place.device}",
        "--set", "data.workers=0", "--epochs", 2, "--batch-size", 6, "--set", "train.checkpoint_steps=1",
        "--set", "train.ema_decay=0.9", "--set", "schedule.warmup_epochs=0", "--output", place.folder / "runs",
    ]  # fmt: skip
    place.command(*words, "--name", "whole")
    whole, stopped = place.folder / "runs/whole", place.folder / "runs/stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words), "--name", "stopped"], cwd=place.folder
    )
    try:
        _await(stopped / "checkpoints/latest", process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(_WAIT_S)
    finally:
        process.kill()
        process.wait()
    at = _step(stopped)
    if code == 0:
        raise Refuted("the run ended before it could be stopped")
    if code != EXIT_INTERRUPTED:
        raise Refuted(f"SIGTERM ended the run with {code}, not {EXIT_INTERRUPTED}")
    place.command("--backend", "ascend", "train", "--resume", stopped)
    evaluated = place.json_of(
        "--backend", "ascend", "eval", "--weights", whole, "--data", data, "--set", f"ascend.device={place.device}",
        "--set", "data.workers=0",
    )  # fmt: skip
    difference = _difference(whole, stopped)
    measured = {
        "stopped_at_step": at, "resumed_to_step": _step(stopped), "difference": difference,
        "top1": evaluated["top1"], "scored": evaluated["scored"],
    }  # fmt: skip
    if measured["resumed_to_step"] != _step(whole):
        raise Refuted(f"the resumed run ended at step {_step(stopped)}, the other at {_step(whole)}")
    if difference > (0 if place.device == "cpu" else _LIMIT):
        raise Refuted(f"the resumed run differs by {difference:.2e} from the one that was not stopped")
    if evaluated["scored"] != 12:
        raise Refuted(f"{evaluated['scored']} of 12 images were scored")
    return measured


def recipe(place: Place) -> dict[str, Any]:
    """Steps of the ModelZoo's ResNeXt152-64x4d recipe with 128 images on a card: memory and speed."""
    place.need_device("the ModelZoo's network with 128 images")
    found = place.json_of(
        "--backend", "ascend", "bench", "train", "--recipe", "modelzoo-ascend-150e", "--batch-size", _BATCH,
        "--steps", _STEPS,
    )  # fmt: skip
    return found


def _await(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not path.exists():
        if process.poll() is not None:
            raise Refuted(f"the run ended with {process.returncode} before its first checkpoint")
        if time.monotonic() > deadline:
            raise Refuted(f"no checkpoint in {_WAIT_S} s")
        time.sleep(0.05)


def _latest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints/latest").read_text(encoding="utf-8").strip()


def _step(run: Path) -> int:
    return int(_latest(run).name.rpartition("-")[2])


def _difference(one: Path, other: Path) -> float:
    """Return the largest relative difference between the latest weights, EMA and momenta of two runs."""
    worst = 0.0
    for name in ("weights", "training"):
        first, second = (
            safetensors.numpy.load_file(_latest(run) / f"{name}.safetensors") for run in (one, other)
        )
        if first.keys() != second.keys():
            raise Refuted(
                f"the checkpoints of two runs hold other tensors: {sorted(first.keys() ^ second.keys())[:3]}"
            )
        worst = max([worst, *(relative(np.asarray(second[key]), np.asarray(first[key])) for key in first)])
    return worst

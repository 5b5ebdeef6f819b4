"""The commands that make sense after a run, with its own paths, ready to be pasted into a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnext_core.report.model import NextStep
from resnext_core.runs.folder import RunFolder, run_names
from resnext_core.runs.records import End, Record, Resume, Start

_PREDICTIONS = ("--predictions", "predictions.csv")


def next_steps(
    run: RunFolder,
    records: Sequence[Record],
    samples: Sequence[Mapping[str, Any]],
    artefacts: Sequence[Mapping[str, Any]],
) -> Iterator[NextStep]:
    """Yield what can be done with `run` now; paths are absolute, and an example is an image that was evaluated."""
    folder = os.path.abspath(run.path)
    turns = [r for r in records if isinstance(r, (Start, Resume, End))]
    if turns and not isinstance(turns[-1], End):
        yield _step("continue the training, if it has stopped", "train", "--resume", folder)
    if not run.checkpoints.is_dir():
        return
    yield _step("predict a picture", "infer", "--weights", folder, _picture(samples))
    yield _step(
        "write a row for each image: its classes and probabilities",
        "eval",
        "--weights",
        folder,
        *_PREDICTIONS,
    )
    data = run.setting("data", "dir")
    if isinstance(data, str) and os.path.isdir(data):
        yield _step("look for damaged and duplicate images in the data", "data", "scan", data)
    there = [str(a["path"]) for a in artefacts if os.path.exists(a["path"])]
    if there:
        yield _step("measure an artefact", "eval", "--weights", os.path.abspath(there[0]))
    else:
        yield _step(
            "write what another runtime serves, and check it",
            "export",
            "--weights",
            folder,
            "--to",
            "artefacts",
        )
    others = [name for name in run_names(Path(folder).parent) if name != Path(folder).name]
    if others:
        yield _step(
            "compare with another run", "report", folder, os.path.join(os.path.dirname(folder), others[-1])
        )


def _picture(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return a picture of the evaluation that is there, else a name that stands for one."""
    paths = [str(sample["path"]) for sample in samples if "path" in sample]
    return next((os.path.abspath(path) for path in paths if os.path.isfile(path)), "photo.jpg")


def _step(does: str, *words: str) -> NextStep:
    return NextStep(does=does, command=shlex.join(["resnext-run", *words]))

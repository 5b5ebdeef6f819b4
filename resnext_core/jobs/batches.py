"""A page with the first batches of a training, as they reach the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.data.mix import mixed_rows, show_mix
from resnext_core.errors import counted
from resnext_core.files import Place, check_target
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import Batch
from resnext_core.jobs.plan import faults, plan_job, training_backend
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Settings, resolve_training
from resnext_core.jobs.training import training_job
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.report.plan_text import mix_words
from resnext_core.report.sheet import Picture, SheetData, write_sheet
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import Listener
from resnext_core.training.training import Epoch

_LEAD = (
    "The images of the first steps in their order: cropped, augmented and mixed as the network gets them, before their "
    "values are normalised. Below each is the label that it is trained on."
)


@dataclass(frozen=True, kw_only=True)
class BatchesJob:
    """Show the first `batches` batches of a training on `folder`, at most `images` of each, on the page `output`.

    `settings` are those of the training.
    """

    folder: Place
    output: Path
    batches: int = 1
    images: int = 64
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class BatchesResult:
    """Where the page was written, how many batches and images are on it, and how many of these cannot be read."""

    path: Path
    batches: int
    images: int
    unreadable: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "sheet": str(self.path), "batches": self.batches, "images": self.images, "unreadable": self.unreadable,
        }  # fmt: skip


def batches(job: BatchesJob, listen: Listener = ignore) -> BatchesResult:
    """Write the page; raises what a training on the folder raises before its first step, DataError on its own file."""
    check_target(job.output)
    plugins = load_plugins()
    settings = replace(job.settings, data=str(job.folder))
    resolved, _ = resolve_training(settings, plugins, default_recipe=DEFAULT_RECIPE)
    config = replace(
        resolved.config, train=replace(resolved.config.train, teacher=None)
    )  # it sees what is shown
    plan = plan_job(config, plugins, training_backend(plugins, None), sources=resolved.sources)
    for topic, error in faults(plan):
        if topic in ("data", "fit"):  # nothing is trained, saved or exported
            raise error
    found: list[tuple[str, list[Picture]]] = []
    images = unreadable = 0
    with (
        Scratch("batches") as folder,
        training_job(plan, RunFolder(folder), RankInfo(), SingleProcess(), listen) as training,
    ):
        for step, epoch, batch in islice(
            _steps(training.epochs_after(0), training.train_loader), job.batches
        ):
            pictures = _pictures(batch, epoch, config.train.accumulate)[: job.images]
            images, unreadable = images + len(pictures), unreadable + int((~batch.valid[: job.images]).sum())
            title = f"Step {step + 1}, epoch {epoch.number}: {counted(len(batch.images), 'image')}"
            if len(pictures) < len(batch.images):
                title += f", the first {len(pictures)} of them"
            words = dict.fromkeys(mix_words(mix) for mix in batch.mix)
            found.append((f"{title}; {'; '.join(words) or 'not mixed'}", pictures))
    data = SheetData(
        title=f"The first batches of a training on {job.folder.name or job.folder}", lead=_LEAD,
        facts={
            "recipe": job.settings.recipe or DEFAULT_RECIPE, "batch": str(config.train.batch_size),
            "micro-batches": str(config.train.accumulate), "seed": str(config.train.seed),
        },
        rows=(), mixes=found, mixes_title="Batches", mixes_lead="",
    )  # fmt: skip
    write_sheet(job.output, data)
    return BatchesResult(path=job.output, batches=len(found), images=images, unreadable=unreadable)


def _steps(epochs: Iterator[Epoch], loader: Any) -> Iterator[tuple[int, Epoch, Batch]]:
    """Yield each step (from 0) with its epoch and its batch, as the training draws them."""
    for epoch in epochs:
        for step, batch in zip(epoch.steps, loader.batches(epoch.tasks()), strict=False):
            yield step, epoch, epoch.drawn(range(step, step + 1), [batch])[0]


def _pictures(batch: Batch, epoch: Epoch, accumulate: int) -> list[Picture]:
    """Return the pictures of a batch, mixed where it is, with what each is trained on."""
    classes, index = epoch.training.train.classes, epoch.training.train
    size = len(batch.images) // accumulate
    made: list[Picture] = []
    for k in range(accumulate):
        rows = slice(k * size, (k + 1) * size)
        pixels, labels, valid = batch.images[rows], batch.labels[rows], batch.valid[rows]
        shares, others = np.ones(len(labels)), labels
        if batch.mix and batch.mix[k].kind != "none":
            mixed = mixed_rows([batch.mix[k]], labels, valid, pixels.shape[1:3])
            pixels = show_mix(pixels, batch.mix[k], valid)
            shares, others = np.asarray(mixed.share), np.asarray(mixed.labels)
        for row in range(len(labels)):
            name = index.paths[int(batch.index[rows][row])]
            said = (
                _label(classes, labels, others, shares, row)
                if valid[row]
                else "cannot be read: not trained on"
            )
            made.append(Picture(image=Image.fromarray(pixels[row]), title=said, words=[name]))
    return made


def _label(
    classes: tuple[str, ...], labels: NDArray[Any], others: NDArray[Any], shares: NDArray[Any], row: int
) -> str:
    """Return the label of a row in words: one class, or two with their shares."""
    own, other, share = int(labels[row]), int(others[row]), float(shares[row])
    if own == other or share >= 1:
        return classes[own]
    return f"{share:.0%} {classes[own]}, {1 - share:.0%} {classes[other]}"

"""A contact sheet of some images of a data folder: the files, what evaluation sees, and what training makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.config import Config, stated
from resnext_core.data.balance import BalancedOrder
from resnext_core.data.decode import BadImage, decode, opened_bytes
from resnext_core.data.exif import upright
from resnext_core.data.index import Index, open_index, remarks
from resnext_core.data.mix import LEAST, draw_mixes, show_mix
from resnext_core.data.plan import Plan, train_plan
from resnext_core.data.render import load_eval_bytes, load_train_bytes
from resnext_core.data.sampler import epoch_length, epoch_permutation, sample_rng
from resnext_core.data.splits import part_paths
from resnext_core.errors import DataError, UsageError, counted
from resnext_core.files import Place, check_target
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.model.preprocess import PreprocessSpec, evaluated_at, preprocess_spec
from resnext_core.plugins import load_plugins
from resnext_core.report.plan_text import mix_words, plan_words
from resnext_core.report.sheet import LONGEST, Picture, SheetData, SheetRow, write_sheet
from resnext_core.runs.records import Listener, Note
from resnext_core.training.initial import initial_weights
from resnext_core.training.sizes import check_sizes, size_at, training_size

#: Batches of a recipe that mixes images.
_MIXES = 3


@dataclass(frozen=True, kw_only=True)
class SheetJob:
    """Show the first `images` images of the training's first epoch, with `augment` as `draws` epochs show them.

    `part` is shown where `folder` has such parts; `settings` say how images are preprocessed and augmented.
    """

    folder: Place
    output: Path
    augment: bool = False
    part: Literal["train", "val", "test"] = "train"
    images: int = 6
    draws: int = 4
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class SheetResult:
    """Where the sheet was written, and how many images are on it; `failed` by name could not be read."""

    path: Path
    images: int
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"sheet": str(self.path), "images": self.images, "failed": dict(self.failed)}


def sheet(job: SheetJob, listen: Listener = ignore) -> SheetResult:
    """Write the sheet; UsageError or DataError where there is nothing to show or it cannot be written."""
    check_target(job.output)
    settings = replace(job.settings, data=str(job.folder))
    plugins = load_plugins()
    resolved = resolve(settings, plugins)
    config = resolved.config
    plugins.decoder(
        config.data.decoder
    )  # refused where it is not ready; the page is made by Pillow, with equal pixels
    index = _open(job, config)
    for line in remarks([index]):
        listen(Note(text=line))
    if config.model.pretrained is not None:
        config = initial_weights(config, index.classes, stated=stated(resolved.sources))[1]
    size = training_size(config)
    check_sizes(config.augment, size)
    show = _Show(
        config=config,
        spec=preprocess_spec(config.preprocess, size),
        index=index,
        draws=job.draws if job.augment else 0,
    )
    chosen = _first_images(config, index, job.images)
    rows = [show.row(sample) for sample in chosen]
    failed = {row.path: row.problem for row in rows if row.problem}
    if len(failed) == len(rows):
        raise DataError(
            f"none of {counted(len(rows), 'image')} of {job.folder} can be read; the first: {rows[0].problem}"
        )
    mixes = show.mixes(rows) if job.augment else []
    what = "training sees" if job.augment else "evaluation sees"
    lead = (
        "The crops on the original have the colours of the pictures beside it; colours repeat after four."
        if job.augment
        else ""
    )
    data = SheetData(
        title=f"What {what} of {job.folder.name or job.folder}",
        lead=lead or "Without augmentation: each picture is preprocessed as in evaluation.",
        facts=_facts(job, config, show.spec),
        rows=rows,
        mixes=mixes,
    )
    write_sheet(job.output, data)
    return SheetResult(path=job.output, images=len(rows) - len(failed), failed=failed)


def _first_images(config: Config, index: Index, images: int) -> list[int]:
    """Return the first images that a training shows, each once."""
    order = epoch_permutation(len(index), config.train.seed, 0)
    if config.data.balance and index.labelled:
        length = epoch_length(len(index), min(config.train.batch_size, len(index)), config.augment.repeats)
        order = BalancedOrder(
            labels=index.labels, classes=len(index.classes), seed=config.train.seed, balance=config.data.balance,
            length=length,
        ).epoch(0).images  # fmt: skip
    return list(dict.fromkeys(order.tolist()))[:images]


def _open(job: SheetJob, config: Config) -> Index:
    paths = part_paths(job.folder, config.data)
    if not paths and job.part != "train":
        raise UsageError(f"{job.folder} has no parts; leave --part out")
    if paths and job.part not in paths:
        raise UsageError(f"{job.folder} has no {job.part} part; it has: {', '.join(paths)}")
    return open_index(paths.get(job.part, job.folder), data=config.data)


def _facts(job: SheetJob, config: Config, spec: PreprocessSpec) -> dict[str, str]:
    """Return the settings that decide what is shown."""
    augment = config.augment
    facts = {"size": f"{spec.size} px", "filter": spec.filter, "seed": str(config.train.seed)}
    if spec.oriented:
        facts["orientation"] = "as EXIF says"
    if job.settings.recipe:
        facts = {"recipe": job.settings.recipe} | facts
    if not job.augment:
        return facts
    facts |= {
        "crop": "{:g} to {:g} of the area".format(*augment.scale),
        "flip": f"{augment.flip:g}",
        "auto": augment.auto,
        "colour jitter": ", ".join(f"{s:g}" for s in augment.color_jitter),
        "erasing": f"{augment.erasing:g}, {augment.erasing_mode}" if augment.erasing else "none",
    }
    if augment.start_size is not None and augment.size_epochs is not None:
        facts["size"] = "{} px, from epoch {:g} to {:g} growing to {} px".format(
            augment.start_size, *augment.size_epochs, spec.size
        )
    if config.data.balance:
        facts["balance"] = f"{config.data.balance:g}"
    if augment.repeats > 1:
        facts["repeats"] = f"{augment.repeats}, the first of them shown"
    mix = config.mix
    facts["mix"] = f"mixup {mix.mixup:g}, cutmix {mix.cutmix:g}" if mix.on else "none"
    return facts


@dataclass(frozen=True, kw_only=True)
class _Show:
    """Makes the pictures of images of `index`."""

    config: Config
    spec: PreprocessSpec
    index: Index
    draws: int

    def row(self, sample: int) -> SheetRow:
        """Return the file, its evaluation pixels and what each epoch makes of it."""
        label = int(self.index.labels[sample])
        title = self.index.classes[label] if 0 <= label < len(self.index.classes) else "no label"
        path = self.index.paths[sample]
        try:
            content = self.index.source.reader().read(self.index.source.locator(sample))
            seen_as = evaluated_at(self.spec, self.config.eval.size, self.config.eval.crop_pct)
            evaluation = load_eval_bytes(content, seen_as, name=path)
            turn = upright(content, None) if self.spec.oriented else 1
            with opened_bytes(content, path) as source:
                size = source.size
                original, _ = decode(source, path, None, None, turn)
            plans = [self._plan(sample, epoch, size, turn) for epoch in range(self.draws)]
            # Decoded again for each plan: a JPEG may be decoded at a smaller scale for a large crop.
            images = [
                Image.fromarray(load_train_bytes(content, lambda *_, plan=plan: plan, name=path))
                for plan in plans
            ]
        except BadImage as error:
            return SheetRow(title=title, path=path, problem=error.reason)
        width, height = original.size
        original.thumbnail((LONGEST, LONGEST))
        drawn = [
            Picture(image=image, title=f"Epoch {epoch + 1}", words=plan_words(plan), box=plan.box)
            for epoch, (image, plan) in enumerate(zip(images, plans, strict=True))
        ]
        seen = Picture(image=Image.fromarray(evaluation), title="Evaluation", words=["never augmented"])
        return SheetRow(
            title=title, path=path, width=width, height=height, original=original, pictures=[seen, *drawn]
        )  # fmt: skip

    def mixes(self, rows: list[SheetRow]) -> list[tuple[str, list[Picture]]]:
        """Return the first epoch's pictures as a micro-batch, mixed as in the first steps; nothing where it is not."""
        firsts = [row.pictures[1].image for row in rows if row.pictures]
        if not self.config.mix.on or len(firsts) < LEAST:
            return []
        batch: NDArray[np.uint8] = np.stack([np.asarray(image) for image in firsts])
        shown_mixes = []
        for step in range(_MIXES):
            [mix] = draw_mixes(
                self.config.mix, batch.shape[1:3], seed=self.config.train.seed, step=step, epoch=1,
                micro_batches=range(1),
            )  # fmt: skip
            mixed = [Picture(image=Image.fromarray(pixels), title="") for pixels in show_mix(batch, mix)]
            shown_mixes.append((f"Step {step + 1}: {mix_words(mix)}", mixed))
        return shown_mixes

    def _plan(self, sample: int, epoch: int, size: tuple[int, int], turn: int) -> Plan:
        rng = sample_rng(self.config.train.seed, epoch, sample)
        spec = evaluated_at(self.spec, size_at(self.config.augment, self.spec.size, epoch))
        return train_plan(*size, spec, self.config.augment, rng, turn)

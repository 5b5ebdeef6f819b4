"""The page of first batches: pixels and labels are those that a training gives to its network."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from images import class_tree
from test_sheet import SETTINGS, pictures

from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.mix import draw_mixes, mixed_rows, show_mix
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.errors import EXIT_USAGE, DataError, UsageError
from resnext_core.jobs.batches import BatchesJob, batches
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.settings import resolve_training
from resnext_core.model.preprocess import preprocess_spec
from resnext_core.plugins import load_plugins


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_tree(tmp_path / "data" / "train", per_class=4, side=90).parent


def job(folder: Path, **changes: object) -> BatchesJob:
    more = ("model.variant=resnext_tiny", "data.workers=0", "train.batch_size=4", "train.accumulate=2")
    settings = replace(SETTINGS, overrides=(*SETTINGS.overrides, *more))
    fields = {"output": folder.parent / "b.html", "settings": settings} | changes
    return BatchesJob(folder=folder, **fields)  # type: ignore[arg-type]


def test_batches_are_those_of_a_training(folder: Path, core_only: None) -> None:
    """Of two epochs of three steps, each with two micro-batches that are mixed on their own."""
    result = batches(job(folder, batches=4))
    assert result.to_dict() == {
        "sheet": str(result.path), "batches": 4, "images": 16, "unreadable": 0,
    }  # fmt: skip
    page = result.path.read_text(encoding="utf-8")
    shown, index = pictures(page), open_index(folder / "train")
    said = re.findall(r"<p>([^<]+)</p>\s*<ul", page)
    assert len(shown) == len(said) == 16
    config = resolve_training(
        replace(job(folder).settings, data=str(folder)), load_plugins(), default_recipe=DEFAULT_RECIPE
    )[0].config
    spec = preprocess_spec(config.preprocess, 32)
    orders = [epoch_permutation(len(index), 7, epoch) for epoch in range(2)]
    with Loader(index, spec, config.augment, seed=7, workers=0) as loader:
        tasks = [
            Task.of(step // 3, orders[step // 3][4 * (step % 3) : 4 * (step % 3) + 4]) for step in range(4)
        ]
        wanted = list(loader.batches(tasks))
    for step, batch in enumerate(wanted):
        mixes = draw_mixes(
            config.mix, (32, 32), seed=7, step=step, epoch=step // 3 + 1, micro_batches=range(2)
        )
        rows = mixed_rows(mixes, batch.labels, batch.valid, (32, 32))
        for k, mix in enumerate(mixes):
            part = slice(2 * k, 2 * k + 2)
            assert np.array_equal(
                np.stack(shown[4 * step : 4 * step + 4][part]), show_mix(batch.images[part], mix)
            )
        for row in range(4):
            own, other = (index.classes[labels[row]] for labels in (batch.labels, rows.labels))
            share = rows.share[row]
            mixed = own != other and share < 1
            assert said[4 * step + row] == (f"{share:.0%} {own}, {1 - share:.0%} {other}" if mixed else own)
    assert "Step 4, epoch 2: 4 images; " in page


def test_an_image_that_cannot_be_read_says_so(folder: Path, core_only: None) -> None:
    for path in (folder / "train" / "ant").iterdir():
        path.write_bytes(b"no image")
    result = batches(job(folder, batches=3, images=3))
    page = result.path.read_text(encoding="utf-8")
    assert result.images == 9
    assert 0 < result.unreadable == page.count("<p>cannot be read: not trained on</p>") <= 4
    assert ", the first 3 of them; " in page


def test_what_cannot_be_trained_is_refused_as_a_training_does(
    folder: Path, core_only: None, tmp_path: Path
) -> None:
    wrong = replace(SETTINGS, overrides=("train.batch_size=64", "model.variant=resnext_tiny"))
    with pytest.raises(UsageError, match="larger than the 12 training images"):
        batches(job(folder, settings=wrong))
    with pytest.raises(DataError, match="cannot write"):
        batches(job(folder, output=folder))


def test_the_command(cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.html"
    words = ("data", "show", photos, "--batches", 2, "--recipe", recipe, "--out", out)
    assert cli.ok(*words).out == f"{out}\n"
    assert out.read_text().count("<img") == 16
    assert cli.ok(*words, "--images", 5, "--json").json()["images"] == 10
    cli.refuses(EXIT_USAGE, *words, "--augment", says="leave out --augment and --part")
    cli.refuses(EXIT_USAGE, *words, "--part", "val", says="leave out --augment and --part")

"""The contact sheet: its pictures are what a training and an evaluation get, to the bit, and the page is safe."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from images import class_tree, picture
from PIL import Image

from resnext_core.config import AugmentConfig, MixConfig
from resnext_core.data.balance import BalancedOrder
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.mix import draw_mixes, show_mix
from resnext_core.data.operation import Operation
from resnext_core.data.plan import Box, Plan
from resnext_core.data.sampler import Task, epoch_permutation
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Mix
from resnext_core.jobs.settings import Settings
from resnext_core.jobs.sheet import SheetJob, sheet
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.report.plan_text import mix_words, plan_words

#: Pictures of at most 64 pixels are PNG, so that a page can be compared.
SETTINGS = Settings(
    seed=7,
    overrides=(
        "model.image_size=32", "preprocess.resize=36", "augment.auto=trivialaugment-wide", "augment.erasing=0.5",
        "augment.erasing_mode=pixel", "augment.scaled_decode=true", "mix.mixup=0.2", "mix.cutmix=1.0",
    ),
)  # fmt: skip
SPEC = PreprocessSpec(size=32, resize=36)
AUGMENT = AugmentConfig(auto="trivialaugment-wide", erasing=0.5, erasing_mode="pixel", scaled_decode=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    class_tree(tmp_path / "data" / "train", per_class=3, side=90)
    class_tree(tmp_path / "data" / "val", per_class=1)
    return tmp_path / "data"


def pictures(page: str) -> list[np.ndarray]:
    """Every picture of a page, in order."""
    sources = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]


def test_pictures_are_those_of_a_training(folder: Path, tmp_path: Path) -> None:
    result = sheet(
        SheetJob(
            folder=folder, output=tmp_path / "s.html", augment=True, images=4, draws=3, settings=SETTINGS
        )
    )
    assert (result.images, dict(result.failed)) == (4, {})
    page = result.path.read_text(encoding="utf-8")
    shown, index = pictures(page), open_index(folder / "train")
    chosen = epoch_permutation(len(index), 7, 0)[:4]
    with Loader(index, SPEC, AUGMENT, seed=7, workers=0) as loader:
        epochs = [b.images for b in loader.batches(Task.of(epoch, chosen) for epoch in range(3))]
    with Loader(index, SPEC, None, workers=0) as loader:
        [evaluated] = loader.batches([Task.of(0, chosen)])
    for i in range(4):
        original, seen, *drawn = shown[5 * i : 5 * i + 5]
        assert np.array_equal(seen, evaluated.images[i])
        assert all(np.array_equal(picture_, epoch[i]) for picture_, epoch in zip(drawn, epochs, strict=True))
        assert max(original.shape) > 64
    mixes = shown[20:]
    assert len(mixes) == 12
    for step in range(3):
        [mix] = draw_mixes(
            MixConfig(mixup=0.2, cutmix=1.0), (32, 32), seed=7, step=step, epoch=1, micro_batches=range(1)
        )
        assert np.array_equal(np.stack(mixes[4 * step : 4 * step + 4]), show_mix(epochs[0], mix))
        assert mix_words(mix) in page.replace("&#39;", "'")


def test_growing_and_balanced_images_are_those_of_a_training(folder: Path, tmp_path: Path) -> None:
    """Each epoch at its own size, of the images that a balanced epoch shows first."""
    for path in sorted((folder / "train" / "ant").iterdir())[1:]:
        path.unlink()
    values = {
        "augment.start_size": "8", "augment.size_epochs": "[0,2]", "augment.size_step": "4", "data.balance": "1",
        "train.batch_size": "7",
    }  # fmt: skip
    settings = replace(SETTINGS, overrides=(*SETTINGS.overrides, *(f"{k}={v}" for k, v in values.items())))
    job = SheetJob(
        folder=folder, output=tmp_path / "s.html", augment=True, images=3, draws=3, settings=settings
    )
    page = sheet(job).path.read_text(encoding="utf-8")
    assert "8 px, from epoch 0 to 2 growing to 32 px" in page
    shown, index = pictures(page), open_index(folder / "train")
    order = BalancedOrder(labels=index.labels, classes=3, seed=7, balance=1.0, length=7).epoch(0).images
    chosen = np.array(list(dict.fromkeys(order.tolist()))[:3])
    with Loader(index, SPEC, AUGMENT, seed=7, workers=0) as loader:
        tasks = [replace(Task.of(epoch, chosen), size=size) for epoch, size in enumerate((8, 20, 32))]
        epochs = [batch.images for batch in loader.batches(tasks)]
    for i in range(3):
        drawn = shown[5 * i + 2 : 5 * i + 5]
        assert all(np.array_equal(picture_, epoch[i]) for picture_, epoch in zip(drawn, epochs, strict=True))
    too_large = replace(settings, overrides=(*settings.overrides, "augment.start_size=33"))
    with pytest.raises(UsageError, match="start_size 33 is larger than the 32 pixels"):
        sheet(replace(job, output=tmp_path / "t.html", settings=too_large))


def test_a_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    name = "<b onclick=x>&amp;"
    class_tree(tmp_path / "data", per_class=2, classes=(name, "bee"))
    result = sheet(
        SheetJob(folder=tmp_path / "data", output=tmp_path / "s.html", augment=True, settings=SETTINGS)
    )
    page = result.path.read_text(encoding="utf-8")
    assert name not in page
    assert "&lt;b onclick=x&gt;&amp;amp;" in page
    assert not re.search(r"<script|https?:|url\(|@import|<link", page)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert set(re.findall(r'src="(\w+):', page)) == {"data"}
    assert page.count("<li") == page.count("</li>")


def test_without_augment_there_is_only_evaluation(folder: Path, tmp_path: Path) -> None:
    job = SheetJob(folder=folder, output=tmp_path / "s.html", images=2, part="val", settings=SETTINGS)
    page = sheet(job).path.read_text(encoding="utf-8")
    assert "What evaluation sees of data" in page
    assert len(pictures(page)) == 4
    assert "Epoch" not in page
    assert "Mixed" not in page


def test_images_that_cannot_be_read_are_named(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "train").rglob("*.jpg"))
    for file in files[1:]:
        file.write_bytes(b"no image")
    result = sheet(
        SheetJob(folder=folder, output=tmp_path / "s.html", augment=True, images=20, settings=SETTINGS)
    )
    assert result.images == 1
    assert len(result.failed) == len(files) - 1
    page = result.path.read_text(encoding="utf-8")
    assert page.count("cannot be read:") == len(files) - 1
    assert "Mixed batches" not in page  # one image has no partner
    files[0].write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of 9 images .* can be read; the first: the file is empty|not an image"
    ):
        sheet(SheetJob(folder=folder, output=tmp_path / "s.html", images=20, settings=SETTINGS))


def test_what_cannot_be_shown_is_refused_first(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no test part; it has: train, val"):
        sheet(SheetJob(folder=folder, output=tmp_path / "s.html", part="test"))
    with pytest.raises(DataError, match="directory"):
        sheet(SheetJob(folder=folder, output=tmp_path))
    with pytest.raises(UsageError, match=r"augment\.auto"):
        sheet(
            SheetJob(
                folder=folder, output=tmp_path / "s.html", settings=Settings(overrides=("augment.auto=rnad",))
            )
        )
    assert not (tmp_path / "s.html").exists()


def test_command(cli: CommandLine, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    outcome = cli.ok(
        "data", "show", folder, "--augment", "--recipe", "digits", "--set", "augment.auto=augmix",
        "--images", 2, "--draws", 1, "--seed", 3, "--out", out, "--json",
    )  # fmt: skip
    assert outcome.json() == {"sheet": str(out), "images": 2, "failed": {}}
    assert len(pictures(out.read_text(encoding="utf-8"))) == 6
    cli.refuses(2, "data", "show", folder, "--set", "augment.erasing=2", "--out", out, says="between 0 and 1")
    cli.refuses(2, "data", "show", folder, "--images", 0, says="must be an integer from 1")


# -- words -----------------------------------------------------------------------------------------


def words(*operations: Operation, flip: bool = False) -> list[str]:
    box = Box(left=3, top=4, width=50, height=60)
    return plan_words(
        Plan(
            box=box, sides=(9, 9), size=9, filter="plain", flip=flip, scaled_decode=False, operations=operations
        )
    )  # fmt: skip


def affine(*matrix: float) -> Operation:
    return Operation(name="affine", values=(*matrix, 2, 0, 0, 0))


def test_words() -> None:
    crop = "crop 50 × 60 at 3, 4"
    assert words() == [crop]
    assert words(flip=True) == [crop, "flipped"]
    pairs = {
        "brightness × 1.25": Operation(name="brightness", values=(1.25,)),
        "posterize to 3 bits": Operation(name="posterize", values=(3,)),
        "solarize from 226.7": Operation(name="solarize", values=(255 * 8 / 9,)),
        "add 95 to dark levels": Operation(name="solarize_add", values=(95,)),
        "equalize": Operation(name="equalize"),
        "erased 5 × 6 at 1, 2: rgb(7, 8, 9)": Operation(name="erase", values=(1, 2, 5, 6, 7, 8, 9)),
        "erased 5 × 6 at 1, 2: noise": Operation(
            name="erase_noise", values=(1, 2, 5, 6, 99.0, 1, 1, 1, 2, 2, 2)
        ),
        "shear x -0.30": affine(1, -0.3, 0, 0, 1, 0),
        "shear y +0.12": affine(1, 0, 0, 0.12, 1, 0),
        "shift x +7.0 px": affine(1, 0, -7, 0, 1, 0),
        "shift y -2.5 px": affine(1, 0, 0, 0, 1, 2.5),
    }
    for said, operation in pairs.items():
        assert words(operation) == [crop, said]


def test_words_of_rotations_have_the_angle_that_pillow_takes() -> None:
    from resnext_core.data.auto_augment import Canvas

    for degrees in (-135, -25.7, 3.0, 120):
        [_, said] = words(affine(*Canvas(size=9, filter="bilinear", fill=(0, 0, 0)).rotation(degrees)))
        assert said == f"rotate {degrees:+.1f}°"
    turned = picture(9, 9).rotate(90)  # a positive angle is counterclockwise
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(picture(9, 9))))


def test_words_of_a_mixture() -> None:
    add = Operation(name="add", values=(16384,))
    mixture = [
        Operation(name="branch"), Operation(name="equalize"), Operation(name="invert"), add, add,
        Operation(name="merge", values=(32768,)), Operation(name="invert"),
    ]  # fmt: skip
    assert words(*mixture)[1:] == [
        "25% of (equalize, invert)",
        "25% of (the image)",
        "50% of the image",
        "invert",
    ]
    assert mix_words(Mix()) == "not mixed"
    assert (
        mix_words(Mix(kind="mixup", lam=0.25))
        == "mixup, 25% of the image's own label, with the batch reversed"
    )

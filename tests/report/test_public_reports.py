"""What people reported of other programs, tried on this one; each test names the report.

docs/reliability.md has the list with the outcomes. What already has a test of its own is not repeated here.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from command_line import CLASSES, CommandLine
from PIL import Image

from resnext_core.errors import EXIT_DATA, EXIT_USAGE


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "data"))


def train(data: Path, recipe: Path, *more: object) -> tuple[object, ...]:
    return (
        "train",
        "--data",
        data,
        "--recipe",
        recipe,
        "--epochs",
        1,
        "--output",
        data.parent / "runs",
        *more,
    )


def test_a_split_that_lacks_a_class_moves_no_label(cli: CommandLine, data: Path, finished_run: Path) -> None:
    """ultralytics #13936, timm #957: the folders of a split were numbered without those that it lacks."""
    whole = cli.ok("eval", "--weights", finished_run, "--data", data, "--json").json()["confusion"]
    shutil.rmtree(data / "val" / "bee")
    (data / "val" / "cat" / "keep").mkdir()
    lacking = cli.ok("eval", "--weights", finished_run, "--data", data, "--json").json()["confusion"]
    whole[CLASSES.index("bee")] = [0] * len(CLASSES)
    assert lacking == whole


def test_a_training_without_val_saves_and_says_so(cli: CommandLine, data: Path, recipe: Path) -> None:
    """cellfinder #122: without validation no checkpoint was saved."""
    shutil.rmtree(data / "val")
    said = cli.ok(*train(data, recipe, "--name", "run")).out
    assert "no val split: nothing is evaluated during training" in said
    assert (data.parent / "runs" / "run" / "checkpoints" / "latest").exists()


def test_folders_of_notebooks_and_files_of_macos_are_no_classes_and_no_images(
    cli: CommandLine, data: Path
) -> None:
    """mmpretrain #507: .ipynb_checkpoints became class 0; OpenNeuro #2520: ._1.png is no image."""
    before = cli.ok("data", "info", data, "--json").json()
    hidden = data / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(next((data / "train" / "ant").iterdir()), hidden)
    (data / "train" / "ant" / "._00.jpg").write_bytes(b"\0\5\26\7")
    assert cli.ok("data", "info", data, "--json").json() == before


def test_what_is_no_folder_says_what_it_is(cli: CommandLine, data: Path, recipe: Path) -> None:
    """ultralytics #16729: a file given as the data set led to a download and a failure elsewhere."""
    packed = data.parent / "data.zip"
    with zipfile.ZipFile(packed, "w"):
        pass
    cli.refuses(
        EXIT_USAGE, *train(packed, recipe), says="data.zip is a file, not a folder; unpack an archive"
    )


def test_a_folder_too_many_is_pointed_out(cli: CommandLine, data: Path, recipe: Path) -> None:
    """Archives bring a folder of their own: DIR/dataset/train in place of DIR/train."""
    outer = data.parent / "outer"
    outer.mkdir()
    data.rename(outer / "dataset")
    cli.refuses(EXIT_USAGE, *train(outer, recipe), says=f"did you mean --data {outer / 'dataset'}?")


def test_endings_in_capitals_count(cli: CommandLine, data: Path) -> None:
    """torchvision #552, anomalib #3058, datasets #4514: .JPEG and .JPG were passed over."""
    before = cli.ok("data", "info", data, "--json").json()["parts"]["train"]["classes"]
    for path in (data / "train" / "ant").iterdir():
        path.rename(path.with_suffix(path.suffix.upper()))
    assert cli.ok("data", "info", data, "--json").json()["parts"]["train"]["classes"] == before


def test_lists_take_blanks_in_names_and_point_out_backslashes(
    cli: CommandLine, data: Path, finished_run: Path
) -> None:
    """mmpretrain #370: 'a b.jpg 0' was three fields; attention-ocr #65: a list from Windows found no file."""
    image = next((data / "val" / "ant").iterdir())
    image.rename(data / "val" / "ant" / "a b  c.png")
    listed = data / "list.txt"
    listed.write_text("val/ant/a b  c.png ant \n")
    assert cli.ok("eval", "--weights", finished_run, "--data", listed, "--json").json()["scored"] == 1
    listed.write_text("val\\ant\\a b  c.png ant\n")
    cli.refuses(
        EXIT_DATA,
        "eval",
        "--weights",
        finished_run,
        "--data",
        listed,
        says="separate folders with /, not \\",
    )


def test_more_images_a_step_than_there_are_is_refused(cli: CommandLine, data: Path, recipe: Path) -> None:
    """tabnet #537: the only batch was dropped, the loss was 0.0, and training ended well."""
    cli.refuses(
        EXIT_USAGE, *train(data, recipe, "--batch-size", 64), says="larger than the 48 training images"
    )


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/../../b"])
def test_a_run_is_made_below_the_output_folder(cli: CommandLine, data: Path, recipe: Path, name: str) -> None:
    """tf_unet #216: an output folder that was there lost its files."""
    cli.refuses(EXIT_USAGE, *train(data, recipe, "--name", name), says="output.name must name a folder below")


def test_two_pictures_in_a_jpeg_are_the_first(cli: CommandLine, finished_run: Path, tmp_path: Path) -> None:
    """Pillow #1960: a JPEG of two pictures (MPO) could not be loaded."""
    first = Image.effect_noise((16, 16), 80).convert("RGB")
    first.save(tmp_path / "two.mpo", save_all=True, append_images=[first.resize((8, 8))])
    first.save(tmp_path / "one.jpg")
    (tmp_path / "two.mpo").rename(tmp_path / "two.jpg")
    words = ("infer", "--weights", finished_run, "--set", "data.workers=0")
    one, two = (cli.ok(*words, tmp_path / name).out for name in ("one.jpg", "two.jpg"))
    assert one.replace("one.jpg", "") == two.replace("two.jpg", "")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_short_is_no_image(
    cli: CommandLine, finished_run: Path, tmp_path: Path, progressive: bool
) -> None:
    """yolov5 #916: 'Premature end of JPEG file' without a name, and half an image; Pillow #2717: a black one."""
    path = tmp_path / "cut.jpg"
    Image.effect_noise((200, 200), 80).convert("RGB").save(path, progressive=progressive)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome = cli("infer", "--weights", finished_run, path, "--set", "data.workers=0")
    assert outcome.code == EXIT_DATA
    assert "cut.jpg" in outcome.out
    assert outcome.err == "resnext-run: 1 of 1 image has no prediction\n"

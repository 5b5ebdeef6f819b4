"""What published weights are recognised by, and the preprocessing that they are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import yaml
from command_line import CommandLine

from resnext_core.convert import published
from resnext_core.convert.published import TABLE, find_published
from resnext_core.errors import EXIT_DATA, DataError
from resnext_core.files import file_digest
from resnext_core.model.weights import Weights, load_weights

NOTHING = "sha256:" + "0" * 64
#: Filter, resize, size: written down from the publishers' sources, not from our table.
KNOWN = {
    "resnext50_32x4d.tv_in1k": ("antialias", 256, 224),
    "resnext50_32x4d.tv2_in1k": ("antialias", 232, 224),
    "resnext101_32x8d.tv2_in1k": ("antialias", 232, 224),
    "resnext101_64x4d.tv_in1k": ("antialias", 232, 224),
    "resnext50_32x4d.a1h_in1k": ("bicubic", 288, 288),
    "resnext50_32x4d.a1_in1k": ("bicubic", 288, 288),
    "resnext50_32x4d.a3_in1k": ("bicubic", 235, 224),
    "resnext50_32x4d.ra_in1k": ("bicubic", 303, 288),
    "resnext101_64x4d.c1_in1k": ("bicubic", 288, 288),
    "resnext101_32x4d.gluon_in1k": ("bicubic", 256, 224),
    "resnext101_32x8d.fb_swsl_ig1b_ft_in1k": ("antialias", 256, 224),
    "resnext101_32x16d.fb_wsl_ig1b_ft_in1k": ("antialias", 256, 224),
    "resnext50_32x4d": ("plain", 256, 224),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_table_has_what_the_publishers_say(name: str) -> None:
    (checksum,) = [checksum for checksum, row in TABLE.items() if row[0] == name]
    naming = "torch" if "." in name else "mindcv"
    for path, digest in (
        (Path("renamed.bin"), f"sha256:{checksum}{'0' * 56}"), (Path(f"any-{checksum}.pth"), NOTHING),
        *([(Path(f"models--timm--{name}/snapshots/12/model.safetensors"), NOTHING), (Path(f"{name}.bin"), NOTHING)]
          if naming == "torch" else []),
    ):  # fmt: skip
        found = find_published(path, digest, name.split(".")[0], naming)
        assert found is not None, path
        settings = found.settings(found.size)
        assert (settings["filter"], settings["resize"], found.size) == KNOWN[name]
        assert settings["mode"] == "shorter-side"
        assert find_published(path, digest, "resnext26_32x4d", naming) is None  # another network
        assert find_published(path, digest, name.split(".")[0], "modelzoo") is None


def test_names_that_only_look_alike_are_not_taken() -> None:
    for name in ("resnext50_32x4d.a1_in1k_mine.pth", "my-resnext50_32x4d.a1_in1k.pth", "resnext50_32x4d.pth"):
        assert find_published(Path(name), NOTHING, "resnext50_32x4d", "torch") is None, name


# -- of a file ---------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path, tiny_weights: Weights) -> Path:
    """The tiny network as torch's safetensors."""
    (tmp_path / "hub").mkdir()
    path = tmp_path / "hub" / "model.safetensors"
    safetensors.numpy.save_file(dict(tiny_weights.tensors), path, metadata={"format": "pt"})
    return path


def config(path: Path, architecture: str = "resnext_tiny", **pretrained: Any) -> None:
    """Write a config.json as timm's save_for_hf does."""
    given = {
        "tag": "a9_in1k", "input_size": [3, 8, 8], "test_input_size": [3, 12, 12], "interpolation": "bicubic",
        "crop_pct": 0.875, "test_crop_pct": 0.95, "crop_mode": "center", "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 0.229], "num_classes": 6, "pool_size": [1, 1], "first_conv": "conv1", "classifier": "fc",
    } | pretrained  # fmt: skip
    content = {"architecture": architecture, "num_classes": 6, "pretrained_cfg": given}
    path.with_name("config.json").write_text(json.dumps(content))


def test_a_config_json_beside_the_file_sets_the_preprocessing(
    cli: CommandLine, foreign: Path, tmp_path: Path
) -> None:
    config(foreign)
    outcome = cli.ok("convert", foreign, tmp_path / "new.safetensors")
    assert "images shorter-side 12 -> 12 (bicubic)" in outcome.out  # floor(12 / 0.95)
    assert "preprocessing of resnext_tiny.a9_in1k (its config.json)" in outcome.out
    made = load_weights(tmp_path / "new.safetensors")
    assert made.spec.image_size == 12
    assert made.preprocess.mean == (127.5, 127.5, 127.5)
    assert made.preprocess.std == (63.75, 127.5, 58.395)
    assert made.origin["published"] == "resnext_tiny.a9_in1k"
    words = ["--force", "--set", "preprocess.filter=plain", "--image-size", 38]
    outcome = cli.ok("convert", foreign, tmp_path / "new.safetensors", *words)
    assert "images shorter-side 40 -> 38 (plain)" in outcome.out  # floor(38 / 0.95)


def test_what_this_program_cannot_do_of_a_config_json_is_said(
    cli: CommandLine, foreign: Path, tmp_path: Path
) -> None:
    config(foreign, interpolation="lanczos", crop_mode="border")
    out = cli.ok("convert", foreign, tmp_path / "new.safetensors", "--dry-run").out
    assert "its interpolation 'lanczos' is not supported: bicubic is used" in out
    assert "its crop_mode 'border' is not supported: center is used" in out
    config(foreign, crop_mode="squash", test_crop_pct=0.5)
    assert (
        "images squash 24 -> 12" in cli.ok("convert", foreign, tmp_path / "new.safetensors", "--dry-run").out
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot read"),
        ({"crop_pct": "x", "test_crop_pct": None}, "crop_pct must be above 0 and up to 1, not 'x'"),
        ({"test_crop_pct": 1.5}, "crop_pct must be above 0"),
        ({"test_input_size": [3, 12, 13]}, "3 x 12 x 13 are not supported"),
        ({"test_input_size": [1, 12, 12]}, "1 x 12 x 12 are not supported"),
        ({"test_input_size": "12"}, "not usable"),
        ({"test_input_size": [3, 1e9, 1e9]}, "size must be an integer from 1 to 8192"),
        ({"mean": [0.5]}, "not usable"),
        ({"std": [0, 0, 0]}, "std"),
        ({"interpolation": ["bicubic"]}, "not usable"),
    ],
)
def test_a_broken_config_json_is_one_line(
    cli: CommandLine, foreign: Path, tmp_path: Path, content: Any, says: str
) -> None:
    if isinstance(content, str):
        foreign.with_name("config.json").write_text(content)
    else:
        config(foreign, **content)
    cli.refuses(
        EXIT_DATA,
        "convert",
        foreign,
        tmp_path / "new.safetensors",
        says=(says, "config.json", "move it away"),
    )


@pytest.mark.parametrize("content", [{}, [], {"model_type": "resnet"}, {"pretrained_cfg": None}, "other"])
def test_a_config_json_of_something_else_is_not_used(
    cli: CommandLine, foreign: Path, tmp_path: Path, content: Any
) -> None:
    if content == "other":
        config(foreign, "resnet50")
    else:
        foreign.with_name("config.json").write_text(json.dumps(content))
    out = cli.ok("convert", foreign, tmp_path / "new.safetensors", "--dry-run").out
    assert "with torch's defaults for the rest" in out


def test_a_checksum_is_more_than_a_config_and_a_config_more_than_a_name(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(foreign)
    digest = file_digest(foreign)
    named = foreign.with_name("resnext_tiny.zz_in1k.safetensors")
    monkeypatch.setattr(published, "TABLE", {"12345678": ("resnext_tiny.zz_in1k", {"resize": 240})})
    found = find_published(named, digest, "resnext_tiny", "torch")
    assert found is not None
    assert found.by == "its config.json"
    table = {digest.removeprefix("sha256:")[:8]: ("resnext_tiny.zz_in1k", {"resize": 240})}
    monkeypatch.setattr(published, "TABLE", table)
    found = find_published(named, digest, "resnext_tiny", "torch")
    assert found is not None
    assert (found.by, found.settings(448)["resize"]) == ("recognised by its checksum", 480)
    named.with_name("config.json").write_text("{")
    assert find_published(named, digest, "resnext_tiny", "torch") is not None  # it does not matter then
    with pytest.raises(DataError):
        find_published(named, NOTHING, "resnext_tiny", "torch")


# -- in a training -----------------------------------------------------------------------------------------


def test_a_training_takes_the_preprocessing_of_a_pretrained_file(
    cli: CommandLine, foreign: Path, photos: Path, tmp_path: Path
) -> None:
    config(foreign, test_input_size=None, crop_pct=0.8, test_crop_pct=None)
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        "model: {variant: resnext_tiny}\ndata: {workers: 0}\noptimizer: {lr: 0.01}\n"
        "train: {epochs: 1, batch_size: 8}\npreprocess: {filter: plain}\n"
    )
    words = ["train", "--recipe", settings, "--data", photos, "--output", tmp_path, "--pretrained", foreign]
    out = cli.ok(*words, "--name", "run").out
    assert "preprocessing of resnext_tiny.a9_in1k, images of 8 pixels" in out
    assert "preprocessing by the configuration: filter plain instead of bicubic" in out
    weights = load_weights(tmp_path / "run" / "checkpoints" / "step-00000006" / "weights.safetensors")
    given = weights.preprocess
    assert (given.mode, given.filter, given.resize, given.size) == ("shorter-side", "plain", 10, 8)
    assert given.std == (63.75, 127.5, 58.395)
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["model"]["image_size"] == 8
    section = {"mode": "shorter-side", "filter": "plain", "resize": 10, "mean": [127.5] * 3}
    assert section.items() <= stored["preprocess"].items()
    foreign.unlink()
    cli.ok("train", "--resume", tmp_path / "run", "--epochs", 2)
    again = load_weights(tmp_path / "run" / "checkpoints" / "step-00000012" / "weights.safetensors")
    assert again.preprocess == given


def test_a_resize_that_is_too_small_for_the_published_size_belongs_to_the_variants_own(
    cli: CommandLine, foreign: Path, photos: Path, tmp_path: Path
) -> None:
    """As with timm's weights of 288 pixels and a recipe that resizes to 256: 224 pixels then, not an error."""
    config(foreign, test_input_size=[3, 48, 48])  # resnext_tiny has 32 pixels
    convert = ["convert", foreign, tmp_path / "new.safetensors", "--dry-run"]
    assert "images shorter-side 50 -> 48 (bicubic)" in cli.ok(*convert).out
    assert "images shorter-side 40 -> 32 (bicubic)" in cli.ok(*convert, "--set", "preprocess.resize=40").out
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        "model: {variant: resnext_tiny}\ndata: {workers: 0}\ntrain: {epochs: 1, batch_size: 8}\n"
        "preprocess: {resize: 40}\n"
    )
    words = ["train", "--recipe", settings, "--data", photos, "--output", tmp_path, "--pretrained", foreign]
    assert "images of 32 pixels" in cli.ok(*words, "--name", "run").out


def test_an_evaluation_says_what_it_has_recognised(cli: CommandLine, foreign: Path, photos: Path) -> None:
    config(foreign)
    words = ["eval", "--weights", foreign, "--data", photos, "--set", "data.workers=0"]
    out = cli.ok(*words).out
    assert "preprocessing of resnext_tiny.a9_in1k: images shorter-side 12 -> 12 (bicubic)" in out
    out = cli.ok(*words, "--set", "eval.size=20", "--set", "eval.crop_pct=0.8").out
    assert "images shorter-side 25 -> 20 (bicubic)" in out

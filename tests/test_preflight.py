"""What doctor --run says of a training that was not started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import TRAIN, CommandLine

from resnext_core.checkpoint_folder import read_summary
from resnext_core.cli.common import read_recipe
from resnext_core.config import Layer, load_config
from resnext_core.errors import EXIT_DATA, EXIT_OK, EXIT_USAGE
from resnext_core.preflight import checkpoint_bytes, training_memory
from resnext_core.runs import RunFolder
from resnext_core.serve import build_spec
from resnext_core.spec import model_spec
from resnext_core.weights import load_weights


def asked(cli: CommandLine, *words: object, code: int = EXIT_OK) -> dict[str, list[dict[str, str]]]:
    """Return the notes of ``doctor --run``, by topic."""
    outcome = cli("--backend", "reference", "doctor", "--json", "--run", *words)
    assert outcome.code == code, outcome
    notes: dict[str, list[dict[str, str]]] = {}
    for note in outcome.json()["notes"]:
        notes.setdefault(note["topic"], []).append(note)
    return notes


def warnings(notes: dict[str, list[dict[str, str]]]) -> list[str]:
    return [note["text"] for found in notes.values() for note in found if note["level"] == "warning"]


def test_a_sound_training(cli: CommandLine, photos: Path, recipe: Path) -> None:
    notes = asked(cli, recipe, "--data", photos, "--batch-size", 16, "--epochs", 9)
    assert [n["level"] for found in notes.values() for n in found] == ["ok"] * len(notes)
    assert notes["data"][0]["text"] == "train 48, val 23 images, 6 classes"
    assert notes["steps"][0]["text"] == "9 epochs of 3 steps, 16 images a step"
    assert set(notes) == {"backend", "data", "steps", "lr", "memory", "disk"}


def test_a_run_folder_is_its_own_configuration(cli: CommandLine, finished_run: Path) -> None:
    notes = asked(cli, finished_run)
    assert notes["data"][0]["text"].startswith(f"train {sum(TRAIN)}, ")


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["optimizer.lr=0.1", "optimizer.lr_batch=8"], "2 times optimizer.lr from the first step on"),
        (["schedule.warmup_epochs=9"], "warm-up takes all 9 epochs"),
        (["schedule.kind=step", "schedule.milestones=[100]"], "at the end"),
        (["train.batch_size=4"], "batch statistics are of 4 images at a time"),
        (["train.accumulate=4"], "batch statistics are of 4 images at a time"),
    ],
)
def test_what_would_cost_accuracy_is_a_warning(
    cli: CommandLine, photos: Path, recipe: Path, sets: list[str], says: str
) -> None:
    fixed = ["schedule.warmup_epochs=0", "train.batch_size=16", "train.epochs=9"]
    flags = [f"--set={value}" for value in [*fixed, *sets]]
    found = warnings(asked(cli, recipe, "--data", photos, *flags))
    assert len(found) == 1, found
    assert says in found[0]


def test_data_without_val_and_classes_without_images(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text(
        "".join(f"{p} {p.parent.name}\n" for p in (photos / "train").rglob("*.jpg"))
    )
    flags = ["--data", tmp_path, "--batch-size", 16]
    assert warnings(asked(cli, recipe, *flags)) == ["no val part: nothing says which checkpoint is best"]
    (tmp_path / "val.txt").write_text("".join(f"{p} ant\n" for p in (photos / "val" / "ant").iterdir()))
    assert warnings(asked(cli, recipe, *flags)) == ["val has no image of 5 classes, e.g. bee, cat, dog"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", 49], "larger than the 48 training images"),
        (["--batch-size", 16, "--devices", 3], "not divisible by 3 ranks"),
        (["--num-classes", 7], "7"),
        (["--pretrained", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--batch-size", 16, "--set", "train.keep=1000000000"], "1000000000 newest"),
    ],
)
def test_what_would_end_it_is_an_error(
    cli: CommandLine, photos: Path, recipe: Path, flags: list[object], says: str
) -> None:
    words = ["--backend", "reference", "doctor", "--run", recipe, "--data", photos]
    cli.refuses(EXIT_DATA, *words, *flags, says=("this training cannot work", says))


def test_a_backend_that_is_elsewhere_is_a_warning(
    cli: CommandLine, photos: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnext_core import plugins

    def absent(self: Any, *_: object) -> None:
        raise plugins.BackendUnavailable("no card in this machine")

    monkeypatch.setattr(plugins.PluginSet, "choose", absent)
    outcome = cli.ok("doctor", "--json", "--run", recipe, "--data", photos, "--batch-size", 16)
    assert outcome.json()["notes"][0] == {
        "topic": "backend", "level": "warning", "text": "not on this machine: no card in this machine",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["doctor", "--data", "x"], "add --run CONFIG"),
        (["doctor", "--devices", 2], "add --run CONFIG"),
        (["doctor", "--run", "digit"], "did you mean 'digits'"),
        (["doctor", "--run", "digits"], "--data"),
    ],
)
def test_wrong_words(cli: CommandLine, words: list[object], says: str) -> None:
    cli.refuses(EXIT_USAGE, *words, says=says)


# -- estimates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_checkpoint_is_as_large_as_stated(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path, ema: float | None
) -> None:
    words = ["--backend", "reference", "train", "--recipe", recipe, "--data", photos, "--epochs", 1]
    cli.ok(*words, "--output", tmp_path, "--name", "run", *([f"--set=train.ema_decay={ema}"] if ema else []))
    run = RunFolder(tmp_path / "run")
    (path,) = run.checkpoints.glob("step-*")
    spec = load_weights(path / "weights.safetensors").spec
    config = load_config([Layer(source="", values={"train": {"ema_decay": ema}})])[0]
    headers = 40_000  # names and manifest, which are not tensors
    assert 0 < read_summary(path).saving.bytes - checkpoint_bytes(spec, config) < headers


def test_memory_grows_with_what_it_is_made_of() -> None:
    config = load_config([read_recipe("imagenet-150e")])[0]
    spec = build_spec(config, 1000)
    half = training_memory(spec, config, 16)
    whole = training_memory(spec, replace(config, precision=replace(config.precision, compute="float32")), 16)
    assert whole.activations == 2 * half.activations == 2 * training_memory(spec, config, 8).activations * 2
    ema = training_memory(spec, replace(config, train=replace(config.train, ema_decay=0.9)), 16)
    assert ema.state - half.state == 4 * 115_266_984  # with BN statistics
    assert half.state == 4 * (115_266_984 + 2 * 114_971_944)


def test_activations_are_those_that_others_count() -> None:
    """timm's table of results states them, in millions: outputs of all convolutions."""
    for variant, millions in (
        ("resnext50_32x4d", 14.40),
        ("resnext101_32x8d", 31.21),
        ("resnext101_64x4d", 31.21),
    ):
        assert abs(model_spec(variant).activations / 1e6 - millions) < 0.005, variant
